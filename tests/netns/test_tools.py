"""The judge's own tools: on a host without rules everything gets through, and is answered as it should."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator

import pytest

from . import scan, usage
from .namespace import Namespace
from .scan import Fate, Probe
from .topology import FAMILIES, Topology, topology

REFUSED = {"ipv4": ("EHOSTUNREACH", "EHOSTUNREACH"), "ipv6": ("EHOSTUNREACH", "ENETUNREACH")}
ERROR = {"ipv4": "icmp 3/3", "ipv6": "icmp 1/4"}


@pytest.fixture(scope="module")
def net() -> Iterator[Topology]:
    with topology() as made:
        yield made


@pytest.mark.parametrize("family", FAMILIES)
def test_every_conversation_is_held(net: Topology, family: str) -> None:
    async def everything() -> set[str]:
        async with usage.services(net, family) as made:
            daily = usage.daily(net, made)
            return {*daily, *usage.over_small_link(net, made, dict.fromkeys(daily, "ok"))}

    names = asyncio.run(everything())
    held = asyncio.run(usage.use(net, family, dict.fromkeys(names, "ok")))
    assert set(held) == names
    closed = {name for name in held if name.split()[2:3] == ["9"]}
    traced, unreachable = "udp out 33434 traceroute", "udp out unreachable"
    assert {held[name] for name in closed} == {"ECONNREFUSED"}
    assert (held[traced], held[unreachable]) == REFUSED[family]
    assert not {name: held[name] for name in names - closed - {traced, unreachable} if held[name] != "ok"}
    assert not net.host.tracked()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_probe_arrives_and_is_answered(net: Topology, family: str) -> None:
    async def scanned() -> dict[Probe, Fate]:
        async with usage.services(net, family):
            return scan.scan(net, family, scan.everything(family))

    fates = asyncio.run(scanned())
    # the kernel itself refuses an IPv6 fragment that does not hold the whole TCP header (RFC 7112)
    lost = {probe for probe, fate in fates.items() if not fate.arrived}
    assert lost == {p for p in fates if family == "ipv6" and p.cut == "tiny" and p.kind == "tcp"}
    assert fates[Probe("in", "tcp", "S", 40000, 22)].answer == "tcp SA"
    assert fates[Probe("in", "tcp", "S", 40000, 9)].answer == "tcp RA"
    assert fates[Probe("in", "tcp", "A", 40000, 22)].answer == "tcp R"
    assert fates[Probe("in", "tcp", "F", 40000, 22)].answer == ""
    assert fates[Probe("in", "tcp", "F", 40000, 9)].answer == "tcp RA"
    assert fates[Probe("in", "tcp", "S", 40000, 22, "two")].answer == "tcp SA"
    assert fates[Probe("in", "udp", "", 40000, 1024)].answer == ERROR[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_refused_probe_does_not_arrive(net: Topology, family: str) -> None:
    word = "icmp-port-unreachable" if family == "ipv4" else "icmp6-port-unreachable"
    probe = Probe("in", "tcp", "S", 40000, 22)
    for rule, answer in (("DROP", ""), (f"REJECT --reject-with {word}", ERROR[family])):
        net.host.load_rules(f"*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p tcp -j {rule}\nCOMMIT\n", "legacy", family)
        try:
            assert scan.scan(net, family, [probe]) == {probe: Fate(False, answer)}
        finally:
            net.clear("legacy")


def test_a_topology_is_quick_and_leaves_nothing() -> None:
    before, started = len(os.listdir("/proc/self/fd")), time.monotonic()
    with topology() as made:
        took = time.monotonic() - started
        assert made.client.run("ping", "-c1", "-W1", "fd77:3::2").returncode == 0
    assert took < 1.0
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_namespace_is_left_even_on_failure() -> None:
    home = os.readlink("/proc/thread-self/ns/net")
    place = Namespace("lonely")
    with pytest.raises(RuntimeError, match="on purpose"), place.inside():
        assert os.readlink("/proc/thread-self/ns/net") != home
        raise RuntimeError("on purpose")
    place.close()
    assert os.readlink("/proc/thread-self/ns/net") == home
