"""NOTRACK, judged by packets: first the flows are tracked, then they are not, and all still works."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest

from cloudinit_conntrack.netfilter.iptables import parse_ruleset
from cloudinit_conntrack.netfilter.notrack import Bypass, Flow, add_bypass
from cloudinit_conntrack.netfilter.ruleset import format_ruleset

from . import judge
from .bypassing import CASES, CLOSED, FLOWS, OF_FLOWS, WORKS
from .judge import Observed
from .rulesets import Case, rules
from .topology import BACKENDS, FAMILIES, Topology, address, topology

Net = tuple[Topology, str]


@pytest.fixture(scope="module", params=BACKENDS)
def net(request: pytest.FixtureRequest) -> Iterator[Net]:
    with topology() as made:
        yield made, request.param


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_the_flows_bypass_and_everything_works(net: Net, family: str, case: Case) -> None:
    before, after = _compare(net, family, case, case.text(family), FLOWS)
    was, now = _entries(before, family), _entries(after, family)
    assert not [flow for flow, lines in was.items() if not lines], "not tracked before: nothing is proved"
    assert not {flow: lines for flow, lines in now.items() if lines}
    assert _of_port(after, 22), "ssh is no flow, and must be tracked as before"


@pytest.mark.parametrize("family", FAMILIES)
def test_everything_bypasses(net: Net, family: str) -> None:
    case = replace(CASES[0], unanswered=("udp out 5000",))
    _, after = _compare(net, family, case, case.text(family), Bypass(everything=True))
    assert not after.tracked


@pytest.mark.parametrize("family", FAMILIES)
def test_a_frontend_that_was_closed_is_opened_and_said_to_be(net: Net, family: str) -> None:
    host, backend = net
    text = CLOSED.text(family)
    added = add_bypass(parse_ruleset(text, family, CLOSED.name), FLOWS)
    assert any("port 80 was closed" in (change.widens or "") for change in added.changes)
    before = judge.observe(host, backend, family, text, {})
    assert before.conversations["tcp in 80 caller closes"] != "ok"
    after = judge.observe(host, backend, family, format_ruleset(added.ruleset), dict.fromkeys(WORKS, "ok"))
    assert not {name: after.conversations.get(name) for name in WORKS if after.conversations.get(name) != "ok"}
    assert not _entries(after, family)["tcp", "client", "host", 80]


@pytest.mark.parametrize("family", FAMILIES)
def test_path_mtu_errors_arrive_beside_nat(net: Net, family: str) -> None:
    # its order drops INVALID before it accepts ICMP
    case = next(case for case in CASES if case.name.endswith("ufw-order"))
    _, after = _compare(net, family, case, case.text(family) + rules("nat-elsewhere", family), FLOWS)
    assert not {flow: lines for flow, lines in _entries(after, family).items() if lines}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_backend_with_an_address_bypasses_and_others_do_not(net: Net, family: str) -> None:
    only = Bypass(backends=(Flow("tcp", (8080, 8080), address(family, "backend")),))
    before, after = _compare(net, family, CASES[0], CASES[0].text(family), only)
    assert _entries(before, family)["tcp", "inside", "backend", 8080]
    now = _entries(after, family)
    assert not now["tcp", "inside", "backend", 8080]
    assert now["tcp", "host", "client", 8080]
    assert now["tcp", "client", "host", 80]


def _compare(net: Net, family: str, case: Case, text: str, bypass: Bypass) -> tuple[Observed, Observed]:
    """Judge *text* with and without the bypass."""
    host, backend = net
    added = add_bypass(parse_ruleset(text, family, case.name), bypass)
    assert not added.blockers
    return judge.compare(host, backend, family, case, (text, format_ruleset(added.ruleset)), added, stateless=False)


def _entries(observed: Observed, family: str) -> dict[tuple[str, str, str, int], list[str]]:
    """flow -> the conntrack entries of its conversations."""
    return {flow: [line for line in observed.tracked if _is_of(line, family, *flow)] for flow in OF_FLOWS}


# The first of an entry's two directions is that of the packet that made it.
MADE_BY = re.compile(r"src=(\S+) dst=(\S+) sport=(\d+) dport=(\d+)")


def _is_of(line: str, family: str, protocol: str, caller: str, called: str, port: int) -> bool:
    """Whether an entry was made by a flow's request, or by its answer (where only that was tracked)."""
    found = MADE_BY.search(line)
    if found is None or f" {protocol} " not in line:
        return False
    source, destination, sport, dport = found.groups()
    there = tuple(ip_address(address(family, name)).exploded for name in (caller, called))
    return ((source, destination) == there and dport == str(port)) or (
        (destination, source) == there and sport == str(port)
    )


def _of_port(observed: Observed, port: int) -> list[str]:
    return [line for line in observed.tracked if f" dport={port} " in line]
