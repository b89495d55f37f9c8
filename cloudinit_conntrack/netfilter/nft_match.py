"""What a native rule asks of one packet, as ranges of numbers.

Every condition that we model is a test: a field and the values it may have.  A negation is
the complement, a set is the union.  What a field takes for granted (``tcp dport`` is about
TCP) is a test of its own, as nft adds it to the kernel's program (``payload_gen_dependency``).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from .nft_ruleset import Entry, Json, NftRuleSet
from .nft_stateful import is_state, states_of
from .nft_words import statement_text
from .parts import ICMP_NAMES
from .replies import SERVICES

Ranges = tuple[tuple[int, int], ...]
PROTOCOLS = {
    "icmp": 1, "igmp": 2, "ipencap": 4, "tcp": 6, "udp": 17, "dccp": 33, "ipv6": 41, "rsvp": 46, "gre": 47, "esp": 50,
    "ah": 51, "icmpv6": 58, "ipv6-icmp": 58, "ospf": 89, "pim": 103, "comp": 108, "vrrp": 112, "sctp": 132,
    "udplite": 136,
}
FLAGS = {"fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16, "urg": 32, "ecn": 64, "cwr": 128}
FAMILIES = {"ipv4": 2, "ipv6": 10, "ip": 2, "ip6": 10}
ICMP6_NAMES = {
    **ICMP_NAMES["ipv6"], "mld-listener-done": 132, "mld2-listener-report": 143, "nd-router-solicit": 133,
    "nd-router-advert": 134, "nd-neighbor-solicit": 135, "nd-neighbor-advert": 136, "nd-redirect": 137,
    "router-renumbering": 138, "ind-neighbor-solicit": 141, "ind-neighbor-advert": 142,
}
ICMP4_NAMES = {**ICMP_NAMES["ipv4"], "info-request": 15, "info-reply": 16}
WITH_PORTS = (6, 17, 33, 132, 136)
LAST = {"nfproto": 255, "l4proto": 255, "flags": 255, "icmp": 255, "icmpv6": 255, "sport": 65535, "dport": 65535,
        "ip saddr": 2**32 - 1, "ip daddr": 2**32 - 1, "ip6 saddr": 2**128 - 1, "ip6 daddr": 2**128 - 1}
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


def merged(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """The same values as sorted ranges that do not touch."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return tuple(found)


def complement(ranges: Iterable[tuple[int, int]], last: int) -> Ranges:
    """The values from 0 to *last* that are not in *ranges*."""
    found, at = [], 0
    for first, end in merged(ranges):
        if first > at:
            found.append((at, first - 1))
        at = end + 1
    return (*found, (at, last)) if at <= last else tuple(found)


def common(one: Ranges, two: Ranges) -> Ranges:
    """The values in both."""
    return merged((max(a, c), min(b, d)) for a, b in one for c, d in two if max(a, c) <= min(b, d))


def tests_of(ruleset: NftRuleSet, entry: Entry, statements: Iterable[Mapping[str, Json]]) -> tuple[Test, ...]:
    """What *statements* of the rule *entry* ask, whatever they do beside."""
    found: dict[Test, None] = {}
    for statement in statements:
        kind, body = next(iter(statement.items()))
        found.update(dict.fromkeys(dependencies(statement)))
        if kind == "match":
            found[_test(ruleset, entry, statement, body)] = None
        elif kind in ("limit", "quota", "meter", "ct count", "xt"):
            found[Test(OPEN, text=statement_text(statement))] = None
    return tuple(found)


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
    name = _NAMED[field].get(number, number) if _meta(body["left"]) != "protocol" else _ETHER.get(number, number)
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
    text = statement_text(statement)
    if is_state(left) or (isinstance(left, dict) and "&" in left and is_state(_first(left["&"]))):
        named = isinstance(right, str) and right.startswith("@")
        states = states_of(body, ruleset.members(entry, right) if named else None)
        return Test(OPEN, text=text) if states is None else Test("state", names=tuple(sorted(states)))
    if body in LATER_FRAGMENTS.values() or body in FIRST_FRAGMENTS.values():
        return Test(FRAGMENT)
    name = _meta(left)
    if name in INTERFACES:
        return _interfaces(INTERFACES[name], op, right) or Test(OPEN, text=text)
    field = field_of(left)
    if field == "flags":
        return _flags(op, left, right) or Test(OPEN, text=text)
    ranges = values_of(field, right) if field else None
    if ranges is None or op not in ("==", "in", "!=", "<", ">", "<=", ">="):
        return Test(OPEN, text=text)
    return Test(field, _compared(op, ranges, LAST[field]))


def _first(value: Json) -> Json:
    return value[0] if isinstance(value, list) and value else None


def _compared(op: str, ranges: Ranges, last: int) -> Ranges:
    if op in ("==", "in"):
        return ranges
    if op == "!=":
        return complement(ranges, last)
    value = ranges[0][0]
    bounds = {"<": (0, value - 1), "<=": (0, value), ">": (value + 1, last), ">=": (value, last)}[op]
    return (bounds,) if bounds[0] <= bounds[1] else ()


def _meta(left: Json) -> str:
    meta = left.get("meta") if isinstance(left, dict) else None
    return str(meta.get("key", "")) if isinstance(meta, dict) else ""


def field_of(left: Json) -> str:
    """The field of a test that *left* reads, or an empty text."""
    name = _meta(left)
    if name:
        return {"nfproto": "nfproto", "l4proto": "l4proto", "protocol": "nfproto"}.get(name, "")
    if isinstance(left, dict) and "&" in left:
        return "flags" if field_of(_first(left["&"])) == "flags" else ""
    payload = left.get("payload") if isinstance(left, dict) else None
    if not isinstance(payload, dict):
        return ""
    protocol, field = str(payload.get("protocol", "")), str(payload.get("field", ""))
    if (protocol, field) in (("ip", "protocol"), ("ip6", "nexthdr")):
        return "l4proto"
    if field in ("sport", "dport") and protocol in ("th", "tcp", "udp", "sctp", "dccp", "udplite"):
        return field
    if (protocol, field) in (("icmp", "type"), ("icmpv6", "type")):
        return protocol
    return {"flags": "flags"}.get(field, "") if protocol == "tcp" else (
        f"{protocol} {field}" if f"{protocol} {field}" in LAST else "")


def values_of(field: str, value: Json) -> Ranges | None:
    """*value* (a number, name, range, prefix, element or set of them) as ranges of *field*."""
    if isinstance(value, dict) and len(value) == 1:
        kind, body = next(iter(value.items()))
        if kind == "set":
            parts = [values_of(field, item) for item in (body if isinstance(body, list) else [body])]
            found: list[tuple[int, int]] = []
            for part in parts:
                if part is None:
                    return None
                found += part
            return merged(found)
        if kind == "range" and isinstance(body, list) and len(body) == 2:
            first, last = (_number(field, item) for item in body)
            return ((first, last),) if first is not None and last is not None and first <= last else None
        if kind == "prefix" and isinstance(body, dict):
            return _prefix(field, f"{body.get('addr')}/{body.get('len')}")
        if kind == "elem" and isinstance(body, dict) and set(body) <= {"val", "comment", "counter"}:
            return values_of(field, body.get("val"))
        return None
    number = _number(field, value)
    return None if number is None else ((number, number),)


_NAMES: Mapping[str, Mapping[str, int]] = {
    "l4proto": PROTOCOLS, "nfproto": FAMILIES, "icmp": ICMP4_NAMES, "icmpv6": ICMP6_NAMES, "sport": SERVICES,
    "dport": SERVICES,
}


def _number(field: str, value: Json) -> int | None:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return None
    if isinstance(value, str):
        if field[:2] == "ip":
            found = _prefix(field, value)
            return found[0][0] if found and found[0][0] == found[0][1] else None
        numeric = value.isascii() and value.isdigit() and len(value) < 6
        value = _NAMES.get(field, {}).get(value, int(value) if numeric else -1)
    return value if 0 <= value <= LAST.get(field, -1) else None


def _prefix(field: str, text: str) -> Ranges | None:
    try:
        network = (ipaddress.IPv4Network if field.startswith("ip ") else ipaddress.IPv6Network)(text, strict=False)
    except ValueError:
        return None
    return ((int(network.network_address), int(network.broadcast_address)),) if field in LAST else None


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


def flag_bits(value: Json) -> int | None:
    """TCP flags as nft writes them (a name, a number, a list, ``|`` of them) as bits."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value if 0 <= value < 256 else None
    if isinstance(value, str):
        return FLAGS.get(value)
    if isinstance(value, dict) and len(value) == 1:
        kind, body = next(iter(value.items()))
        if kind == "elem" and isinstance(body, dict):
            return flag_bits(body.get("val"))
        value = body if kind == "|" else None
    if not isinstance(value, list):
        return None
    found = 0
    for item in value:
        bits = flag_bits(item)
        if bits is None:
            return None
        found |= bits
    return found
