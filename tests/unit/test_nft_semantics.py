"""The native rewrite judged by a model firewall: CONTRACT.md, "What rewrite promises", G1 to G5."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from netfilter_packets import Packet, stray_states, universe, usual_states
from nft_kernel import load
from nft_model import Firewall

from cloudinit_conntrack.netfilter.nft_ruleset import format_nft, parse_nft
from cloudinit_conntrack.netfilter.nft_stateless import make_stateless_nft
from cloudinit_conntrack.netfilter.nft_work import NftRewritten
from cloudinit_conntrack.netfilter.stateless import Change

Json = Any
STATES = ("new", "established", "related", "invalid", "untracked")
SUBSETS = [s for n in range(1, 6) for s in itertools.combinations(STATES, n)]
FAMILIES = {"ip": ("ipv4",), "ip6": ("ipv6",), "inet": ("ipv4", "ipv6")}
ACCEPT, DROP = {"accept": None}, {"drop": None}


def match(left: Json, right: Json, op: str = "==") -> Json:
    """A match of ``tcp dport``, ``meta l4proto``, ``ct state`` ..."""
    if isinstance(left, str):
        kind, name = left.split(" ", 1)
        left = {kind: {"key": name}} if kind in ("meta", "ct") else {"payload": {"protocol": kind, "field": name}}
    return {"match": {"op": op, "left": left, "right": right}}


def state(*names: str) -> Json:
    return match("ct state", list(names) if len(names) > 1 else names[0], "in")


def ruleset(rules: dict[str, list[list[Json]]], policy: str = "drop", family: str = "inet") -> str:
    """A table with the chains input, output and what *rules* names beside; ``raw`` is a chain at prerouting."""
    table = {"family": family, "table": "t"}
    chains = {"input": ("input", 0), "output": ("output", 0), "raw": ("prerouting", -300)}
    items: list[Json] = [{"metainfo": {"json_schema_version": 1}}, {"table": {"family": family, "name": "t"}}]
    for name in dict.fromkeys(("input", "output", "u1", "u2", *rules)):
        base = {}
        if name in chains:
            hook, priority = chains[name]
            base = {"type": "filter", "hook": hook, "prio": priority, "policy": policy if priority == 0 else "accept"}
        items.append({"chain": {**table, "name": name, **base}})
    handles = itertools.count(10)
    items += [{"rule": {**table, "chain": chain, "handle": next(handles), "expr": expr}}
              for chain, exprs in rules.items() for expr in exprs]  # fmt: skip
    return json.dumps({"nftables": items}) + "\n"


PACKETS = {family: tuple(universe(family)) for family in ("ipv4", "ipv6")}


def judge(text: str, hooks: tuple[str, ...] = ("INPUT", "OUTPUT")) -> NftRewritten:
    """Rewrite *text* and check every promise on every packet of the universe."""
    parsed = parse_nft(text, "in")
    assert format_nft(parsed) == text
    done = make_stateless_nft(parsed)
    if done.blockers:
        assert done.ruleset is parsed
        return done
    after = format_nft(done.ruleset)
    assert '"ct"' not in after and "notrack" not in after, f"G1:\n{text}\n->\n{after}"
    assert_untouched(text, after, done)
    again = make_stateless_nft(parse_nft(after, "out"))
    assert format_nft(again.ruleset) == after and not again.changes, f"G5:\n{after}"
    table = next(parsed.of_kind("table")).family
    for family in FAMILIES[table]:
        old, new = Firewall(text, family), Firewall(after, family)
        for hook, packet in itertools.product(hooks, PACKETS[family]):
            judge_packet(old, new, hook, packet, done, text)
    return done


def judge_packet(old: Firewall, new: Firewall, hook: str, packet: Packet, done: NftRewritten, text: str) -> None:
    exempt = old.exempt(hook, packet)
    usual = usual_states(packet, hook, old.family)
    usual = ("UNTRACKED",) if exempt and usual else usual
    stray = ("UNTRACKED",) if exempt else stray_states(packet, old.family)
    now = new.send(hook, packet)
    story = f"{old.family} {hook} {packet}\n{text}\n" + "\n".join(f"{c.rule} -> {c.becomes}" for c in done.changes)
    for name in usual:
        before = old.send(hook, packet, name)
        lost = before.verdict == "ACCEPT" and now.verdict != "ACCEPT"
        # ports do not tell a UDP request from a reply: where that loses one, it must be said (G2)
        assert not lost or (packet.protocol == "udp" and said(done)), f"G2 ({name}): {story}"
        # an accept of new traffic of every protocol takes ICMP errors along, past a later LOG
        if before.verdict == now.verdict and packet.protocol != "udp" and not exempt and now.verdict != "ACCEPT":
            assert before.logged == now.logged, f"G2, logged ({name}) {before.logged} {now.logged}: {story}"
    if now.verdict != "ACCEPT":
        return
    refused = [s for s in stray if old.send(hook, packet, s).verdict != "ACCEPT"]
    if refused:
        assert not packet.is_syn, f"G3, a SYN is let in ({refused}): {story}"
        assert stated(done.changes, packet), f"G3, not stated ({refused}): {story}\n{widenings(done.changes)}"


def said(done: NftRewritten) -> bool:
    """Whether the rewrite says that it cannot tell UDP requests from replies."""
    return any("UDP" in note and ("cannot be told" in note or "not let through" in note) for note in done.notes)


def widenings(changes: tuple[Change, ...]) -> list[str]:
    return [change.widens for change in changes if change.widens and "fragments" not in change.widens]


WORDS = {"udp": ("UDP", "packets"), "icmp": ("ICMP", "echo", "errors", "packets", "discovery"), "gre": ("packets",)}


def stated(changes: tuple[Change, ...], packet: Packet) -> bool:
    """Whether a widening speaks of *packet*'s kind."""
    words = WORDS.get(packet.protocol) or ("packets", "ACK" if packet.flags & 16 else "RST" if packet.flags & 4
                                           else "SYN")  # fmt: skip
    return any(word in text for text in widenings(changes) for word in words)


def assert_untouched(before: str, after: str, done: NftRewritten) -> None:
    """G4: objects that no change names are there byte for byte and in order."""
    changed = {change.line for change in done.changes if change.rule.split()[0] != "chain"}
    kept = [entry.text for entry in parse_nft(before).entries if entry.index not in changed]
    rest = iter(entry.text for entry in parse_nft(after).entries)
    for text in kept:
        assert any(text == other for other in rest), f"G4: {text} is gone or moved:\n{before}\n->\n{after}"


# --- every combination of states, protocols and verdicts -------------------------------

VERDICTS: tuple[list[Json], ...] = (
    [ACCEPT], [DROP], [{"reject": None}], [{"log": {"prefix": "seen "}}], [{"return": None}],
    [{"jump": {"target": "u1"}}], [{"goto": {"target": "u2"}}], [{"limit": {"rate": 5, "per": "minute"}}, ACCEPT],
)  # fmt: skip
PROTOCOLS: tuple[list[Json], ...] = (
    [], [match("meta l4proto", "tcp")], [match("tcp dport", 22)], [match("meta l4proto", "udp")],
    [match("udp dport", 53)], [match("ip protocol", "icmp")], [match("icmpv6 type", "echo-request")],
    [match("meta l4proto", "gre")],
    [match("meta l4proto", "tcp", "!=")], [match("meta l4proto", {"set": ["tcp", "udp"]}), match("th dport", 53)],
    [match("meta nfproto", "ipv6")], [match("udp sport", 53)],
    [match("tcp flags", "syn", "in")],
)  # fmt: skip
USER_CHAINS = {"u1": [[match("tcp dport", 22), ACCEPT], [DROP]], "u2": [[match("meta l4proto", "udp"), ACCEPT]]}


@pytest.mark.parametrize("family", ["ip", "ip6", "inet"])
@pytest.mark.parametrize("verdict", VERDICTS, ids=lambda v: next(iter(v[0])))
def test_every_combination_of_states_and_protocols(family: str, verdict: list[Json]) -> None:
    judged = 0
    for states, protocol in itertools.product(SUBSETS[len(family) % 2 :: 2], PROTOCOLS):
        if ("icmpv6" in str(protocol) and family == "ip") or ("'ip'" in str(protocol) and family == "ip6"):
            continue
        rule = [*protocol, state(*states), *verdict]
        policy = "drop" if len(states) % 2 else "accept"
        done = judge(ruleset({"input": [rule], **USER_CHAINS}, policy, family), ("INPUT",))
        judged += not done.blockers
    assert judged > 90


@pytest.mark.parametrize("operator", ["==", "!=", "set", "!= set", "!", "& ==", "& !=", "number", "vmap"])
def test_every_way_to_ask_for_a_state(operator: str) -> None:
    for states in SUBSETS:
        listed, first = list(states), states[0]
        masked = {"&": [{"ct": {"key": "state"}}, listed]}
        bits = sum({"invalid": 1, "established": 2, "related": 4, "new": 8, "untracked": 64}[s] for s in states)
        rule = {
            "==": [match("ct state", first), ACCEPT], "!=": [match("ct state", first, "!="), ACCEPT],
            "set": [match("ct state", {"set": listed}), ACCEPT],
            "!= set": [match("ct state", {"set": listed}, "!="), ACCEPT],
            "!": [match("ct state", listed, "!"), ACCEPT], "& ==": [match(masked, first), ACCEPT],
            "& !=": [match(masked, 0, "!="), ACCEPT], "number": [match("ct state", bits, "in"), ACCEPT],
            "vmap": [{"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [[s, ACCEPT] for s in states]}}}],
        }[operator]  # fmt: skip
        for policy in ("drop", "accept"):
            assert not judge(ruleset({"input": [rule, [DROP]]}, policy, "ip"), ("INPUT",)).blockers


# --- whole rule-sets -------------------------------------------------------------------

SETTINGS = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
CONDITIONS: tuple[list[Json], ...] = (
    *PROTOCOLS, [], [],
    [match("tcp dport", {"set": [22, {"range": [80, 90]}]})], [match("tcp sport", 22)], [match("tcp dport", 1024, "<")],
    [match({"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, ["fin", "syn", "rst", "ack"]]}, "syn")],
    [match("udp dport", {"set": [53, 500]})], [match("udp dport", 40000)], [match("meta iifname", "lo")],
    [match("meta iifname", "lo", "!=")], [match("ip saddr", "10.0.0.1")], [match("ip6 saddr", "2001:db8:1::1")],
    [match("ip daddr", {"prefix": {"addr": "10.0.0.0", "len": 8}}), match("udp dport", 53)],
    [match("icmp type", {"set": ["echo-request", "destination-unreachable"]})],
    [match("icmp type", "echo-request", "!=")], [match("meta l4proto", "ipv6-icmp")],
)  # fmt: skip


@st.composite
def rules(draw: st.DrawFn, chains: tuple[str, ...]) -> list[Json]:
    """One rule, which may jump to *chains*."""
    condition = list(draw(st.sampled_from(CONDITIONS)))
    targets: list[list[Json]] = [[ACCEPT], [ACCEPT], [ACCEPT], [DROP], [{"reject": None}], [{"return": None}]]
    targets += [[{"log": {"prefix": "seen "}}], [{"log": {"prefix": "refused "}}, DROP]]
    for other in chains:
        targets += [[{how: {"target": other}}] for how in ("jump", "goto")]
    target = draw(st.sampled_from(targets))
    names = draw(st.lists(st.sampled_from(STATES), min_size=1, max_size=3, unique=True))
    kind = draw(st.integers(0, 5))
    if kind == 0:
        verdicts: list[Json] = [ACCEPT, DROP, {"return": None}]
        verdicts += [{"jump": {"target": chain}} for chain in chains]
        arms = [[name, draw(st.sampled_from(verdicts))] for name in names]
        return [*condition, {"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": arms}}}]
    asked = [] if kind == 1 else [match("ct state", names, draw(st.sampled_from(("in", "!"))))]
    beside: list[Json] = draw(st.sampled_from(([], [], [{"limit": {"rate": 5, "per": "minute"}}], [{"counter": None}],
                                   [{"log": {"prefix": "beside "}}])))  # fmt: skip
    if draw(st.booleans()):
        return [*condition, *asked, *beside, *target]
    return [*beside, *asked, *condition, *target]


@st.composite
def rulesets(draw: st.DrawFn, family: str, raw: bool) -> str:
    found: dict[str, list[list[Json]]] = {}
    for chain, reachable in (("input", ("u1", "u2")), ("output", ("u1",)), ("u1", ("u2",)), ("u2", ())):
        found[chain] = draw(st.lists(rules(reachable), max_size=4))
    if raw:
        exempt = ([match("tcp dport", 22)], [match("udp dport", 53)], [match("meta iifname", "lo")],
                  [match("ip saddr", "10.0.0.1"), match("tcp dport", 80)])  # fmt: skip
        found["raw"] = [[*draw(st.sampled_from(exempt)), {"notrack": None}] for _ in range(draw(st.integers(1, 2)))]
    return ruleset(found, draw(st.sampled_from(("drop", "accept"))), family)


@SETTINGS
@given(rulesets("inet", raw=False))
def test_any_ruleset(text: str) -> None:
    judge(text)


@SETTINGS
@given(rulesets("inet", raw=True))
def test_any_ruleset_with_exemptions(text: str) -> None:
    judge(text)


@settings(SETTINGS, max_examples=25, phases=(Phase.generate,))
@given(st.lists(rulesets("inet", raw=False), min_size=4, max_size=4))
def test_the_real_nft_takes_what_we_make_of_any_ruleset(texts: list[str]) -> None:
    done = [make_stateless_nft(parse_nft(text)) for text in texts]
    after = [format_nft(one.ruleset) for one in done]
    for text, loaded in zip((*texts, *after), load((*texts, *after))):
        assert (loaded.code, loaded.error) == (0, ""), text
        again = make_stateless_nft(parse_nft(loaded.json))
        assert text in texts or again.blockers or not again.changes, loaded.text
