"""Packets as bytes: any TCP flags, ICMP messages about connections that are not, fragments.

Written out here, and not by a library, so that a scan of thousands of packets takes a
fraction of a second.  That the bytes are right is judged by the kernel, which answers them
(and by tests/netns/test_tools.py).
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

FLAGS = "FSRPAUEC"  # bit 0 to bit 7
TCP, UDP, ICMP4, ICMP6, GRE, ESP, FRAGMENT = 6, 17, 1, 58, 47, 50, 44
ICMP = {"ipv4": ICMP4, "ipv6": ICMP6}
ECHO_REQUEST = {"ipv4": 8, "ipv6": 128}
HOPS = 64


def flag_bits(letters: str) -> int:
    """``SA`` as the flag byte of a TCP header."""
    return sum(1 << FLAGS.index(letter) for letter in letters)


def flag_letters(bits: int) -> str:
    """The flag byte as letters, ``-`` for none."""
    return "".join(letter for at, letter in enumerate(FLAGS) if bits >> at & 1) or "-"


def packed(address: str) -> bytes:
    """An address as 4 or 16 bytes."""
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def checksum(content: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    if len(content) % 2:
        content += b"\0"
    total: int = sum(struct.unpack(f"!{len(content) // 2}H", content))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _pseudo(source: str, destination: str, protocol: int, length: int) -> bytes:
    ends = packed(source) + packed(destination)
    return ends + (struct.pack("!BBH", 0, protocol, length) if len(ends) == 8 else struct.pack("!II", length, protocol))


def tcp(source: str, destination: str, ports: tuple[int, int], flags: int, seq: int, load: bytes = b"") -> bytes:
    """A TCP segment from port to port."""
    ack = 1 if flags & flag_bits("A") else 0
    head = struct.pack("!HHIIBBHHH", *ports, seq, ack, 5 << 4, flags, 65535, 0, 0)
    total = checksum(_pseudo(source, destination, TCP, len(head) + len(load)) + head + load)
    return head[:16] + struct.pack("!H", total) + head[18:] + load


def udp(source: str, destination: str, ports: tuple[int, int], load: bytes = b"hello") -> bytes:
    """A UDP datagram from port to port."""
    head = struct.pack("!HHHH", *ports, 8 + len(load), 0)
    total = checksum(_pseudo(source, destination, UDP, len(head) + len(load)) + head + load)
    return head[:6] + struct.pack("!H", total or 0xFFFF) + load


def icmp(source: str, destination: str, kind: tuple[int, int], rest: int = 0, load: bytes = b"") -> bytes:
    """An ICMP or ICMPv6 message of type and code; *rest* is the header's second half."""
    body = struct.pack("!BBHI", *kind, 0, rest) + load
    pseudo = _pseudo(source, destination, ICMP6, len(body)) if ":" in source else b""
    return body[:2] + struct.pack("!H", checksum(pseudo + body)) + body[4:]


def ip(source: str, destination: str, protocol: int, load: bytes, ident: int = 0, offset: int = 0) -> bytes:
    """An IP packet; *offset* is IPv4's fragment field, flags included."""
    if ":" in source:
        return struct.pack("!IHBB", 6 << 28, len(load), protocol, HOPS) + packed(source) + packed(destination) + load
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(load), ident, offset, HOPS, protocol, 0)
    head += packed(source) + packed(destination)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + load


def fragments(source: str, destination: str, protocol: int, load: bytes, ident: int, size: int) -> list[bytes]:
    """The packet in pieces of *size* bytes (a multiple of 8); one piece is an atomic fragment."""
    pieces: list[bytes] = []
    for start in range(0, len(load), size):
        more = start + size < len(load)
        piece = load[start : start + size]
        if ":" in source:
            head = struct.pack("!BBHI", protocol, 0, start | more, ident)
            pieces.append(ip(source, destination, FRAGMENT, head + piece))
        else:
            pieces.append(ip(source, destination, protocol, piece, ident & 0xFFFF, start >> 3 | more << 13))
    return pieces


@dataclass(frozen=True)
class Seen:
    """A packet that was seen: *kind* is ``tcp``, ``udp``, ``icmp`` or the protocol's number.

    *detail* is the TCP flags in letters or ICMP's ``type/code``; *seq* is TCP's.
    """

    source: str
    destination: str
    kind: str
    detail: str = ""
    seq: int = 0


def parse(packet: bytes) -> Seen | None:
    """What an IP packet is; ``None`` for a later fragment and for what is not IP."""
    if len(packet) < 20:
        return None
    if packet[0] >> 4 == 4:
        if struct.unpack("!H", packet[6:8])[0] & 0x1FFF:
            return None
        start = (packet[0] & 15) * 4
        ends = (socket.inet_ntop(socket.AF_INET, packet[12:16]), socket.inet_ntop(socket.AF_INET, packet[16:20]))
        return parse_load(*ends, packet[9], packet[start:])
    if packet[0] >> 4 != 6 or len(packet) < 40:
        return None
    protocol, start = packet[6], 40
    ends = (socket.inet_ntop(socket.AF_INET6, packet[8:24]), socket.inet_ntop(socket.AF_INET6, packet[24:40]))
    while protocol in (0, FRAGMENT) and len(packet) >= start + 8:  # 0: hop-by-hop options, before MLD
        if protocol == FRAGMENT and struct.unpack("!H", packet[start + 2 : start + 4])[0] & 0xFFF8:
            return None
        length = 8 if protocol == FRAGMENT else (packet[start + 1] + 1) * 8
        protocol, start = packet[start], start + length
    return parse_load(*ends, protocol, packet[start:])


def parse_load(source: str, destination: str, protocol: int, load: bytes) -> Seen:
    """What the load of an IP packet is."""
    if protocol == TCP and len(load) >= 20:
        return Seen(source, destination, "tcp", flag_letters(load[13]), struct.unpack("!I", load[4:8])[0])
    if protocol in (ICMP4, ICMP6) and len(load) >= 2:
        return Seen(source, destination, "icmp", f"{load[0]}/{load[1]}")
    return Seen(source, destination, "udp" if protocol == UDP else str(protocol))
