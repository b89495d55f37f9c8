"""The kinds of packets that a native rule can match, its state match aside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from .nft_match import Test, field_ranges
from .nft_ruleset import Json
from .nft_values import Ranges, common, values_of
from .parts import ALL_FLAGS, OTHER, TCP, UDP_REST, Part, icmp_parts
from .replies import Reply
from .selection import reply_part

FAMILIES = {"ip": ("ipv4",), "ip6": ("ipv6",), "inet": ("ipv4", "ipv6")}
NFPROTO = {"ipv4": 2, "ipv6": 10}
_PROTOCOL = {("tcp", ""): "tcp", ("udp", ""): "udp", ("icmp", "ipv4"): "icmp", ("icmp", "ipv6"): "ipv6-icmp"}
NUMBERS: Mapping[str, int] = {"tcp": 6, "udp": 17, "icmp": 1, "ipv6-icmp": 58}

Statement = Mapping[str, Json]


@dataclass(frozen=True)
class Kind:
    """Some packets: a part of traffic, of one family or (empty) of both."""

    family: str
    part: Part

    @property
    def protocol(self) -> str:
        """nft's name of the protocol; empty for "every other"."""
        return _PROTOCOL.get((self.part.group, self.family if self.part.group == "icmp" else ""), "")


def kinds_for(
    families: tuple[str, ...], tests: tuple[Test, ...], replies: Iterable[tuple[str, Reply]]
) -> tuple[Kind, ...]:
    """The kinds of packets that a rule with *tests* can match at all, in a table of *families*."""
    asked = {test.field: ranges for test in tests if (ranges := field_ranges(tests, test.field)) is not None}
    found = [Kind("", part) for part in TCP]
    if "l4proto" not in asked or _inside(17, asked["l4proto"]):
        for family, reply in replies:
            if (not family or family in families) and _meets(reply, asked):
                # a table of one family needs no match of it
                found.append(Kind(family if len(families) > 1 else "", reply_part(reply)))
    found.append(Kind("", UDP_REST))
    found += [Kind(family, part) for family in families for part in icmp_parts(family)]
    found.append(Kind("", OTHER))
    flags = flags_of(tests)
    return tuple(kind for kind in found if _possible(kind, asked, flags))


def _possible(kind: Kind, asked: Mapping[str, Ranges], flags: frozenset[int]) -> bool:
    family, protocol = asked.get("nfproto"), asked.get("l4proto")
    wanted = [NFPROTO[kind.family]] if kind.family else list(NFPROTO.values())
    if family is not None and not any(_inside(number, family) for number in wanted):
        return False
    if protocol is not None and not _shares_protocol(kind, protocol):
        return False
    if kind.part.group == "tcp":
        return bool(kind.part.flags & flags)
    return kind.part.group != "icmp" or _icmp_possible(kind, asked)


def _inside(number: int, ranges: Ranges) -> bool:
    return any(first <= number <= last for first, last in ranges)


def _shares_protocol(kind: Kind, ranges: Ranges) -> bool:
    if kind.protocol:
        return _inside(NUMBERS[kind.protocol], ranges)
    return sum(last - first + 1 for first, last in ranges) > sum(_inside(n, ranges) for n in NUMBERS.values())


def flags_of(tests: tuple[Test, ...]) -> frozenset[int]:
    """The flag bytes (of 64) that *tests* can match, with whatever ECN bits."""
    ranges = field_ranges(tests, "flags")
    if ranges is None:
        return ALL_FLAGS
    return frozenset(byte & 63 for byte in range(256) if _inside(byte, ranges))


def _icmp_possible(kind: Kind, asked: Mapping[str, Ranges]) -> bool:
    ranges = asked.get("icmp" if kind.family == "ipv4" else "icmpv6")
    if ranges is None:
        return True
    if kind.part.icmp_type >= 0:
        return _inside(kind.part.icmp_type, ranges)
    listed = [part.icmp_type for part in icmp_parts(kind.family)[:-1]]
    return any(_inside(number, ranges) for number in range(256) if number not in listed)


def _meets(reply: Reply, asked: Mapping[str, Ranges]) -> bool:
    """Whether a packet can be *reply* and match what is *asked*."""
    return all(field not in asked or common(mine, asked[field]) for field, mine in reply_fields(reply))


@lru_cache(maxsize=100_000)
def reply_fields(reply: Reply) -> tuple[tuple[str, Ranges], ...]:
    """What *reply* asks of a packet: (field of a test, ranges)."""
    found: list[tuple[str, Ranges]] = [("sport", (reply.sport,))]
    found += [("dport", (reply.dport,))] if reply.dport else []
    for side, text in (("saddr", reply.source), ("daddr", reply.destination)):
        for address in text.split(",") if text else ():
            field = f"{'ip6' if ':' in address else 'ip'} {side}"
            ranges = values_of(field, address_value(address))
            found += [(field, ranges)] if ranges else []
    return tuple(found)


def address_value(text: str) -> Json:
    """An address or network as nft writes it."""
    address, slash, length = text.partition("/")
    return {"prefix": {"addr": address, "len": int(length)}} if slash else address
