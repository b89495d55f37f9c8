"""Letting named flows bypass conntrack by native rules, while the rest of the host keeps it.

The same as :mod:`.notrack`, for nftables: a table of our own stops the tracking, and beside
each rule that asks for a state stands its twin for untracked packets.  Every rule that we
add carries our name and a digest of itself as its comment: so ours are known again in
whatever words a version of nft lists them.  Planning takes them out and writes them anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping

from .bypass import OWNER
from .nft_kinds import FAMILIES, NUMBERS, Statement
from .nft_match import field_ranges, tests_of
from .nft_notrack import ERRORS, OWN_TABLE, errors_matches, own_chains, own_rule, own_table
from .nft_opening import openings
from .nft_questions import CannotBeSaidError, questions
from .nft_ruleset import Entry, NftRuleSet, made
from .nft_stateful import NAT_STATEMENTS, asks_state
from .nft_tables import digest_text, lasting
from .nft_twins import NftBypass, Twin, replies_of, twins_of
from .nft_values import common
from .nft_words import object_text, rule_text, statements_text
from .nft_work import NftRewritten, Work
from .stateless import Change, Policy, RuleBlocker

_ACCEPT: Statement = {"accept": None}


def is_own(entry: Entry) -> bool:
    """Whether *entry* is a rule that we added, or stands in our table."""
    comment = entry.body.get("comment") if entry.kind == "rule" else None
    return entry.table == OWN_TABLE or (isinstance(comment, str) and comment.startswith(OWNER))


def strip_own_nft(ruleset: NftRuleSet) -> NftRuleSet:
    """*ruleset* without what we added for ``mode: notrack``; itself where there is nothing of ours."""
    if not any(is_own(entry) for entry in ruleset.entries):
        return ruleset
    return ruleset.with_entries(entry for entry in ruleset.entries if not is_own(entry))


def translates(ruleset: NftRuleSet) -> bool:
    """Whether any rule translates addresses or ports."""
    return any(_nat(entry) for entry in ruleset.of_kind("rule"))


def _nat(entry: Entry) -> bool:
    return any(key in NAT_STATEMENTS for statement in entry.statements for key in statement)


def add_bypass_nft(ruleset: NftRuleSet, bypass: NftBypass, stop: bool, nat_elsewhere: bool = False) -> NftRewritten:
    """Add the bypass to *ruleset*; unchanged where it is there already.

    *stop*: our table is to stop the tracking (else iptables' raw table does, and only twins
    are added).  *nat_elsewhere*: iptables translates addresses.  Blockers where a rule
    translates one of the flows.
    """
    base = strip_own_nft(ruleset)
    work = Work(base, Policy(), replies_of(base, bypass), {}, frozenset())
    twins = {entry.index: twins_of(work, entry, bypass) for entry in base.of_kind("rule")}
    blockers = (*_nat_blockers(base, bypass), *work.blockers)
    if blockers:
        return NftRewritten(ruleset, (), blockers)
    translating = nat_elsewhere or translates(base)
    changes: list[Change] = []
    result = base.with_entries((*_with_twins(base, twins, changes), *_stopping(base, bypass, stop, translating)))
    result = _opened(base, result, bypass, translating, changes)
    result = _with_known(ruleset, result)
    if _same(ruleset, result):
        return NftRewritten(ruleset)
    if stop:
        own = [e for e in result.of_kind("rule") if e.table == OWN_TABLE]
        changes += [Change(0, "", (rule_text(e),), "the flow bypasses conntrack") for e in own]
    return NftRewritten(result, tuple(changes), (), tuple(work.notes))


def _with_twins(
    base: NftRuleSet, twins: Mapping[int, tuple[Twin, ...]], changes: list[Change]
) -> Iterator[Entry]:
    for entry in base.entries:
        for twin in twins.get(entry.index, ()):
            new = _signed(made(entry, "rule", {**_place(entry), "expr": list(twin.statements)}))
            reason = f"the untracked flows' twin of: {object_text(entry)}"
            changes.append(Change(0, "", (statements_text(new),), reason, twin.widens))
            yield new
        yield entry


def _place(entry: Entry) -> dict[str, str]:
    return {"family": entry.family, "table": entry.table[1], "chain": entry.place[2]}


def _signed(entry: Entry) -> Entry:
    """*entry* with our comment, which tells what it says whatever nft's words are."""
    digest = hashlib.sha256(digest_text(lasting(entry)).encode("utf-8", "surrogatepass")).hexdigest()[:12]
    body = {key: value for key, value in entry.body.items() if key not in ("handle", "comment")}
    return made(entry, "rule", {**body, "comment": f"{OWNER} {digest}"})


def _stopping(base: NftRuleSet, bypass: NftBypass, stop: bool, translating: bool) -> list[Entry]:
    """Our table, where it is ours to stop the tracking."""
    if not stop:
        return []
    foreign = any("tproxy" in statement for entry in base.of_kind("rule") for statement in entry.statements)
    rules = own_table(bypass, foreign, translating)
    return [*own_chains(), *(_signed(own_rule(chain, statements)) for chain, statements in rules)]


def _opened(
    base: NftRuleSet, result: NftRuleSet, bypass: NftBypass, translating: bool, changes: list[Change]
) -> NftRuleSet:
    """Accept what a flow needs and no rule lets through; the path-MTU errors where they count as INVALID."""
    heads: dict[tuple[str, str, str], list[Entry]] = {}
    chains = {chain.place: chain for chain in result.of_kind("chain")}
    if not bypass.plain.everything:
        for one in openings(base, result, bypass):
            if one.statements:
                heads.setdefault(one.chain.place, []).append(_head(one.chain, one.statements))
            becomes = tuple(statements_text(e) for e in heads[one.chain.place][-1:]) if one.statements else ()
            changes.append(Change(0, "", becomes, one.reason, one.widens))
    for place in _dropping_invalid(base) if translating else ():
        rules = [_head(chains[place], (*errors_matches(p), _ACCEPT)) for p in _protocols(place[0])]
        heads.setdefault(place, []).extend(rules)
        changes += [Change(0, "", (statements_text(e),), "the flows' path-MTU errors count as INVALID",
                           "ICMP errors that belong to no connection are accepted") for e in rules]
    return result.with_entries(_with_heads(result, heads)) if heads else result


def _protocols(family: str) -> list[str]:
    return [p for p in ERRORS if (p == "icmp" and family != "ip6") or (p == "icmpv6" and family != "ip")]


def _head(chain: Entry, statements: Iterable[Statement]) -> Entry:
    place = {"family": chain.family, "table": chain.table[1], "chain": chain.place[2]}
    return _signed(made(chain, "rule", {**place, "expr": list(statements)}))


def _with_heads(result: NftRuleSet, heads: Mapping[tuple[str, str, str], list[Entry]]) -> Iterator[Entry]:
    """The entries with *heads* before the first rule of their chains; at the end where a chain has none."""
    left = dict(heads)
    for entry in result.entries:
        if entry.kind == "rule":
            yield from left.pop(entry.place, ())
        yield entry
    for rules in left.values():
        yield from rules


def _dropping_invalid(base: NftRuleSet) -> Iterator[tuple[str, str, str]]:
    """The base chains at ``input`` from which a packet may come to a rule that refuses INVALID ones."""
    work = Work(base, Policy(), {}, {}, frozenset())
    refusing = [e for e in base.of_kind("rule") if any(map(asks_state, e.statements)) and _refuses_invalid(work, e)]
    for place, base_chain in base.bases.items():
        mine = any(base_chain in base.hooks.get(entry.place, ()) and entry.table == place[:2] for entry in refusing)
        if base_chain.hook == "input" and place[0] in FAMILIES and mine:
            yield place


def _refuses_invalid(work: Work, entry: Entry) -> bool:
    try:
        return any("INVALID" in asked.states and asked.verdict != "accept" for asked in questions(work, entry))
    except CannotBeSaidError:
        return False


# --- what is there already -------------------------------------------------------------


def _with_known(ruleset: NftRuleSet, result: NftRuleSet) -> NftRuleSet:
    """*result* with our rules in the words in which *ruleset* lists them, where it has them."""
    known: dict[tuple[object, ...], list[Entry]] = {}
    for entry in ruleset.entries:
        if is_own(entry):
            known.setdefault(_name(entry), []).append(entry)
    return result.with_entries(known[_name(e)].pop(0) if known.get(_name(e)) else e for e in result.entries)


def _name(entry: Entry) -> tuple[object, ...]:
    return (entry.kind, entry.place, entry.body.get("comment") if entry.kind == "rule" else "")


def _same(one: NftRuleSet, two: NftRuleSet) -> bool:
    return _told(one) == _told(two)


def _told(ruleset: NftRuleSet) -> dict[tuple[str, object], list[object]]:
    found: dict[tuple[str, object], list[object]] = {}
    for entry in ruleset.entries:
        key = (entry.kind, entry.place)
        found.setdefault(key, []).append(_name(entry) if is_own(entry) else entry.index)
    return found


# --- blockers --------------------------------------------------------------------------


def _nat_blockers(base: NftRuleSet, bypass: NftBypass) -> Iterator[RuleBlocker]:
    for entry in base.of_kind("rule"):
        if _nat(entry) and _meets(base, entry, bypass):
            yield RuleBlocker(entry.index, object_text(entry), "it translates a flow that is to bypass conntrack, and "
                              "an untracked packet is never translated",
                              "remove the rule (let haproxy bind the port itself), or take the port out of "
                              "conntrack.flows")  # fmt: skip


def _meets(base: NftRuleSet, entry: Entry, bypass: NftBypass) -> bool:
    """Whether the rule can translate one of the flows."""
    if bypass.plain.everything:
        return True
    tests = tests_of(base, entry, entry.statements)
    ports, protocols = field_ranges(tests, "dport"), field_ranges(tests, "l4proto")
    source_side = any(key in ("masquerade", "snat") for statement in entry.statements for key in statement)
    if source_side and ports is None:
        return False  # it names no port: what haproxy sends has this host's own address already
    flows = [one.flow for one in bypass.flows if protocols is None or common(protocols, (_number(one.flow.protocol),))]
    if ports is None:
        placed = any(test.field in ("in", "ip saddr", "ip daddr", "ip6 saddr", "ip6 daddr") for test in tests)
        return bool(flows) and not placed
    return any(common(ports, (flow.ports,)) for flow in flows)


def _number(protocol: str) -> tuple[int, int]:
    return NUMBERS[protocol], NUMBERS[protocol]
