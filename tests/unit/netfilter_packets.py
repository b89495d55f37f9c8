"""Packets of every kind that rules can tell apart, and the states that conntrack gives them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

FLAGS = {"FIN": 1, "SYN": 2, "RST": 4, "PSH": 8, "ACK": 16, "URG": 32}
SYN, ACK, RST, FIN = 2, 16, 4, 1
PEER, STRANGER, HERE = "10.0.0.1", "192.0.2.9", "198.51.100.5"
PEER6, STRANGER6, HERE6 = "2001:db8:1::1", "2001:db8:9::9", "2001:db8::5"


@dataclass(frozen=True)
class Packet:
    """One packet; *chance* decides every limit and statistic match alike."""

    protocol: str
    sport: int = 0
    dport: int = 0
    flags: int = 0
    icmp_type: int = 0
    interface: str = "eth0"
    source: str = STRANGER
    destination: str = HERE
    chance: bool = True

    @property
    def is_syn(self) -> bool:
        """Whether it opens a TCP connection."""
        return self.protocol == "tcp" and self.flags & (SYN | ACK | RST | FIN) == SYN


ERRORS = {"ipv4": (3, 11, 12), "ipv6": (1, 2, 3, 4)}
REQUEST = {"ipv4": 8, "ipv6": 128}
REPLY = {"ipv4": 0, "ipv6": 129}
DISCOVERY = {"ipv4": (), "ipv6": (130, 131, 132, 133, 134, 135, 136, 143)}
OTHER_TYPES = {"ipv4": (4, 5, 9, 10, 13, 14, 17, 18, 30), "ipv6": (100, 137, 138, 139, 140, 200)}


@cache
def universe(family: str) -> tuple[Packet, ...]:
    """Packets of every kind that rules can tell apart, without a state."""
    return tuple(dict.fromkeys(_universe(family)))


def _universe(family: str) -> Iterator[Packet]:
    here, stranger = (HERE, STRANGER) if family == "ipv4" else (HERE6, STRANGER6)
    peer = PEER if family == "ipv4" else PEER6
    base = Packet("tcp", source=stranger, destination=here)
    out = Packet("tcp", source=here, destination=peer)
    for flags in range(64):
        yield replace(base, sport=40000, dport=22, flags=flags)
    for flags in (
        SYN,
        SYN | 8,
        SYN | 32,
        ACK,
        SYN | ACK,
        RST,
        RST | ACK,
        FIN,
        FIN | ACK,
        0,
        41,
        SYN | FIN,
        SYN | RST,
    ):
        yield replace(base, sport=22, dport=40000, flags=flags, source=peer)
        yield replace(out, sport=22, dport=40000, flags=flags)
        yield replace(base, sport=40000, dport=80, flags=flags, interface="lo", chance=False)
        yield replace(base, sport=53, dport=80, flags=flags)
    for sport, dport in (
        (53, 40000),
        (40000, 53),
        (53, 53),
        (123, 123),
        (67, 68),
        (547, 546),
        (68, 67),
        (5000, 6000),
        (40000, 500),
        (500, 40000),
    ):
        yield replace(base, protocol="udp", sport=sport, dport=dport)
        yield replace(base, protocol="udp", sport=sport, dport=dport, source=peer, chance=False)
        yield replace(out, protocol="udp", sport=sport, dport=dport)
    for number in (*ERRORS[family], REQUEST[family], REPLY[family], *DISCOVERY[family], *OTHER_TYPES[family]):
        yield replace(base, protocol="icmp", icmp_type=number)
    yield replace(base, protocol="gre")
    yield replace(base, protocol="gre", interface="lo")


def is_default_reply(packet: Packet, hook: str, family: str) -> bool:
    """Whether *packet* answers what a host asks by default: DNS, NTP, DHCP (CONTRACT.md)."""
    if packet.protocol != "udp" or hook != "INPUT":
        return False
    dhcp = (67, 68) if family == "ipv4" else (547, 546)
    pair = (packet.sport, packet.dport)
    high = packet.sport in (53, 123) and 32768 <= packet.dport <= 60999
    return high or pair in (dhcp, (123, 123))


def usual_states(packet: Packet, hook: str, family: str) -> tuple[str, ...]:
    """The states that *packet* has in the traffic of connections that work.

    Empty for what no working connection needs.  A UDP datagram is the first of its flow or a
    later one, whoever sent it; which it must be, the ports tell.
    """
    if packet.protocol == "tcp":
        if packet.is_syn:
            return ("NEW",)
        return ("ESTABLISHED",) if packet.flags & (ACK | RST) else ()
    if packet.protocol == "udp":
        return ("ESTABLISHED",) if is_default_reply(packet, hook, family) else ("NEW",)
    if packet.protocol == "icmp":
        if packet.icmp_type in DISCOVERY[family]:
            return ("UNTRACKED",)
        if packet.icmp_type in ERRORS[family]:
            return ("RELATED",)
        return {REQUEST[family]: ("NEW",), REPLY[family]: ("ESTABLISHED",)}.get(packet.icmp_type, ())
    return ("NEW",)


def stray_states(packet: Packet, family: str) -> tuple[str, ...]:
    """The states that conntrack can give *packet* where it belongs to no connection.

    ``tcp_conntracks`` in nf_conntrack_proto_tcp.c: of the first segments only SYN is NEW, and
    plain ACK where connections are picked up midway (nf_conntrack_tcp_loose).
    """
    if packet.protocol == "tcp":
        if packet.is_syn:
            return ("NEW",)
        picked_up = packet.flags & ACK and not packet.flags & (SYN | RST | FIN)
        return ("NEW", "INVALID") if picked_up else ("INVALID",)
    if packet.protocol == "icmp":
        if packet.icmp_type in DISCOVERY[family]:
            return ("UNTRACKED",)
        queries = (8, 13, 15, 17) if family == "ipv4" else (128, 139)
        return ("NEW",) if packet.icmp_type in queries else ("INVALID",)
    return ("NEW",)
