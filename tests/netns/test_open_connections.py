"""What is open when the rules change stays open, and rules that count go on counting the same."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

import pytest

from cloudinit_conntrack.netfilter.iptables import parse_ruleset
from cloudinit_conntrack.netfilter.notrack import add_bypass
from cloudinit_conntrack.netfilter.ruleset import format_ruleset
from cloudinit_conntrack.netfilter.stateless import make_stateless

from . import bypassing, conversations, rulesets, usage
from .conversations import Pair, World
from .rulesets import Case
from .topology import BACKENDS, FAMILIES, Topology, address, topology

Net = tuple[Topology, str]
TALKS = (("in", 22), ("in", 80), ("out", 8080), ("on", 8080), ("through", 8080), ("back", 8080), ("lo", 8080))
PATIENCE = 0.3  # seconds; what has to be open is open at once
MUST_BE_OPEN = ("in 22", "out 8080", "lo 8080")


@pytest.fixture(scope="module", params=BACKENDS)
def net(request: pytest.FixtureRequest) -> Iterator[Net]:
    with topology() as made:
        yield made, request.param


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", rulesets.CASES, ids=[case.name for case in rulesets.CASES])
def test_open_connections_survive_the_rewrite(net: Net, family: str, case: Case) -> None:
    text = case.text(family)
    rewritten = make_stateless(parse_ruleset(text, family, case.name))
    assert not rewritten.blockers
    _survive(net, family, text, format_ruleset(rewritten.ruleset))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", bypassing.CASES, ids=[case.name for case in bypassing.CASES])
def test_open_connections_survive_the_bypass(net: Net, family: str, case: Case) -> None:
    text = case.text(family)
    added = add_bypass(parse_ruleset(text, family, case.name), bypassing.FLOWS)
    assert not added.blockers
    _survive(net, family, text, format_ruleset(added.ruleset))


def _survive(net: Net, family: str, before: str, after: str) -> None:
    host, backend = net
    host.clear(backend)
    host.host.load_rules(before, backend, family)
    broken, opened = asyncio.run(_switch(host, backend, family, after))
    assert set(MUST_BE_OPEN) <= set(opened), "not even open before: nothing is proved"
    assert not broken, after


async def _switch(net: Topology, backend: str, family: str, after: str) -> tuple[dict[str, str], list[str]]:
    """Open connections, load *after* while they talk, and let them talk on and close."""
    async with usage.services(net, family) as made:
        opened = await _open_all(net, made)
        stop = asyncio.Event()
        chatter = [asyncio.ensure_future(conversations.outcome(_chat(pair, stop), 8)) for pair in opened.values()]
        await asyncio.sleep(0.05)
        # in a thread of its own, so that the data keeps flowing meanwhile
        await asyncio.get_running_loop().run_in_executor(None, net.host.load_rules, after, backend, family)
        await asyncio.sleep(0.05)
        stop.set()
        results = await asyncio.gather(*chatter)
        results = [result if result != "ok" else await conversations.outcome(_end(pair), usage.EXPECTED)
                   for result, pair in zip(results, opened.values())]  # fmt: skip
    return {name: result for name, result in zip(opened, results) if result != "ok"}, list(opened)


async def _open_all(net: Topology, made: World) -> dict[str, Pair]:
    """The connections that the rules allow; those that they do not are left out."""
    names = [f"{way} {port}" for way, port in TALKS]
    pairs = await asyncio.gather(*(_open(net, made, way, port) for way, port in TALKS), return_exceptions=True)
    return {name: pair for name, pair in zip(names, pairs) if isinstance(pair, Pair)}


async def _open(net: Topology, made: World, way: str, port: int) -> Pair:
    place, to = usage.ends(net, made.family, way)
    pair = await conversations.within(conversations.connect(made, place, (to, port)), PATIENCE)
    await conversations.within(conversations.talk(pair, 100), PATIENCE)
    return pair


async def _chat(pair: Pair, stop: asyncio.Event) -> None:
    while not stop.is_set():
        await conversations.talk(pair, 500)
        await asyncio.sleep(0.002)


async def _end(pair: Pair) -> None:
    await conversations.talk(pair)
    await conversations.hang_up(pair.called, pair.caller)


# --- rules that count --------------------------------------------------------------------

@pytest.mark.parametrize("family", FAMILIES)
def test_limits_count_what_they_counted_before(net: Net, family: str) -> None:
    """A limit on new connections stays one: data of open connections never uses it up."""
    host, backend = net
    text = rulesets.rules("counting", family)
    rewritten = make_stateless(parse_ruleset(text, family, "counting"))
    assert not rewritten.blockers
    after_text = format_ruleset(rewritten.ruleset)
    before = _count(host, backend, family, text)
    assert before == {"22 ok": 3, "22 timeout": 2, "80 ok": 2, "80 timeout": 1, "few": 5, "handshake": 8}
    assert _count(host, backend, family, after_text) == before, after_text


def _count(net: Topology, backend: str, family: str, text: str) -> dict[str, int]:
    """Five connections to port 22 and three to 80, one after another; what came of them."""
    net.clear(backend)
    net.host.load_rules(text, backend, family)
    found = asyncio.run(_connect_often(net, family))
    saved = net.host.save_rules(backend, family, counters=True)
    for packets, name in re.findall(r"^\[(\d+):\d+\].* -j LOG --log-prefix \"(\w+): ", saved, re.M):
        found[name] = found.get(name, 0) + int(packets)
    return found


async def _connect_often(net: Topology, family: str) -> dict[str, int]:
    found: dict[str, int] = {}
    to = address(family, "host")
    async with usage.services(net, family) as made:
        for port in (22,) * 5 + (80,) * 3:
            result = await conversations.outcome(_visit(net, made, (to, port)), usage.PATIENCE)
            found[f"{port} {result}"] = found.get(f"{port} {result}", 0) + 1
    return found


async def _visit(net: Topology, made: World, to: conversations.Address) -> None:
    pair = await conversations.connect(made, net.client, to)
    await conversations.talk(pair)
    await conversations.hang_up(pair.caller, pair.called)
