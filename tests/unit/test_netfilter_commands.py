"""Rule-sets written by hand, as the real restore program reads them: what it takes we take, in its order."""

from __future__ import annotations

import pytest
from netfilter_kernel import Loaded, load, rules_of

from cloudinit_conntrack.errors import RulesSyntaxError
from cloudinit_conntrack.netfilter.iptables import parse_rule, parse_ruleset
from cloudinit_conntrack.netfilter.notrack import Bypass, Flow, add_bypass
from cloudinit_conntrack.netfilter.ruleset import Rule, format_ruleset
from cloudinit_conntrack.netfilter.stateful import dependency
from cloudinit_conntrack.netfilter.stateless import make_stateless


def table(*lines: str) -> str:
    return "\n".join(["*filter", *lines, "COMMIT", ""])


# Name -> text that both real programs accept.
ACCEPTED = {
    "counters in front": table("[5:300] -A INPUT -j ACCEPT"),
    "counters without a blank": table("[5:300]-A INPUT -j ACCEPT"),
    "counters and a tab": table("[5:300]\t-A INPUT -j ACCEPT"),
    "counters behind": table("-A INPUT -j ACCEPT -c 5 300", "-A INPUT -j DROP --set-counters 5 300"),
    "blanks around": table("  -A  INPUT\t-j ACCEPT \t "),
    "table with a blank": "* filter\n-A INPUT -j DROP\nCOMMIT\n",
    "table with blanks behind": "*filter \t\n-A INPUT -j DROP\nCOMMIT\n",
    "notes and blank lines": "\n# a note\n\n*filter\n\n# COMMIT\n-A INPUT -j DROP\n\nCOMMIT\n\n# end\n",
    "one table after another": "*filter\n-A INPUT -j DROP\nCOMMIT\n*raw\n-A OUTPUT -j ACCEPT\nCOMMIT\n",
    "the same table twice": "*filter\n:U1 - [0:0]\n-A U1 -j DROP\n-A INPUT -j U1\nCOMMIT\n"
    "*filter\n-A OUTPUT -j DROP\nCOMMIT\n",
    "no table": "\n# nothing\n",
    "a chain made inside": table("-N U1", "-A INPUT -j U1", "-A U1 -j DROP", "--new-chain U2", "--new U3"),
    "a chain made late": table("-A INPUT -j DROP", ":U1 - [0:0]", "-A U1 -j DROP", "-A INPUT -g U1"),
    "a chain named like a word": table(":state - [0:0]", ":COMMIT - [0:0]", "-A INPUT -j state", "-A COMMIT -j state"),
    "a policy inside": table("-P INPUT DROP", "--policy FORWARD DROP", "--pol OUTPUT DROP"),
    "a policy twice": table(":INPUT DROP [0:0]", ":INPUT ACCEPT [7:8]"),
    "a policy without counters": table(":INPUT DROP", ": FORWARD DROP [0:0]", ":OUTPUT\tDROP"),
    "inserted": table("-A INPUT -j DROP", "-I INPUT -j ACCEPT", "-I INPUT 2 -j LOG", "-I INPUT 4 -p tcp -j DROP"),
    "glued": table("-AINPUT -j DROP", "-IINPUT 1 -j ACCEPT", "--append=INPUT -j LOG"),
    "cut short": table("--appen INPUT --sour 10.0.0.1 --dest 10.0.0.2 --proto tcp --matc tcp --sy --jum DROP"),
    "fragments": table("-A INPUT --fragments -j DROP", "-A INPUT --fragment -j ACCEPT", "-A INPUT ! -f -j LOG"),
    "the command last": table("-j DROP -A INPUT", "! -p tcp -A INPUT -j ACCEPT", "-p udp -I INPUT -j LOG"),
    "for one family": table("-4 -A INPUT -j DROP", "-A INPUT --ipv4 -j ACCEPT"),
    "negated": table("-A INPUT ! -s 10.0.0.1 ! -i lo ! -p tcp -j DROP", '-A INPUT "!" -s 10.0.0.1 -j DROP'),
    "a match twice": table("-A INPUT -p tcp -m tcp -m tcp --dport 80 -m state --state NEW -m state --state NEW"),
    "quotes": table('-A "INPUT" -m comment --comment "a \\"b\\" c\\\\" -j DROP', '"-A" INPUT "-j" "DROP"'),
    "words in a note": table('-A INPUT -m comment --comment "-j ACCEPT" -j DROP',
                             '-A INPUT -m comment --comment "--state" -j DROP',
                             '-A INPUT -m comment --comment "!" -j DROP', "-A INPUT -m comment --comment ! -j DROP",
                             "-A INPUT -m comment --comment=-j -j DROP"),
    "quoted words": table('-A INPUT "-m" state "--state" NEW "-j" ACCEPT'),
    "other letters": table('-A INPUT -m comment --comment "ü \udce4" -j DROP'),
    "deleted": table("-A INPUT -j DROP", "-A INPUT -p tcp -j LOG", "-A INPUT -j ACCEPT", "-D INPUT 2",
                     "-D INPUT -j DROP"),
    "replaced": table("-A INPUT -j DROP", "-A INPUT -j LOG", "-R INPUT 2 -p tcp -j ACCEPT"),
    "flushed": table("-A INPUT -j DROP", "-A OUTPUT -j DROP", "-F INPUT", "-A INPUT -j ACCEPT"),
    "all flushed": table("-A INPUT -j DROP", "-A OUTPUT -j DROP", "-F", "-Z", "-A INPUT -j ACCEPT"),
    "a tunnel's protocol": table("-A INPUT -m policy --dir in --pol ipsec --strict --proto esp -j ACCEPT",
                                 "-A INPUT --proto tcp -m policy --dir in --pol ipsec --strict --proto esp -j DROP"),
}  # fmt: skip


@pytest.fixture(scope="module")
def restored() -> dict[str, Loaded]:
    return dict(zip(ACCEPTED, load(ACCEPTED.values(), "ipv4", "legacy")))


def meaning(rule: Rule) -> tuple[str, tuple[str, ...], str, frozenset[tuple[str, bool]]]:
    """What *rule* asks for, whatever its order and spelling."""
    left_out = ("-m", "-j", "-g", "-A", "-I", "-R", "-c", "-4", "--set-mark")
    names = {"--syn": "--tcp-flags"}
    options = frozenset((names.get(o.name, o.name), o.negated) for o in rule.options if o.name not in left_out)
    return rule.chain, tuple(m for m in rule.matches if m not in ("tcp", "udp")), rule.target, options


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_restore_takes_we_read_in_its_order(restored: dict[str, Loaded], name: str) -> None:
    text, loaded = ACCEPTED[name], restored[name]
    assert loaded.code == 0, loaded.error
    ruleset = parse_ruleset(text, "ipv4")
    assert format_ruleset(ruleset) == text
    wanted: dict[str, list[object]] = {}
    for saved in map(parse_rule, rules_of(loaded.saved)):
        wanted.setdefault(saved.chain, []).append(meaning(saved))
    mine: dict[str, list[object]] = {}
    for (_, chain), lines in ruleset.appended.items():
        mine.setdefault(chain, []).extend(meaning(line.rule) for line in lines)
    assert {chain: rules for chain, rules in mine.items() if rules} == wanted


def test_quoted_words_are_words() -> None:
    (line,) = parse_ruleset(ACCEPTED["quoted words"], "ipv4").rules()
    assert dependency(line.rule) is not None and line.rule.target == "ACCEPT"


def test_a_tunnels_protocol_is_not_the_packets() -> None:
    first, second = parse_ruleset(ACCEPTED["a tunnel's protocol"], "ipv4").rules()
    assert first.rule.first("-p") is None
    assert [o.args for o in second.rule.all("-p")] == [("tcp",)]


# Damage that some real program passes over, and what we say of it.
REFUSED = {
    "a check": (table("-C INPUT -j DROP"), "rules:2: unknown command '-C'; expected a rule"),
    "a list": (table("-L"), "rules:2: unknown command '-L'; expected a rule"),
    "words before a command": (table("hello -A INPUT -j DROP"), "rules:2: unknown command 'hello'; expected a rule"),
    "odd counters": (table("[-5:300] -A INPUT -j DROP"), "rules:2: bad counters '[-5:300]'; expected [packets"),
    "counters alone": (table("[5:300]"), "rules:2: unknown command '[5:300]'; expected a rule"),
    "a form feed": (table("\f"), "rules:2: unknown command"),
    "COMMIT and a blank": ("*filter\nCOMMIT \n", "rules:2: unknown command 'COMMIT'; expected a rule"),
    "COMMIT behind a blank": ("*filter\n COMMIT\n", "rules:2: unknown command 'COMMIT'; expected a rule"),
    "a table behind a blank": (" *filter\nCOMMIT\n", "rules:1: ' *filter' stands outside a table; expected '*'"),
    "a mark before all": ("\ufeff*filter\nCOMMIT\n", "rules:1: "),
    "an open quote in a word": (table('-A INPUT -m comment --comment a"b'), "rules:2: an open quote"),
    "NUL in a note": ("# a\0b\n*filter\nCOMMIT\n", "rules:1: a NUL byte"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_damage_is_refused_with_its_place_and_what_is_expected(name: str) -> None:
    text, said = REFUSED[name]
    with pytest.raises(RulesSyntaxError) as caught:
        parse_ruleset(text, "ipv4", "rules")
    assert str(caught.value).startswith(said)


STATE = "-A INPUT -m state --state ESTABLISHED -j ACCEPT"


@pytest.mark.parametrize("counted", ("-I INPUT 3 -p tcp --dport 23 -j ACCEPT", "-D INPUT 2", "-R INPUT 2 -j ACCEPT"))
def test_a_rule_number_behind_a_rule_that_becomes_several_is_refused(counted: str) -> None:
    """"-I INPUT 3" stood behind the DROP; with the state match said in seven rules it would stand before it."""
    done = make_stateless(parse_ruleset(table(STATE, "-A INPUT -j DROP", counted), "ipv4"))
    assert [(b.line, b.rule) for b in done.blockers] == [(4, counted)]
    assert "by its number" in done.blockers[0].reason
    flows = Bypass((Flow("tcp", (80, 80)),))
    (blocker,) = add_bypass(parse_ruleset(table(STATE, "-A INPUT -j DROP", counted), "ipv4"), flows).blockers
    assert (blocker.line, blocker.rule) == (4, counted)


def test_a_rule_number_at_the_top_or_in_another_chain_is_kept() -> None:
    lines = (STATE, "-I INPUT 1 -p udp -j LOG", "-A OUTPUT -j LOG", "-R OUTPUT 1 -p tcp -j LOG", "-D OUTPUT 1")
    done = make_stateless(parse_ruleset(table(*lines), "ipv4"))
    assert done.changes and not done.blockers


@pytest.mark.parametrize("between", (("COMMIT", "*filter"), ("-F INPUT",), ("-F",), ("-D INPUT -p tcp -j ACCEPT",)))
def test_what_is_gone_again_settles_nothing(between: tuple[str, ...]) -> None:
    """The later rule must stand on its own: the first table, the flushed rule, is not there when packets come."""
    first = "-A INPUT -p tcp -j ACCEPT"
    text = table(first, *between, STATE)
    (change,) = (c for c in make_stateless(parse_ruleset(text, "ipv4")).changes if c.rule == STATE)
    alone = make_stateless(parse_ruleset(table(STATE), "ipv4")).changes[0]
    assert change.becomes == alone.becomes
    settled = make_stateless(parse_ruleset(table(first, STATE), "ipv4")).changes[0]
    assert settled.becomes != alone.becomes  # so the test can fail


def test_what_goes_later_settles_nothing_before() -> None:
    text = table("-A INPUT -p tcp -j ACCEPT", STATE, "-D INPUT -p tcp -j ACCEPT")
    alone = make_stateless(parse_ruleset(table(STATE), "ipv4")).changes[0]
    assert make_stateless(parse_ruleset(text, "ipv4")).changes[0].becomes == alone.becomes


def test_new_chains_are_declared_in_the_block_that_uses_them() -> None:
    block = ("-A INPUT -m state --state NEW -j DROP", "COMMIT")
    text = "\n".join(("*filter", *block, "*filter", *block, ""))
    done = make_stateless(parse_ruleset(text, "ipv4"))
    (loaded,) = load([format_ruleset(done.ruleset)], "ipv4", "legacy")
    assert loaded.code == 0 and not done.blockers, loaded.error
    assert ":stateless-2" in loaded.saved and ":stateless-1" not in loaded.saved


@pytest.mark.parametrize(("family", "flag"), (("ipv4", "-6"), ("ipv6", "-4")))
def test_a_stateful_rule_of_the_other_family_is_refused(family: str, flag: str) -> None:
    done = make_stateless(parse_ruleset(table(f"{flag} {STATE}"), family))
    assert "other family" in done.blockers[0].reason
    kept = make_stateless(parse_ruleset(table(f"{flag} -A INPUT -j DROP"), family))
    assert not kept.changes and not kept.blockers


@pytest.mark.parametrize("written", ("6", "06", "0x6", "TCP"))
def test_protocol_numbers_as_iptables_reads_them(written: str) -> None:
    text = table(f"-A INPUT -p {written} -m state --state ESTABLISHED -j ACCEPT")
    (change,) = make_stateless(parse_ruleset(text, "ipv4")).changes
    assert len(change.becomes) == 2 and all("--tcp-flags" in rule for rule in change.becomes)
    (loaded,) = load([text], "ipv4", "legacy")
    assert "-p tcp " in loaded.saved
