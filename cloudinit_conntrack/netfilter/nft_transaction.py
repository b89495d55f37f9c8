"""From the rules that the kernel has to those that it shall have, in one ``nft -j -f``.

Only what differs is touched: sets keep their elements, other rules their counters, and
nothing passes through nft's JSON that it cannot read back (nft 1.0.6 lists neither a set's
flag 'dynamic' nor a set's counter in a form that it loads).  One transaction of nf_tables is
whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher

from .nft_ruleset import Entry, Json, NftRuleSet, Place
from .nft_stateful import OBJECTS

Command = Mapping[str, Json]
# What stands in a table beside chains and rules, and may come and go with them.
_MOVABLE = frozenset(OBJECTS)


def transaction(current: NftRuleSet, wanted: NftRuleSet) -> str:
    """JSON for ``nft -j -f`` that makes *wanted* of *current*, which must have the kernel's handles.

    Both are listings of one host; the empty text where nothing differs.  Tables, sets and
    maps are taken to be the same.
    """
    commands = [*_added(current, wanted), *_rules(current, wanted), *_gone(current, wanted)]
    return json.dumps({"nftables": commands}, ensure_ascii=False) + "\n" if commands else ""


def _placed(ruleset: NftRuleSet) -> dict[tuple[str, Place], Entry]:
    return {(entry.kind, entry.place): entry for entry in ruleset.of_kind("chain", *_MOVABLE)}


def _added(current: NftRuleSet, wanted: NftRuleSet) -> Iterator[Command]:
    there = _placed(current)
    for key, entry in _placed(wanted).items():
        if key not in there:
            yield {"add": {entry.kind: _without_handle(entry)}}


def _gone(current: NftRuleSet, wanted: NftRuleSet) -> Iterator[Command]:
    """Chains are emptied first: rules of one may jump to another."""
    there = _placed(wanted)
    gone = [entry for key, entry in _placed(current).items() if key not in there]
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
    """Insert before the rule that stands where the new ones go, then delete what is not wanted."""
    keys = [[_key(entry) for entry in entries] for entries in (old, new)]
    first = next((at for at, (one, two) in enumerate(zip(*keys)) if one != two), min(len(old), len(new)))
    matcher = SequenceMatcher(None, keys[0][first:], keys[1][first:], autojunk=False)
    for tag, a, b, c, d in matcher.get_opcodes():
        if tag == "equal":
            continue
        for entry in new[first + c : first + d]:
            body = _without_handle(entry)
            if first + a < len(old):
                yield {"insert": {"rule": {**body, "handle": old[first + a].body["handle"]}}}
            else:
                yield {"add": {"rule": body}}
        for entry in old[first + a : first + b]:
            place = {"family": entry.family, "table": entry.table[1], "chain": entry.place[2]}
            yield {"delete": {"rule": {**place, "handle": entry.body["handle"]}}}


def _key(entry: Entry) -> str:
    """A rule by what it does: without its handle and what it has counted."""
    return json.dumps(_uncounted(_without_handle(entry)), sort_keys=True)


def _uncounted(value: Json) -> Json:
    if isinstance(value, dict):
        counter = value.get("counter")
        plain = {key: _uncounted(inner) for key, inner in value.items()}
        return {**plain, "counter": None} if isinstance(counter, dict) else plain
    return [_uncounted(item) for item in value] if isinstance(value, list) else value
