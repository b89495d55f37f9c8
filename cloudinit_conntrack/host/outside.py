"""A client of our own: fresh TCP connections that come in by a link, as those from outside do.

The client stands in a network namespace of its own, joined to the host by a pair of links
(veth(4)) for as long as the connections take.  Nobody else sees them: they go to addresses
of this host, and no byte is sent over them.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address

from ..errors import ConntrackError, HostError
from .listening import listening
from .modules import loaded, unload
from .probe import DOMAIN, Probe
from .process import private_namespace, run
from .root import Root

_CLONE_NEWNET = 0x40000000  # setns(2)
# RFC 2544's network for tests of network devices, and a unique local one (RFC 4193) of our own.
_LINK = {"ipv4": ("198.18.97.1", "198.18.97.2", 30), "ipv6": ("fd63:7470:6c62::1", "fd63:7470:6c62::2", 126)}
_ABROAD = {"ipv4": "192.0.2.1", "ipv6": "2001:db8::1"}  # for documentation: nobody's
_MOST = 256
_FAREWELL = 0.5  # seconds for servers to end what we have ended
_WAITING = (errno.EINPROGRESS, errno.EAGAIN)


@dataclass(frozen=True)
class Answers:
    """Which of the sockets asked for took a connection, as (address, port), and why none could be tried."""

    given: frozenset[Probe] = frozenset()
    untried: str = ""


def answers_outside(root: Root, ports: Iterable[int], seconds: float) -> Answers:
    """Connect once to each listening socket of the TCP *ports*, from outside.

    What listens on every address is asked at the address that faces the default route.
    Without listening sockets no link is made.
    """
    targets = _targets(root, frozenset(ports))
    if not targets:
        return Answers()
    were = loaded("veth", root)
    try:
        with private_namespace() as path, _linked(path):
            return Answers(_connected(path, targets, seconds))
    except (ConntrackError, OSError) as error:
        return Answers(untried=str(error))
    finally:
        if were is None:
            unload("veth", root)


def _targets(root: Root, ports: frozenset[int]) -> tuple[Probe, ...]:
    found: dict[Probe, None] = {}
    for one in listening(root):
        if one.port in ports:
            found.update(dict.fromkeys((host, one.port) for host in _reached(one.family, one.address)))
    return tuple(found)[:_MOST]


def _reached(family: str, listening: str) -> tuple[str, ...]:
    """The addresses at which a socket that listens on *listening* (hexadecimal, as in /proc) is reached."""
    words = bytes.fromhex(listening)
    order = "<" if sys.byteorder == "little" else ">"
    packed = struct.pack(f">{len(words) // 4}I", *struct.unpack(f"{order}{len(words) // 4}I", words))
    address = ip_address(packed)
    if address.is_loopback or address.is_link_local:
        return ()
    if not address.is_unspecified:
        return (str(address),)
    # A socket on [::] mostly serves IPv4 too; where it does not, nothing answers and nothing is missed.
    return tuple(_own_address(name) for name in ("ipv4", "ipv6") if name == family or family == "ipv6")


def _own_address(family: str) -> str:
    """Our address towards the default route, or that of our link.  Connecting a UDP socket sends nothing."""
    with suppress(OSError), socket.socket(DOMAIN[family], socket.SOCK_DGRAM) as asked:
        asked.connect((_ABROAD[family], 9))
        return str(asked.getsockname()[0])
    return _LINK[family][0]


@contextmanager
def _linked(path: str) -> Iterator[None]:
    """A pair of links between this namespace and the one at *path*, which belongs to a process."""
    name, pid = f"cct{os.urandom(4).hex()}", path.split("/")[2]
    run(["ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", pid])
    try:
        for family, (here, there, bits) in _LINK.items():
            option, once = ("-6", " nodad") if family == "ipv6" else ("-4", "")
            check = family == "ipv4"  # IPv6 may be switched off, here or for new links
            _ip([option], f"addr add {here}/{bits} dev {name}{once}\nlink set {name} up\n", None, check)
            _ip([option], f"addr add {there}/{bits} dev eth0{once}\nlink set eth0 up\nroute add default via {here}\n",
                path, check)
        yield
    finally:
        with suppress(HostError):  # it goes with the namespace
            run(["ip", "link", "del", name])


def _ip(options: list[str], commands: str, netns: str | None, check: bool) -> None:
    run(["ip", *options, "-batch", "-"], stdin=commands.encode(), netns=netns, check=check)


def _connected(path: str, targets: tuple[Probe, ...], seconds: float) -> frozenset[Probe]:
    """Those of *targets* that take a connection from the namespace at *path* within *seconds*."""
    deadline = time.monotonic() + seconds
    given: set[Probe] = set()
    taken: list[socket.socket] = []
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        for opened, target in _opened(path, targets, stack):
            status = opened.connect_ex(target)
            if status in _WAITING:
                selector.register(opened, selectors.EVENT_WRITE, target)
        while selector.get_map() and time.monotonic() < deadline:
            for key, _ in selector.select(max(0.0, deadline - time.monotonic())):
                opened = key.fileobj  # type: ignore[assignment]
                selector.unregister(opened)
                if opened.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                    given.add(key.data)
                    taken.append(opened)
        _part(taken)
    return frozenset(given)


def _part(taken: list[socket.socket]) -> None:
    """End the connections in order, and let the servers do so: a reset is more than some of them can bear."""
    deadline = time.monotonic() + _FAREWELL
    with selectors.DefaultSelector() as selector:
        for opened in taken:
            with suppress(OSError):
                opened.shutdown(socket.SHUT_WR)
                selector.register(opened, selectors.EVENT_READ)
        while selector.get_map() and time.monotonic() < deadline:
            for key, _ in selector.select(max(0.0, deadline - time.monotonic())):
                opened = key.fileobj  # type: ignore[assignment]
                try:
                    ended = not opened.recv(1 << 16)
                except OSError:
                    ended = True
                if ended:
                    selector.unregister(opened)


def _opened(path: str, targets: tuple[Probe, ...], stack: ExitStack) -> list[tuple[socket.socket, Probe]]:
    """A socket for each of *targets*, made in the namespace at *path*: they stay in it, a thread of ours does not."""
    made: list[tuple[socket.socket, Probe]] = []
    failed: list[OSError] = []

    def work() -> None:
        try:
            _enter(path)
            for target in targets:
                domain = DOMAIN["ipv6" if ":" in target[0] else "ipv4"]
                with suppress(OSError):  # a kernel without IPv6
                    opened = stack.enter_context(socket.socket(domain, socket.SOCK_STREAM))
                    opened.setblocking(False)
                    made.append((opened, target))
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made


def _enter(path: str) -> None:
    """Move this thread, and it alone, into the network namespace at *path* (Python has setns from 3.12 on)."""
    import ctypes  # here: a boot with nothing to do asks nobody

    libc = ctypes.CDLL(None, use_errno=True)
    opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(opened, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
    finally:
        os.close(opened)
