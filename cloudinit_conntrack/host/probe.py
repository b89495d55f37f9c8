"""Asking the kernel by a packet: is this flow tracked?

The packet goes over loopback and to nobody: a lone TCP SYN (the answer finds no socket and
is reset by the kernel, so no server sees a connection) or an empty UDP datagram.  What was
tracked shows in the table as an entry with the probe's own source port.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time

from .root import Root

LOOPBACK = {"ipv4": "127.0.0.1", "ipv6": "::1"}
DOMAIN = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
_PROC = "/proc/net/nf_conntrack"
_WAIT = 0.02


def is_tracked(root: Root, family: str, protocol: str, port: int) -> bool | None:
    """Whether a packet to *port* on loopback becomes an entry; ``None`` when that cannot be seen.

    Without ``/proc/net/nf_conntrack`` the table cannot be read without loading more of it.
    """
    if root.read_text(_PROC) is None:
        return None
    try:
        source = _send(family, protocol, port)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES, errno.ENETUNREACH, errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL,
                           errno.EHOSTUNREACH):
            return None  # refused by the rules, or no such family here: nothing was tracked, nothing was proved
        raise
    time.sleep(_WAIT)
    wanted = (protocol, f"sport={source}", f"dport={port}")
    table = root.read_text(_PROC) or ""
    return any(wanted[0] in words and wanted[1] in words and wanted[2] in words
               for words in (line.split() for line in table.splitlines()))


def _send(family: str, protocol: str, port: int) -> int:
    """Send one probe; gives its source port."""
    address = LOOPBACK[family]
    with socket.socket(DOMAIN[family], socket.SOCK_DGRAM) as own:
        own.bind((address, 0))
        source = int(own.getsockname()[1])
        if protocol == "udp":
            own.sendto(b"", (address, port))
            return source
    with socket.socket(DOMAIN[family], socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
        raw.sendto(_syn(family, source, port), (address, 0))
    return source


def _syn(family: str, source: int, port: int) -> bytes:
    sequence = int.from_bytes(os.urandom(4), "big")
    header = struct.pack("!HHIIBBHHH", source, port, sequence, 0, 5 << 4, 0x02, 64240, 0, 0)
    address = socket.inet_pton(DOMAIN[family], LOOPBACK[family])
    length = len(header)
    pseudo = struct.pack("!BBH", 0, socket.IPPROTO_TCP, length)
    if family == "ipv6":
        pseudo = struct.pack("!IHBB", length, 0, 0, socket.IPPROTO_TCP)
    return header[:16] + struct.pack("!H", _checksum(address + address + pseudo + header)) + header[18:]


def _checksum(content: bytes) -> int:
    """The Internet checksum (RFC 1071) of *content*, of an even length."""
    total: int = sum(word for (word,) in struct.iter_unpack("!H", content))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def answers(host: str, port: int, seconds: float = 3.0) -> bool:
    """Whether *host* accepts a TCP connection on *port* within *seconds*."""
    try:
        with socket.create_connection((host, port), timeout=seconds):
            return True
    except OSError:
        return False


Probe = tuple[str, int]
