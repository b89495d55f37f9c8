"""The TCP sockets that listen in this network namespace, as the kernel lists them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from ..errors import HostError
from .root import Root

_TABLES = {"ipv4": "/proc/net/tcp", "ipv6": "/proc/net/tcp6"}
_COUNTS = ("/proc/net/sockstat", "/proc/net/sockstat6")
_LISTENS = "0A"  # TCP_LISTEN in /proc/net/tcp (net/ipv4/tcp_ipv4.c)


@dataclass(frozen=True)
class Listening:
    """One socket: *address* in hexadecimal as in ``/proc/net/tcp``, of *family*; *inode* tells whose it is."""

    family: str
    address: str
    port: int
    inode: str


def listening(root: Root) -> Iterator[Listening]:
    """Every listening TCP socket of this network namespace."""
    # To read the tables the kernel goes through all of its hash tables, however empty.
    counts = [line for path in _COUNTS for line in _text(root, path).splitlines() if line.startswith("TCP")]
    if counts and all(" inuse 0" in line for line in counts):
        return
    for family, table in _TABLES.items():
        for line in _text(root, table).splitlines()[1:]:
            fields = line.split()
            if len(fields) > 9 and fields[3] == _LISTENS:
                address, _, port = fields[1].rpartition(":")
                yield Listening(family, address, int(port, 16), fields[9])


def _text(root: Root, path: str) -> str:
    with suppress(HostError):
        return root.read_text(path) or ""
    return ""
