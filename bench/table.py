"""The conntrack table: filled over netlink, its limit and its hash for the time of a measurement.

The limit (nf_conntrack_max) and the hash (nf_conntrack_buckets) are the machine's, and can be set in its first network
namespace only; each namespace's entries are counted against the limit by themselves
(net/netfilter/nf_conntrack_core.c, __nf_conntrack_alloc).
"""

from __future__ import annotations

import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.netns.namespace import Namespace

ENTRIES = 500_000
ROOM = 1_000_000  # a limit that nothing here reaches
BUCKETS = 262_144  # the kernel's own choice for a machine of this size, for one table
LIFETIME = 432_000  # seconds; nf_conntrack_tcp_timeout_established as the kernel ships it
SETTINGS = Path("/proc/sys/net/netfilter")
_TOGETHER = 200  # messages in one send
_SO_SNDBUFFORCE = 32  # asm-generic/socket.h
_SENT = 1 << 20  # bytes of the socket's buffer

# include/uapi/linux/netfilter/nfnetlink_conntrack.h, nf_conntrack_common.h, nf_conntrack_tcp.h
_NEW = 1 << 8  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_NEW
_REQUEST_CREATE = 0x1 | 0x400
_NESTED = 0x8000
_STATUS = 2 | 4 | 8  # seen reply, assured, confirmed
_ESTABLISHED = 3
_CLIENT, _PORT = b"\xc1\xc2\xc3\xc4", b"\xd1\xd2"  # to be replaced


def _attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def _tuple(kind: int, source: bytes, target: bytes, sport: bytes, dport: bytes) -> bytes:
    addresses = _attribute(1, source) + _attribute(2, target)
    ports = _attribute(1, bytes([socket.IPPROTO_TCP])) + _attribute(2, sport) + _attribute(3, dport)
    return _attribute(kind | _NESTED, _attribute(1 | _NESTED, addresses) + _attribute(2 | _NESTED, ports))


def _message() -> bytes:
    """An established connection of ``_CLIENT``'s ``_PORT`` with port 80 of the balancer."""
    here, web = bytes((10, 77, 1, 1)), struct.pack(">H", 80)
    state = _attribute(1 | _NESTED, _attribute(1, bytes([_ESTABLISHED])))
    body = struct.pack(">BBH", socket.AF_INET, 0, 0) + b"".join((
        _tuple(1, _CLIENT, here, _PORT, web), _tuple(2, here, _CLIENT, web, _PORT),
        _attribute(3, struct.pack(">I", _STATUS)), _attribute(7, struct.pack(">I", LIFETIME)),
        _attribute(4 | _NESTED, state),
    ))  # fmt: skip
    return struct.pack("=IHHII", 16 + len(body), _NEW, _REQUEST_CREATE, 0, 0) + body


def _messages(entries: int) -> Iterator[bytearray]:
    """As many such messages, each for another client, together in what one send takes."""
    one = _message()
    clients, ports = ([at for at in range(len(one)) if one.startswith(mark, at)] for mark in (_CLIENT, _PORT))
    for first in range(0, entries, _TOGETHER):
        sent = bytearray(one * min(_TOGETHER, entries - first))
        for number in range(first, min(first + _TOGETHER, entries)):
            start = (number - first) * len(one)
            for at in clients:
                struct.pack_into(">I", sent, start + at, (10 << 24) + (9 << 16) + (number >> 15))
            for at in ports:
                struct.pack_into(">H", sent, start + at, 1024 + (number & 0x7FFF))
        yield sent


def fill(place: Namespace, entries: int) -> None:
    """Put that many established, assured connections into the table of *place*, as a day of clients would."""
    with place.inside(), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as door:  # NETLINK_NETFILTER
        door.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SENT)
        for sent in _messages(entries):
            door.send(sent)
    found = count(place)
    if found < entries:
        raise RuntimeError(f"{found} of {entries} entries: is nf_conntrack_max ({setting('max')}) large enough?")


def count(place: Namespace) -> int:
    """How many connections the table of *place* holds."""
    with place.inside():
        return int((SETTINGS / "nf_conntrack_count").read_text(encoding="ascii"))


def setting(name: str) -> int:
    """``nf_conntrack_NAME`` of the machine: ``max`` or ``buckets``."""
    return int((SETTINGS / f"nf_conntrack_{name}").read_text(encoding="ascii"))


def put(name: str, value: int) -> None:
    """Set it."""
    (SETTINGS / f"nf_conntrack_{name}").write_text(str(value), encoding="ascii")


@contextmanager
def kept_settings() -> Iterator[None]:
    """The machine's limit and hash are afterwards what they were; conntrack is there meanwhile."""
    subprocess.run(["modprobe", "-q", "nf_conntrack"], check=False)  # built in, it says no
    before = {name: setting(name) for name in ("buckets", "max")}  # setting the buckets does not change the limit
    try:
        yield
    finally:
        for name, value in before.items():
            put(name, value)


@contextmanager
def limited(entries: int) -> Iterator[None]:
    """The limit is *entries* meanwhile; with 0 it stays what it is."""
    before = setting("max")
    if entries:
        put("max", entries)
    try:
        yield
    finally:
        if entries:
            put("max", before)
