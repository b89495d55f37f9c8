"""What may become of a packet that a native rule's verdict takes: accepted, refused, or sent on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .nft_ruleset import Entry, Json, NftRuleSet, Place

ACCEPTS, REFUSES, GOES_ON = "accepts", "refuses", "goes on"
_OF_VERDICT = {"accept": ACCEPTS, "queue": ACCEPTS, "drop": REFUSES, "reject": REFUSES, "return": GOES_ON}


def fates(ruleset: NftRuleSet, entry: Entry, statement: Mapping[str, Json]) -> frozenset[str]:
    """The fates that *statement*, the last one of a rule like *entry*, has in store.

    A ``jump`` stands for whatever its chain and those behind it may do; one that only comes
    back from there has none.  Behind a ``goto`` a caller or a policy decides: that may be either.
    """
    found: set[str] = set()
    for kind, target in _verdicts(ruleset, entry, statement):
        if target:
            found |= _behind(ruleset, (*entry.table, target))
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


def _behind(ruleset: NftRuleSet, place: Place) -> set[str]:
    """What the rules of a chain, and of those that it leads to, may do; returning from it is nothing new."""
    found: set[str] = set()
    for chain in ruleset.reached(place):
        for rule in ruleset.rules.get(chain, ()):
            last = rule.statements[-1] if rule.statements else {}
            found |= {_OF_VERDICT[kind] for kind, _ in _verdicts(ruleset, rule, last) if kind in _OF_VERDICT}
    return found - {GOES_ON}
