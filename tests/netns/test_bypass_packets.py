"""NOTRACK, judged by packets: first the flows are tracked, then they are not, and all still works."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Dict, Iterator, List, Tuple

import pytest

from cloudinit_conntrack.netfilter.iptables import parse_ruleset
from cloudinit_conntrack.netfilter.notrack import Bypass, add_bypass
from cloudinit_conntrack.netfilter.ruleset import format_ruleset
from cloudinit_conntrack.netfilter.stateless import Rewritten

from . import judge
from .bypassing import CASES, CLOSED, ELSEWHERE, FLOWS, NAT, OF_FLOWS
from .judge import Observed
from .rulesets import Case
from .topology import BACKENDS, FAMILIES, Topology, address, topology

Net = Tuple[Topology, str]


@pytest.fixture(scope="module", params=BACKENDS)
def net(request: pytest.FixtureRequest) -> Iterator[Net]:
    with topology() as made:
        yield made, request.param


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_the_flows_bypass_and_everything_works(net: Net, family: str, case: Case) -> None:
    before, after, added, text = _before_and_after(net, family, case.text(family), FLOWS)
    _the_case_is_what_it_says(case, before)
    found = judge.complaints(before, after, added, stateless=False)
    assert not found, "\n".join((*found, "", text))

    was, now = _entries(before, family), _entries(after, family)
    assert not [flow for flow, lines in was.items() if not lines], "not tracked before: nothing is proved"
    assert not {flow: lines for flow, lines in now.items() if lines}
    assert _of_port(after, 22), "ssh is no flow, and must be tracked as before"


@pytest.mark.parametrize("family", FAMILIES)
def test_everything_bypasses(net: Net, family: str) -> None:
    case = CASES[0]
    before, after, added, text = _before_and_after(net, family, case.text(family), Bypass(everything=True))
    _the_case_is_what_it_says(case, before)
    assert before.tracked
    found = judge.complaints(before, after, added, ("udp out 5000",))
    assert not found, "\n".join((*found, "", text))
    assert not after.tracked


@pytest.mark.parametrize("family", FAMILIES)
def test_a_frontend_that_was_closed_is_opened_and_said_to_be(net: Net, family: str) -> None:
    before, after, added, text = _before_and_after(net, family, CLOSED.text(family), FLOWS)
    _the_case_is_what_it_says(CLOSED, before)
    assert after.conversations["tcp in 80 caller closes"] == "ok", text
    assert any("port 80 was closed" in (change.widens or "") for change in added.changes)
    assert not _entries(after, family)["tcp", "client", "host", 80]


@pytest.mark.parametrize("family", FAMILIES)
def test_path_mtu_errors_arrive_beside_nat(net: Net, family: str) -> None:
    case = CASES[2]  # its order drops INVALID before it accepts ICMP
    text = case.text(family) + NAT.replace("{elsewhere}", ELSEWHERE[family])
    before, after, added, text = _before_and_after(net, family, text, FLOWS)
    _the_case_is_what_it_says(case, before)
    found = judge.complaints(before, after, added, stateless=False)
    assert not found, "\n".join((*found, "", text))
    assert not {flow: lines for flow, lines in _entries(after, family).items() if lines}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_backend_with_an_address_bypasses_and_others_do_not(net: Net, family: str) -> None:
    case = CASES[0]
    flow = FLOWS.backends[0]
    only = Bypass(backends=(type(flow)(flow.protocol, flow.ports, address(family, "backend")),))
    before, after, added, text = _before_and_after(net, family, case.text(family), only)
    _the_case_is_what_it_says(case, before)
    found = judge.complaints(before, after, added, stateless=False)
    assert not found, "\n".join((*found, "", text))
    now = _entries(after, family)
    assert not now["tcp", "inside", "backend", 8080]
    assert now["tcp", "host", "client", 8080] and now["tcp", "client", "host", 80]


def _before_and_after(net: Net, family: str, text: str, bypass: Bypass) -> Tuple[Observed, Observed, Rewritten, str]:
    host, backend = net
    added = add_bypass(parse_ruleset(text, family, "rules"), bypass)
    assert not added.blockers
    after_text = format_ruleset(added.ruleset)
    before = judge.observe(host, backend, family, text, {})
    after = judge.observe(host, backend, family, after_text, before.conversations)
    host.clear(backend)
    return before, after, added, after_text


def _the_case_is_what_it_says(case: Case, before: Observed) -> None:
    held = before.conversations
    wrong = [f"{name}: {held[name]}" for name in case.works if held[name] not in ("ok", "ECONNREFUSED")]
    wrong += [f"{name}: ok" for name in case.refused if held[name] == "ok"]
    assert not wrong, "the rules before are not what the case says"


def _entries(observed: Observed, family: str) -> Dict[Tuple[str, str, str, int], List[str]]:
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


def _of_port(observed: Observed, port: int) -> List[str]:
    return [line for line in observed.tracked if f" dport={port} " in line]
