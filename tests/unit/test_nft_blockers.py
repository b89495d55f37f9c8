"""Every row of the table of what depends on conntrack in native rules, and what stands in the way."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudinit_conntrack.errors import RulesSyntaxError
from cloudinit_conntrack.netfilter import nft_stateful, nft_work
from cloudinit_conntrack.netfilter.nft_ruleset import format_nft, parse_nft
from cloudinit_conntrack.netfilter.nft_stateless import make_stateless_nft
from cloudinit_conntrack.netfilter.nft_work import NftRewritten
from cloudinit_conntrack.netfilter.stated import stated_nft
from cloudinit_conntrack.netfilter.stateless import Policy

Json = Any
ACCEPT = {"accept": None}
INPUT = {"type": "filter", "hook": "input", "prio": 0, "policy": "drop"}
NEW = {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "new"}}


def text_of(*exprs: list[Json], family: str = "inet", table: str = "t", chain: str = "c", base: Json = INPUT,
            objects: tuple[Json, ...] = ()) -> str:  # fmt: skip
    items: list[Json] = [{"table": {"family": family, "name": table}}, *objects]
    items.append({"chain": {"family": family, "table": table, "name": chain, **base}})
    items += [{"rule": {"family": family, "table": table, "chain": chain, "expr": list(expr)}} for expr in exprs]
    return json.dumps({"nftables": items})


def rewritten(text: str, policy: Policy | None = None, leave_iptables: bool = False) -> NftRewritten:
    return make_stateless_nft(parse_nft(text, "in"), policy or Policy(), leave_iptables)


def only_blocker(text: str) -> str:
    done = rewritten(text)
    assert done.changes == () and format_nft(done.ruleset) == text
    (blocker,) = done.blockers
    assert blocker.remedy
    return f"{blocker.line}: {blocker.reason}"


@pytest.mark.parametrize("key", sorted(set(nft_stateful.KEYS) - {"state"}))
def test_every_ct_key_blocks_read_or_set(key: str) -> None:
    reason = nft_stateful.KEYS[key].reason
    left = {"ct": {"key": key, "dir": "original"}}
    for expr in (
        [{"match": {"op": "==", "left": left, "right": 1}}, ACCEPT],
        [{"mangle": {"key": left, "value": 1}}],
        [{"mangle": {"key": {"meta": {"key": "mark"}}, "value": left}}],
        [{"set": {"op": "add", "elem": left, "set": "@s"}}],
        [{"vmap": {"key": {"concat": [left, {"meta": {"key": "l4proto"}}]}, "data": {"set": []}}}],
        [NEW, {"match": {"op": "==", "left": left, "right": 1}}, ACCEPT],
    ):
        assert only_blocker(text_of(expr)) == f"3: it {reason}"


def test_a_key_that_nobody_knows_blocks() -> None:
    for ct in ({"key": "brand-new"}, {}, 5, None):
        expr = [{"match": {"op": "==", "left": {"ct": ct}, "right": 1}}, ACCEPT]
        assert "asks something of the connection" in only_blocker(text_of(expr))


BODIES = {"ct count": {"val": 5}, "flow": {"op": "add", "flowtable": "@f"}, "synproxy": {"mss": 1460}}


@pytest.mark.parametrize("name", sorted(set(nft_stateful.STATEMENTS) - {"notrack"}))
def test_every_statement_blocks(name: str) -> None:
    assert nft_stateful.STATEMENTS[name].reason in only_blocker(text_of([{name: BODIES.get(name, "x")}]))


@pytest.mark.parametrize("name", sorted(nft_stateful.OBJECTS))
def test_every_object_blocks_and_is_removed_where_asked(name: str) -> None:
    listed = {name: {"family": "inet", "table": "t", "name": "x"}}
    text = text_of(objects=(listed,))
    assert nft_stateful.OBJECTS[name].reason in only_blocker(text)
    done = rewritten(text, Policy(stateful="remove"))
    assert [change.becomes for change in done.changes] == [()] and name not in format_nft(done.ruleset)


def test_a_set_that_counts_connections_blocks() -> None:
    count = {"ct count": {"val": 5}}
    source = {"payload": {"protocol": "ip", "field": "saddr"}}
    for field in ({"stmt": [count]}, {"elem": [{"elem": {"val": "10.0.0.1", **count}}]}):
        text = text_of(objects=({"set": {"family": "inet", "table": "t", "name": "s", "type": "ipv4_addr", **field}},))
        assert "counts connections" in only_blocker(text)
    assert "counts connections" in only_blocker(text_of([{"meter": {"name": "m", "key": source, "stmt": count}}]))


@pytest.mark.parametrize("family", ["bridge", "netdev", "arp"])
def test_a_family_without_connections_blocks(family: str) -> None:
    assert f"in the family {family}" in only_blocker(text_of([NEW, ACCEPT], family=family))


@pytest.mark.parametrize(
    "hook, priority, early",
    [("prerouting", -300, True), ("prerouting", -200, True), ("prerouting", -199, False), ("output", -300, True),
     ("output", 0, False), ("input", -300, False), ("ingress", 0, True)],
)  # fmt: skip
def test_before_conntrack_no_packet_has_a_state(hook: str, priority: int, early: bool) -> None:
    text = text_of([NEW, ACCEPT], base={"type": "filter", "hook": hook, "prio": priority, "policy": "accept"})
    if early:
        assert "so early no packet has a state yet" in only_blocker(text)
    else:
        assert not rewritten(text).blockers


L4PROTO = {"meta": {"key": "l4proto"}}


def state(op: str, right: Json, left: Json = None) -> list[Json]:
    return [{"match": {"op": op, "left": left or {"ct": {"key": "state"}}, "right": right}}, ACCEPT]


@pytest.mark.parametrize(
    "expr",
    [
        state(">", 2), state("==", {"range": ["new", "untracked"]}), state("==", {"prefix": {"addr": "new", "len": 2}}),
        state("==", "nonsense"), state("==", True), state("==", {"set": ["nonsense"]}), state("!", {"set": ["new"]}),
        state("==", {"set": [{"elem": {"val": "new", "counter": {"packets": 1, "bytes": 1}}}]}),
        state("==", 0, {"|": [{"ct": {"key": "state"}}, 2]}), state("==", 0, {"&": [{"ct": {"key": "state"}}, "x"]}),
        state("!=", {"set": [{"concat": ["new", 22]}]}, {"concat": [{"ct": {"key": "state"}}, L4PROTO]}),
        [{"vmap": {"key": {"ct": {"key": "state"}}, "data": "@unknown"}}],
        [{"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [["nonsense", ACCEPT]]}}}],
        [{"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [["new", "accept"]]}}}],
        [{"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [["new", ACCEPT]]}}}, {"counter": None}],
        [NEW, {"log": None}, *state("in", "established")],
        [{"log": {"prefix": "x"}}, NEW, {"goto": {"target": "u"}}],
        [NEW, {"goto": {"target": "u"}}],
    ],
)  # fmt: skip
def test_what_cannot_be_said_blocks(expr: list[Json]) -> None:
    text = text_of(expr, objects=({"chain": {"family": "inet", "table": "t", "name": "u"}},))
    if expr[0] == {"log": {"prefix": "x"}} or expr == [NEW, {"goto": {"target": "u"}}]:
        assert "leaves its chain" in only_blocker(text)
    else:
        only_blocker(text)


def test_nat_is_refused_or_removed() -> None:
    base = {"type": "nat", "hook": "prerouting", "prio": -100, "policy": "accept"}
    dnat = [{"dnat": {"addr": "10.0.0.1"}}]
    assert "translates addresses" in only_blocker(text_of(dnat, base=base, family="ip"))
    assert "is a chain of type nat" in only_blocker(text_of([{"counter": None}], base=base, family="ip"))
    assert "drops packets" in only_blocker(text_of(base={**base, "policy": "drop"}))
    removed = rewritten(text_of(dnat, [{"log": None}], base=base), Policy(nat="remove"))
    assert [entry.kind for entry in removed.ruleset.entries] == ["table"] and len(removed.changes) == 3
    empty = rewritten(text_of(base=base))
    assert [entry.kind for entry in empty.ruleset.entries] == ["table"]
    kept = rewritten(text_of(base=base), Policy(drop_empty_nat=False))
    assert kept.changes == ()


def test_notrack_goes_and_what_stands_beside_it_stays() -> None:
    raw = {"type": "filter", "hook": "prerouting", "prio": -300, "policy": "accept"}
    port = {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 80}}
    assert [change.becomes for change in rewritten(text_of([port, {"notrack": None}], base=raw)).changes] == [()]
    done = rewritten(text_of([port, {"notrack": None}, ACCEPT], base=raw))
    assert [change.becomes for change in done.changes] == [("tcp dport 80 accept",)]


def test_policies_of_what_is_stateful() -> None:
    text = text_of([NEW, ACCEPT])
    assert [b.remedy for b in rewritten(text, Policy(stateful="refuse")).blockers] == ["set it to 'rewrite'"]
    assert [c.becomes for c in rewritten(text, Policy(stateful="remove")).changes] == [()]


# --- tables of iptables-nft ------------------------------------------------------------

IPTABLES = {"type": "filter", "hook": "input", "prio": 0, "policy": "accept"}


def test_tables_of_iptables_are_left_alone() -> None:
    plain = text_of([{"counter": {"packets": 0, "bytes": 0}}, ACCEPT], family="ip", table="filter", chain="INPUT",
                    base=IPTABLES)  # fmt: skip
    done = rewritten(plain)
    assert (done.owned, done.changes, done.blockers) == ((("ip", "filter"),), (), ())
    assert done.notes == ("in: table ip filter is iptables-nft's and left alone; "
                          "rewrite it from what iptables-save prints",)  # fmt: skip
    stateful = text_of([{"xt": {"type": "match", "name": "conntrack"}}, ACCEPT], family="ip", table="filter",
                       chain="INPUT", base=IPTABLES)  # fmt: skip
    assert "its table is iptables-nft's" in only_blocker(stateful)
    left = rewritten(stateful, leave_iptables=True)
    assert (left.owned, left.changes, left.blockers) == ((("ip", "filter"),), (), ())
    target = text_of([{"xt": {"type": "target", "name": "MASQUERADE"}}], family="ip", table="nat", chain="POSTROUTING",
                     base={"type": "nat", "hook": "postrouting", "prio": 100, "policy": "accept"})  # fmt: skip
    assert [b.line for b in rewritten(target).blockers] == [2, 3]


def test_native_rules_in_a_table_of_that_name_are_native() -> None:
    text = text_of([NEW, ACCEPT], family="ip", table="filter", chain="INPUT", base=IPTABLES)
    done = rewritten(text)
    assert done.owned == () and done.changes


def test_unknown_words_are_said_to_be_unknown() -> None:
    odd = {"match": {"op": "==", "left": {"brand new": {"key": "x"}}, "right": 1}}
    done = rewritten(text_of([odd, ACCEPT], [{"teleport": None}], [{"counter": None}]))
    assert done.changes == () and len(done.notes) == 2
    assert "unknown expression 'brand new'" in done.notes[0] and "unknown expression 'teleport'" in done.notes[1]


# --- no input gives a traceback --------------------------------------------------------

SCALARS = st.sampled_from((None, True, 0, 5, -1, 2**70, 1.5, "", "@s", "new", "tcp", "10.0.0.0/8", "x:y"))
NAMES = st.sampled_from(
    "ct key state op left right payload protocol field meta set elem val range prefix addr len concat | & map data "
    "exthdr reject type flags iifname numgen mode stmt counter limit dir target".split()
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=10
)
LEFTS = st.sampled_from(
    (
        {"ct": {"key": "state"}}, {"payload": {"protocol": "tcp", "field": "flags"}}, {"meta": {"key": "l4proto"}},
        {"payload": {"protocol": "udp", "field": "dport"}}, {"meta": {"key": "iifname"}},
        {"payload": {"protocol": "ip", "field": "saddr"}}, {"&": [{"ct": {"key": "state"}}, 2]},
    )
)  # fmt: skip
OPERATORS = st.sampled_from(("==", "!=", "in", "!", "<", ">", "<=", ">=", "odd"))
KINDS = st.sampled_from(
    ("accept", "drop", "counter", "limit", "log", "reject", "mangle", "set", "meter", "quota", "queue", "snat",
     "notrack", "flow", "ct count", "xt", "dup", "odd")
)  # fmt: skip
PAIRS = st.lists(st.tuples(VALUES, VALUES).map(list), max_size=3)
STATEMENTS = st.one_of(
    st.builds(lambda o, a, b: {"match": {"op": o, "left": a, "right": b}}, OPERATORS, LEFTS | VALUES, VALUES),
    st.builds(lambda k, d: {"vmap": {"key": k, "data": d}}, LEFTS | VALUES, VALUES | PAIRS.map(lambda p: {"set": p})),
    st.builds(lambda kind, body: {kind: body}, KINDS, VALUES),
    st.just(NEW), st.just(ACCEPT),
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(st.lists(STATEMENTS, max_size=4), max_size=3), VALUES)
def test_no_expression_is_more_than_a_blocker(exprs: list[list[Json]], element: Json) -> None:
    named = {"set": {"family": "inet", "table": "t", "name": "s", "elem": element}}
    text = text_of(*exprs, objects=(named,))
    done = rewritten(text)
    assert format_nft(parse_nft(format_nft(done.ruleset))) == format_nft(done.ruleset)


def test_unknown_words_are_found_wherever_a_rule_has_them() -> None:
    odd = {"odd": {"key": 1}}
    key = {"meta": {"key": "mark"}}
    for expr in (
        [{"mangle": {"key": key, "value": {"jhash": {"mod": 2, "expr": odd}}}}],
        [{"set": {"op": "add", "elem": {"elem": {"val": {"concat": [key, odd]}}}, "set": "@s"}}],
        [{"set": {"op": "add", "elem": key, "set": "@s", "stmt": [{"odd": None}]}}],
        [{"vmap": {"key": {"map": {"key": odd, "data": "@m"}}, "data": "@v"}}],
        [{"meter": {"name": "m", "key": odd, "stmt": {"counter": None}}}],
        [{"dup": {"addr": odd}}],
    ):
        done = rewritten(text_of(expr))
        assert [note.partition(":")[2] for note in done.notes if "unknown expression 'odd'" in note], expr


def test_an_extension_of_iptables_is_known_unknown_or_without_a_name() -> None:
    def notes(name: object) -> tuple[str, ...]:
        return rewritten(text_of([{"xt": {"type": "match", "name": name}}, ACCEPT])).notes

    assert not any("unknown" in note for note in notes("tcp"))
    assert any("unknown expression 'xt brand-new'" in note for note in notes("brand-new"))
    for nameless in (None, {}, {"type": "match", "name": None}):
        done = rewritten(text_of([{"xt": nameless}, ACCEPT]))
        assert [b.reason for b in done.blockers] == [
            "it uses an iptables extension that this nft does not name, and its table is iptables-nft's"
        ]


# --- a list that is not whole, or far too large ------------------------------------------


def test_what_is_not_declared_is_an_error_with_its_place() -> None:
    table = {"table": {"family": "inet", "name": "t"}}
    chain = {"chain": {"family": "inet", "table": "t", "name": "c"}}
    rule = {"rule": {"family": "inet", "table": "t", "chain": "c", "expr": [NEW, ACCEPT]}}
    jump = {"rule": {"family": "inet", "table": "t", "chain": "c", "expr": [NEW, {"jump": {"target": "u"}}]}}
    for items, said in (
        ([rule], "in: object 1: rule in, or to, the table inet t, which is not declared"),
        ([chain], "in: object 1: chain in, or to, the table inet t"),
        ([table, rule], "in: object 2: rule in, or to, the chain inet t c"),
        ([table, chain, rule, jump], "in: object 4: rule in, or to, the chain inet t u"),
    ):
        with pytest.raises(RulesSyntaxError) as caught:
            rewritten(json.dumps({"nftables": items}))
        assert said in str(caught.value)


def test_large_sets_are_answered_in_bounded_time() -> None:
    addresses = [f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}" for n in range(0, 60_000, 2)]
    source = {"payload": {"protocol": "ip", "field": "saddr"}}
    state = {"ct": {"key": "state"}}
    for expr in (
        [NEW, {"match": {"op": "==", "left": source, "right": {"set": addresses}}}, ACCEPT],
        [NEW, {"vmap": {"key": source, "data": {"set": [[address, ACCEPT] for address in addresses]}}}],
        [{"match": {"op": "==", "left": {"concat": [state, source]},
                    "right": {"set": [{"concat": ["new", address]} for address in addresses]}}}, ACCEPT],
    ):  # fmt: skip
        text = text_of(expr)
        done = rewritten(text)
        assert not done.blockers and all(len(change.rule) < 3000 for change in done.changes)
        started = time.process_time()
        stated_nft(parse_nft(text), done.ruleset)
        assert time.process_time() - started < 20


def test_many_states_times_many_ports_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nft_work, "MOST_EFFORT", 5_000)

    def ask(port: int) -> list[Json]:
        left = {"payload": {"protocol": "udp", "field": "dport"}}
        return [{"match": {"op": "==", "left": left, "right": port}}, ACCEPT]

    known = [{"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "established"}}, ACCEPT]
    forward = {"type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}
    text = text_of(*(ask(port) for port in range(1, 101)), *(known for _ in range(200)), base=forward)
    blockers = rewritten(text).blockers
    assert [b.reason for b in blockers] == ["so many states times so many UDP ports or exemptions make too many rules"]
