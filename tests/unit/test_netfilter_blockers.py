"""What cannot be made stateless is refused by name, with a reason and a remedy; nothing is dropped silently."""

from __future__ import annotations

import re

import pytest
from netfilter_kernel import load

from cloudinit_conntrack.netfilter import stateful
from cloudinit_conntrack.netfilter.iptables import parse_rule, parse_ruleset
from cloudinit_conntrack.netfilter.ruleset import format_ruleset
from cloudinit_conntrack.netfilter.stateful import (
    MATCHES,
    NAT_TARGETS,
    TARGETS,
    dependency,
    modules_of,
    unknown_extension,
)
from cloudinit_conntrack.netfilter.stateless import Policy, Rewritten, make_stateless

# name -> a rule as iptables-save prints it; where this machine's iptables knows it, the kernel is asked too
MATCH_RULES = {
    "connmark": "-m connmark --mark 0x1",
    "connbytes": "-m connbytes --connbytes 1000 --connbytes-mode bytes --connbytes-dir both",
    "connlabel": "-m connlabel --label 1",
    "connlimit": "-p tcp -m connlimit --connlimit-above 20 --connlimit-mask 32 --connlimit-saddr",
    "helper": "-m helper --helper ftp",
    "cluster": "-m cluster --cluster-local-nodemask 0x1 --cluster-total-nodes 2 --cluster-hash-seed 0x1",
    "ipvs": "-m ipvs --vproto 6",
    "layer7": "-m layer7 --l7proto http",
    "connrate": "-m connrate --connrate 100:",
}
TARGET_RULES = {
    "CT": ("raw", "-A PREROUTING -p udp -j CT --helper tftp"),
    "CONNMARK": ("mangle", "-A PREROUTING -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff"),
    "CONNSECMARK": ("security", "-A INPUT -j CONNSECMARK --save"),
    "SNAT": ("nat", "-A POSTROUTING -j SNAT --to-source 192.0.2.1"),
    "DNAT": ("nat", "-A PREROUTING -p tcp -j DNAT --to-destination 192.0.2.1"),
    "MASQUERADE": ("nat", "-A POSTROUTING -o eth0 -j MASQUERADE"),
    "REDIRECT": ("nat", "-A PREROUTING -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 8080"),
    "NETMAP": ("nat", "-A PREROUTING -j NETMAP --to 192.0.2.0/24"),
    "SAME": ("nat", "-A POSTROUTING -j SAME --to 192.0.2.1-192.0.2.2"),
    "CLUSTERIP": ("filter", "-A INPUT -d 192.0.2.1/32 -j CLUSTERIP --new --hashmode sourceip"),
    "SYNPROXY": ("filter", "-A INPUT -p tcp -j SYNPROXY --sack-perm --timestamp --wscale 7 --mss 1460"),
    "FLOWOFFLOAD": ("filter", "-A FORWARD -j FLOWOFFLOAD"),
}


def rewrite(rule: str, table: str = "filter", policy: Policy = Policy()) -> Rewritten:  # noqa: B008
    return make_stateless(parse_ruleset(f"*{table}\n{rule}\nCOMMIT\n", "ipv4", "rules"), policy)


def assert_blocked(done: Rewritten, rule: str, reason: str) -> None:
    (blocker,) = done.blockers
    assert (blocker.line, blocker.rule) == (2, rule)
    assert reason in blocker.reason
    assert len(blocker.remedy) > 5 and "\n" not in blocker.reason + blocker.remedy
    assert not done.changes and format_ruleset(done.ruleset).splitlines()[1] == rule


def test_every_row_has_a_rule_here() -> None:
    assert set(MATCH_RULES) | {"state", "conntrack"} == set(MATCHES)
    assert set(TARGET_RULES) | {"NOTRACK"} == set(TARGETS)


@pytest.mark.parametrize("name", MATCH_RULES)
@pytest.mark.parametrize("beside", ["", " -m conntrack --ctstate NEW"])
def test_a_match_blocks(name: str, beside: str) -> None:
    rule = f"-A INPUT {MATCH_RULES[name]}{beside} -j ACCEPT"
    assert_blocked(rewrite(rule), rule, MATCHES[name].reason)
    assert set(MATCHES[name].modules) <= set(modules_of(parse_rule(rule), "filter"))


@pytest.mark.parametrize("name", TARGET_RULES)
def test_a_target_blocks(name: str) -> None:
    table, rule = TARGET_RULES[name]
    assert_blocked(rewrite(rule, table), rule, TARGETS[name].reason)
    assert set(TARGETS[name].modules) <= set(modules_of(parse_rule(rule), table))


@pytest.mark.parametrize("name", sorted(NAT_TARGETS))
def test_nat_is_removed_on_request(name: str) -> None:
    table, rule = TARGET_RULES[name]
    done = rewrite(rule, table, Policy(nat="remove"))
    assert not done.blockers and format_ruleset(done.ruleset) == ""
    assert [change.rule for change in done.changes] == [rule, f"*{table}"]
    assert "nat is 'remove'" in done.changes[0].reason


@pytest.mark.parametrize("name", [*MATCH_RULES, "state"])
def test_stateful_rules_are_removed_or_refused_on_request(name: str) -> None:
    rule = f"-A INPUT {MATCH_RULES.get(name, '-m state --state NEW')} -j DROP"
    removed = rewrite(rule, policy=Policy(stateful="remove"))
    assert format_ruleset(removed.ruleset) == "*filter\nCOMMIT\n"
    assert [(c.line, c.rule, c.becomes) for c in removed.changes] == [(2, rule, ())]
    assert_blocked(rewrite(rule, policy=Policy(stateful="refuse")), rule, "rules.stateful is 'refuse'")


def test_removing_state_rules_does_not_remove_nat() -> None:
    table, rule = TARGET_RULES["MASQUERADE"]
    assert_blocked(rewrite(rule, table, Policy(stateful="remove")), rule, "translates")


@pytest.mark.parametrize(
    "match",
    [
        "--ctstate DNAT",
        "--ctstate NEW,SNAT",
        "! --ctstate DNAT",
        "--ctproto 6",
        "--ctstate NEW --ctdir ORIGINAL",
        "--ctorigdst 192.0.2.1",
        "--ctstatus ASSURED",
        "--ctexpire 60",
    ],
)
def test_more_than_a_state_blocks(match: str) -> None:
    rule = f"-A INPUT -p tcp -m conntrack {match} -j ACCEPT"
    assert_blocked(rewrite(rule), rule, "more of a connection than its state")


@pytest.mark.parametrize(
    "match,asked,remedy",
    [
        ("--ctstate NEW,SNAT", "SNAT", "before they were translated"),
        ("! --ctstate DNAT", "DNAT", "to which it was translated"),
        ("--ctproto 6", "--ctproto", "ask by -p ('-p tcp')"),
        ("--ctstate NEW --ctdir ORIGINAL", "--ctdir", "--dport and -d for requests"),
        ("--ctorigdst 192.0.2.1 --ctorigdstport 80", "--ctorigdst, --ctorigdstport", "ask by --dport for requests"),
        ("--ctreplsrc 192.0.2.1", "--ctreplsrc", "ask by -d for requests"),
        ("--ctstatus ASSURED,CONFIRMED", "--ctstatus", "take it out"),
        ("--ctexpire 60", "--ctexpire", "-m hashlimit"),
    ],
)
def test_what_is_asked_beside_a_state_is_named_with_its_remedy(match: str, asked: str, remedy: str) -> None:
    """None is rewritten: ICMP errors are matched by the connection that they are about (xt_conntrack.c)."""
    (blocker,) = rewrite(f"-A INPUT -p tcp -m conntrack {match} -j ACCEPT").blockers
    assert blocker.reason == f"it asks more of a connection than its state: {asked}" and remedy in blocker.remedy


def test_the_remedies_are_rules_that_iptables_takes() -> None:
    quoted = re.findall("'(-p tcp[^']*)'", MATCHES["connlimit"].remedy + stateful._REMEDIES["--ctproto"])
    texts = [f"*filter\n-A INPUT {rule} -j DROP\nCOMMIT\n" for rule in quoted]
    assert len(quoted) == 2 and all(loaded.code == 0 for loaded in load(texts, "ipv4", "legacy"))


@pytest.mark.parametrize(
    "target,widens",
    [("ACCEPT", None), ("LOG", None), ("DROP", "not refused here"), ("REJECT", "not refused here"),
     ("RETURN", "not sent back"), ("u", "not sent to u")],
)  # fmt: skip
def test_what_a_removed_rule_lets_through_is_said(target: str, widens: str | None) -> None:
    """Where the difference is not computed (many rules), this is all that is said."""
    rule = f"-A INPUT -p tcp -m connlimit --connlimit-above 20 -j {target}"
    (change,) = rewrite(f":u - [0:0]\n{rule}", policy=Policy(stateful="remove")).changes
    assert change.becomes == () and (change.widens is None) is (widens is None)
    assert widens is None or widens in str(change.widens)


def test_a_state_in_the_raw_table_blocks() -> None:
    rule = "-A PREROUTING -m state --state INVALID -j DROP"
    assert_blocked(rewrite(rule, "raw"), rule, "raw table")


@pytest.mark.parametrize(
    "rule", ["-A PREROUTING -p tcp -j NOTRACK", "-A OUTPUT -j CT --notrack", "-I OUTPUT -j NOTRACK"]
)
def test_an_exemption_goes(rule: str) -> None:
    done = rewrite(rule, "raw")
    assert not done.blockers and format_ruleset(done.ruleset) == "*raw\nCOMMIT\n"


def test_all_blockers_are_told_at_once() -> None:
    rules = "\n".join(f"-A INPUT {match} -j DROP" for match in MATCH_RULES.values())
    done = rewrite(rules)
    assert [blocker.line for blocker in done.blockers] == list(range(2, 2 + len(MATCH_RULES)))


@pytest.mark.parametrize("command", ["-D INPUT", "-R INPUT 1"])
def test_a_command_that_needs_the_live_rules_blocks(command: str) -> None:
    rule = f"{command} -m state --state NEW -j DROP"
    assert_blocked(rewrite(rule), rule, "of a stateful rule")


def test_an_unknown_extension_is_said_to_be_unknown() -> None:
    done = rewrite("-A INPUT -m nosuch --thing 1 -j ACCEPT")
    assert not done.changes and not done.blockers
    assert "rules:2: unknown extension 'nosuch'" in done.notes[0]
    assert unknown_extension(parse_rule("-A INPUT -j NOSUCH"), {}) == "NOSUCH"
    assert unknown_extension(parse_rule("-A INPUT -j web"), {"web": "-"}) == ""


INDEPENDENT_RULES = (
    "-A INPUT -m recent --set --name x --rsource",
    "-A INPUT -p tcp -m multiport --dports 80,443 -j ACCEPT",
    "-A INPUT -m addrtype --dst-type LOCAL -j ACCEPT",
    "-A INPUT -m mark --mark 0x1 -j ACCEPT",
    "-A INPUT -p tcp -m socket --transparent -j ACCEPT",
    '-A INPUT -m comment --comment "-m state --state NEW" -j ACCEPT',
    "-A INPUT -m hashlimit --hashlimit-above 5/sec --hashlimit-mode srcip --hashlimit-name state -j DROP",
)


@pytest.mark.parametrize("rule", INDEPENDENT_RULES)
def test_what_does_not_depend_is_not_touched(rule: str) -> None:
    assert dependency(parse_rule(rule)) is None
    done = rewrite(rule)
    assert not done.changes and not done.blockers and not done.notes


def test_the_rules_above_are_what_iptables_reads() -> None:
    """Where the kernel takes a rule, iptables-save says it as we wrote it: the options are the real ones."""
    table_rules = [("filter", f"-A INPUT {match} -j ACCEPT") for match in MATCH_RULES.values()]
    table_rules += [*TARGET_RULES.values(), *(("filter", rule) for rule in INDEPENDENT_RULES)]
    texts = [f"*{table}\n{rule}\nCOMMIT\n" for table, rule in table_rules]
    taken = 0
    for (_, rule), loaded in zip(table_rules, load(texts, "ipv4", "legacy")):
        if loaded.code == 0:
            taken += 1
            options = {(o.name, o.negated) for o in parse_rule(rule).options}
            saved = [parse_rule(line) for line in loaded.saved.splitlines() if line.startswith("-A")]
            assert len(saved) == 1 and options <= {(o.name, o.negated) for o in saved[0].options}, loaded.saved
    assert taken >= 12
