"""Which packets ``notrack`` rules exempt from tracking: what UNTRACKED stands for in native rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from .nft_kinds import FAMILIES, NFPROTO, Statement
from .nft_match import Test, field_ranges, tests_of
from .nft_ruleset import Base, Entry, NftRuleSet
from .nft_values import Ranges, common
from .nft_words import rule_text

# Conntrack's own priority is -200 (NF_IP_PRI_CONNTRACK); what comes later exempts nothing.
CONNTRACK = -200
_SEEN = {
    "prerouting": frozenset(("prerouting", "input", "forward", "postrouting")),
    "output": frozenset(("output", "postrouting")),
}
_GOES_ON = frozenset(("match", "counter", "log", "mangle", "notrack"))


@dataclass(frozen=True)
class Exemption:
    """One ``notrack`` rule of *table*.  *matches* are its conditions, ``None`` where its place
    makes it depend on other rules; *named* says that they use a named set of the table."""

    rule: str
    table: tuple[str, str]
    matches: tuple[Statement, ...] | None
    tests: tuple[Test, ...]
    named: bool = False


def exemptions(ruleset: NftRuleSet) -> dict[str, tuple[Exemption, ...]]:
    """``prerouting`` and ``output`` -> the exemptions granted there, in order."""
    found: dict[str, list[Exemption]] = {}
    for place, bases in ruleset.hooks.items():
        hooks = dict.fromkeys(base.hook for base in bases if base.hook in _SEEN and base.priority < CONNTRACK)
        plain = place in ruleset.bases
        for entry in ruleset.rules.get(place, ()) if hooks else ():
            if any("notrack" in statement for statement in entry.statements):
                for hook in hooks:
                    found.setdefault(hook, []).append(_exemption(ruleset, entry, plain))
            if any(key not in _GOES_ON for statement in entry.statements for key in statement):
                plain = False  # packets may leave the chain here
    return {hook: tuple(items) for hook, items in found.items()}


def _exemption(ruleset: NftRuleSet, entry: Entry, plain: bool) -> Exemption:
    before: list[Statement] = []
    for statement in entry.statements:
        if "notrack" in statement:
            break
        if "match" in statement:
            before.append(statement)
        elif next(iter(statement)) not in ("counter", "log"):
            plain = False
    named = any(isinstance(s["match"]["right"], str) and s["match"]["right"].startswith("@") for s in before)
    tests = tests_of(ruleset, entry, before)
    return Exemption(rule_text(entry), entry.table, tuple(before) if plain else None, tests, named)


def seen_by(
    found: Mapping[str, tuple[Exemption, ...]], bases: tuple[Base, ...], table: tuple[str, str]
) -> tuple[Exemption, ...]:
    """The exemptions of the packets that a chain of *table*, reached from *bases*, sees.

    Those that hold on one of its ways only cannot be told from the packet (*matches* ``None``).
    """
    hooks = {base.hook for base in bases}
    ways = [raw for raw, seen in _SEEN.items() if seen & hooks or not hooks]
    granted_by = {raw: frozenset(repr(one.matches) for one in found.get(raw, ())) for raw in ways}
    every: dict[tuple[str, tuple[str, str]], Exemption] = {}
    for one in (one for raw in ways for one in found.get(raw, ()) if _families_meet(one, table[0])):
        granted = all(repr(one.matches) in granted_by[raw] for raw in ways)
        usable = granted and not (one.named and one.table != table)
        every.setdefault((one.rule, one.table), one if usable else replace(one, matches=None))
    return tuple(every.values())


def _families_meet(exemption: Exemption, family: str) -> bool:
    mine, theirs = FAMILIES.get(exemption.table[0], ()), FAMILIES.get(family, ())
    ranges = field_ranges(exemption.tests, "nfproto")
    return any(f in theirs and (ranges is None or common(ranges, ((NFPROTO[f], NFPROTO[f]),))) for f in mine)


def in_family(exemption: Exemption, family: str) -> tuple[Statement, ...]:
    """The exemption's matches for a rule of *family*."""
    matches = exemption.matches or ()
    own = exemption.table[0]
    if own in (family, "inet") or any(test.field == "nfproto" for test in exemption.tests):
        return matches
    name = "ipv4" if own == "ip" else "ipv6"
    return ({"match": {"op": "==", "left": {"meta": {"key": "nfproto"}}, "right": name}}, *matches)


def may_meet(one: tuple[Test, ...], two: tuple[Test, ...]) -> bool:
    """Whether a packet can pass both, as far as families, protocols, ports and addresses tell."""
    return all(common(a, b) for a, b in _both(one, two))


def _both(one: tuple[Test, ...], two: tuple[Test, ...]) -> Iterator[tuple[Ranges, Ranges]]:
    for field in {test.field for test in one} & {test.field for test in two}:
        first, second = field_ranges(one, field), field_ranges(two, field)
        if first and second:
            yield first, second
