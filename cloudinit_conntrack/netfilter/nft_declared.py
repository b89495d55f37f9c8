"""Whether everything stands in a table and a chain that the list declares, as nft's own lists do."""

from __future__ import annotations

from ..errors import RulesSyntaxError
from .nft_ruleset import Entry, NftRuleSet


def check_declared(ruleset: NftRuleSet) -> None:
    """Raises RulesSyntaxError for the first object whose table, chain or target is not in the list."""
    tables = frozenset(entry.table for entry in ruleset.of_kind("table"))
    chains = frozenset(entry.place for entry in ruleset.of_kind("chain"))
    for entry in ruleset.entries:
        if entry.kind in ("table", "metainfo", "flush"):
            continue
        if entry.table not in tables:
            _fail(ruleset, entry, f"table {' '.join(entry.table)}")
        if entry.kind == "rule":
            for name in (entry.place[2], *ruleset.targets(entry)):
                if (*entry.table, name) not in chains:
                    _fail(ruleset, entry, f"chain {' '.join(entry.table)} {name}")


def _fail(ruleset: NftRuleSet, entry: Entry, what: str) -> None:
    raise RulesSyntaxError(
        f"{entry.kind} in, or to, the {what}, which is not declared", f"{ruleset.name}: object {entry.index}",
        "expected the whole of what 'nft -j list ruleset' prints",
    )
