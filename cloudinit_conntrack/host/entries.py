"""The connection tracking table: listed, and cleared of some flows.

A small client of ctnetlink (linux/netfilter/nfnetlink_conntrack.h), since the conntrack
command is seldom installed.  Opening it can load nf_conntrack_netlink, so listing reads
``/proc/net/nf_conntrack`` where the kernel has it.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterator
from typing import Callable

from ..errors import HostError
from ..values import dataclass
from . import kernel
from .root import HOST, Root

_NETLINK_NETFILTER = 12
_GET, _DELETE = (1 << 8) | 1, (1 << 8) | 2  # NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_*
_ERROR, _DONE = 2, 3
_REQUEST, _ACK, _DUMP, _INTERRUPTED = 0x01, 0x04, 0x300, 0x10
_TUPLE_ORIG, _TUPLE_REPLY, _ID, _ZONE = 1, 2, 12, 18  # CTA_*
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_ADDRESSES = {1: "src", 2: "dst", 3: "src", 4: "dst"}  # CTA_IP_V4_SRC, ..., CTA_IP_V6_DST
_PORTS = {2: "sport", 3: "dport"}
_TYPE = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_FAMILIES = {socket.AF_INET: "ipv4", socket.AF_INET6: "ipv6"}
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 33: "dccp", 47: "gre", 58: "icmpv6", 132: "sctp",
              136: "udplite"}
_GONE = (2, 16)  # ENOENT: it ended meanwhile; EBUSY: handed to hardware, it goes by itself
_SECONDS = 15.0
_PASSES = 3


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
            deleted += sum(link.delete(entry, raw) for entry, raw in chosen)
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
        for kind, body in self._ask(_GET, _DUMP, socket.AF_UNSPEC, b""):
            found = _entry(body) if kind >> 8 == 1 else None
            if found:
                yield found

    def delete(self, entry: Entry, raw: bytes) -> bool:
        """Whether the entry that *raw* names is deleted; not when it was gone already."""
        family = next(number for number, name in _FAMILIES.items() if name == entry.family)
        for kind, body in self._ask(_DELETE, _ACK, family, raw):
            if kind == _ERROR:
                return _code(body) == 0
        return False

    def _ask(self, kind: int, flags: int, family: int, attributes: bytes) -> Iterator[tuple[int, bytes]]:
        """The messages that answer one request, up to the end of a dump or the acknowledgement."""
        self._number += 1
        body = struct.pack("=BBH", family, 0, 0) + attributes
        head = struct.pack("=IHHII", 16 + len(body), kind, _REQUEST | flags, self._number, 0)
        try:
            self._socket.sendall(head + body)
            while True:
                for answer, number, content in _messages(self._socket.recv(1 << 18)):
                    if number != self._number:
                        continue
                    if answer == _ERROR and _code(content) not in (0, *_GONE):
                        raise OSError(_code(content), "ctnetlink refused the request")
                    yield answer, content
                    if answer in (_ERROR, _DONE):
                        return
        except OSError as error:
            raise HostError(f"conntrack entries: {error}", "netlink", "see dmesg; is this root?") from error


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    while len(data) >= 16:
        length, kind, _, number, _ = struct.unpack_from("=IHHII", data)
        if length < 16:
            return
        yield kind, number, data[16:length]
        data = data[(length + 3) & ~3:]


def _code(body: bytes) -> int:
    return -int(struct.unpack_from("=i", body)[0])


def _attributes(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Type, value and the whole of each attribute."""
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4:
            return
        whole = data[at:at + length]
        yield kind & _TYPE, whole[4:], whole + b"\0" * (-length % 4)
        at += (length + 3) & ~3


def _entry(body: bytes) -> tuple[Entry, bytes] | None:
    family = _FAMILIES.get(socket.AddressFamily(body[0])) if body[0] in tuple(_FAMILIES) else None
    found = {kind: (value, whole) for kind, value, whole in _attributes(body[4:])}
    if family is None or _TUPLE_ORIG not in found or _TUPLE_REPLY not in found:
        return None
    protocol, original = _tuple(found[_TUPLE_ORIG][0])
    _, reply = _tuple(found[_TUPLE_REPLY][0])
    # The original tuple as the kernel wrote it; the id, so that a successor is not hit.
    raw = b"".join(found[kind][1] for kind in (_TUPLE_ORIG, _ID, _ZONE) if kind in found)
    return Entry(family, _protocol(protocol), original, reply), raw


def _tuple(data: bytes) -> tuple[int, Direction]:
    protocol = 0
    addresses: dict[str, str] = {"src": "", "dst": ""}
    ports: dict[str, int] = {}
    for kind, value, _ in _attributes(data):
        for inner, content, _ in _attributes(value):
            if kind == _TUPLE_IP and inner in _ADDRESSES:
                addresses[_ADDRESSES[inner]] = str(ipaddress.ip_address(content))
            elif kind == _TUPLE_PROTO and inner == 1:
                protocol = content[0]
            elif kind == _TUPLE_PROTO and inner in _PORTS:
                ports[_PORTS[inner]] = struct.unpack(">H", content[:2])[0]
    sport, dport = ports.get("sport", 0), ports.get("dport", 0)
    return protocol, Direction(addresses["src"], addresses["dst"], sport, dport)
