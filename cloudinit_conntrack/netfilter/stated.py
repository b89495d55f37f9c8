"""The computed difference, where computing it is worth the wait; else why it is not there."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import lru_cache

from .difference import Difference, compare
from .nft_difference import compare_nft
from .nft_ruleset import NftRuleSet
from .ruleset import RuleSet

# Measured: 300 rules take under a second, 1,000 about four, and it grows faster than the rules.
MOST_RULES = 1_000
_COUNTERS = re.compile(r"^\[\d+:\d+\] ?| \[\d+:\d+\]$")


def stated(before: RuleSet, after: RuleSet) -> tuple[Difference | None, str]:
    """What *after* lets through otherwise than *before*, or ``None`` and why nothing is said."""
    if before is after:
        return Difference(), ""
    count = sum(1 for _ in before.rules())
    if count > MOST_RULES:
        return None, _too_many(count)
    try:
        return _compared(_Pair(_said(before), _said(after), before, after)), ""
    except ValueError as error:
        return None, f"not compared packet by packet: {error}"


@dataclass(frozen=True)
class _Pair:
    """Two rule-sets, alike with others that say the same: a host's live rules mostly are its saved ones."""

    before_said: tuple[str, ...]
    after_said: tuple[str, ...]
    before: RuleSet = field(compare=False)
    after: RuleSet = field(compare=False)


@lru_cache(maxsize=4)
def _compared(pair: _Pair) -> Difference:
    return compare(pair.before, pair.after)


def _said(ruleset: RuleSet) -> tuple[str, ...]:
    """*ruleset* without comments and counters, which no packet meets."""
    lines = (line.text for line in ruleset.lines if line.kind not in ("comment", "blank"))
    return (ruleset.family, *(_COUNTERS.sub("", text) for text in lines))


def stated_nft(before: NftRuleSet, after: NftRuleSet) -> tuple[Difference | None, str]:
    """The same for native rule-sets, of both families together."""
    if before is after:
        return Difference(), ""
    count = sum(1 for _ in before.of_kind("rule"))
    if count > MOST_RULES:
        return None, _too_many(count)
    try:
        return _joined(compare_nft(before, after).values()), ""
    except ValueError as error:
        return None, f"not compared packet by packet: {error}"


def _too_many(count: int) -> str:
    return f"{count} rules are too many to compare packet by packet; each change says what it widens"


def _joined(found: Collection[Difference]) -> Difference:
    return Difference(
        tuple(dict.fromkeys(told for one in found for told in one.widened)),
        tuple(dict.fromkeys(told for one in found for told in one.narrowed)),
        tuple(dict.fromkeys(told for one in found for told in one.handshakes)),
    )
