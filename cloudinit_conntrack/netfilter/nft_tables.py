"""Whole tables of a native rule-set: which of two listings differ, and whether they are alike."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping

from .nft_ruleset import Entry, Json, NftRuleSet, Place, format_nft
from .nft_text import NOTHING as NOTHING

TableName = tuple[str, str]


def tables_of(ruleset: NftRuleSet) -> tuple[TableName, ...]:
    """The tables, in order."""
    return tuple(dict.fromkeys(entry.table for entry in ruleset.entries if entry.kind not in ("metainfo", "flush")))


def only(ruleset: NftRuleSet, tables: Collection[TableName]) -> NftRuleSet:
    """*ruleset* with nothing but *tables*."""
    return ruleset.with_entries(entry for entry in ruleset.entries if entry.table in tables)


def without(ruleset: NftRuleSet, tables: Collection[TableName]) -> NftRuleSet:
    """*ruleset* without *tables*."""
    return ruleset.with_entries(entry for entry in ruleset.entries if entry.table not in tables) if tables else ruleset


def listed(ruleset: NftRuleSet) -> str:
    """*ruleset* as text that can be parsed, whatever was left out."""
    return format_nft(ruleset) if ruleset.entries else NOTHING


def changed_tables(before: NftRuleSet, after: NftRuleSet) -> tuple[TableName, ...]:
    """The tables that only one of the two has, or in which they differ in any byte."""
    names = dict.fromkeys(tables_of(before) + tables_of(after))
    old, new = _texts(before), _texts(after)
    return tuple(name for name in names if old.get(name) != new.get(name))


def _texts(ruleset: NftRuleSet) -> dict[TableName, list[str]]:
    found: dict[TableName, list[str]] = {}
    for entry in ruleset.entries:
        found.setdefault(entry.table, []).append(entry.text)
    return found


def alike(one: NftRuleSet, two: NftRuleSet) -> bool:
    """Whether two listings hold the same tables, chains and rules.

    What changes by itself does not count: handles, counters, what else rules remember, the
    elements of named sets, and the order of those of anonymous ones.
    """
    return _meaning(one) == _meaning(two)


def _meaning(ruleset: NftRuleSet) -> Mapping[tuple[str, Place], list[Json]]:
    found: dict[tuple[str, Place], list[Json]] = {}
    for entry in ruleset.entries:
        if entry.kind not in ("metainfo", "element"):
            found.setdefault((entry.kind, entry.place), []).append(lasting(entry))
    return found


def lasting(entry: Entry) -> Json:
    """*entry* without what changes by itself."""
    dropped = ("handle", *_CHANGING.get(entry.kind, ()))
    return _uncounted({key: value for key, value in entry.body.items() if key not in dropped})


_CHANGING = {"set": ("elem",), "map": ("elem",), "counter": ("packets", "bytes"), "quota": ("used",)}


def _uncounted(value: Json) -> Json:
    if isinstance(value, list):
        return [_uncounted(item) for item in value]
    if not isinstance(value, dict):
        return value
    found = {key: _uncounted(inner) for key, inner in value.items()}
    if isinstance(found.get("set"), list):  # listed in the order of the kernel's hash table
        found["set"] = sorted(found["set"], key=digest_text)
    if isinstance(value.get("counter"), dict):
        found["counter"] = None
    if isinstance(value.get("quota"), dict):
        found["quota"] = {key: inner for key, inner in value["quota"].items() if key not in ("used", "used_unit")}
    if isinstance(value.get("last"), dict):
        found["last"] = None
    return found


def digest_text(value: Json) -> str:
    """*value* as a text that is the same for the same value."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def place_of(ruleset: NftRuleSet, index: int) -> str:
    """``table inet filter, chain input, rule handle 7`` for the object *index* of the listing."""
    entry = next((e for e in ruleset.entries if e.index == index), None)
    if entry is None:
        return f"object {index}"
    table = f"table {' '.join(entry.table)}"
    if entry.kind != "rule":
        return f"{table}, {entry.kind} {entry.place[2]}"
    handle = entry.body.get("handle")
    which = f"handle {handle}" if handle is not None else _number_of(ruleset, entry)
    return f"{table}, chain {entry.place[2]}, rule {which}"


def _number_of(ruleset: NftRuleSet, entry: Entry) -> str:
    return str([e.index for e in ruleset.rules[entry.place]].index(entry.index) + 1)
