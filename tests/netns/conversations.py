"""Conversations: both ends of each are sockets of this process, in different namespaces.

Everything is asynchronous so that many conversations run at once: what is dropped costs
its patience only once for all of them.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Callable, TypeVar

from .namespace import Namespace

Address = tuple[str, int]
Result = TypeVar("Result")
FAMILY = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
PING_PROTOCOL = {"ipv4": socket.IPPROTO_ICMP, "ipv6": socket.IPPROTO_ICMPV6}
NAP = 0.05  # seconds
NO_WAITING = struct.pack("ii", 1, 0)  # SO_LINGER: close by a reset
# include/uapi/linux/in.h, in6.h
IP_RECVERR, IPV6_RECVERR = 11, 25
PATH_MTU = {"ipv4": (socket.IPPROTO_IP, 14), "ipv6": (socket.IPPROTO_IPV6, 24)}


def open_socket(place: Namespace, family: str, kind: socket.SocketKind, protocol: int = 0) -> socket.socket:
    """A socket that lives in *place*."""
    with place.inside():
        made = socket.socket(FAMILY[family], kind, protocol)
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == "ipv6" and kind != socket.SOCK_RAW:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return made


@dataclass
class World:
    """Listeners and UDP services of one family, and the connections that they accepted."""

    family: str
    accepted: dict[tuple[Address, Address], asyncio.Future[socket.socket]] = field(default_factory=dict)
    sockets: list[socket.socket] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def listen(self, place: Namespace, *ports: int) -> None:
        """Listen on TCP ports of every address of *place*."""
        for port in ports:
            listener = open_socket(place, self.family, socket.SOCK_STREAM)
            listener.bind(("", port))
            listener.listen(4096)
            self.sockets.append(listener)
            self.tasks.append(asyncio.ensure_future(self._accept(listener)))

    def answer(self, place: Namespace, *ports: int, own: str = "") -> None:
        """Send every UDP datagram to these ports, of *own* or any address, back to where it came from."""
        for port in ports:
            service = open_socket(place, self.family, socket.SOCK_DGRAM)
            service.bind((own, port))
            self.sockets.append(service)
            asyncio.get_running_loop().add_reader(service, _echo, service)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, peer = await loop.sock_accept(listener)
            connection.setblocking(False)
            self.sockets.append(connection)
            self._expected(peer[:2], connection.getsockname()[:2]).set_result(connection)

    def _expected(self, caller: Address, called: Address) -> asyncio.Future[socket.socket]:
        return self.accepted.setdefault((caller, called), asyncio.get_running_loop().create_future())

    async def other_end(self, caller: Address, called: Address) -> socket.socket:
        """The accepted end of the connection between two addresses, once it is accepted."""
        try:
            return await self._expected(caller, called)
        finally:
            del self.accepted[caller, called]

    async def close(self) -> None:
        """Stop listening, and close what is left open."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for opened in (s for s in self.sockets if s.fileno() >= 0):
            asyncio.get_running_loop().remove_reader(opened)
            opened.close()


def _echo(service: socket.socket) -> None:
    try:
        content, peer = service.recvfrom(65535)
        service.sendto(content, peer)
    except OSError:
        pass  # the firewall under test may refuse the answer; then none comes


@asynccontextmanager
async def world(family: str) -> AsyncIterator[World]:
    """A world without services, closed at the end."""
    made = World(family)
    try:
        yield made
    finally:
        await made.close()


@dataclass
class Pair:
    """Both ends of one TCP connection: *caller* connected, *called* accepted."""

    caller: socket.socket
    called: socket.socket

    def close(self) -> None:
        """Close both ends."""
        self.caller.close()
        self.called.close()


async def connect(
    made: World, place: Namespace, to: Address, source: str | None = None, sport: int = 0
) -> Pair:
    """Connect from *place* to a listener of *made*, and give both ends."""
    caller = open_socket(place, made.family, socket.SOCK_STREAM)
    try:
        if source or sport:
            caller.bind((source or "", sport))
        await asyncio.get_running_loop().sock_connect(caller, to)
        called = await made.other_end(caller.getsockname()[:2], to)
    except BaseException:
        caller.close()
        raise
    return Pair(caller, called)


async def transfer(sender: socket.socket, receiver: socket.socket, size: int) -> None:
    """Send *size* bytes one way, and see that every one arrives unchanged."""
    content = bytes(range(251)) * (size // 251 + 1)
    content = content[:size]
    got, _ = await asyncio.gather(read(receiver, size), asyncio.get_running_loop().sock_sendall(sender, content))
    assert got == content


async def read(receiver: socket.socket, size: int) -> bytes:
    """Read exactly *size* bytes, or fewer where the stream ends."""
    pieces: list[bytes] = []
    left = size
    while left:
        piece = await asyncio.get_running_loop().sock_recv(receiver, min(left, 1 << 16))
        if not piece:
            break
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


async def talk(pair: Pair, size: int = 20_000) -> None:
    """Data both ways, more than once."""
    for _ in range(2):
        await transfer(pair.caller, pair.called, size)
        await transfer(pair.called, pair.caller, size)


async def hang_up(first: socket.socket, second: socket.socket) -> None:
    """An orderly end: *first* closes its half, *second* sees it and closes the other."""
    first.shutdown(socket.SHUT_WR)
    assert await read(second, 1) == b""
    second.close()
    assert await read(first, 1) == b""
    first.close()


async def reset(first: socket.socket, second: socket.socket) -> None:
    """*first* resets the connection; *second* must learn of it."""
    first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_WAITING)
    first.close()
    try:
        await read(second, 1)
    except ConnectionResetError:
        return
    raise AssertionError("an orderly end where a reset was expected")


async def ask(
    family: str, place: Namespace, to: Address, size: int = 5, sport: int = 0, hops: int = 64
) -> None:
    """One UDP request from *place*, which must be answered by itself; ICMP errors are raised.

    Its bytes are of chance: a late answer to who had this port before is not taken for the answer.
    """
    caller = open_socket(place, family, socket.SOCK_DGRAM)
    try:
        if family == "ipv4":
            caller.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, hops)
            caller.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        else:
            caller.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, hops)
            caller.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
        caller.bind(("", sport))
        caller.connect(to)
        await _ask(caller, os.urandom(size))
    finally:
        caller.close()


async def ping(family: str, place: Namespace, to: str, size: int = 56) -> None:
    """One echo request with *size* bytes, which must be answered."""
    caller = open_socket(place, family, socket.SOCK_DGRAM, PING_PROTOCOL[family])
    try:
        caller.connect((to, 0))
        kind = 8 if family == "ipv4" else 128
        request = struct.pack("!BBHHH", kind, 0, 0, 0, 1) + b"x" * size
        caller.send(request)
        answer = await asyncio.get_running_loop().sock_recv(caller, 65535)
        assert answer[8:] == request[8:]
    finally:
        caller.close()


async def _ask(caller: socket.socket, content: bytes) -> None:
    caller.send(content)
    while await asyncio.get_running_loop().sock_recv(caller, 65535) != content:
        pass  # bounded by the caller's patience: another answer is none


async def within(conversation: Awaitable[Result], patience: float) -> Result:
    """What *conversation* gives; asyncio.TimeoutError after *patience* seconds in which this process could run.

    They are counted in naps: while the machine is busy with others, a nap is longer, and no patience is lost.
    """
    task = asyncio.ensure_future(conversation)
    try:
        for _ in range(max(1, round(patience / NAP))):
            await asyncio.wait([task], timeout=NAP)
            if task.done():
                break
        return await asyncio.wait_for(task, 0)
    finally:
        task.cancel()


async def outcome(conversation: Awaitable[None], patience: float) -> str:
    """``ok``, or how it failed: ``timeout`` or the error's name (``ECONNREFUSED``)."""
    try:
        await within(conversation, patience)
    except asyncio.TimeoutError:
        return "timeout"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "ok"


async def outcomes(
    conversations: dict[str, Callable[[], Awaitable[None]]], patience: Callable[[str], float]
) -> dict[str, str]:
    """Hold all the conversations at once; name -> outcome."""
    results = await asyncio.gather(*(outcome(start(), patience(name)) for name, start in conversations.items()))
    return dict(zip(conversations, results))
