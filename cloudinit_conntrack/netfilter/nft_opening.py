"""Flows that bypass conntrack and that no native rule lets through: what has to be accepted."""

from __future__ import annotations

from collections.abc import Iterator
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
    for one in asking:
        yield from _first(_alone(base, chain), _alone(result, chain), chain, hook, one, told)
    for one in answering:
        flags = _ACK if one.flow.protocol == "tcp" else None
        yield from _missing(_alone(result, chain), chain, hook, one, _packet(one, hook, "sport", flags, "UNTRACKED"),
                            "s", None)


def _alone(ruleset: NftRuleSet, chain: Entry) -> NftRuleSet:
    """*ruleset* with *chain* as its only base chain."""
    return ruleset.with_entries(e for e in ruleset.entries if e.base is None or e.place == chain.place)


def _first(
    base: NftRuleSet, result: NftRuleSet, chain: Entry, hook: str, one: FamilyFlow, told: str
) -> Iterator[Opening]:
    """What lets the flow's own direction through: its first packet, and those that follow."""
    tcp = one.flow.protocol == "tcp"
    widens = f"{one.flow.protocol} port {ports_text(one.flow.ports)} {told}"
    opened = _packet(one, hook, "dport", _SYN if tcp else None, "UNTRACKED")
    found = list(_missing(result, chain, hook, one, opened, "d", widens))
    yield from found
    if found:
        return
    new = _packet(one, hook, "dport", _SYN if tcp else None, "NEW")
    if not all(_some(base, hook, family, new) for family in _families(chain, one)):
        yield Opening(chain, (), "a rule lets untracked packets through", widens)
    if tcp:
        yield from _missing(result, chain, hook, one, _packet(one, hook, "dport", _ACK, "UNTRACKED"), "d", None)


def _missing(
    result: NftRuleSet, chain: Entry, hook: str, one: FamilyFlow, packet: tuple[Test, ...], side: str,
    widens: str | None,
) -> Iterator[Opening]:
    families = _families(chain, one)
    closed = [family for family in families if not _some(result, hook, family, packet)]
    running = (RUNNING,) if one.flow.protocol == "tcp" and widens is None else ()
    for family in closed if len(closed) < len(families) else closed[:1]:
        only = family if len(closed) < len(families) else ""
        yield Opening(chain, (*flow_matches(one, side, only), *running, {"accept": None}),
                      f"no rule lets this flow through at {hook}", widens)


def _families(chain: Entry, one: FamilyFlow) -> tuple[str, ...]:
    return tuple(family for family in FAMILIES[chain.family] if one.family in ("", family))


def _some(ruleset: NftRuleSet, hook: str, family: str, packet: tuple[Test, ...]) -> bool:
    from .nft_difference import passing  # here: a boot with nothing to do needs none of it

    return passing(ruleset, family, [(_PATHS[hook], packet)])[0][0]


def _packet(one: FamilyFlow, hook: str, port: str, flags: int | None, state: str) -> tuple[Test, ...]:
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
        found: list[FamilyFlow] = []
        for one in flows:
            families = (one.family,) if one.family else tuple(NFPROTO)
            flags = _SYN if one.flow.protocol == "tcp" else None
            packet = _packet(one, hook, "dport", flags, "NEW")
            let = [f for f in families if one.flow not in among or _some(ruleset, hook, f, packet)]
            if not let:
                closed.add(one.flow)
            found += [one] if len(let) == len(families) else [replace(one, family=family) for family in let]
        return tuple(found)

    kept = replace(bypass, frontends=left(bypass.frontends, "input"), backends=left(bypass.backends, "output"))
    return kept, closed
