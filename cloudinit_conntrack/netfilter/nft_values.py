"""Fields of packets and their values, as nft's JSON names them, in numbers."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

from .nft_ruleset import Json
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
# A set of more elements is not read: it may hold whatever its field can be.
MOST_ELEMENTS = 4096
LAST = {"nfproto": 255, "l4proto": 255, "flags": 255, "icmp": 255, "icmpv6": 255, "sport": 65535, "dport": 65535,
        "ip saddr": 2**32 - 1, "ip daddr": 2**32 - 1, "ip6 saddr": 2**128 - 1, "ip6 daddr": 2**128 - 1}


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


def first_of(value: Json) -> Json:
    """The first item of a list, or ``None``."""
    return value[0] if isinstance(value, list) and value else None


def meta_key(left: Json) -> str:
    """The key of a ``meta`` expression, or an empty text."""
    meta = left.get("meta") if isinstance(left, dict) else None
    return str(meta.get("key", "")) if isinstance(meta, dict) else ""


def field_of(left: Json) -> str:
    """The field of a test that *left* reads, or an empty text."""
    name = meta_key(left)
    if name:
        return {"nfproto": "nfproto", "l4proto": "l4proto", "protocol": "nfproto"}.get(name, "")
    if isinstance(left, dict) and "&" in left:
        return "flags" if field_of(first_of(left["&"])) == "flags" else ""
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
            if isinstance(body, list) and len(body) > MOST_ELEMENTS:
                return None
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
    if field in ("ip saddr", "ip daddr") and (quad := _dotted(text)) is not None:
        return ((quad, quad),)
    try:
        network = (ipaddress.IPv4Network if field.startswith("ip ") else ipaddress.IPv6Network)(text, strict=False)
    except ValueError:
        return None
    return ((int(network.network_address), int(network.broadcast_address)),) if field in LAST else None


def _dotted(text: str) -> int | None:
    """A plain IPv4 address as a number, many times faster than ipaddress reads it."""
    parts = text.split(".")
    digits = text.isascii() and len(parts) == 4 and all(part.isdigit() and len(part) < 4 for part in parts)
    numbers = [int(part) for part in parts] if digits else []
    if not digits or max(numbers) > 255 or any(part[0] == "0" and part != "0" for part in parts):
        return None  # ipaddress knows what else there is, or that it is nothing
    return numbers[0] << 24 | numbers[1] << 16 | numbers[2] << 8 | numbers[3]


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
