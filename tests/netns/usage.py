"""What people do with a host: the conversations that a rule-set lets through, or not.

Each has a name that says who calls whom: ``in`` is client to host, ``out`` host to client,
``on`` host to backend, ``through`` client to backend, ``back`` backend to client, ``lo``
the host with itself.  The result of each is ``ok`` or how it failed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from functools import partial
from typing import Callable

from . import conversations as talk
from .conversations import Pair, World
from .namespace import Namespace
from .topology import SMALL_MTU, UNREACHABLE, Topology, address

Conversations = dict[str, Callable[[], Awaitable[None]]]

HOST_PORTS = (22, 23, 80, 8080)
REMOTE_PORTS = (25, 80, 8080)
ANSWERED = (53, 443, 514, 9999)
ASKED = (53, 123, 5000)
CLOSED = 9
PATIENCE = 0.4  # seconds that are waited for what may well fail
EXPECTED = 5.0  # for what has to work
WAYS = {
    "in": ("client", "host"), "out": ("host", "client"), "on": ("host", "backend"),
    "through": ("client", "backend"), "back": ("backend", "client"), "lo": ("host", "loopback"),
}  # fmt: skip
Ends = Callable[[Pair], Awaitable[None]]


@asynccontextmanager
async def services(net: Topology, family: str) -> AsyncIterator[World]:
    """Everything that listens: on the host, on the client and on the backend."""
    async with talk.world(family) as made:
        made.listen(net.host, *HOST_PORTS)
        made.answer(net.host, *ANSWERED)
        for place in (net.client, net.backend):
            made.listen(place, *REMOTE_PORTS)
            made.answer(place, *ASKED)
        yield made


def ends(net: Topology, family: str, way: str) -> tuple[Namespace, str]:
    """Where a conversation starts, and the address that it goes to."""
    caller, called = WAYS[way]
    return net.named(caller), address(family, called)


def daily(net: Topology, made: World) -> Conversations:
    """The conversations that need no small link."""
    found: Conversations = {}

    def tcp(way: str, port: int, how: str, end: Ends) -> None:
        found[f"tcp {way} {port} {how}"] = partial(_tcp, net, made, way, port, end)

    def udp(way: str, port: int, how: str = "", **options: int) -> None:
        place, to = ends(net, made.family, way)
        found[f"udp {way} {port} {how}".strip()] = partial(talk.ask, made.family, place, (to, port), **options)

    for port in (*HOST_PORTS, CLOSED):
        tcp("in", port, "caller closes", _caller_closes)
    for port in (22, 80):
        tcp("in", port, "called closes", _called_closes)
        tcp("in", port, "caller resets", _caller_resets)
        tcp("in", port, "called resets", _called_resets)
    for way in ("out", "on", "through", "back"):
        tcp(way, 8080, "called closes", _called_closes)
        tcp(way, 8080, "called resets", _called_resets)
        tcp(way, CLOSED, "is refused", _caller_closes)
        udp(way, 53)
        udp(way, 53, "big", size=4000)
        udp(way, CLOSED, "is refused")
    for way, port in (("out", 25), ("out", 80), ("through", 80), ("back", 80), ("lo", 80), ("lo", 8080)):
        tcp(way, port, "caller closes", _caller_closes)
    udp("lo", 53)
    udp("lo", 443)
    for port in ANSWERED:
        udp("in", port)
    udp("in", 53, "big", size=4000)
    for port in ASKED[1:]:
        udp("out", port)
    udp("out", 123, "from 123", sport=123)
    udp("out", 33434, "traceroute", hops=1)
    for way in WAYS:
        place, to = ends(net, made.family, way)
        found[f"ping {way}"] = partial(talk.ping, made.family, place, to)
        found[f"ping {way} big"] = partial(talk.ping, made.family, place, to, 3000)
    found["udp out unreachable"] = partial(talk.ask, made.family, net.host, (UNREACHABLE[made.family], 80))
    return found


def over_small_link(net: Topology, made: World, held: dict[str, str]) -> Conversations:
    """Transfers towards the client that only get through when the sender learns the path's MTU.

    Each uses another address of the client, which the sender has never sent to before.  A
    way that *held* shows to be closed is not tried, and has no outcome.
    """
    client = {n: _nth_client(made.family, n) for n in range(3, 9)}
    found: Conversations = {}
    for n, (way, port) in enumerate((("in", 22), ("in", 80), ("through", 8080)), 3):
        place, to = ends(net, made.family, way)
        found[f"small link: download {way} {port}"] = partial(
            _transfer, made, place, (to, port), client[n], True
        )
    for n, (way, port) in enumerate((("out", 8080), ("out", 25), ("back", 8080)), 6):
        place, _ = ends(net, made.family, way)
        found[f"small link: upload {way} {port}"] = partial(
            _transfer, made, place, (client[n], port), None, False
        )
    open_ways = {" ".join(name.split()[1:3]) for name, result in held.items() if name[:3] == "tcp" and result == "ok"}
    return {name: start for name, start in found.items() if " ".join(name.split()[-2:]) in open_ways}


def _nth_client(family: str, number: int) -> str:
    return f"10.77.1.{number}" if family == "ipv4" else f"fd77:1::{number}"


async def use(net: Topology, family: str, worked: dict[str, str]) -> dict[str, str]:
    """Hold every conversation, neighbours and paths unknown at first; name -> outcome.

    *worked* are the outcomes that are expected: what is ``ok`` there gets more patience.
    """

    def patience(name: str) -> float:
        return EXPECTED if worked.get(name) == "ok" else PATIENCE

    net.forget_paths()
    async with services(net, family) as made:
        found = await talk.outcomes(daily(net, made), patience)
        net.small_link(family)
        try:
            net.forget_paths()
            possible = over_small_link(net, made, found)
            found.update(await talk.outcomes(possible, patience))
        finally:
            net.small_link(family, False)
    return found


async def _tcp(net: Topology, made: World, way: str, port: int, end: Ends) -> None:
    place, to = ends(net, made.family, way)
    pair = await talk.connect(made, place, (to, port))
    try:
        await talk.talk(pair)
        await end(pair)
    finally:
        pair.close()


async def _caller_closes(pair: Pair) -> None:
    await talk.hang_up(pair.caller, pair.called)


async def _called_closes(pair: Pair) -> None:
    await talk.hang_up(pair.called, pair.caller)


async def _caller_resets(pair: Pair) -> None:
    await talk.reset(pair.caller, pair.called)


async def _called_resets(pair: Pair) -> None:
    await talk.reset(pair.called, pair.caller)


async def _transfer(
    made: World, place: Namespace, to: talk.Address, source: str | None, download: bool
) -> None:
    """Transfer much, and see that the sender had to learn of the small link."""
    pair = await talk.connect(made, place, to, source)
    sender, receiver = (pair.called, pair.caller) if download else (pair.caller, pair.called)
    try:
        await talk.transfer(sender, receiver, 200_000)
        assert sender.getsockopt(*talk.PATH_MTU[made.family]) == SMALL_MTU
    finally:
        pair.close()
