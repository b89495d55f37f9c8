"""The connection tracking table: listed, and cleared of some flows.

A small client of ctnetlink (linux/netfilter/nfnetlink_conntrack.h), since the conntrack
command is seldom installed.  Opening it can load nf_conntrack_netlink, so listing reads
``/proc/net/nf_conntrack`` where the kernel has it.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Callable

from ..errors import HostError
from . import kernel
from .root import HOST, Root

_NETLINK_NETFILTER = 12
_GET, _DELETE = (1 << 8) | 1, (1 << 8) | 2  # NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_*
_ERROR, _DONE = 2, 3
_REQUEST, _ACK, _DUMP, _INTERRUPTED = 0x01, 0x04, 0x300, 0x10
_TUPLE_ORIG, _TUPLE_REPLY, _ID, _ZONE = 1, 2, 12, 18  # CTA_*
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_ADDRESSES = ((1, 3), (2, 4))  # CTA_IP_V4_SRC, CTA_IP_V6_SRC; CTA_IP_V4_DST, CTA_IP_V6_DST
_NUMBER, _PORTS = 1, (2, 3)  # CTA_PROTO_NUM, CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT
_HEAD, _FAMILY, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=BBH"), struct.Struct("=HH")
_NESTED = 0x8000
_TYPE = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_FAMILIES: dict[int, str] = {socket.AF_INET: "ipv4", socket.AF_INET6: "ipv6"}
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 33: "dccp", 47: "gre", 58: "icmpv6", 132: "sctp",
              136: "udplite"}
_GONE = (2, 16)  # ENOENT: it ended meanwhile; EBUSY: handed to hardware, it goes by itself
_SECONDS = 15.0
_PASSES = 3
_TOGETHER = 64  # deletions in one message to the kernel: a full table has half a million


@dataclass(frozen=True)
class Direction:
    """One direction of an entry.  Ports are 0 where the protocol has none."""

    src: str
    dst: str
    sport: int = 0
    dport: int = 0


@dataclass(frozen=True)
class Entry:
    """One tracked connection, named by its *original* direction, the one of its first packet.

    *family* is ``ipv4`` or ``ipv6``, *protocol* ``tcp``, ``udp``, ... or a number as text.
    """

    family: str
    protocol: str
    original: Direction
    reply: Direction

    @property
    def src(self) -> str:
        """Who began."""
        return self.original.src

    @property
    def dst(self) -> str:
        """Whom the first packet was for; address translation shows in *reply*."""
        return self.original.dst

    @property
    def sport(self) -> int:
        """The source port of the first packet."""
        return self.original.sport

    @property
    def dport(self) -> int:
        """The destination port of the first packet."""
        return self.original.dport


def list_entries(root: Root = HOST) -> tuple[Entry, ...]:
    """The entries of this network namespace; loads nothing.

    :class:`HostError` where the kernel shows them neither in ``/proc/net/nf_conntrack``
    (CONFIG_NF_CONNTRACK_PROCFS) nor through a ctnetlink that is there already.
    """
    text = root.read_text("/proc/net/nf_conntrack")
    if text is not None:
        return tuple(entry for entry in map(parse_line, text.splitlines()) if entry)
    if kernel.observe_kernel(root).conntrack == "absent":
        return ()
    if not kernel.available(root, "nf_conntrack_netlink"):
        raise HostError("this kernel does not show its entries", "/proc/net/nf_conntrack",
                        "modprobe nf_conntrack_netlink, or use a kernel with CONFIG_NF_CONNTRACK_PROCFS")
    with _Netlink() as link:
        return tuple(entry for entry, _ in link.dump())


def delete_entries(predicate: Callable[[Entry], bool]) -> int:
    """Delete the entries for which *predicate* holds; how many went.

    Only where conntrack is loaded already: this loads nf_conntrack_netlink.  Repeated, as a
    packet in flight may just have confirmed an entry; :class:`HostError` when netlink fails.
    """
    deleted = 0
    with _Netlink() as link:
        for _ in range(_PASSES):
            chosen = [(entry, raw) for entry, raw in link.dump() if predicate(entry)]
            deleted += sum(link.delete(chosen[first:first + _TOGETHER]) for first in range(0, len(chosen), _TOGETHER))
            if not chosen:
                break
    return deleted


def parse_line(line: str) -> Entry | None:
    """One line of ``/proc/net/nf_conntrack``; ``None`` for a line of another kind.

    ``ipv4 2 udp 17 29 src=10.0.0.1 dst=... sport=53 dport=... [UNREPLIED] src=...``
    """
    words = line.split()
    pairs = [word.split("=", 1) for word in words if "=" in word]
    addresses = [value for key, value in pairs if key in ("src", "dst")]
    if len(words) < 5 or words[0] not in _FAMILIES.values() or len(addresses) < 4 or not words[3].isdigit():
        return None
    cut = [i for i, (key, _) in enumerate(pairs) if key == "src"][1]
    original, reply = _direction(dict(pairs[:cut])), _direction(dict(pairs[cut:]))
    return Entry(words[0], _protocol(int(words[3])), original, reply)


def _protocol(number: int) -> str:
    return _PROTOCOLS.get(number, str(number))


def _direction(values: dict[str, str]) -> Direction:
    return Direction(str(ipaddress.ip_address(values["src"])), str(ipaddress.ip_address(values["dst"])),
                     int(values.get("sport", 0)), int(values.get("dport", 0)))


class _Netlink:
    """One NETLINK_NETFILTER socket."""

    def __enter__(self) -> _Netlink:
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
            self._socket.bind((0, 0))
        except OSError as error:
            raise HostError(f"cannot be opened: {error}", "netlink socket", "run as root") from error
        self._socket.settimeout(_SECONDS)
        self._number = 0
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def dump(self) -> Iterator[tuple[Entry, bytes]]:
        """Every entry, with the attributes that name it to :meth:`delete`."""
        for kind, body in self._ask(_GET, _DUMP, [(socket.AF_UNSPEC, b"")]):
            found = _entry(body) if kind >> 8 == 1 else None
            if found:
                yield found

    def delete(self, chosen: Sequence[tuple[Entry, bytes]]) -> int:
        """How many of the entries that :meth:`dump` gave are deleted; not those that were gone already."""
        numbers = {name: number for number, name in _FAMILIES.items()}
        requests = [(numbers[entry.family], raw) for entry, raw in chosen]
        return sum(kind == _ERROR and _code(body) == 0 for kind, body in self._ask(_DELETE, _ACK, requests))

    def _ask(self, kind: int, flags: int, requests: Sequence[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
        """The messages that answer *requests* (family, attributes), up to the last's end or acknowledgement."""
        first = self._number + 1
        self._number += len(requests)
        sent = [_HEAD.pack(20 + len(attributes), kind, _REQUEST | flags, number, 0)
                + _FAMILY.pack(family, 0, 0) + attributes
                for number, (family, attributes) in enumerate(requests, first)]  # fmt: skip
        left = len(requests)
        try:
            self._socket.sendall(b"".join(sent))
            while left:
                for answer, number, content in _messages(self._socket.recv(1 << 18)):
                    if number < first:
                        continue
                    if answer == _ERROR and _code(content) not in (0, *_GONE):
                        raise OSError(_code(content), "ctnetlink refused the request")
                    yield answer, content
                    left -= answer in (_ERROR, _DONE)
        except OSError as error:
            raise HostError(f"conntrack entries: {error}", "netlink", "see dmesg; is this root?") from error


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    at = 0
    while at + 16 <= len(data):
        length, kind, _, number, _ = _HEAD.unpack_from(data, at)
        if length < 16:
            return
        yield kind, number, data[at + 16:at + length]
        at += (length + 3) & ~3


def _code(body: bytes) -> int:
    return -int(struct.unpack_from("=i", body)[0])


def _attributes(data: bytes, at: int = 0) -> dict[int, bytes]:
    """Type and value of each attribute from *at* on."""
    found: dict[int, bytes] = {}
    while at + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < 4:
            break
        found[kind & _TYPE] = data[at + 4:at + length]
        at += (length + 3) & ~3
    return found


def _entry(body: bytes) -> tuple[Entry, bytes] | None:
    family = _FAMILIES.get(body[0])
    found = _attributes(body, 4)
    if family is None or _TUPLE_ORIG not in found or _TUPLE_REPLY not in found:
        return None
    protocol, original = _tuple(found[_TUPLE_ORIG])
    _, reply = _tuple(found[_TUPLE_REPLY])
    # The original tuple as the kernel wrote it; the id, so that a successor is not hit.
    raw = _whole(_TUPLE_ORIG | _NESTED, found[_TUPLE_ORIG])
    raw += b"".join(_whole(kind, found[kind]) for kind in (_ID, _ZONE) if kind in found)
    return Entry(family, _protocol(protocol), original, reply), raw


def _whole(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def _tuple(data: bytes) -> tuple[int, Direction]:
    parts = _attributes(data)
    ends, ports = _attributes(parts.get(_TUPLE_IP, b"")), _attributes(parts.get(_TUPLE_PROTO, b""))
    src, dst = (_address(ends.get(four) or ends.get(six, b"")) for four, six in _ADDRESSES)
    sport, dport = (int.from_bytes(ports.get(kind, b"")[:2], "big") for kind in _PORTS)
    return ports.get(_NUMBER, b"\0")[0], Direction(src, dst, sport, dport)


def _address(value: bytes) -> str:
    family = {4: socket.AF_INET, 16: socket.AF_INET6}.get(len(value))
    return socket.inet_ntop(family, value) if family else ""
