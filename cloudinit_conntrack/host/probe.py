"""Asking the kernel by a packet: is this flow tracked?

The packet goes over loopback and to nobody: a lone TCP SYN with a wrong checksum, or an empty UDP
datagram.  What was tracked shows in the table as an entry with the probe's own source port.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from collections.abc import Iterable, Iterator

from .root import Root

LOOPBACK = {"ipv4": "127.0.0.1", "ipv6": "::1"}
DOMAIN = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
Flow = tuple[str, str, int]  # family, protocol, port
_PROC = "/proc/net/nf_conntrack"
_WAIT = 0.02
# Refused by the rules, or no such family here: nothing was tracked, nothing was proved.
_REFUSED = (errno.EPERM, errno.EACCES, errno.ENETUNREACH, errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EHOSTUNREACH)


def are_tracked(root: Root, flows: Iterable[Flow]) -> Iterator[bool | None]:
    """For each of *flows*, whether a packet to it on loopback becomes an entry; ``None`` where that cannot be seen.

    All are asked at once, and the table is read once: it may hold a million entries.
    Without ``/proc/net/nf_conntrack`` it cannot be read without loading more of it.
    """
    if not root.exists(_PROC):
        return iter([None for _ in flows])
    sent = [_probed(flow) for flow in flows]
    time.sleep(_WAIT)
    wanted = frozenset(words for words in sent if words)
    found = {key for line in root.lines(_PROC) if (key := _key(line)) in wanted} if wanted else set()
    return iter([None if words is None else words in found for words in sent])


Words = tuple[str, ...]  # as the table has them: family, protocol, source port, destination port


def _probed(flow: Flow) -> Words | None:
    """Send one probe; gives what its entry would hold, or nothing where it cannot be sent."""
    family, protocol, port = flow
    try:
        return family, protocol, f"sport={_send(family, protocol, port)}", f"dport={port}"
    except OSError as error:
        if error.errno in _REFUSED:
            return None
        raise


def _key(line: str) -> Words | None:
    """The words of the first direction of an entry."""
    words = line.split()
    ports = [word for word in words if word.startswith(("sport=", "dport="))][:2]
    return (words[0], words[2], *ports) if len(ports) == 2 else None


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
    # One bit of the checksum is wrong.  On its way out nothing looks at it, so conntrack keeps an entry; whoever
    # receives it drops it.  An answer would end the probe: by a RST the kernel forgets an entry that saw nothing
    # else (nf_conntrack_proto_tcp.c), and a port where nobody listens looked untracked for it.
    checksum = _checksum(address + address + pseudo + header) ^ 1
    return header[:16] + struct.pack("!H", checksum) + header[18:]


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
