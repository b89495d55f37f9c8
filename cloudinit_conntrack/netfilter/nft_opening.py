"""Flows that bypass conntrack and that no native rule lets through: what has to be accepted."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from .bypass import Flow
from .nft_kinds import FAMILIES, NFPROTO, Statement
from .nft_match import Test
from .nft_notrack import OWN_TABLE, RUNNING, flow_matches
from .nft_ruleset import Entry, NftRuleSet
from .nft_twins import FamilyFlow, NftBypass
from .replies import ports_text

_PATHS = {"input": "INPUT", "output": "OUTPUT"}
_SYN, _ACK = 2, 16
Tests = tuple[Test, ...]  # a packet, by what it passes
Let = AbstractSet[tuple[str, Tests]]  # the packets of each family that come through


@dataclass(frozen=True)
class Opening:
    """A rule for the head of a base *chain*; without *statements* there is only something to say."""

    chain: Entry
    statements: tuple[Statement, ...]
    reason: str
    widens: str | None = None


def openings(base: NftRuleSet, result: NftRuleSet, bypass: NftBypass) -> Iterator[Opening]:
    """What *result*, which is *base* with the bypass, still refuses of the flows, chain by chain.

    Every base chain of a hook must accept a packet, so each is asked alone.
    """
    for chain in result.of_kind("chain"):
        hook = chain.base.hook if chain.base and chain.base.kind == "filter" else ""
        if hook in _PATHS and chain.table != OWN_TABLE and chain.family in FAMILIES:
            yield from _of_chain(base, result, chain, hook, bypass)


def _of_chain(base: NftRuleSet, result: NftRuleSet, chain: Entry, hook: str, bypass: NftBypass) -> Iterator[Opening]:
    asking, answering = bypass.frontends, bypass.backends
    told = "was closed and is open now"
    if hook == "output":
        asking, answering, told = answering, asking, "was refused as a destination and is not now"
    new = {(f, _begin(one, hook, "NEW")) for one in asking for f in _families(chain, one)}
    untracked = {(f, packet) for one in asking for f in _families(chain, one)
                 for packet in (_begin(one, hook, "UNTRACKED"), _follow(one, hook, "dport"))}
    untracked |= {(f, _follow(one, hook, "sport")) for one in answering for f in _families(chain, one)}
    before = coming_through(_alone(base, chain), hook, new)
    after = coming_through(_alone(result, chain), hook, untracked)
    for one in asking:
        yield from _first(before, after, chain, hook, one, told)
    for one in answering:
        yield from _missing(after, chain, hook, one, _follow(one, hook, "sport"), "s", None)


def _begin(one: FamilyFlow, hook: str, state: str) -> Tests:
    """The first packet of a flow."""
    return _packet(one, hook, "dport", _SYN if one.flow.protocol == "tcp" else None, state)


def _follow(one: FamilyFlow, hook: str, port: str) -> Tests:
    """An untracked packet of a flow that is running."""
    return _packet(one, hook, port, _ACK if one.flow.protocol == "tcp" else None, "UNTRACKED")


def _alone(ruleset: NftRuleSet, chain: Entry) -> NftRuleSet:
    """*ruleset* with *chain* as its only base chain."""
    return ruleset.with_entries(e for e in ruleset.entries if e.base is None or e.place == chain.place)


def _first(before: Let, after: Let, chain: Entry, hook: str, one: FamilyFlow, told: str) -> Iterator[Opening]:
    """What lets the flow's own direction through: its first packet, and those that follow."""
    widens = f"{one.flow.protocol} port {ports_text(one.flow.ports)} {told}"
    found = list(_missing(after, chain, hook, one, _begin(one, hook, "UNTRACKED"), "d", widens))
    yield from found
    if found:
        return
    if not all((family, _begin(one, hook, "NEW")) in before for family in _families(chain, one)):
        yield Opening(chain, (), "a rule lets untracked packets through", widens)
    if one.flow.protocol == "tcp":
        yield from _missing(after, chain, hook, one, _follow(one, hook, "dport"), "d", None)


def _missing(
    let: Let, chain: Entry, hook: str, one: FamilyFlow, packet: Tests, side: str, widens: str | None
) -> Iterator[Opening]:
    families = _families(chain, one)
    closed = [family for family in families if (family, packet) not in let]
    running = (RUNNING,) if one.flow.protocol == "tcp" and widens is None else ()
    for family in closed if len(closed) < len(families) else closed[:1]:
        only = family if len(closed) < len(families) else ""
        yield Opening(chain, (*flow_matches(one, side, only), *running, {"accept": None}),
                      f"no rule lets this flow through at {hook}", widens)


def _families(chain: Entry, one: FamilyFlow) -> tuple[str, ...]:
    return tuple(family for family in FAMILIES[chain.family] if one.family in ("", family))


def coming_through(ruleset: NftRuleSet, hook: str, asked: Collection[tuple[str, Tests]]) -> Let:
    """Those of *asked*, (family, packet), that *ruleset* may let through at *hook*; it is walked once for all."""
    from .nft_difference import passing  # here: a boot with nothing to do needs none of it

    found: set[tuple[str, Tests]] = set()
    for family in NFPROTO:
        packets = [packet for of, packet in asked if of == family]
        answers = passing(ruleset, family, [(_PATHS[hook], packet) for packet in packets]) if packets else []
        found |= {(family, packet) for packet, (some, _) in zip(packets, answers) if some}
    return found


def _packet(one: FamilyFlow, hook: str, port: str, flags: int | None, state: str) -> Tests:
    number = 6 if one.flow.protocol == "tcp" else 17
    first = one.flow.ports[0]
    found = [Test("l4proto", ((number, number),)), Test(port, ((first, first),)), Test("state", names=(state,)),
             outside(hook)]
    return tuple(found + ([Test("flags", ((flags, flags),))] if flags is not None else []))


def outside(hook: str) -> Test:
    """Not over loopback."""
    return Test("in" if hook == "input" else "out", names=("lo",), negated=True)


def without_refused(bypass: NftBypass, among: frozenset[Flow], ruleset: NftRuleSet) -> tuple[NftBypass, set[Flow]]:
    """*bypass* less those flows *among* it whose first packet *ruleset* surely refuses, and these flows.

    Of a range its first port decides.  A flow that one family refuses stays for the other.
    """
    closed: set[Flow] = set()

    def left(flows: tuple[FamilyFlow, ...], hook: str) -> tuple[FamilyFlow, ...]:
        asked = {(f, _begin(one, hook, "NEW")) for one in flows if one.flow in among for f in _of(one)}
        through = coming_through(ruleset, hook, asked)
        found: list[FamilyFlow] = []
        for one in flows:
            let = [f for f in _of(one) if one.flow not in among or (f, _begin(one, hook, "NEW")) in through]
            if not let:
                closed.add(one.flow)
            found += [one] if len(let) == len(_of(one)) else [replace(one, family=family) for family in let]
        return tuple(found)

    kept = replace(bypass, frontends=left(bypass.frontends, "input"), backends=left(bypass.backends, "output"))
    return kept, closed


def _of(one: FamilyFlow) -> tuple[str, ...]:
    return (one.family,) if one.family else tuple(NFPROTO)
