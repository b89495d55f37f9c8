"""The probe's answer beside the kernel's table, in a network namespace with rules of its own."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from cloudinit_conntrack.host import probe
from cloudinit_conntrack.host.root import HOST

from .namespace import Namespace
from .topology import FAMILIES

EXEMPT, TRACKED = 4568, 4567
FLOWS = [(family, protocol, port) for family in FAMILIES for protocol in ("tcp", "udp") for port in (EXEMPT, TRACKED)]


@pytest.fixture
def place() -> Iterator[Namespace]:
    """A host that tracks everything but EXEMPT."""
    made = Namespace("host")
    made.run("ip", "link", "set", "lo", "up")
    for command in ("iptables-nft", "ip6tables-nft"):
        made.run(command, "-A", "INPUT", "-m", "conntrack", "--ctstate", "ESTABLISHED", "-j", "ACCEPT")
        for protocol in ("tcp", "udp"):
            made.run(command, "-t", "raw", "-A", "OUTPUT", "-p", protocol, "--dport", str(EXEMPT), "-j", "NOTRACK")
    yield made
    made.close()


def asked(place: Namespace) -> dict[tuple[str, str, int], bool | None]:
    with place.inside():
        return dict(zip(FLOWS, probe.are_tracked(HOST, FLOWS)))


def test_many_at_once_where_nobody_listens(place: Namespace) -> None:
    """A reset would end the entry of a handshake before anybody could see it."""
    assert asked(place) == {flow: flow[2] == TRACKED for flow in FLOWS}
    assert len(place.tracked(f"dport={TRACKED}")) == 4 and not place.tracked(f"dport={EXEMPT}")


def test_a_server_hears_nothing_of_it(place: Namespace) -> None:
    with place.inside(), socket.socket() as server:
        server.bind(("127.0.0.1", TRACKED))
        server.listen()
        server.settimeout(0.2)
        assert asked(place)["ipv4", "tcp", TRACKED]
        with pytest.raises(TimeoutError):
            server.accept()
    states = [line.split()[5] for line in place.tracked(f"dport={TRACKED}", "tcp")]
    assert states == ["SYN_SENT", "SYN_SENT"], "it was answered"


def test_where_rules_refuse_the_probe_nothing_is_proved(place: Namespace) -> None:
    for command in ("iptables-nft", "ip6tables-nft"):
        place.run(command, "-A", "OUTPUT", "-p", "udp", "-j", "DROP")
    found = asked(place)
    assert {found[flow] for flow in FLOWS if flow[1] == "udp"} == {None}
    assert found["ipv4", "tcp", TRACKED] is True
