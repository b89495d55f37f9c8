"""Which verdicts a packet can meet, and which UDP datagrams are replies."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from netfilter_model import Firewall
from netfilter_packets import ACK, SYN, universe
from netfilter_packets import Packet as Sent
from test_netfilter_semantics import rulesets

from cloudinit_conntrack.netfilter.iptables import parse_rule, parse_ruleset
from cloudinit_conntrack.netfilter.reach import Packet, syn, verdicts
from cloudinit_conntrack.netfilter.replies import (
    Reply,
    UdpFlow,
    narrowed,
    outbound_replies,
    port_range,
    replies_by_hook,
)
from cloudinit_conntrack.netfilter.ruleset import format_ruleset
from cloudinit_conntrack.netfilter.stateless import Policy, make_stateless

SSH = syn(22)
CASES = {
    # rules behind "*filter / :INPUT DROP" -> what a SYN to port 22 can meet
    "": {"DROP"},
    "-A INPUT -j ACCEPT": {"ACCEPT"},
    "-A INPUT -p tcp --dport 22 -j ACCEPT": {"ACCEPT"},
    "-A INPUT -p tcp --dport 23 -j ACCEPT": {"DROP"},
    "-A INPUT -p tcp --dport ssh -j ACCEPT": {"ACCEPT"},
    "-A INPUT -p tcp -m multiport --dports 80,20:25 -j ACCEPT": {"ACCEPT"},
    "-A INPUT -p udp --dport 22 -j ACCEPT": {"DROP"},
    "-A INPUT ! -p udp -j ACCEPT": {"ACCEPT"},
    "-A INPUT ! -p tcp -j ACCEPT": {"DROP"},
    "-A INPUT -s 10.0.0.0/8 -j ACCEPT": {"ACCEPT", "DROP"},
    "-A INPUT -s 0.0.0.0/0 -j ACCEPT": {"ACCEPT"},
    "-A INPUT -m recent --update --seconds 60 -j DROP\n-A INPUT -j ACCEPT": {"ACCEPT", "DROP"},
    "-A INPUT -i lo -j ACCEPT": {"DROP"},
    "-A INPUT ! -i lo -j ACCEPT": {"ACCEPT"},
    "-A INPUT -i eth0 -j ACCEPT": {"ACCEPT", "DROP"},
    "-A INPUT -p tcp --syn -j ACCEPT": {"ACCEPT"},
    "-A INPUT -p tcp --tcp-flags ACK ACK -j ACCEPT": {"DROP"},
    "-A INPUT -p tcp ! --syn -j ACCEPT": {"DROP"},
    "-A INPUT -m state --state NEW -j ACCEPT": {"ACCEPT"},
    "-A INPUT -m state --state ESTABLISHED,RELATED -j ACCEPT": {"DROP"},
    "-A INPUT -m conntrack ! --ctstate INVALID -j ACCEPT": {"ACCEPT"},
    "-A INPUT -m conntrack --ctstate DNAT -j ACCEPT": {"ACCEPT", "DROP"},
    "-A INPUT -p tcp --dport 22 -j REJECT\n-A INPUT -j ACCEPT": {"DROP"},
    "-A INPUT -j LOG\n-A INPUT -j ACCEPT": {"ACCEPT"},
    "-A INPUT -p tcp": {"DROP"},
    ":U - [0:0]\n-A INPUT -j U\n-A U -p tcp --dport 22 -j ACCEPT": {"ACCEPT"},
    ":U - [0:0]\n-A INPUT -j U\n-A INPUT -j ACCEPT\n-A U -p tcp --dport 22 -j RETURN\n-A U -j DROP": {"ACCEPT"},
    ":U - [0:0]\n-A INPUT -g U\n-A INPUT -j ACCEPT\n-A U -p udp -j ACCEPT": {"DROP"},
    ":U - [0:0]\n:V - [0:0]\n-A INPUT -j U\n-A INPUT -j ACCEPT\n-A U -g V\n-A U -j DROP\n-A V -p udp -j DROP": {
        "ACCEPT"
    },
    ":U - [0:0]\n-A INPUT -s 10.0.0.0/8 -j U\n-A INPUT -j DROP\n-A U -j ACCEPT": {"ACCEPT", "DROP"},
    ":U - [0:0]\n-A INPUT -j U\n-A INPUT -j DROP\n-A U -s 10.0.0.0/8 -j RETURN\n-A U -j ACCEPT": {
        "ACCEPT",
        "DROP",
    },
    "-A INPUT -j DROP\n-I INPUT -j ACCEPT": {"ACCEPT"},
    "-A INPUT -p tcp --dport 22 -j NFQUEUE": {"NFQUEUE"},
    "-P INPUT ACCEPT": {"ACCEPT"},
}


@pytest.mark.parametrize("rules", CASES)
def test_what_a_handshake_can_meet(rules: str) -> None:
    text = f"*filter\n:INPUT DROP [0:0]\n{rules}\nCOMMIT\n"
    assert verdicts(parse_ruleset(text, "ipv4"), "INPUT", SSH) == CASES[rules]


def test_other_packets_and_places() -> None:
    text = (
        "*filter\n:INPUT DROP [0:0]\n-A INPUT -p icmp --icmp-type 3 -j ACCEPT\n-A INPUT -i lo -j ACCEPT\n"
        "-A INPUT -p udp --sport 53 -j ACCEPT\nCOMMIT\n"
    )
    ruleset = parse_ruleset(text, "ipv4")
    assert verdicts(ruleset, "INPUT", Packet("icmp", icmp_type=3)) == {"ACCEPT"}
    assert verdicts(ruleset, "INPUT", Packet("icmp", icmp_type=8)) == {"DROP"}
    assert verdicts(ruleset, "INPUT", Packet("icmp")) == {"ACCEPT", "DROP"}
    assert verdicts(ruleset, "INPUT", Packet("tcp", 80, interface="lo")) == {"ACCEPT"}
    assert verdicts(ruleset, "INPUT", Packet("udp", 40000, 53)) == {"ACCEPT"}
    assert verdicts(ruleset, "INPUT", Packet("udp", 40000)) == {"ACCEPT", "DROP"}
    assert verdicts(ruleset, "OUTPUT", SSH) == {"ACCEPT"}, "a chain that is not there accepts"
    assert verdicts(ruleset, "INPUT", SSH, "mangle") == {"ACCEPT"}


def test_a_loop_ends() -> None:
    text = "*filter\n:INPUT DROP [0:0]\n:U - [0:0]\n-A INPUT -j U\n-A U -j U\nCOMMIT\n"
    assert verdicts(parse_ruleset(text, "ipv4"), "INPUT", SSH) == {"DROP"}


def known(packet: Sent, state: str) -> Packet:
    """The model's packet, as far as reach can know it."""
    if packet.protocol == "icmp":
        return Packet("icmp", icmp_type=packet.icmp_type, state=state, interface=packet.interface)
    return Packet(packet.protocol, packet.dport, packet.sport, packet.flags, None, state, packet.interface)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(rulesets("ipv4", raw=False))
def test_what_happens_is_among_what_can_happen(text: str) -> None:
    """The model sends one packet; reach must not call its verdict impossible."""
    ruleset, firewall = parse_ruleset(text, "ipv4"), Firewall(text)
    for packet in universe("ipv4"):
        if packet.protocol != "gre":
            for state in ("NEW", "ESTABLISHED"):
                happened = firewall.send("INPUT", packet, state).verdict
                assert happened in verdicts(ruleset, "INPUT", known(packet, state)), f"{packet} {state}\n{text}"


# --- UDP replies ------------------------------------------------------------------------

RANGE = (32768, 60999)


def test_replies_to_what_the_host_asks_for() -> None:
    flows = (UdpFlow((53, 53)), UdpFlow((67, 67)), UdpFlow((123, 123)), UdpFlow((514, 515), "10.0.0.0/8", "ipv4"))
    assert outbound_replies(flows, "ipv4", RANGE) == (
        Reply((53, 53), RANGE),
        Reply((67, 67), (68, 68)),
        Reply((123, 123), RANGE),
        Reply((123, 123), (123, 123)),
        Reply((514, 515), RANGE, "10.0.0.0/8"),
    )
    assert outbound_replies(flows, "ipv6", RANGE)[1] == Reply((547, 547), (546, 546))
    assert len(outbound_replies(flows, "ipv6", RANGE)) == 4


UDP = """*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT DROP [0:0]
-A INPUT -m state --state ESTABLISHED -j ACCEPT
-A OUTPUT -m state --state ESTABLISHED -j ACCEPT
-A FORWARD -m state --state ESTABLISHED -j ACCEPT
{}
COMMIT
"""
ASKED = {
    # a rule that lets UDP out or in -> (hook, datagram) that must come back
    "-A OUTPUT -p udp --dport 514 -m state --state NEW -j ACCEPT": ("INPUT", Sent("udp", 514, 40000)),
    "-A OUTPUT -p udp -m multiport --dports 161,162 -j ACCEPT": ("INPUT", Sent("udp", 162, 40000)),
    "-A OUTPUT -d 10.0.0.1/32 -p udp --dport 1812:1813 -j ACCEPT": (
        "INPUT",
        Sent("udp", 1813, 40000, source="10.0.0.1"),
    ),
    "-A OUTPUT -p udp --sport 500 --dport 500 -j ACCEPT": ("INPUT", Sent("udp", 500, 500)),
    "-A INPUT -p udp --dport 443 -m state --state NEW -j ACCEPT": ("OUTPUT", Sent("udp", 443, 5000)),
    "-A INPUT -s 10.0.0.0/8 -p udp --dport 53 -j ACCEPT": (
        "OUTPUT",
        Sent("udp", 53, 5000, destination="10.0.0.1"),
    ),
    "-A FORWARD -p udp --dport 3478 -m state --state NEW -j ACCEPT": ("FORWARD", Sent("udp", 3478, 5000)),
}


@pytest.mark.parametrize("rule", ASKED)
def test_replies_come_back_for_the_ports_that_rules_name(rule: str) -> None:
    hook, reply = ASKED[rule]
    text = UDP.format(rule)
    assert Firewall(text).send(hook, reply, "ESTABLISHED").verdict == "ACCEPT"
    done = make_stateless(parse_ruleset(text, "ipv4"))
    new = Firewall(format_ruleset(done.ruleset))
    assert new.send(hook, reply).verdict == "ACCEPT", format_ruleset(done.ruleset)
    other = Sent("udp", 9999, reply.dport, source=reply.source, destination=reply.destination)
    assert new.send(hook, other).verdict == "DROP"


def test_replies_for_configured_flows() -> None:
    policy = Policy(
        asked=(UdpFlow((5060, 5061), "10.0.0.1"),), answered=(UdpFlow((443, 443)),), local_ports=(10000, 20000)
    )
    done = make_stateless(parse_ruleset(UDP.format(""), "ipv4", "rules"), policy)
    new = Firewall(format_ruleset(done.ruleset))
    assert new.send("INPUT", Sent("udp", 5061, 15000, source="10.0.0.1")).verdict == "ACCEPT"
    for refused in (Sent("udp", 5061, 15000), Sent("udp", 5061, 22, source="10.0.0.1"), Sent("udp", 53, 15000)):
        assert new.send("INPUT", refused).verdict == "DROP", refused
    assert new.send("OUTPUT", Sent("udp", 443, 9)).verdict == "ACCEPT"
    assert any("flows.outbound" in note and note.startswith("rules:5:") for note in done.notes)


def test_loopback_and_forwarding_do_not_open_the_host() -> None:
    text = UDP.format("-A OUTPUT -o lo -p udp --dport 7 -j ACCEPT\n-A FORWARD -p udp --dport 9 -j ACCEPT")
    replies = replies_by_hook(parse_ruleset(text, "ipv4"), RANGE, (), ())
    assert replies["INPUT"] == () and replies["FORWARD"] == (Reply((9, 9), (1024, 65535)),)


NARROWED = {
    # a rule's own matches -> what it takes to match "from 53 of 10.0.0.0/8 to 32768:60999" only
    "-p udp": "-s 10.0.0.0/8 -m udp --sport 53 --dport 32768:60999",
    "-p udp --sport 53": "-s 10.0.0.0/8 -m udp --sport 53 --dport 32768:60999",
    "-p udp --dport 40000:": "-s 10.0.0.0/8 -m udp --sport 53 --dport 40000:60999",
    "-p udp --dport 53": None,
    "-p udp --sport 1:52": None,
    "-p udp ! --sport 53": None,
    "-p udp ! --sport 54": "-s 10.0.0.0/8 -m udp --sport 53 --dport 32768:60999",
    "-p udp ! --dport 40000": "-s 10.0.0.0/8 -m udp --sport 53 -m multiport --dports 32768:60999",
    "-p udp --dport nosuch": "-s 10.0.0.0/8 -m udp --sport 53 -m multiport --dports 32768:60999",
    "-p udp -m multiport --dports 40000,80": "-s 10.0.0.0/8 -m udp --sport 53 --dport 32768:60999",
    "-p udp -m multiport --dports 80,443": None,
    "-s 10.1.0.0/16": "-m udp --sport 53 --dport 32768:60999",
    "-s 0.0.0.0/0": "-s 10.0.0.0/8 -m udp --sport 53 --dport 32768:60999",
    "-s 10.1.2.3/255.255.0.0": "-m udp --sport 53 --dport 32768:60999",
    "-s 192.0.2.0/24": None,
    "! -s 192.0.2.0/24": "-s 10.0.0.0/8 -m udp --sport 53 --dport 32768:60999",
    "! -s 10.0.0.0/8": None,
    "! -s 10.1.0.0/16": "-m udp --sport 53 --dport 32768:60999",
    "-s host.example": "-m udp --sport 53 --dport 32768:60999",
    "-s 10.0.0.1,10.0.0.2": "-m udp --sport 53 --dport 32768:60999",
}


@pytest.mark.parametrize("own", NARROWED)
def test_a_rule_narrowed_to_a_reply(own: str) -> None:
    reply = Reply((53, 53), RANGE, "10.0.0.0/8")
    assert narrowed(parse_rule(f"-A INPUT {own} -j ACCEPT"), reply) == NARROWED[own]


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("80", (80, 80)),
        ("80:90", (80, 90)),
        (":1023", (0, 1023)),
        ("1024:", (1024, 65535)),
        ("domain", (53, 53)),
        ("90:80", None),
        ("65536", None),
        ("nosuch", None),
        ("²", None),
        ("9" * 5000, None),
        ("", None),
    ],
)
def test_port_ranges(text: str, ports: tuple[int, int] | None) -> None:
    assert port_range(text) == ports


def test_only_segments_of_a_running_connection_count_as_established() -> None:
    text = "*filter\n:INPUT DROP [0:0]\n-A INPUT -m state --state ESTABLISHED -j ACCEPT\nCOMMIT\n"
    new = Firewall(format_ruleset(make_stateless(parse_ruleset(text, "ipv4")).ruleset))
    accepted = {flags for flags in range(64) if new.send("INPUT", Sent("tcp", 9, 9, flags)).verdict == "ACCEPT"}
    assert accepted == {flags for flags in range(64) if flags & (ACK | 4)}
    assert not any(flags & SYN and not flags & (ACK | 4) for flags in accepted)
