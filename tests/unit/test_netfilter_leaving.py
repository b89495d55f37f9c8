"""Rules that leave their chain (RETURN, ``-g``): which can be said without conntrack, and what they then do."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from netfilter_kernel import BACKENDS, load
from test_netfilter_semantics import PROTOCOLS, SUBSETS, judge, rewritten, rule_of, ruleset

from cloudinit_conntrack.netfilter.difference import compare
from cloudinit_conntrack.netfilter.iptables import parse_rule, parse_ruleset
from cloudinit_conntrack.netfilter.leaving import Ways
from cloudinit_conntrack.netfilter.replies import Ports, Reply, named_ports, no_reply
from cloudinit_conntrack.netfilter.ruleset import format_ruleset

TARGETS = ("-j RETURN", "-g U2")
LAST = "-A U2 -p udp -j ACCEPT"
# How packets come to U1, and what waits for those that leave it.
CONTEXTS = {
    "built-in": (),
    "policy": ("-A INPUT -j U1", "-A OUTPUT -j U1"),
    "reject": ("-A INPUT -j U1", "-A INPUT -j REJECT"),
    "tcp only": ("-A INPUT -p tcp -j U1", "-A INPUT -p tcp --dport 22 -j ACCEPT"),
    "goto": ("-A INPUT -p udp -g U1", "-A INPUT -p tcp --dport 22 -j ACCEPT"),
    "differs": ("-A INPUT -j U1", "-A INPUT -p tcp --dport 80 -j ACCEPT"),
}
# Of 1,240 rules (family x states x protocol x target) how many cannot be said; all were 194 once.
BLOCKED = dict.fromkeys(CONTEXTS, 0) | {"differs": 162}


def in_context(context: str, rule: str, last: str = LAST) -> str:
    before = CONTEXTS[context]
    return ruleset(*before, rule.replace("-A INPUT", "-A U1") if before else rule, last)


@pytest.mark.parametrize("context", CONTEXTS)
def test_how_many_cannot_be_said(context: str) -> None:
    blocked = 0
    for family, states, protocol, target in itertools.product(("ipv4", "ipv6"), SUBSETS, PROTOCOLS, TARGETS):
        done = rewritten(in_context(context, rule_of(states, protocol, target, family)), family)
        blocked += bool(done.blockers)
    assert blocked == BLOCKED[context]


SOME_STATES = (("NEW",), ("NEW", "INVALID"), ("NEW", "RELATED"), ("ESTABLISHED", "RELATED"), ("INVALID", "UNTRACKED"))


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
@pytest.mark.parametrize("context", CONTEXTS)
def test_what_can_be_said_does_the_same(context: str, family: str) -> None:
    judged = 0
    for states, protocol, target in itertools.product(SOME_STATES, PROTOCOLS, TARGETS):
        done = judge(in_context(context, rule_of(states, protocol, target, family)), family, ("INPUT",))
        judged += not done.blockers
    assert judged > 60


def test_a_goto_that_never_comes_back_is_a_jump() -> None:
    for last in ("-A U2 -j DROP", "-A U2 -p tcp -j U1\n-A U2 -j REJECT", "-A U2 -j LOG\n-A U2 -j ACCEPT"):
        text = in_context("differs", "-A INPUT -m state --state NEW -g U2", last)
        assert any(x.endswith("-g U2") for c in rewritten(text).changes for x in c.becomes), last
    for last in ("-A U2 -p tcp -j DROP", "-A U2 -p udp -j RETURN\n-A U2 -j DROP", "-A U2 -p udp -g U1\n-A U2 -j DROP"):
        (blocker,) = rewritten(in_context("differs", "-A INPUT -m state --state NEW -g U2", last)).blockers
        assert "leaves its chain" in blocker.reason and "-p tcp" in blocker.remedy, last


@pytest.mark.parametrize("chain", ["INPUT", "U1"])
def test_the_remedy_works(chain: str) -> None:
    """What the blocker says to do (one rule for each protocol) is not blocked."""
    for protocol in ("-p tcp", "-p icmp", "-p udp", "-p udp --dport 500", "-p gre"):
        judge(in_context("differs", f"-A {chain} {protocol} -m state --state NEW -j RETURN"), hooks=("INPUT",))
        assert not rewritten(in_context("differs", f"-A {chain} {protocol} -m state --state NEW -j RETURN")).blockers


def test_a_command_that_takes_rules_away_leaves_nothing_certain() -> None:
    text = ruleset("-A INPUT -j U1", "-A U1 -m state --state NEW -j RETURN", "-D INPUT -j U1")
    assert [b.line for b in rewritten(text).blockers] == [8]


BEYOND = {
    ("INPUT", ()): "DROP",
    ("U1", ("-A INPUT -j U1",)): "DROP",
    ("U1", ("-A INPUT -j U1", "-A FORWARD -j U1")): None,  # the policies differ
    ("U1", ("-A INPUT -j U1", "-A INPUT -j REJECT --reject-with icmp-host-prohibited")):
        "REJECT --reject-with icmp-host-prohibited",
    ("U1", ("-A INPUT -j U1", "-A INPUT -j LOG")): None,
    ("U1", ("-A INPUT -j U1", "-A INPUT -p tcp -j ACCEPT")): None,
    ("U1", ("-A INPUT -g U1", "-A INPUT -p tcp -j ACCEPT")): "DROP",
    ("U1", ("-A INPUT -j U2", "-A U2 -p tcp -j U1", '-A INPUT -m comment --comment "the rest" -j ACCEPT')): "ACCEPT",
    ("U1", ("-A U2 -j U1", "-A U1 -j U2")): None,
    ("U1", ()): None,
}  # fmt: skip


@pytest.mark.parametrize("chain,rules", BEYOND)
def test_where_leaving_leads(chain: str, rules: tuple[str, ...]) -> None:
    found = parse_ruleset(ruleset(*rules), "ipv4", "in")
    assert Ways(found, "filter").beyond(chain) == BEYOND[chain, rules]


some_ports = some.tuples(some.integers(0, 12), some.integers(0, 5)).map(lambda p: (p[0], p[0] + p[1]))


@settings(max_examples=100, deadline=None)
@given(some.lists(some.builds(Reply, some_ports, some.none() | some_ports), min_size=1, max_size=6))
def test_what_is_no_reply_is_the_rest(replies: list[Reply]) -> None:
    listed = no_reply(replies)
    assert listed is not None
    rules = [_ports_of(f"-A INPUT -p udp {match} -j RETURN") for match in listed]
    for sport, dport in itertools.product(range(20), repeat=2):
        answers = any(_within(sport, r.sport) and (r.dport is None or _within(dport, r.dport)) for r in replies)
        hits = [all((sport if at == "--sports" else dport) in ports for at, ports in rule) for rule in rules]
        assert any(hits) is not answers


def _ports_of(text: str) -> list[tuple[str, set[int]]]:
    """Every port match of a rule, as the ports (of 20) that it lets through."""
    found: list[tuple[str, set[int]]] = []
    for option in parse_rule(text).all("--sports", "--dports"):
        plain = parse_rule(f"-A INPUT -p udp -m multiport {option.name} {option.value}")
        ports = {p for p in range(20) if any(_within(p, ports) for ports in named_ports(plain, option.name))}
        found.append((option.name, set(range(20)) - ports if option.negated else ports))
    return found


def _within(port: int, ports: Ports) -> bool:
    return ports[0] <= port <= ports[1]


def test_replies_of_an_address_are_not_listed() -> None:
    assert no_reply([Reply((53, 53), (1024, 65535), "192.0.2.1")]) is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_kernel_keeps_the_listed_ports(backend: str) -> None:
    many = [f"-A OUTPUT -p udp -m udp --dport {port} -j ACCEPT" for port in range(1000, 1040, 2)]
    text = ruleset(*many, "-A INPUT -j U1", "-A INPUT -p tcp -m tcp --dport 80 -j ACCEPT",
                   "-A U1 -p udp -m state --state NEW -j RETURN")  # fmt: skip
    ours = format_ruleset(rewritten(text).ruleset)
    (loaded,) = load([ours], "ipv4", backend)
    assert loaded.code == 0, loaded.error
    written = [line for line in ours.splitlines() if line.startswith("-A U1")]
    assert [line for line in loaded.saved.splitlines() if line.startswith("-A U1")] == written and len(written) > 20


@pytest.mark.parametrize("states", ["NEW", "RELATED,ESTABLISHED"])
def test_no_chain_lets_redirects_in(states: str) -> None:
    """Neither for being RELATED, nor because they went along with what is NEW."""
    text = "\n".join((
        "*filter", ":INPUT DROP [0:0]", ":svc - [0:0]", f"-A INPUT -m state --state {states} -j svc",
        "-A svc -j ACCEPT", "COMMIT", "",
    ))
    before = parse_ruleset(text, "ipv4")
    found = compare(before, rewritten(text).ruleset)
    assert not [told for told in found.widened if "redirects" in told.packets]
