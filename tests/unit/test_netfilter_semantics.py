"""The rewrite judged by a model firewall: CONTRACT.md, "What rewrite promises", G1 to G5."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from netfilter_kernel import BACKENDS, load
from netfilter_model import Firewall
from netfilter_packets import Packet, is_default_reply, stray_states, universe, usual_states

from cloudinit_conntrack.netfilter.iptables import parse_ruleset
from cloudinit_conntrack.netfilter.replies import UdpFlow, outbound_replies, replies_by_hook
from cloudinit_conntrack.netfilter.ruleset import format_ruleset
from cloudinit_conntrack.netfilter.stateless import Change, Rewritten, make_stateless

STATES = ("NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED")
SUBSETS = [s for n in range(1, 6) for s in itertools.combinations(STATES, n)]
STATEFUL_WORDS = ("--state", "--ctstate", "-m state", "-m conntrack", "NOTRACK", "--notrack")
ICMP = {"ipv4": "icmp", "ipv6": "ipv6-icmp"}
TYPE = {"ipv4": "--icmp-type", "ipv6": "--icmpv6-type"}


def rewritten(text: str, family: str = "ipv4") -> Rewritten:
    return make_stateless(parse_ruleset(text, family, "in"))


def judge(text: str, family: str = "ipv4", hooks: tuple[str, ...] = ("INPUT", "OUTPUT")) -> Rewritten:
    """Rewrite *text* and check every promise on every packet of the universe."""
    done = rewritten(text, family)
    if done.blockers:
        return done
    after = format_ruleset(done.ruleset)
    assert not any(word in after for word in STATEFUL_WORDS), f"G1:\n{text}\n->\n{after}"
    assert_untouched(text, after, done)
    again = rewritten(after, family)
    assert format_ruleset(again.ruleset) == after and not again.changes, f"G5:\n{after}"
    old, new = Firewall(text, family), Firewall(after, family)
    for hook in hooks:
        for packet in universe(family):
            judge_packet(old, new, hook, packet, done, f"{hook} {packet}\n{text}\n->\n{after}")
    return done


def judge_packet(old: Firewall, new: Firewall, hook: str, packet: Packet, done: Rewritten, story: str) -> None:
    exempt = old.exempt(hook, packet)
    usual = usual_states(packet, hook, old.family)
    usual = ("UNTRACKED",) if exempt and usual else usual
    if (
        packet.protocol == "udp"
        and usual == ("NEW",)
        and (answers(old.text, packet) or shaped_like_reply(packet, old))
    ):
        both = all(old.send(hook, packet, state).verdict == "ACCEPT" for state in ("NEW", "ESTABLISHED"))
        usual = usual if both else ()  # it may be either: a request of its own, or a reply
    stray = ("UNTRACKED",) if exempt else stray_states(packet, old.family)
    now = new.send(hook, packet)
    for state in usual:
        before = old.send(hook, packet, state)
        assert before.verdict != "ACCEPT" or now.verdict == "ACCEPT", f"G2 ({state}): {story}"
        if before.verdict == now.verdict and packet.protocol in ("tcp", "gre") and not exempt:
            assert before.logged == now.logged, f"G2, logged ({state}): {story}"
    if now.verdict != "ACCEPT":
        return
    refused = [s for s in stray if old.send(hook, packet, s).verdict != "ACCEPT"]
    if refused:
        assert not packet.is_syn, f"G3, a SYN is let in ({refused}): {story}"
        assert stated(done.changes, packet), f"G3, not stated ({refused}): {story}\n{widenings(done.changes)}"


def shaped_like_reply(packet: Packet, firewall: Firewall) -> bool:
    """Whether *packet* would be one where it comes in: a chain may be met on both ways."""
    return is_default_reply(packet, "INPUT", firewall.family)


def answers(text: str, packet: Packet) -> bool:
    """Whether *packet* comes from a UDP port that the rules name as one that is asked."""
    items = [item for found in re.findall(r"-p udp .*--dports? (\S+)", text) for item in found.split(",")]
    ranges = [(int(a), int(b or a)) for a, _, b in (item.partition(":") for item in items)]
    return any(first <= packet.sport <= last for first, last in ranges)


def widenings(changes: tuple[Change, ...]) -> list[str]:
    return [change.widens for change in changes if change.widens]


WORDS = {
    "udp": ("UDP", "packets"),
    "icmp": ("ICMP", "echo", "errors", "discovery", "packets"),
    "gre": ("packets",),
}


def stated(changes: tuple[Change, ...], packet: Packet) -> bool:
    """Whether a widening speaks of *packet*'s kind."""
    words = WORDS.get(packet.protocol) or (
        "packets",
        "ACK" if packet.flags & 16 else "RST" if packet.flags & 4 else "SYN",
    )
    return any(word in text for text in widenings(changes) for word in words)


def assert_untouched(before: str, after: str, done: Rewritten) -> None:
    """G4: lines that no change names are there byte for byte and in order."""
    changed = {change.line for change in done.changes}
    kept = [line for number, line in enumerate(before.split("\n"), 1) if number not in changed]
    rest = iter(after.split("\n"))
    for line in kept:
        assert any(line == other for other in rest), f"G4: {line!r} is gone or moved:\n{before}\n->\n{after}"


def ruleset(*rules: str, policy: str = "DROP", raw: tuple[str, ...] = ()) -> str:
    lines = [
        "*filter",
        f":INPUT {policy} [0:0]",
        ":FORWARD ACCEPT [0:0]",
        f":OUTPUT {policy} [0:0]",
        ":U1 - [0:0]",
        ":U2 - [0:0]",
        *rules,
        "COMMIT",
        "",
    ]
    if raw:
        lines[:0] = ["*raw", ":PREROUTING ACCEPT [0:0]", ":OUTPUT ACCEPT [0:0]", *raw, "COMMIT"]
    return "\n".join(lines)


# --- every combination of states, protocols and targets --------------------------------

TARGETS = ("-j ACCEPT", "-j DROP", "-j REJECT", '-j LOG --log-prefix "seen "', "-j RETURN", "-j U1", "-g U2")
PROTOCOLS = (
    "",
    "-p tcp",
    "-p tcp --dport 22",
    "-p udp",
    "-p udp --dport 53",
    "-p ICMP",
    "-p ICMP TYPE ECHO",
    "-p gre",
    "! -p tcp",
    "-p all",
)
USER_CHAINS = ("-A U1 -p tcp --dport 22 -j ACCEPT", "-A U1 -j DROP", "-A U2 -p udp -j ACCEPT")


def in_family(protocol: str, family: str) -> str:
    echo = "8" if family == "ipv4" else "128"
    return protocol.replace("ICMP", ICMP[family]).replace("TYPE", TYPE[family]).replace("ECHO", echo)


def rule_of(states: tuple[str, ...], protocol: str, target: str, family: str, negated: str = "") -> str:
    match = f"-m conntrack {negated}--ctstate {','.join(states)}"
    return " ".join(f"-A INPUT {in_family(protocol, family)} {match} {target}".split())


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
@pytest.mark.parametrize("target", TARGETS)
def test_every_combination_of_states_and_protocols(family: str, target: str) -> None:
    policies = {"-j ACCEPT": ["DROP"], "-j DROP": ["ACCEPT"], "-j REJECT": ["ACCEPT"]}.get(
        target, ["DROP", "ACCEPT"]
    )
    judged = 0
    for states, protocol, policy in itertools.product(SUBSETS, PROTOCOLS, policies):
        done = judge(
            ruleset(rule_of(states, protocol, target, family), *USER_CHAINS, policy=policy), family, ("INPUT",)
        )
        judged += not done.blockers
    assert judged > 200


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
@pytest.mark.parametrize("target", TARGETS)
def test_a_negated_list_is_the_list_of_the_others(family: str, target: str) -> None:
    for states, protocol in itertools.product(SUBSETS[:-1], PROTOCOLS):
        others = tuple(state for state in STATES if state not in states)
        plain = rewritten(ruleset(rule_of(others, protocol, target, family), *USER_CHAINS), family)
        negated = rewritten(ruleset(rule_of(states, protocol, target, family, "! "), *USER_CHAINS), family)
        assert [c.becomes for c in negated.changes] == [c.becomes for c in plain.changes]
        assert [b.reason for b in negated.blockers] == [b.reason for b in plain.blockers]


def test_what_no_state_is_left_for_never_matches() -> None:
    done = rewritten(ruleset("-A INPUT -m state --state NEW -m state --state ESTABLISHED -j ACCEPT"))
    assert [change.becomes for change in done.changes] == [()]


def test_an_inserted_rule_stands_before_those_above_it() -> None:
    done = judge(ruleset("-A INPUT -p tcp -j DROP", "-I INPUT -p tcp -m state --state NEW -j ACCEPT"))
    assert [len(change.becomes) for change in done.changes] == [1]


@pytest.mark.parametrize(
    "command", ["-F INPUT", "-F", "-D INPUT -p tcp -j DROP", "-D INPUT 1", "-R INPUT 1 -j LOG"]
)
def test_what_a_command_took_away_settles_nothing(command: str) -> None:
    done = rewritten(ruleset("-A INPUT -p tcp -j DROP", command, "-A INPUT -p tcp -m state --state NEW -j ACCEPT"))
    assert [len(change.becomes) for change in done.changes] == [1], "the rule is reached, so it stays"


# --- whole rule-sets -------------------------------------------------------------------

SETTINGS = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
POSITIVE = (
    "-p tcp",
    "-p tcp --dport 22",
    "-p tcp -m tcp --sport 22",
    "-p tcp --dport 1:100",
    "-p tcp --syn",
    "-p tcp ! --syn",
    "-p tcp --tcp-flags ALL NONE",
    "-p tcp --tcp-flags SYN,RST SYN,RST",
    "-p tcp -m multiport --dports 22,80",
    "-p udp",
    "-p udp --dport 53",
    "-p udp -m udp --sport 53",
    "-p udp --dport 40000",
    "-p udp -m multiport --dports 53,500",
    "-p ICMP",
    "-p ICMP -m MATCH TYPE ECHO",
    "-p gre",
    "! -p tcp",
    "! -p udp",
    "-p all",
    "",
    "",
    "-s PEER",
    "-d PEER -p udp --dport 53",
    "-i lo",
    "! -i lo",
)
BESIDE = ("", "", "", "-m limit --limit 5/min", '-m comment --comment "a note"')


@st.composite
def rules(draw: st.DrawFn, family: str, chain: str, chains: tuple[str, ...]) -> str:
    """One rule of *chain*, which may jump to *chains*."""
    where = in_family(draw(st.sampled_from(POSITIVE)), family)
    where = where.replace("PEER", "10.0.0.1" if family == "ipv4" else "2001:db8:1::1")
    where = where.replace("MATCH", "icmp" if family == "ipv4" else "icmp6")
    state = ""
    if draw(st.integers(0, 3)):
        names = ",".join(draw(st.lists(st.sampled_from(STATES), min_size=1, max_size=3, unique=True)))
        form = draw(st.sampled_from(("-m state --state", "-m conntrack --ctstate", "-m state ! --state")))
        state = f"{form} {names}"
    targets = ["-j ACCEPT"] * 3 + ["-j DROP", "-j REJECT", "-j RETURN", '-j LOG --log-prefix "seen "']
    targets += [f"{how} {other}" for other in chains for how in ("-j", "-g")]
    counters = draw(st.sampled_from(("", "", "[5:300] ")))
    words = [f"{counters}-A {chain}", where, state, draw(st.sampled_from(BESIDE)), draw(st.sampled_from(targets))]
    return " ".join(word for word in words if word)


@st.composite
def rulesets(draw: st.DrawFn, family: str, raw: bool) -> str:
    """A filter table with user chains, and some NOTRACK rules where *raw*.

    With those OUTPUT has no user chains: what is exempt on the one way only would block there.
    """
    found: list[str] = []
    output: tuple[str, ...] = () if raw else ("U1",)
    for chain, reachable in (("INPUT", ("U1", "U2")), ("OUTPUT", output), ("U1", ("U2",)), ("U2", ())):
        found += draw(st.lists(rules(family, chain, reachable), max_size=3 if raw else 4))
    exempt = (
        "-p tcp --dport 22",
        "-p tcp --dport 22",
        "-p tcp --sport 22",
        "-p udp --dport 53",
        "-p tcp --dport 80",
        "-i lo",
    )
    notrack: tuple[str, ...] = ()
    if raw:
        notrack = tuple(
            f"-A {hook} {draw(st.sampled_from(exempt))} -j CT --notrack"
            for hook in draw(st.lists(st.sampled_from(("PREROUTING", "OUTPUT")), min_size=1, max_size=3))
        )
    return ruleset(*found, policy=draw(st.sampled_from(("DROP", "ACCEPT"))), raw=notrack)


@SETTINGS
@given(rulesets("ipv4", raw=False))
def test_any_ruleset(text: str) -> None:
    judge(text)


@SETTINGS
@given(rulesets("ipv6", raw=False))
def test_any_ruleset_of_ipv6(text: str) -> None:
    judge(text, "ipv6")


@SETTINGS
@given(rulesets("ipv4", raw=True))
def test_any_ruleset_with_exemptions(text: str) -> None:
    judge(text)


PLACES = ("", "-s 10.0.0.0/8", "-s 10.1.0.0/16", "! -d 10.0.0.1", "-d 10.0.0.2", "-i eth0", "! -i eth1", "-o eth2")
PORTS = ("", "--dport 22", "--dport 80", "--dport 40000", "--sport 53", "! --dport 1:100", "--sport 53 --dport 40000")
SETTLING = ("-p tcp -j ACCEPT", "-p udp -j DROP", "-m state --state NEW -j DROP", "-p udp -m state --state NEW -j DROP")


@st.composite
def rules_alike(draw: st.DrawFn) -> list[str]:
    """A few kinds of rules, each said of several places, and some that settle what comes behind."""
    found = [f"-A INPUT {rule}" for rule in draw(st.lists(st.sampled_from(SETTLING), min_size=1, max_size=2))]
    for _ in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(("-p udp -m udp PORTS", "-p udp -m udp PORTS", "-p tcp PORTS", "")))
        states = ",".join(draw(st.lists(st.sampled_from(STATES), min_size=1, max_size=3, unique=True)))
        state = draw(st.sampled_from(("", f"-m state --state {states}", "-m state --state NEW")))
        target = draw(st.sampled_from(("ACCEPT", "ACCEPT", "DROP", "REJECT", "LOG", "U1")))
        for _ in range(draw(st.integers(2, 6))):
            counters = draw(st.sampled_from(("", "", "[5:300] ")))
            words = [draw(st.sampled_from(PLACES)), kind.replace("PORTS", draw(st.sampled_from(PORTS))), state, MARKED]
            found.append(" ".join([f"{counters}-A INPUT", *filter(None, words), f"-j {target}"]))
    return draw(st.permutations(found))


MARKED = "-m mark --mark 0x1"


@SETTINGS
@given(rules_alike())
def test_rules_alike_become_what_each_becomes_alone(lines: list[str]) -> None:
    """What a rule became is used again for its like; with a mark of its own each rule is one of a kind."""
    single = [line.replace(MARKED, f"-m mark --mark {number:#x}") for number, line in enumerate(lines, 0x100)]
    together, apart = (rewritten(ruleset("-A U1 -j LOG", *each)) for each in (lines, single))
    assert format_ruleset(together.ruleset) == re.sub("--mark 0x[0-9a-f]+", "--mark 0x1", format_ruleset(apart.ruleset))
    assert [(c.reason, c.widens) for c in together.changes] == [(c.reason, c.widens) for c in apart.changes]
    assert together.notes == apart.notes
    assert [b.line for b in together.blockers] == [b.line for b in apart.blockers]


# --- the kernel says the same -----------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_what_the_kernel_keeps_means_what_we_wrote(family: str, backend: str) -> None:
    """Every rewritten rule is loaded and saved again: a host's rules pass through that at each boot.

    iptables-nft-save up to 1.8.9 loses all but the last of several ``-m tcp`` in a rule.
    """
    where = dict.fromkeys(in_family(text, family) for text in (*POSITIVE, *PROTOCOLS))
    peer = "10.0.0.1" if family == "ipv4" else "2001:db8:1::1"
    matches = [
        text.replace("PEER", peer).replace("MATCH", "icmp" if family == "ipv4" else "icmp6") for text in where
    ]
    lists = ("NEW", "ESTABLISHED", "RELATED,ESTABLISHED", "INVALID", "NEW,INVALID", "NEW,RELATED,ESTABLISHED")
    rules = [f"{match} -m state --state {states} -j ACCEPT" for match in matches for states in lists]
    declared = [f":K{number} - [0:0]" for number in range(len(rules))]
    reached = [f"-A INPUT -j K{number}" for number in range(len(rules))]
    asked = [
        "-A OUTPUT -p udp -m udp --dport 500 -j ACCEPT",
        f"-A OUTPUT -d {peer} -p udp -m udp --dport 5000 -j ACCEPT",
    ]
    text = "\n".join(
        [
            "*filter",
            ":INPUT ACCEPT [0:0]",
            ":OUTPUT ACCEPT [0:0]",
            *declared,
            *asked,
            *reached,
            *(f"-A K{number} {rule}" for number, rule in enumerate(rules)),
            "COMMIT",
            "",
        ]
    )
    done = rewritten(text, family)
    assert not done.blockers
    ours = format_ruleset(done.ruleset)
    (loaded,) = load([ours], family, backend)
    assert loaded.code == 0, loaded.error
    wrote, kept = Firewall(ours, family), Firewall(loaded.saved, family)
    for number, rule in enumerate(rules):
        for packet in universe(family):
            story = f"{rule}: {packet}\n{[c.becomes for c in done.changes if c.rule.startswith(f'-A K{number} ')]}"
            assert wrote.send(f"K{number}", packet).verdict == kept.send(f"K{number}", packet).verdict, story


# --- errors that nobody needs -------------------------------------------------------------


RARE = ("--icmp-type 4", "--icmp-type 5")


@pytest.mark.parametrize("target", ["DROP", "REJECT", "LOG", "DENIED"])
def test_source_quench_and_redirects_are_refused_as_related(target: str) -> None:
    """RELATED for conntrack (icmp_error_message in nf_conntrack_proto_icmp.c): a rule that stops RELATED stops them."""
    done = rewritten(ruleset(":DENIED - [0:0]", "-A DENIED -j DROP", f"-A INPUT -m state --state RELATED -j {target}"))
    texts = [text for change in done.changes for text in change.becomes]
    assert all(any(match in text for text in texts) for match in RARE)


@pytest.mark.parametrize("target", ["-j ACCEPT", "-j OPEN", "-g OPEN", "-j RETURN"])
def test_source_quench_and_redirects_are_not_let_in_as_related(target: str) -> None:
    for states in ("RELATED", "RELATED,ESTABLISHED", "INVALID,RELATED"):
        rule = f"-A INPUT -m state --state {states} {target}"
        done = rewritten(ruleset(":OPEN - [0:0]", "-A OPEN -p tcp -j DROP", "-A OPEN -j ACCEPT", rule))
        texts = [text for change in done.changes for text in change.becomes]
        assert texts and not any(match in text for match in RARE for text in texts)
        if target == "-j ACCEPT":
            assert "without source quench messages and redirects" in done.changes[0].reason


def test_a_drop_of_what_is_new_passes_them_by() -> None:
    """Not NEW in any case, so not for this rule; INVALID where they are forged, so a DROP of INVALID may take them."""
    (new,) = rewritten(ruleset("-A INPUT -m state --state NEW -j DROP")).changes
    assert all(f"-A stateless-1 -p icmp -m icmp {match} -j RETURN" in new.becomes for match in RARE)
    (both,) = rewritten(ruleset("-A INPUT -m state --state NEW,INVALID -j DROP")).changes
    assert not any(match in text for match in RARE for text in both.becomes)


def test_parameter_problems_of_ipv6_are_not_among_them() -> None:
    change = rewritten(ruleset("-A INPUT -m state --state RELATED -j ACCEPT"), "ipv6").changes[0]
    assert any("--icmpv6-type 4 " in text for text in change.becomes) and "without" not in change.reason


# --- fragments ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "table,chain,kept", [("mangle", "PREROUTING", True), ("mangle", "POSTROUTING", True), ("mangle", "FORWARD", True),
                         ("raw", "PREROUTING", True), ("mangle", "INPUT", False), ("raw", "OUTPUT", False)],
)  # fmt: skip
def test_packets_stay_whole_where_rules_saw_them_whole(table: str, chain: str, kept: bool) -> None:
    """IPv4 puts fragments together itself for INPUT; what stands before that, or is passed by, relied on conntrack."""
    other = f"*{table}\n:{chain} ACCEPT [0:0]\n-A {chain} -p tcp --dport 23 -j DROP\nCOMMIT\n"
    done = rewritten(other + ruleset("-A INPUT -m state --state ESTABLISHED -j ACCEPT"))
    assert ("-m socket" in format_ruleset(done.ruleset)) is kept


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("exempt", ["-p tcp --sport 22", "-p 6 --sport 22", "-p tcp ! --sport 22", "-p tcp --syn"])
def test_a_port_is_not_read_as_a_list_of_ports(backend: str, exempt: str) -> None:
    """Behind ``-m multiport`` the word ``--sport`` is short for ``--sports``, which stands beside no ``--dports``."""
    raw = (f"-A OUTPUT {exempt} -j CT --notrack",)
    rule = "-A OUTPUT -p tcp -m multiport --dports 22,80 -m state --state UNTRACKED -j ACCEPT"
    done = judge(ruleset(rule, raw=raw))
    (loaded,) = load([format_ruleset(done.ruleset)], "ipv4", backend)
    assert not done.blockers and loaded.code == 0, loaded.error


# --- which datagrams answer what a host asks -----------------------------------------------


LOCAL = (32768, 60999)
ASKED = {
    ("ipv4", 53, ""): ["--sport 53 --dport 32768:60999"],
    ("ipv4", 53, "192.0.2.1"): ["-s 192.0.2.1 --sport 53 --dport 32768:60999"],
    ("ipv4", 67, ""): ["--sport 67 --dport 68"],  # a renewal is unicast, and comes from the same port
    ("ipv6", 67, ""): ["--sport 547 --dport 546"],
    ("ipv6", 547, ""): ["--sport 547 --dport 546"],
    ("ipv4", 123, ""): ["--sport 123 --dport 32768:60999", "--sport 123 --dport 123"],
    ("ipv4", 500, ""): ["--sport 500 --dport 32768:60999", "--sport 500 --dport 500"],
    ("ipv6", 4500, ""): ["--sport 4500 --dport 32768:60999", "--sport 4500 --dport 4500"],
}


@pytest.mark.parametrize("family,port,address", ASKED)
def test_replies_to_what_is_asked(family: str, port: int, address: str) -> None:
    found = outbound_replies([UdpFlow((port, port), address)], family, LOCAL)
    assert [f"{reply.addresses} {reply.options}".strip() for reply in found] == ASKED[family, port, address]


def test_replies_to_who_asks_from_the_same_port() -> None:
    """NTP and IKE, of this host and through it, by rules alone; DNS is asked from high ports only."""
    text = ruleset(
        "-A OUTPUT -p udp --dport 500 -j ACCEPT", "-A OUTPUT -p udp --dport 53 -j ACCEPT",
        "-A FORWARD -p udp -m multiport --dports 123,4500 -m state --state NEW -j ACCEPT",
    )  # fmt: skip
    found = replies_by_hook(parse_ruleset(text, "ipv4", "in"), LOCAL, (), ())
    assert [(r.sport, r.dport) for r in found["INPUT"]] == [
        ((500, 500), LOCAL), ((500, 500), (500, 500)), ((53, 53), LOCAL)
    ]  # fmt: skip
    assert [(r.sport, r.dport) for r in found["FORWARD"]] == [
        ((123, 123), (1024, 65535)), ((123, 123), (123, 123)), ((4500, 4500), (1024, 65535))
    ]  # fmt: skip
