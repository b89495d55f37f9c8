"""Ports that must stay reachable: what the new rules would close is found before they are loaded."""

from __future__ import annotations

import pytest

from cloudinit_conntrack import guard
from cloudinit_conntrack.netfilter.iptables import parse_ruleset
from cloudinit_conntrack.netfilter.ruleset import RuleSet


def rules(*lines: str, policies: str = "DROP ACCEPT") -> RuleSet:
    """A filter table with the policies of INPUT and OUTPUT."""
    into, out = policies.split()
    chains = [f":INPUT {into} [0:0]", ":FORWARD DROP [0:0]", f":OUTPUT {out} [0:0]"]
    own = [f":{line.split()[1]} - [0:0]" for line in lines if line.split()[1].islower()]
    return parse_ruleset("\n".join(["*filter", *chains, *dict.fromkeys(own), *lines, "COMMIT", ""]), "ipv4")


NEW = "-A INPUT -p tcp -m state --state NEW -m tcp --dport 22 -j ACCEPT"
OLD = "-A INPUT -m state --state ESTABLISHED -j ACCEPT"
SYN = "-A INPUT -p tcp -m tcp --dport 22 --syn -j ACCEPT"
ACK = "-A INPUT -p tcp -m tcp --tcp-flags ACK ACK -j ACCEPT"
STATEFUL = rules(OLD, NEW)
ANSWER = "-A OUTPUT -m state --state ESTABLISHED -j ACCEPT"


@pytest.mark.parametrize(
    "after, closed",
    [
        (rules(ACK, SYN), ""),
        (rules(policies="ACCEPT ACCEPT"), ""),
        (rules("-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT"), ""),
        (rules("-A INPUT -p tcp -m multiport --dports 80,22 -j ACCEPT"), ""),
        (rules("-A INPUT -p tcp -m tcp --dport 20:30 -j ACCEPT"), ""),
        (rules("-A INPUT -j own", "-A own -p tcp -m tcp --dport 22 -j ACCEPT"), ""),
        (rules(), "a handshake to"),
        (rules(ACK), "a handshake to"),
        (rules(ACK, "-A INPUT -p tcp -m tcp --dport 23 --syn -j ACCEPT"), "a handshake to"),
        (rules(ACK, "-A INPUT -p udp -m udp --dport 22 -j ACCEPT"), "a handshake to"),
        (rules(ACK, "-A INPUT -p tcp -m tcp --dport 22 -j DROP", SYN), "a handshake to"),
        (rules(ACK, "-A INPUT -j own", SYN, "-A own -p tcp -j REJECT"), "a handshake to"),
        (rules(ACK, "-A INPUT -s 192.0.2.1/32 -j DROP", SYN), "a handshake to"),  # it might be the administrator's
        (rules(ACK, f"{SYN[:-10]} -s 192.0.2.1/32 -j ACCEPT"), "a handshake to"),
        (rules(ACK, f"{SYN[:-10]} -i lo -j ACCEPT"), "a handshake to"),
        (rules(SYN), "a segment of a connection to"),
        (rules(ACK, SYN, policies="DROP DROP"), "the answer to a handshake to"),
        (
            rules(ACK, SYN, "-A OUTPUT -p tcp --tcp-flags SYN,ACK SYN,ACK -j ACCEPT", policies="DROP DROP"),
            "a segment of a connection from",
        ),
    ],
    ids=range(18),
)
def test_ssh(after: RuleSet, closed: str) -> None:
    found = guard.closed_ports(STATEFUL, after, (22,))
    reason = f"the new rules would refuse {closed} TCP port 22, which must stay reachable"
    assert found == ([(22, reason)] if closed else [])


def test_every_port_is_told_once() -> None:
    found = guard.closed_ports(rules(policies="ACCEPT ACCEPT"), rules(policies="DROP DROP"), (22, 2222))
    assert [port for port, _ in found] == [22, 2222]


def test_what_was_closed_or_open_to_some_may_stay_so() -> None:
    """Perhaps must not become no; and what was no is nobody's loss."""
    some = rules(OLD, NEW.replace("-p tcp", "-s 192.0.2.0/24 -p tcp"))
    assert guard.closed_ports(rules(), rules(), (22,)) == []
    assert guard.closed_ports(some, rules(ACK, SYN.replace("-p tcp", "-s 192.0.2.0/24 -p tcp")), (22,)) == []
    assert guard.closed_ports(some, rules(ACK), (22,)) != []


def test_answers_count() -> None:
    before = rules(OLD, NEW, ANSWER, policies="DROP DROP")
    after = rules(ACK, SYN, "-A OUTPUT -p tcp -m tcp --tcp-flags ACK ACK -j ACCEPT", policies="DROP DROP")
    assert guard.closed_ports(before, after, (22,)) == []
    assert guard.closed_ports(before, rules(ACK, SYN, policies="DROP DROP"), (22,)) != []


def test_untracked_packets_have_no_state() -> None:
    """NOTRACK for the port itself: rules that ask for a state see none of it."""
    twin = "-A INPUT -p tcp -m state --state UNTRACKED -j ACCEPT"
    assert guard.closed_ports(STATEFUL, STATEFUL, (22,)) == []
    assert guard.closed_ports(STATEFUL, STATEFUL, (22,), {22}) != []
    assert guard.closed_ports(STATEFUL, rules(twin, OLD, NEW), (22,), {22}) == []
    assert guard.closed_ports(STATEFUL, rules(twin, OLD, NEW), (22,)) == []


@pytest.mark.parametrize(
    "ruleset, closed",
    [
        (rules(), True),
        (rules(policies="ACCEPT ACCEPT"), False),
        (rules(NEW), False),
        (rules(OLD), True),
        (rules("-A INPUT -s 192.0.2.1/32 -j ACCEPT"), False),
        (rules("-A INPUT -i lo -j ACCEPT"), True),
        (parse_ruleset("", "ipv4"), False),
        (parse_ruleset("*nat\nCOMMIT\n", "ipv6"), False),
    ],
    ids=range(8),
)
def test_what_nobody_can_reach(ruleset: RuleSet, closed: bool) -> None:
    assert guard.unreachable(ruleset, [22, 22]) == ([22, 22] if closed else [])
