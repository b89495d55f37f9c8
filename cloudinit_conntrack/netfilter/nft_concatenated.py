"""Lookups of ``ct state`` together with something else: ``ct state . tcp dport { new . 22, new . 80 }``.

A packet has one state, so such a lookup is a question for the state, and behind each answer
a lookup of the rest.
"""

from __future__ import annotations

from .nft_kinds import Statement
from .nft_ruleset import Entry, Json, NftRuleSet
from .nft_stateful import is_state, states_of_key

# Elements that are only what they hold; a timeout or a counter of their own would be lost.
_PLAIN = frozenset(("val", "comment"))


def lookups(ruleset: NftRuleSet, entry: Entry, kind: str, body: Json) -> list[tuple[frozenset[str], Statement]] | None:
    """A ``match`` or ``vmap`` as (states, lookup of the rest), or ``None`` where it cannot be said so."""
    left, right = (body["left"], body["right"]) if kind == "match" else (body["key"], body["data"])
    keys = left.get("concat") if isinstance(left, dict) and len(left) == 1 else None
    if not isinstance(keys, list) or len(keys) < 2 or (kind == "match" and body["op"] not in ("==", "in")):
        return None
    places = [at for at, key in enumerate(keys) if is_state(key)]
    if len(places) != 1 or any(isinstance(key, dict) and "ct" in key for at, key in enumerate(keys) if at != places[0]):
        return None
    by_state = _by_state(ruleset, entry, right, places[0], len(keys))
    if by_state is None:
        return None
    rest = _without(keys, places[0])
    alike: dict[str, tuple[frozenset[str], Json]] = {}
    for states, items in by_state:
        known, _ = alike.get(str(items), (frozenset(), None))
        alike[str(items)] = known | states, items
    return [(states, _lookup(kind, body, rest, items)) for states, items in alike.values()]


def _by_state(
    ruleset: NftRuleSet, entry: Entry, right: Json, place: int, length: int
) -> list[tuple[frozenset[str], list[Json]]] | None:
    """The elements behind each state that they name, in order."""
    named = isinstance(right, str) or (isinstance(right, dict) and "set" in right)
    items = ruleset.members(entry, right) if named else (right,)
    found: dict[frozenset[str], list[Json]] = {}
    for item in items:
        divided = _divided(item, place, length)
        if divided is None:
            return None
        states, rest = divided
        found.setdefault(states, []).append(rest)
    return list(found.items())


def _divided(item: Json, place: int, length: int) -> tuple[frozenset[str], Json] | None:
    """An element as (its state, what is left of it); with a verdict, where it is of a map."""
    if isinstance(item, list):
        divided = _divided(item[0], place, length) if len(item) == 2 and isinstance(item[1], dict) else None
        return None if divided is None else (divided[0], [divided[1], item[1]])
    body = item.get("elem") if isinstance(item, dict) else None
    if isinstance(body, dict):
        divided = _divided(body["val"], place, length) if "val" in body and set(body) <= _PLAIN else None
        return None if divided is None else (divided[0], {"elem": {**body, "val": divided[1]}})
    values = item.get("concat") if isinstance(item, dict) and len(item) == 1 else None
    if not isinstance(values, list) or len(values) != length:
        return None
    states = states_of_key(values[place])
    return (states, _without(values, place)) if states else None


def _without(values: list[Json], place: int) -> Json:
    rest = [value for at, value in enumerate(values) if at != place]
    return rest[0] if len(rest) == 1 else {"concat": rest}


def _lookup(kind: str, body: Json, rest: Json, items: list[Json]) -> Statement:
    if kind == "vmap":
        return {"vmap": {**body, "key": rest, "data": {"set": items}}}
    single = len(items) == 1 and not (isinstance(items[0], dict) and "elem" in items[0])
    return {"match": {**body, "left": rest, "right": items[0] if single else {"set": items}}}
