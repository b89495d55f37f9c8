"""What a native rule asks of one packet, as ranges of numbers.

Every condition that we model is a test: a field and the values it may have.  A negation is
the complement, a set is the union.  What a field takes for granted (``tcp dport`` is about
TCP) is a test of its own, as nft adds it to the kernel's program (``payload_gen_dependency``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from .nft_ruleset import Entry, Json, NftRuleSet
from .nft_stateful import is_state, states_of
from .nft_values import (
    LAST,
    MOST_ELEMENTS,
    PROTOCOLS,
    WITH_PORTS,
    Ranges,
    common,
    complement,
    field_of,
    first_of,
    flag_bits,
    merged,
    meta_key,
    values_of,
)
from .nft_words import statement_text

INTERFACES = {"iifname": "in", "iif": "in", "oifname": "out", "oif": "out"}
OPEN, FRAGMENT = "open", "fragment"
_IP, _IP6 = {"payload": {"protocol": "ip", "field": "frag-off"}}, {"exthdr": {"name": "frag", "field": "frag-off"}}
# Fragments other than the first, and first ones that more follow (RFC 791: 13 bits of offset, below them MF).
LATER_FRAGMENTS: Mapping[str, Json] = {
    "ipv4": {"op": "!=", "left": {"&": [_IP, 8191]}, "right": 0},
    "ipv6": {"op": "!=", "left": _IP6, "right": 0},
}
FIRST_FRAGMENTS: Mapping[str, Json] = {
    "ipv4": {"op": "==", "left": {"&": [_IP, 16383]}, "right": 8192},
    "ipv6": {"op": "==", "left": _IP6, "right": 0},
}


@dataclass(frozen=True)
class Test:
    """One condition.  *field* is a key of :data:`LAST` with *ranges*; ``in`` or ``out`` with
    *names* of interfaces (``eth*``); ``state`` with *names* of states; ``fragment`` for those
    matches of fragments that we write; or ``open``: not modelled, told apart by *text*."""

    field: str
    ranges: Ranges = ()
    names: tuple[str, ...] = ()
    negated: bool = False
    text: str = ""


def tests_of(ruleset: NftRuleSet, entry: Entry, statements: Iterable[Mapping[str, Json]]) -> tuple[Test, ...]:
    """What *statements* of the rule *entry* ask, whatever they do beside."""
    found: dict[Test, None] = {}
    for statement in statements:
        key = id(statement), entry.table
        if key not in ruleset.memo:
            ruleset.memo[key] = statement, tuple(_of_statement(ruleset, entry, statement))
        found.update(dict.fromkeys(ruleset.memo[key][1]))
    return tuple(found)


def _of_statement(ruleset: NftRuleSet, entry: Entry, statement: Mapping[str, Json]) -> Iterator[Test]:
    kind, body = next(iter(statement.items()))
    yield from dependencies(statement)
    if kind == "match":
        yield from _tests(ruleset, entry, statement, body)
    elif kind == "vmap":  # what no arm is about goes on
        yield from _of_keys(body["key"], [key for key, _ in _anonymous(ruleset, entry, body)])
    elif kind in ("limit", "quota", "meter", "ct count", "xt"):
        yield Test(OPEN, text=statement_text(statement))


def _anonymous(ruleset: NftRuleSet, entry: Entry, body: Json) -> tuple[tuple[Json, Json], ...]:
    """The arms of an anonymous verdict map; a named one may get others."""
    return () if isinstance(body["data"], str) else ruleset.arms(entry, body["data"])


def _tests(ruleset: NftRuleSet, entry: Entry, statement: Mapping[str, Json], body: Json) -> Iterator[Test]:
    """The tests of a match; of a concatenation what each of its parts may be at all, and the whole."""
    keys, values = _parts(body["left"]), body["right"]
    if len(keys) < 2 or body["op"] not in ("==", "in"):
        yield _test(ruleset, entry, statement, body)
        return
    elements = alternatives(body)
    yield from _of_keys(body["left"], [element["right"] for element in elements])
    parts = _parts(values)
    if len(parts) != len(keys):
        yield _test(ruleset, entry, statement, body)
        return
    for key, value in zip(keys, parts):
        yield from match_tests(ruleset, entry, key, value)


def alternatives(body: Json) -> list[Json]:
    """A match of a concatenation as matches of one element each; any other match as it is."""
    right = body["right"]
    items = right.get("set") if isinstance(right, dict) else None
    if len(_parts(body["left"])) < 2 or body["op"] not in ("==", "in") or not isinstance(items, list):
        return [body]
    return [{**body, "right": _plain(item)} for item in items]


def _plain(item: Json) -> Json:
    """An element of a set without what it holds beside its value."""
    inner = item.get("elem") if isinstance(item, dict) else None
    return inner["val"] if isinstance(inner, dict) and "val" in inner else item


def _parts(value: Json) -> list[Json]:
    """What a concatenation holds, or nothing."""
    parts = value.get("concat") if isinstance(value, dict) and len(value) == 1 else None
    return parts if isinstance(parts, list) else []


def _of_keys(left: Json, values: list[Json]) -> Iterator[Test]:
    """What a packet has to be so that *left* can be any of *values*."""
    keys = _parts(left) or [left]
    rows = [_parts(_plain(value)) if len(keys) > 1 else [_plain(value)] for value in values]
    if not rows or any(len(row) != len(keys) for row in rows):
        return
    for at, key in enumerate(keys):
        field = field_of(key)
        known = field and field != "flags" and len(rows) <= MOST_ELEMENTS
        ranges = values_of(field, {"set": [row[at] for row in rows]}) if known else None
        if ranges:
            yield Test(field, ranges)


def match_tests(ruleset: NftRuleSet, entry: Entry, left: Json, values: Json) -> tuple[Test, ...]:
    """The tests of "*left* is *values*", for one arm of a verdict map."""
    statement = {"match": {"op": "==", "left": left, "right": values}}
    return tests_of(ruleset, entry, (statement,))


def field_ranges(tests: Iterable[Test], field: str) -> Ranges | None:
    """What all *tests* together allow for *field*; ``None`` where they say nothing of it."""
    found: Ranges | None = None
    for test in tests:
        if test.field == field:
            found = test.ranges if found is None else common(found, test.ranges)
    return found


def narrowed(statement: Mapping[str, Json], tests: Iterable[Test]) -> Mapping[str, Json]:
    """*statement*, where it matches a set of protocols or families, with the one that *tests* leave."""
    body = statement.get("match")
    field = field_of(body["left"]) if body else ""
    if not body or field not in _NAMED or not isinstance(body["right"], dict) or "set" not in body["right"]:
        return statement
    left = field_ranges(tests, field)
    if body["op"] not in ("==", "in") or left is None or len(left) != 1 or left[0][0] != left[0][1]:
        return statement
    number = left[0][0]
    name = _NAMED[field].get(number, number) if meta_key(body["left"]) != "protocol" else _ETHER.get(number, number)
    return {"match": {**body, "right": name}}


_NAMED: Mapping[str, Mapping[int, str]] = {
    "l4proto": {**{number: name for name, number in PROTOCOLS.items()}, 58: "ipv6-icmp"},
    "nfproto": {2: "ipv4", 10: "ipv6"},
}
_ETHER = {2: "ip", 10: "ip6"}


def dependencies(value: Json) -> Iterator[Test]:
    """What the fields that *value* reads take for granted."""
    if isinstance(value, list):
        for item in value:
            yield from dependencies(item)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key == "payload" and isinstance(inner, dict):
                yield from _of_protocol(str(inner.get("protocol", "")))
            elif key == "exthdr":
                yield Test("nfproto", ((10, 10),))
            elif key == "ip option":
                yield Test("nfproto", ((2, 2),))
            elif key == "tcp option":
                yield Test("l4proto", ((6, 6),))
            elif key == "reject" and isinstance(inner, dict):
                yield from _of_protocol(_REJECTS.get(str(inner.get("type")), ""))
            else:
                yield from dependencies(inner)


_REJECTS = {"tcp reset": "tcp", "icmp": "ip", "icmpv6": "ip6"}


def _of_protocol(protocol: str) -> Iterator[Test]:
    if protocol in ("ip", "icmp", "igmp"):
        yield Test("nfproto", ((2, 2),))
    elif protocol in ("ip6", "icmpv6"):
        yield Test("nfproto", ((10, 10),))
    if protocol in PROTOCOLS:
        number = PROTOCOLS[protocol]
        yield Test("l4proto", ((number, number),))
    elif protocol == "th":
        yield Test("l4proto", tuple((number, number) for number in WITH_PORTS))


def _test(ruleset: NftRuleSet, entry: Entry, statement: Mapping[str, Json], body: Json) -> Test:
    op, left, right = body["op"], body["left"], body["right"]
    if is_state(left) or (isinstance(left, dict) and "&" in left and is_state(first_of(left["&"]))):
        named = isinstance(right, str) and right.startswith("@")
        states = states_of(body, ruleset.members(entry, right) if named else None)
        return _open(statement) if states is None else Test("state", names=tuple(sorted(states)))
    if body in LATER_FRAGMENTS.values() or body in FIRST_FRAGMENTS.values():
        return Test(FRAGMENT)
    name = meta_key(left)
    if name in INTERFACES:
        return _interfaces(INTERFACES[name], op, right) or _open(statement)
    field = field_of(left)
    if field == "flags":
        return _flags(op, left, right) or _open(statement)
    ranges = values_of(field, right) if field else None
    if ranges is None or op not in ("==", "in", "!=", "<", ">", "<=", ">="):
        return _open(statement)
    return Test(field, _compared(op, ranges, LAST[field]))


def _open(statement: Mapping[str, Json]) -> Test:
    return Test(OPEN, text=statement_text(statement))


def _compared(op: str, ranges: Ranges, last: int) -> Ranges:
    if op in ("==", "in"):
        return ranges
    if op == "!=":
        return complement(ranges, last)
    value = ranges[0][0]
    bounds = {"<": (0, value - 1), "<=": (0, value), ">": (value + 1, last), ">=": (value, last)}[op]
    return (bounds,) if bounds[0] <= bounds[1] else ()


def _interfaces(field: str, op: str, right: Json) -> Test | None:
    names = right.get("set") if isinstance(right, dict) else right
    listed = tuple(names) if isinstance(names, list) else (names,)
    if op not in ("==", "in", "!=") or not all(isinstance(n, str) and n and n[0] != "@" for n in listed):
        return None
    return Test(field, names=tuple(sorted(listed)), negated=op == "!=")


# --- TCP flags -------------------------------------------------------------------------


def _flags(op: str, left: Json, right: Json) -> Test | None:
    """A match of TCP flags, tried on each of the 256 flag bytes."""
    mask = 0xFF
    if "&" in left:
        if not (isinstance(left["&"], list) and len(left["&"]) == 2) or (bits := flag_bits(left["&"][1])) is None:
            return None
        mask = bits
    if isinstance(right, dict) and "set" in right:
        items = right["set"] if isinstance(right["set"], list) else [right["set"]]
        values = [flag_bits(item) for item in items]
        if None in values or op not in ("==", "in", "!="):
            return None
        holds = [((byte & mask) in values) == (op != "!=") for byte in range(256)]
    else:
        value = flag_bits(right)
        if value is None or op not in ("==", "!=", "in", "!"):
            return None
        holds = [_holds(op, byte & mask, value) for byte in range(256)]
    return Test("flags", merged((byte, byte) for byte in range(256) if holds[byte]))


def _holds(op: str, found: int, value: int) -> bool:
    if op in ("in", "!"):
        return bool(found & value) == (op == "in")
    return (found == value) == (op == "==")
