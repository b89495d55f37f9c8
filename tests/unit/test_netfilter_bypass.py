"""The NOTRACK bypass: the named flows lose their state and keep working, everything else keeps both."""

from __future__ import annotations

from dataclasses import replace

import pytest
from netfilter_kernel import BACKENDS, load
from netfilter_model import Firewall
from netfilter_packets import (
    ACK,
    HERE,
    HERE6,
    PEER,
    PEER6,
    RST,
    STRANGER,
    STRANGER6,
    SYN,
    Packet,
    stray_states,
    universe,
    usual_states,
)

from cloudinit_conntrack.netfilter.iptables import parse_ruleset
from cloudinit_conntrack.netfilter.notrack import OWNER, Bypass, Flow, add_bypass, strip_own
from cloudinit_conntrack.netfilter.ruleset import format_ruleset
from cloudinit_conntrack.netfilter.stateless import Rewritten

WEB = Bypass(
    (Flow("tcp", (80, 80)), Flow("udp", (443, 443))),
    (Flow("tcp", (8080, 8081), "10.0.0.0/16"), Flow("udp", (53, 53))),
)
WEB6 = Bypass((Flow("tcp", (80, 80)),), (Flow("tcp", (8080, 8080), "2001:db8:1::/48"),))
ALL = Bypass(everything=True)
BYPASSES = {"ipv4": WEB, "ipv6": WEB6}

EL = """*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p ICMP -j ACCEPT
-A INPUT -i lo -j ACCEPT
-A INPUT -p tcp -m state --state NEW -m tcp --dport 22 -j ACCEPT
-A INPUT -p tcp -m state --state NEW -m tcp --dport 80 -m comment --comment "the web" -j ACCEPT
-A INPUT -j REJECT
-A FORWARD -j REJECT
COMMIT
"""
CLOSED = """*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT DROP [0:0]
-A INPUT -i lo -j ACCEPT
-A OUTPUT -o lo -j ACCEPT
-A INPUT -m conntrack --ctstate INVALID -j DROP
-A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A INPUT -p tcp -m multiport --dports 80,443 -m conntrack --ctstate NEW -j ACCEPT
-A OUTPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A OUTPUT -p tcp -m tcp --dport 8080 -m conntrack --ctstate NEW -j ACCEPT
-A OUTPUT -p udp -m udp --dport 53 -m conntrack --ctstate NEW -j ACCEPT
COMMIT
"""
UFW = """*filter
:INPUT DROP [0:0]
:OUTPUT ACCEPT [0:0]
:before - [0:0]
:deny - [0:0]
-A INPUT -j before
-A INPUT -p tcp --dport 80 -j ACCEPT
-A before -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A before -m conntrack --ctstate INVALID -j deny
-A before -m conntrack --ctstate INVALID -j DROP
-A deny -j LOG --log-prefix "deny "
COMMIT
"""
NEGATED = """*filter
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -p tcp -m multiport --dports 22,80 -m state --state NEW -j ACCEPT
-A INPUT -m state ! --state ESTABLISHED,RELATED -j DROP
-A OUTPUT -m state --state INVALID -j REJECT
COMMIT
"""
NEW_REFUSED = """*filter
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -p tcp -m tcp --dport 80 -j ACCEPT
-A INPUT -m conntrack --ctstate NEW,INVALID -j DROP
COMMIT
"""
OPEN = "*filter\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n"
RULESETS = {"el": EL, "closed": CLOSED, "ufw": UFW, "open": OPEN, "empty": ""}


def ruleset(name: str, family: str) -> str:
    return RULESETS[name].replace("ICMP", "icmp" if family == "ipv4" else "ipv6-icmp")


def bypassed(text: str, bypass: Bypass, family: str = "ipv4") -> Rewritten:
    return add_bypass(parse_ruleset(text, family, "in"), bypass)


def flow_packets(family: str) -> list[Packet]:
    """What the flows of WEB and WEB6 send both ways, from the first segment to a reset."""
    here, peer, stranger = (HERE, PEER, STRANGER) if family == "ipv4" else (HERE6, PEER6, STRANGER6)
    found = []
    for flags in (ACK, SYN | ACK, RST, RST | ACK, ACK | 1):
        found.append(Packet("tcp", 40000, 80, flags, source=stranger, destination=here))
        found.append(Packet("tcp", 80, 40000, flags, source=here, destination=stranger))
        found.append(Packet("tcp", 40000, 8080, flags, source=here, destination=peer))
        found.append(Packet("tcp", 8080, 40000, flags, source=peer, destination=here))
    found.append(Packet("tcp", 40000, 80, SYN, source=stranger, destination=here))
    found.append(Packet("tcp", 40000, 8080, SYN, source=here, destination=peer))
    return found


def judge(text: str, bypass: Bypass, family: str) -> Rewritten:
    """What worked works, and what is newly accepted is no SYN of another flow, and stated."""
    done = bypassed(text, bypass, family)
    assert not done.blockers
    after = format_ruleset(done.ruleset)
    old, new = Firewall(text, family), Firewall(after, family)
    for hook in ("INPUT", "OUTPUT"):
        for packet in (*universe(family), *flow_packets(family)):
            story = f"{hook} {packet}\n{text}\n->\n{after}"
            exempt = new.exempt(hook, packet)
            for state in usual_states(packet, hook, family):
                now = new.send(hook, packet, "UNTRACKED" if exempt else state)
                before = old.send(hook, packet, state)
                assert before.verdict != "ACCEPT" or now.verdict == "ACCEPT", f"({state}): {story}"
                if not exempt:
                    assert (now.verdict, now.logged) == (before.verdict, before.logged), (
                        f"tracked ({state}): {story}"
                    )
            for state in stray_states(packet, family):
                now = new.send(hook, packet, "UNTRACKED" if exempt else state)
                if now.verdict == "ACCEPT" and old.send(hook, packet, state).verdict != "ACCEPT":
                    assert exempt and (not packet.is_syn or opened(done, packet)), f"newly let in: {story}"
                    assert any(change.widens for change in done.changes), f"not stated: {story}"
    return done


def opened(done: Rewritten, packet: Packet) -> bool:
    """Whether *packet*'s port is one that a widening names."""
    return any(change.widens and f"port {packet.dport} " in f"{change.widens} " for change in done.changes)


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
@pytest.mark.parametrize("name", RULESETS)
def test_flows_keep_working(name: str, family: str) -> None:
    judge(ruleset(name, family), BYPASSES[family], family)


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
@pytest.mark.parametrize("name", RULESETS)
def test_everything_bypasses(name: str, family: str) -> None:
    text = ruleset(name, family)
    new = Firewall(format_ruleset(bypassed(text, ALL, family).ruleset), family)
    old = Firewall(text, family)
    for hook in ("INPUT", "OUTPUT"):
        for packet in universe(family):
            assert new.exempt(hook, packet)
            now = new.send(hook, packet, "UNTRACKED").verdict
            for state in usual_states(packet, hook, family):
                before = old.send(hook, packet, state).verdict
                if packet.protocol in ("tcp", "icmp") and before == "ACCEPT":
                    assert now == "ACCEPT", f"{hook} {packet} {name}"
                if packet.is_syn and before != "ACCEPT":
                    assert now != "ACCEPT", f"{hook} {packet} {name}"


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_a_flow_is_exempt_both_ways(family: str) -> None:
    """One-sided NOTRACK still tracks every connection, from its answer (facts/netfilter.md, 6)."""
    new = Firewall(format_ruleset(bypassed(ruleset("el", family), BYPASSES[family], family).ruleset), family)
    for packet in flow_packets(family):
        hook = "OUTPUT" if packet.source in (HERE, HERE6) else "INPUT"
        assert new.exempt(hook, packet), packet
        assert new.send(hook, packet, "UNTRACKED").verdict == "ACCEPT", packet
        on_loopback = replace(packet, interface="lo")
        assert new.exempt("OUTPUT", on_loopback), f"on loopback the first hook is OUTPUT: {on_loopback}"


def test_other_flows_stay_tracked() -> None:
    new = Firewall(format_ruleset(bypassed(EL.replace("ICMP", "icmp"), WEB).ruleset))
    for packet in (
        Packet("tcp", 40000, 22, SYN),
        Packet("tcp", 22, 40000, ACK),
        Packet("udp", 40000, 123),
        Packet("tcp", 40000, 443, SYN),
        Packet("tcp", 8080, 40000, SYN | ACK, source=STRANGER),
        Packet("gre"),
        Packet("icmp", icmp_type=8),
    ):
        assert not new.exempt("INPUT", packet), packet
        assert not new.exempt("OUTPUT", packet), packet


def test_path_mtu_errors_bypass_too() -> None:
    """With NOTRACK the error would be INVALID and transfers stall at 0 bytes (facts/netfilter.md, 6)."""
    for family, types in (("ipv4", (3, 11, 12)), ("ipv6", (1, 2, 3, 4))):
        here = HERE if family == "ipv4" else HERE6
        for name in ("closed", "ufw", "el"):
            new = Firewall(
                format_ruleset(bypassed(ruleset(name, family), BYPASSES[family], family).ruleset), family
            )
            for number in types:
                error = Packet("icmp", icmp_type=number, destination=here)
                assert new.exempt("INPUT", error) and new.send("INPUT", error, "UNTRACKED").verdict == "ACCEPT", (
                    name,
                    number,
                )


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
@pytest.mark.parametrize("name", RULESETS)
def test_every_line_of_before_is_still_there(name: str, family: str) -> None:
    text = ruleset(name, family)
    after = format_ruleset(bypassed(text, BYPASSES[family], family).ruleset)
    rest = iter(after.splitlines())
    assert all(any(line == other for other in rest) for line in text.splitlines())
    assert format_ruleset(strip_own(parse_ruleset(after, family))).startswith(text)
    added = [line for line in after.splitlines() if OWNER in line]
    assert added and len(added) == len(set(added))


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
@pytest.mark.parametrize("name", RULESETS)
def test_a_second_time_changes_nothing(name: str, family: str) -> None:
    for bypass in (BYPASSES[family], ALL):
        once = bypassed(ruleset(name, family), bypass, family)
        again = add_bypass(once.ruleset, bypass)
        assert not again.changes and again.ruleset == once.ruleset


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_what_the_kernel_gives_back_needs_nothing(family: str, backend: str) -> None:
    """The save programs sort options and write ``10.0.0.1/32``: that is no change."""
    peer = "10.0.0.1/32" if family == "ipv4" else "2001:db8:1::1/128"  # as config gives it
    single = Bypass((Flow("tcp", (80, 80)),), (Flow("tcp", (8080, 8090), peer), Flow("udp", (53, 53), peer)))
    cases = [(ruleset(name, family), bypass) for name in RULESETS for bypass in (BYPASSES[family], single, ALL)]
    texts = [format_ruleset(bypassed(text, bypass, family).ruleset) for text, bypass in cases]
    for (_, bypass), text, loaded in zip(cases, texts, load(texts, family, backend)):
        assert loaded.code == 0, f"{loaded.error}\n{text}"
        again = add_bypass(parse_ruleset(loaded.saved, family), bypass)
        assert not again.changes, f"{text}\n->\n{loaded.saved}\n->\n" + "\n".join(
            str(c.becomes) for c in again.changes
        )


def test_other_flows_than_before_replace_those_before() -> None:
    first = bypassed(EL.replace("ICMP", "icmp"), WEB).ruleset
    second = add_bypass(first, Bypass((Flow("tcp", (81, 81)),)))
    assert format_ruleset(second.ruleset) == format_ruleset(
        bypassed(EL.replace("ICMP", "icmp"), Bypass((Flow("tcp", (81, 81)),))).ruleset
    )
    assert "--dport 80 " not in "".join(x.text for x in second.ruleset.lines if OWNER in x.text)


NAT = "*nat\n:PREROUTING ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n{}\nCOMMIT\n"


@pytest.mark.parametrize(
    "rule",
    [
        "-A PREROUTING -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 8000",
        "-A PREROUTING -p tcp -j DNAT --to-destination 10.0.0.9",
        "-A PREROUTING -p tcp -m multiport --dports 25,80 -j DNAT --to-destination 10.0.0.9",
        "-A OUTPUT -p udp --dport 53 -j REDIRECT",
        "-A PREROUTING -p tcp --dport 1:100 -j REDIRECT --to-ports 8000",
        "-A PREROUTING -p tcp --dport http -j REDIRECT --to-ports 8000",
        "-A PREROUTING ! -d 10.1.0.0/16 -p tcp --dport 8080 -j REDIRECT --to-ports 8000",
        "-A POSTROUTING -d 10.0.0.0/8 -p tcp --dport 8080 -j MASQUERADE",
        "-A POSTROUTING -d 10.0.0.1/255.0.0.255 -p tcp --dport 8080 -j MASQUERADE",
    ],
)
def test_a_nat_rule_on_a_flow_blocks(rule: str) -> None:
    done = bypassed(NAT.format(rule) + EL.replace("ICMP", "icmp"), WEB)
    (blocker,) = done.blockers
    assert (blocker.line, blocker.rule) == (4, rule) and "untracked packet is never translated" in blocker.reason
    assert blocker.remedy and not done.changes and OWNER not in format_ruleset(done.ruleset)


@pytest.mark.parametrize(
    "rule",
    [
        "-A PREROUTING -p tcp --dport 25 -j REDIRECT --to-ports 2525",
        "-A PREROUTING -p udp --dport 80 -j REDIRECT --to-ports 8000",
        "-A POSTROUTING -s 172.17.0.0/16 -o eth0 -j MASQUERADE",
        # docker's, for a container that listens on a backend's port, and on a frontend's
        "-A POSTROUTING -s 172.17.0.2/32 -d 172.17.0.2/32 -p tcp -m tcp --dport 8080 -j MASQUERADE",
        "-A POSTROUTING -s 172.17.0.2/32 -d 172.17.0.2/32 -p tcp -m tcp --dport 80 -j MASQUERADE",
    ],
)
def test_a_nat_rule_beside_the_flows_does_not_block(rule: str) -> None:
    done = bypassed(NAT.format(rule) + CLOSED, WEB)
    assert not done.blockers and rule in format_ruleset(done.ruleset)
    new = Firewall(format_ruleset(done.ruleset))
    error = Packet("icmp", icmp_type=3)
    assert not new.exempt("INPUT", error), "translated flows need their errors tracked"
    assert new.send("INPUT", error, "INVALID").verdict == "ACCEPT", (
        "and the bypassed ones need them in spite of INVALID"
    )


TCP_ONLY = Bypass((Flow("tcp", (80, 80)),))
PREPARED = "*filter\n:INPUT DROP [0:0]\n-A INPUT -m state --state ESTABLISHED,UNTRACKED -j ACCEPT\nCOMMIT\n"


@pytest.mark.parametrize(
    ("text", "bypass", "line", "reason"),
    [
        (NEGATED, WEB, 6, "it matches UNTRACKED"),
        (NEGATED, ALL, 6, "it matches UNTRACKED"),
        (PREPARED, ALL, 3, "it matches UNTRACKED"),
        (NEW_REFUSED, WEB, 6, "a chain of its own"),
        (NEW_REFUSED, ALL, 6, "a chain of its own"),
    ],
)
def test_a_rule_that_cannot_have_a_twin_blocks(text: str, bypass: Bypass, line: int, reason: str) -> None:
    """Without that, NOTRACK would refuse what worked, or open what was refused."""
    done = bypassed(text, bypass)
    (blocker,) = done.blockers
    assert blocker.line == line and blocker.rule == text.splitlines()[line - 1]
    assert reason in blocker.reason and blocker.remedy
    assert format_ruleset(done.ruleset) == text and not done.changes


def test_a_rule_prepared_for_untracked_flows_is_left_alone() -> None:
    done = judge(PREPARED, TCP_ONLY, "ipv4")
    assert [c.widens for c in done.changes if c.widens] == ["tcp port 80 was closed and is open now"]
    judge(NEW_REFUSED, TCP_ONLY, "ipv4")


def test_a_port_that_was_closed_is_opened_and_told() -> None:
    done = judge(CLOSED, Bypass((Flow("tcp", (8443, 8443)),)), "ipv4")
    new = Firewall(format_ruleset(done.ruleset))
    assert new.send("INPUT", Packet("tcp", 40000, 8443, SYN), "UNTRACKED").verdict == "ACCEPT"
    assert any(change.widens and "8443" in change.widens for change in done.changes)


def test_what_is_complete_is_known_again_and_nothing_else_is() -> None:
    """A host's saved rules are mostly its live ones: counters apart, or tables in another order."""
    complete = format_ruleset(bypassed(EL, WEB).ruleset)
    assert not bypassed(complete, WEB).changes
    head, raw = complete.split("*raw\n")
    counted = complete.replace("[0:0]", "[7:99]").replace("-A INPUT -i lo", "[5:300] -A INPUT -i lo")
    for alike in (f"# a save\n*raw\n{raw}{head}", counted):
        assert not bypassed(alike, WEB).changes
    lines = complete.splitlines(True)
    for at in (number for number, line in enumerate(lines) if OWNER in line):
        assert bypassed("".join(lines[:at] + lines[at + 1 :]), WEB).changes, lines[at]
    assert bypassed(complete, replace(WEB, frontends=WEB.frontends[:1])).changes
