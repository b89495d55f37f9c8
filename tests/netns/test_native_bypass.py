"""Native rules whose flows are to bypass conntrack, judged by packets: tracked first, then not, and all still works."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudinit_conntrack.netfilter.bypass import Bypass
from cloudinit_conntrack.netfilter.nft_bypass import add_bypass_nft
from cloudinit_conntrack.netfilter.nft_ruleset import parse_nft
from cloudinit_conntrack.netfilter.nft_transaction import transaction
from cloudinit_conntrack.netfilter.nft_twins import FamilyFlow, NftBypass

from . import usage
from .bypassing import FLOWS, FLOWS_WORK, OF_FLOWS
from .test_bypass_packets import _is_of
from .topology import FAMILIES, Topology, topology

NATIVE = Path(__file__).with_name("native")
BYPASS = NftBypass(tuple(map(FamilyFlow, FLOWS.frontends)), tuple(map(FamilyFlow, FLOWS.backends)), FLOWS)
ALL = NftBypass((), (), Bypass(everything=True))
# server-vmap has a default-drop output for nobody, balancer one in both directions
CASES = ("balancer", "balancer-invalid-first", "server-vmap")


@pytest.fixture(scope="module")
def net() -> Iterator[Topology]:
    with topology() as made:
        yield made


def use(net: Topology, family: str, worked: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """The conversations' outcomes, and what conntrack has then."""
    net.host.forget_connections()
    held = asyncio.run(usage.use(net, family, worked))
    return held, net.host.tracked()


def before_and_after(net: Topology, family: str, name: str, bypass: NftBypass) -> tuple[
    dict[str, str], list[str], dict[str, str], list[str]
]:
    net.host.run("nft", "flush", "ruleset")
    net.host.run("nft", "-f", "-", stdin=(NATIVE / f"{name}.nft").read_text())
    held, tracked = use(net, family, dict.fromkeys(FLOWS_WORK, "ok"))
    found = parse_nft(net.host.run("nft", "-j", "list", "ruleset").stdout)
    added = add_bypass_nft(found, bypass, stop=True)
    assert not added.blockers
    net.host.run("nft", "-j", "-f", "-", stdin=transaction(found, added.ruleset))
    again = add_bypass_nft(parse_nft(net.host.run("nft", "-j", "list", "ruleset").stdout), bypass, stop=True)
    assert not again.changes, "its own work is not found again"
    later, left = use(net, family, held)
    if _worse(held, later):  # what the machine was too slow for is tried once more
        later, left = use(net, family, held)
    return held, tracked, later, left


def _worse(held: dict[str, str], later: dict[str, str]) -> dict[str, str]:
    return {name: later.get(name, "not possible") for name, result in held.items()
            if result == "ok" and later.get(name) != "ok"}  # fmt: skip


def _of_flows(tracked: list[str], family: str) -> dict[tuple[str, str, str, int], list[str]]:
    return {flow: [line for line in tracked if _is_of(line, family, *flow)] for flow in OF_FLOWS}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", CASES)
def test_the_flows_bypass_and_everything_works(net: Topology, family: str, name: str) -> None:
    held, tracked, later, left = before_and_after(net, family, name, BYPASS)
    working = [flow for flow in ("tcp in 80 caller closes", "udp in 443", "tcp on 8080 called closes",
                                 "small link: download in 80") if held.get(flow) != "ok"]  # fmt: skip
    assert not working or name == "server-vmap", {flow: held.get(flow) for flow in working}
    assert not _worse(held, later), net.host.run("nft", "list", "ruleset").stdout
    let_in = {n: r for n, r in later.items() if r == "ok" and held.get(n) != "ok" and n.startswith("tcp")}
    assert not let_in, "a connection that was refused"
    was = _of_flows(tracked, family)
    flows = ("tcp", "client", "host", 80), ("udp", "client", "host", 443)
    assert all(was[flow] for flow in flows), "not tracked before: nothing is proved"
    assert not {flow: lines for flow, lines in _of_flows(left, family).items() if lines}
    assert any(" dport=22 " in line for line in left), "ssh is no flow, and must be tracked as before"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ("balancer-invalid-first", "server-vmap"))
def test_everything_bypasses(net: Topology, family: str, name: str) -> None:
    held, tracked, later, left = before_and_after(net, family, name, ALL)
    assert tracked and not left
    lost = _worse(held, later)
    assert set(lost) <= {n for n in held if n.startswith("udp") and n.split()[2] not in ("53", "123", "443")}, lost


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_closed_is_opened(net: Topology, family: str) -> None:
    held, _, later, left = before_and_after(net, family, "balancer-closed", BYPASS)
    opened = ("tcp in 80 caller closes", "udp in 443", "tcp out 8080 called closes", "tcp on 8080 called closes")
    assert all(held[name] != "ok" for name in opened)
    assert {name: later[name] for name in opened} == dict.fromkeys(opened, "ok")
    assert later["tcp in 23 caller closes"] != "ok" and later["tcp in 8080 caller closes"] != "ok"
    assert not {flow: lines for flow, lines in _of_flows(left, family).items() if lines}


