"""From the rules that the kernel has to those that it shall have, in one ``nft -j -f``.

Only what differs is touched: sets keep their elements, other rules their counters, and
nothing passes through nft's JSON that it cannot read back (nft 1.0.6 lists neither a set's
flag 'dynamic' nor a set's counter in a form that it loads).  One transaction of nf_tables is
whole or not at all.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterator, Mapping

from .nft_ruleset import Entry, Json, NftRuleSet, Place
from .nft_stateful import OBJECTS
from .nft_values import PROTOCOLS, field_of

Command = Mapping[str, Json]
# What stands in a table beside chains and rules, and may come and go with them.
_MOVABLE = frozenset(OBJECTS)


def transaction(current: NftRuleSet, wanted: NftRuleSet) -> str:
    """JSON for ``nft -j -f`` that makes *wanted* of *current*, which must have the kernel's handles.

    Both are listings of one host; the empty text where nothing differs.  Sets and maps are
    taken to be the same in a table that both have.
    """
    commands = [_by_number(c) for c in (*_added(current, wanted), *_rules(current, wanted), *_gone(current, wanted))]
    return json.dumps({"nftables": commands}, ensure_ascii=False) + "\n" if commands else ""


def _by_number(value: Json) -> Json:
    """*value* with protocols as numbers: nft takes a name only where /etc/protocols has it, if that is there at all."""
    if isinstance(value, list):
        return [_by_number(item) for item in value]
    if not isinstance(value, dict):
        return value
    found = {key: _by_number(inner) for key, inner in value.items()}
    if "left" in value and field_of(value["left"]) == "l4proto":
        found["right"] = _protocols(value["right"])
    return found


def _protocols(value: Json) -> Json:
    if isinstance(value, str):
        return PROTOCOLS.get(value, value)
    if isinstance(value, dict) and isinstance(value.get("set"), list):
        return {"set": [_protocols(item) for item in value["set"]]}
    return value


def _placed(ruleset: NftRuleSet) -> dict[tuple[str, Place], Entry]:
    return {(entry.kind, entry.place): entry for entry in ruleset.of_kind("table", "chain", *_MOVABLE)}


def _added(current: NftRuleSet, wanted: NftRuleSet) -> Iterator[Command]:
    there = _placed(current)
    for key, entry in _placed(wanted).items():
        if key not in there:
            yield {"add": {entry.kind: _without_handle(entry)}}


def _gone(current: NftRuleSet, wanted: NftRuleSet) -> Iterator[Command]:
    """Chains are emptied first: rules of one may jump to another.  A table goes with all that is in it."""
    there = _placed(wanted)
    gone = [entry for key, entry in _placed(current).items() if key not in there]
    tables = {entry.table for entry in gone if entry.kind == "table"}
    yield from ({"delete": {"table": {"family": family, "name": name}}} for family, name in sorted(tables))
    gone = [entry for entry in gone if entry.table not in tables]
    for entry in gone:
        if entry.kind == "chain":
            yield {"flush": {"chain": _name(entry)}}
    yield from ({"delete": {entry.kind: _name(entry)}} for entry in gone)


def _name(entry: Entry) -> Json:
    return {"family": entry.family, "table": entry.table[1], "name": entry.place[2]}


def _without_handle(entry: Entry) -> Json:
    return {key: value for key, value in entry.body.items() if key != "handle"}


def _rules(current: NftRuleSet, wanted: NftRuleSet) -> Iterator[Command]:
    chains = [entry.place for entry in wanted.of_kind("chain")]
    for place in chains:
        yield from _of_chain(current.rules.get(place, ()), wanted.rules.get(place, ()))


def _of_chain(old: tuple[Entry, ...], new: tuple[Entry, ...]) -> Iterator[Command]:
    """Insert each new rule before the next one that stays, and delete what is not wanted."""
    stays = _in_order(_numbered(old), _numbered(new))
    after = {at: old[stays[at]] for at in stays}
    following: Entry | None = None
    anchors: list[Entry | None] = []
    for at in reversed(range(len(new))):
        anchors.append(following)
        following = after.get(at, following)
    for at, (entry, anchor) in enumerate(zip(new, reversed(anchors))):
        if at not in stays and anchor is not None:
            yield {"insert": {"rule": {**_without_handle(entry), "handle": anchor.body["handle"]}}}
        elif at not in stays:
            yield {"add": {"rule": _without_handle(entry)}}
    kept = set(stays.values())
    for at, entry in enumerate(old):
        if at not in kept:
            place = {"family": entry.family, "table": entry.table[1], "chain": entry.place[2]}
            yield {"delete": {"rule": {**place, "handle": entry.body["handle"]}}}


def _numbered(entries: tuple[Entry, ...]) -> list[tuple[str, int]]:
    """The key of each rule, and how many equal ones stand before it: no two are the same."""
    seen: dict[str, int] = {}
    found = []
    for key in map(_key, entries):
        found.append((key, seen.get(key, 0)))
        seen[key] = seen.get(key, 0) + 1
    return found


def _in_order(old: list[tuple[str, int]], new: list[tuple[str, int]]) -> dict[int, int]:
    """New place -> old place of the most rules that can stay: the longest increasing subsequence."""
    places = {key: at for at, key in enumerate(old)}
    pairs = [(at, places[key]) for at, key in enumerate(new) if key in places]
    tails: list[int] = []  # the smallest old place that ends a run of each length
    ends: list[int] = []  # and which pair that is
    before: list[int] = []
    for number, (_, place) in enumerate(pairs):
        length = bisect_left(tails, place)
        before.append(ends[length - 1] if length else -1)
        tails[length : length + 1] = [place]
        ends[length : length + 1] = [number]
    found: dict[int, int] = {}
    number = ends[-1] if ends else -1
    while number >= 0:
        found[pairs[number][0]] = pairs[number][1]
        number = before[number]
    return found


def _key(entry: Entry) -> str:
    """A rule by what it does: without its handle and what it has counted."""
    return json.dumps(_uncounted(_without_handle(entry)), sort_keys=True)


def _uncounted(value: Json) -> Json:
    if isinstance(value, dict):
        counter = value.get("counter")
        plain = {key: _uncounted(inner) for key, inner in value.items()}
        return {**plain, "counter": None} if isinstance(counter, dict) else plain
    return [_uncounted(item) for item in value] if isinstance(value, list) else value
