"""What may become of a packet that a native rule's verdict takes: accepted, refused, or sent on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .nft_ruleset import Entry, Json, NftRuleSet, Place

ACCEPTS, REFUSES, GOES_ON = "accepts", "refuses", "goes on"
_OF_VERDICT = {"accept": ACCEPTS, "queue": ACCEPTS, "drop": REFUSES, "reject": REFUSES, "return": GOES_ON}


def fates(
    ruleset: NftRuleSet, entry: Entry, statement: Mapping[str, Json], known: Mapping[Place, set[str]]
) -> frozenset[str]:
    """The fates that *statement*, the last one of a rule like *entry*, has in store; *known* is :func:`behind`.

    A ``jump`` stands for whatever its chain and those behind it may do; one that only comes
    back from there has none.  Behind a ``goto`` a caller or a policy decides: that may be either.
    """
    found: set[str] = set()
    for kind, target in _verdicts(ruleset, entry, statement):
        if target:
            found |= known.get((*entry.table, target), set())
            found |= {ACCEPTS, REFUSES} if kind == "goto" else set()
        elif kind in _OF_VERDICT:
            found.add(_OF_VERDICT[kind])
    return frozenset(found)


def _verdicts(ruleset: NftRuleSet, entry: Entry, statement: Mapping[str, Json]) -> Iterator[tuple[str, str]]:
    """(verdict, chain or nothing) of a statement, those of a verdict map's arms for one."""
    if "vmap" in statement:
        for _, verdict in ruleset.arms(entry, statement["vmap"]["data"]):
            yield from _verdicts(ruleset, entry, verdict)
        return
    kind = next(iter(statement), "")
    yield kind, str(statement[kind]["target"]) if kind in ("jump", "goto") else ""


def behind(ruleset: NftRuleSet) -> Mapping[Place, set[str]]:
    """Chain -> what its rules, and those of the chains it leads to, may do; returning is nothing new.

    Told from each chain to those that lead to it, until nothing is new: at most two rounds a chain.
    """
    own, callers = _own(ruleset)
    waiting = list(own)
    while waiting:
        place = waiting.pop()
        for caller in callers.get(place, ()):
            if not own[place] <= own[caller]:
                own[caller] |= own[place]
                waiting.append(caller)
    return own


def _own(ruleset: NftRuleSet) -> tuple[dict[Place, set[str]], dict[Place, set[Place]]]:
    """What the rules of each chain do themselves, and which chains lead to it."""
    own: dict[Place, set[str]] = {}
    callers: dict[Place, set[Place]] = {}
    for place, rules in ruleset.rules.items():
        mine = own.setdefault(place, set())
        for rule in rules:
            for kind, target in _verdicts(ruleset, rule, rule.statements[-1] if rule.statements else {}):
                if target:
                    callers.setdefault((*place[:2], target), set()).add(place)
                elif _OF_VERDICT.get(kind, GOES_ON) != GOES_ON:
                    mine.add(_OF_VERDICT[kind])
    return own, callers
