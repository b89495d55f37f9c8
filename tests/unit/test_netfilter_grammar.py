"""The language of rules: nothing is lost, damage is named, and words are what iptables itself reads."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from netfilter_kernel import BACKENDS, load, rules_of

from cloudinit_conntrack.errors import RulesSyntaxError
from cloudinit_conntrack.netfilter.iptables import LONGEST_LINE, parse_rule, parse_ruleset, parse_words, words_of
from cloudinit_conntrack.netfilter.replies import port_range
from cloudinit_conntrack.netfilter.ruleset import Option, Rule, format_ruleset
from cloudinit_conntrack.netfilter.stateful import dependency
from cloudinit_conntrack.netfilter.stateless import make_stateless

SETTINGS = settings(max_examples=200, deadline=None)


def option(rule: Rule, name: str) -> Option:
    found = rule.first(name)
    assert found is not None, f"no {name} in {rule.text}"
    return found


# --- what goes in comes out -------------------------------------------------------------

PLAIN_WORDS = st.sampled_from(
    (
        "-p tcp",
        "! -p udp",
        "-p ! icmp",
        "-ptcp",
        "-s 10.0.0.0/8",
        "! -s 10.1.0.0/16",
        "-s ! 10.2.0.1",
        "-i eth+",
        "-m state",
        "--state NEW",
        "--state ! NEW",
        "-m conntrack ! --ctstate INVALID,NEW",
        "--dport 80",
        "--dport=80",
        "--dport 1:",
        "-m tcp",
        "-m multiport --dports 1,2:3",
        "-m comment --comment -j",
        "-m limit --limit 3/min",
        "-j ACCEPT",
        "-g U1",
        "-jDROP",
        "--jump LOG",
        '--log-prefix "x: "',
        "--tcp-flags SYN,ACK SYN",
        "! --syn",
        "-f",
        "! -f",
        "-c 1 2",
        "-4",
        "\t",
        "  ",
        "--",
        "!",
        "-",
    )
)
QUOTED = st.text(st.characters(exclude_characters='"\\\n\r\0', exclude_categories=["Cs"]), max_size=20).map(
    lambda text: f'--comment "{text}"'
)
ESCAPED = st.sampled_from(
    (r'--comment "a \"b\" c"', r'--comment "\\"', r'--comment "it\'s"', '--comment ""', r'--comment a"b c"')
)
COMMANDS = st.sampled_from(
    (
        "-A INPUT",
        "-A U1",
        "--append INPUT",
        "-AINPUT",
        "-I INPUT",
        "-I INPUT 2",
        "-D INPUT 1",
        "-R INPUT 1",
        "[1:60] -A INPUT",
        "[1:60]-A INPUT",
        "-4 -A INPUT",
        "-6 -A INPUT",
        "! -p tcp -A U1",
        '"-A" INPUT',
        "-D INPUT 2",
        "-R INPUT 2",
        "-F INPUT",
        '-A "INPUT"',
        " -A INPUT",
        "\t-A\tINPUT",
    )
)
RULES = st.tuples(COMMANDS, st.lists(st.one_of(PLAIN_WORDS, QUOTED, ESCAPED), max_size=8)).map(
    lambda parts: " ".join((parts[0], *parts[1]))
)
OTHER_LINES = st.sampled_from(
    (
        "# a note",
        "#",
        "",
        "   ",
        ":INPUT DROP [0:0]",
        ":U1 - [1:2]",
        ":U2 -",
        ": U3 -",
        ":FORWARD ACCEPT",
        "-N U4",
        "-P OUTPUT DROP",
        "-P OUTPUT ACCEPT [1:2]",
        "-F",
        "-Z",
        "-X U4",
        "-E U4 U5",
    )
)
LINES = st.tuples(st.one_of(RULES, RULES, OTHER_LINES), st.sampled_from(("", "", " ", "\t "))).map("".join)
TABLES = st.tuples(
    st.sampled_from(("*filter", "* nat", "*raw ", "*mangle", "*security\t")), st.lists(LINES, max_size=8)
).map(lambda parts: [parts[0], *parts[1], "COMMIT"])
TEXTS = st.tuples(st.lists(TABLES, max_size=3), st.sampled_from(("", "\n", "\n\n# the end\n"))).map(
    lambda parts: "\n".join(line for table in parts[0] for line in table) + parts[1]
)


@SETTINGS
@given(TEXTS)
def test_format_gives_back_what_was_parsed(text: str) -> None:
    assert format_ruleset(parse_ruleset(text, "ipv4")) == text


@SETTINGS
@given(RULES)
def test_a_rule_read_by_its_shape_is_the_rule_read_word_by_word(text: str) -> None:
    assert parse_rule(text) == parse_words(text)


@SETTINGS
@given(TEXTS)
def test_whatever_parses_can_be_worked_on(text: str) -> None:
    """No rule-set that parses makes the walk over chains or the rewrite fail."""
    ruleset = parse_ruleset(text, "ipv4")
    done = make_stateless(ruleset)
    assert set(ruleset.tables()) == set(ruleset.chains)
    assert done.blockers or format_ruleset(make_stateless(done.ruleset).ruleset) == format_ruleset(done.ruleset)


JUNK = st.lists(
    st.one_of(
        st.sampled_from(
            (
                "*filter",
                "COMMIT",
                ":INPUT",
                "-A",
                "-P INPUT",
                "-I INPUT ²",
                "-N !",
                "-A INPUT --dport ²",
                "[x:1] -A INPUT",
                "-A INPUT --dport " + "9" * 5000,
                "-A INPUT -p icmp --icmp-type ³ -m state --state NEW -j ACCEPT",
                '-A INPUT "',
                "-A INPUT\r",
                "\0",
                "*nat",
                "-j",
                "!",
                "-A INPUT -m -j",
                "-A INPUT --state",
            )
        ),
        st.text(max_size=30),
    ),
    max_size=8,
).map("\n".join)


@SETTINGS
@given(JUNK)
def test_no_input_gives_a_traceback(text: str) -> None:
    try:
        done = make_stateless(parse_ruleset(text, "ipv4", "rules"))
    except RulesSyntaxError as error:
        assert error.where.startswith("rules:")
        assert "\n" not in str(error)
    else:
        assert done.ruleset.name == "rules"


# --- damage is named, with its line -----------------------------------------------------

DAMAGE = {
    "open quote": ('*filter\n-A INPUT -m comment --comment "a note -j ACCEPT\nCOMMIT\n', 2, "quote"),
    "open quote behind an escaped one": (
        '*filter\n-A INPUT -m comment --comment "a \\" -j ACCEPT\nCOMMIT\n',
        2,
        "quote",
    ),
    "NUL": ("*filter\n\n-A INPUT -j \0ACCEPT\nCOMMIT\n", 3, "NUL"),
    "CRLF": ("*filter\r\n-A INPUT -j ACCEPT\r\nCOMMIT\r\n", 1, "carriage return"),
    "CR in a comment": ("# a note\r\n*filter\nCOMMIT\n", 1, "carriage return"),
    "unknown table": ("*filters\nCOMMIT\n", 1, "filters"),
    "no table": ("*\nCOMMIT\n", 1, "unknown table"),
    "unknown command": ("*filter\n-Q INPUT -j ACCEPT\nCOMMIT\n", 2, "'-Q'"),
    "a word": ("*filter\nACCEPT everything\nCOMMIT\n", 2, "'ACCEPT'"),
    "missing COMMIT": ("*filter\n-A INPUT -j ACCEPT\n", 2, "COMMIT"),
    "missing COMMIT before a table": ("*filter\n-A INPUT -j ACCEPT\n*raw\nCOMMIT\n", 3, "filter has no COMMIT"),
    "COMMIT with a space": ("*filter\nCOMMIT \n", 2, "COMMIT"),
    "text outside a table": ("-A INPUT -j ACCEPT\n", 1, "outside a table"),
    "text behind COMMIT": ("*filter\nCOMMIT\n-A INPUT -j ACCEPT\n", 3, "outside a table"),
    "a second COMMIT": ("*filter\nCOMMIT\nCOMMIT\n", 3, "outside a table"),
    "bad policy counters": ("*filter\n:INPUT DROP [0:x]\nCOMMIT\n", 2, "[0:x]"),
    "bad rule counters": ("*filter\n[1:] -A INPUT -j DROP\nCOMMIT\n", 2, "[1:]"),
    "chain without policy": ("*filter\n:INPUT\nCOMMIT\n", 2, ":INPUT"),
    "no chain": ("*filter\n-A -j DROP\nCOMMIT\n", 2, "no chain"),
    "no policy": ("*filter\n-P INPUT\nCOMMIT\n", 2, "no policy"),
    "overlong line": ("*filter\n# " + "x" * LONGEST_LINE + "\nCOMMIT\n", 2, "longer than"),
    "overlong line of wide letters": ("*filter\n# " + "ü" * (LONGEST_LINE // 2) + "\nCOMMIT\n", 2, "longer than"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_once_with_its_place(name: str) -> None:
    text, line, words = DAMAGE[name]
    with pytest.raises(RulesSyntaxError) as caught:
        parse_ruleset(text, "ipv4", "rules.v4")
    message = str(caught.value)
    assert message.startswith(f"rules.v4:{line}: ") and words in message
    assert message.count("rules.v4:") == 1 and "\n" not in message and len(message) < 200
    assert caught.value.exit_code == 1


def test_the_longest_line_that_restore_reads_whole() -> None:
    comment = "#" + "x" * (LONGEST_LINE - 1)
    text = f"*filter\n{comment}\n-A INPUT -j ACCEPT\nCOMMIT\n"
    assert format_ruleset(parse_ruleset(text, "ipv4")) == text
    longer = text.replace(comment, comment + "-A OUTPUT -j DROP")
    fits, breaks = load([text, longer], "ipv4", "legacy")
    assert fits.code == 0 and rules_of(fits.saved) == ["-A INPUT -j ACCEPT"]
    assert breaks.code != 0 or len(rules_of(breaks.saved)) == 2  # restore takes the rest for a line of its own


# --- words, as the real iptables reads them ---------------------------------------------

# What a person may write, and below it what iptables-save makes of that.
WRITTEN = r"""
-A INPUT -p tcp --dport=80 -j ACCEPT
    -A INPUT -p tcp -m tcp --dport 80 -j ACCEPT
-A INPUT -p tcp -mstate --state=NEW -j ACCEPT
    -A INPUT -p tcp -m state --state NEW -j ACCEPT
-AINPUT -j DROP
    -A INPUT -j DROP
--append=INPUT --prot tcp --matc state --stat NEW --jum ACCEPT
    -A INPUT -p tcp -m state --state NEW -j ACCEPT
--append INPUT --protocol udp --source-port 53 --jump DROP
    -A INPUT -p udp -m udp --sport 53 -j DROP
-A INPUT --proto tcp --destination-port 80 --src 10.0.0.1/32 -j DROP
    -A INPUT -s 10.0.0.1/32 -p tcp -m tcp --dport 80 -j DROP
-A INPUT -m comment --comment "a \"b\" \\ it\'s" -j DROP
    -A INPUT -m comment --comment "a \"b\" \\ it\'s" -j DROP
-A INPUT -m comment --comment -j -j DROP
    -A INPUT -m comment --comment -j -j DROP
-A INPUT -m comment --comment "--state" -j DROP
    -A INPUT -m comment --comment --state -j DROP
-A INPUT -m comment --comment "! -j" -j DROP
    -A INPUT -m comment --comment "! -j" -j DROP
-A INPUT -m comment --comment a"b c" -j DROP
    -A INPUT -m comment --comment "ab c" -j DROP
-A "INPUT" -j DROP
    -A INPUT -j DROP
-A<tab>INPUT <tab> -j  DROP<tab>
    -A INPUT -j DROP
-A INPUT ! -p tcp -j DROP
    -A INPUT ! -p tcp -j DROP
-A INPUT ! -i lo -m conntrack ! --ctstate NEW,INVALID -j DROP
    -A INPUT ! -i lo -m conntrack ! --ctstate INVALID,NEW -j DROP
-A INPUT -j LOG --log-prefix "x y " -p tcp --dport 22 -m state --state new
    -A INPUT -p tcp -m tcp --dport 22 -m state --state NEW -j LOG --log-prefix "x y "
-A INPUT -m state --state NEW -j ACCEPT -p udp
    -A INPUT -p udp -m state --state NEW -j ACCEPT
[7:420] -A INPUT -j DROP
    -A INPUT -j DROP
-A INPUT -j DROP -c 7 420
    -A INPUT -j DROP
-A INPUT -p tcp ! --syn -j DROP
    -A INPUT -p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -j DROP
-A INPUT -p tcp --tcp-flags ALL NONE -j DROP
    -A INPUT -p tcp -m tcp --tcp-flags FIN,SYN,RST,PSH,ACK,URG NONE -j DROP
-A INPUT -p tcp -m multiport ! --dports 80,443 -j DROP
    -A INPUT -p tcp -m multiport ! --dports 80,443 -j DROP
-A INPUT ! -f -j DROP
    -A INPUT ! -f -j DROP
-A INPUT -4 -j DROP
    -A INPUT -j DROP
-A INPUT -p tcp --dport 1: -j DROP
    -A INPUT -p tcp -m tcp --dport 1:65535 -j DROP
"""
PAIRS = [
    (written.replace("<tab>", "\t"), saved.strip())
    for written, saved in re.findall(r"(?m)^(-.+)\n {4}(.+)$", WRITTEN)
]


def meaning(rule: Rule) -> set[object]:
    """What *rule* says, whatever its order and spelling."""
    said: set[object] = set()
    for found in rule.options:
        args: tuple[object, ...] = found.args
        if found.name in ("-c", "-4") or (found.name == "-m" and found.value in ("tcp", "udp")):
            continue
        name = "--tcp-flags" if found.name == "--syn" else found.name
        if found.name == "--syn":
            args = ("FIN,SYN,RST,ACK", "SYN")
        elif name in ("--dport", "--sport"):
            args = (port_range(found.value),)
        elif name in ("--state", "--ctstate"):
            args = (frozenset(found.value.upper().split(",")),)
        elif name == "--tcp-flags":
            args = (found.args[0].replace("ALL", "FIN,SYN,RST,PSH,ACK,URG"), found.args[1])
        said.add((name, found.negated, args))
    return said


@pytest.mark.parametrize("backend", BACKENDS)
def test_words_are_what_iptables_reads(backend: str) -> None:
    texts = [f"*filter\n{line}\nCOMMIT\n" for line, _ in PAIRS]
    for (line, expected), loaded in zip(PAIRS, load(texts, "ipv4", backend)):
        assert loaded.code == 0, f"{line}: {loaded.error}"
        (saved,) = rules_of(loaded.saved)
        assert meaning(parse_rule(saved)) == meaning(parse_rule(expected)), line
        assert meaning(parse_rule(line)) == meaning(parse_rule(saved)), line


REFUSED = (
    "*filter\n-A INPUT -j ACCEPT\n*nat\nCOMMIT\nCOMMIT\n",
    "*filter\n-Q INPUT\nCOMMIT\n",
    "*filter\nACCEPT\nCOMMIT\n",
    "-A INPUT -j ACCEPT\n",
    "*filter\n-P INPUT\nCOMMIT\n",
    "*filter\n:INPUT\nCOMMIT\n",
    "*nosuch\nCOMMIT\n",
    "*filter\nCOMMIT \n",
)


def test_what_both_refuse() -> None:
    for text, loaded in zip(REFUSED, load(REFUSED, "ipv4", "legacy")):
        assert loaded.code != 0, text
        with pytest.raises(RulesSyntaxError):
            parse_ruleset(text, "ipv4")


OLD_NEGATION = {
    "-A INPUT -s ! 10.0.0.0/8 -j DROP": "-s",
    "-A INPUT -p ! tcp -j DROP": "-p",
    "-A INPUT -i ! lo -j DROP": "-i",
    "-A INPUT -p tcp --dport ! 80 -j DROP": "--dport",
    "-A INPUT -m state --state ! NEW -j DROP": "--state",
    "-A INPUT -p tcp --tcp-flags ! SYN,RST SYN -j DROP": "--tcp-flags",
}


@pytest.mark.parametrize("line", OLD_NEGATION)
def test_negation_before_iptables_1_4_3(line: str) -> None:
    """RHEL 5 and 6 wrote ``-s ! 10.0.0.0/8``; iptables 1.8 refuses it, so no oracle here."""
    found = option(parse_rule(line), OLD_NEGATION[line])
    assert found.negated and "!" not in found.args
    assert parse_rule(line).target == "DROP"
    assert line[found.start : found.end].startswith(OLD_NEGATION[line])


def test_offsets_point_at_the_words() -> None:
    text = '[1:2] -A INPUT ! -s 10.0.0.1 -m comment --comment "a b"  -j DROP'
    words = ["[1:2]", "-A", "INPUT", "!", "-s", "10.0.0.1", "-m", "comment", "--comment", '"a b"', "-j", "DROP"]
    assert [text[w.start : w.end] for w in words_of(text)] == words
    found = [text[o.start : o.end] for o in parse_rule(text).options]
    assert found == ["-A INPUT", "! -s 10.0.0.1", "-m comment", '--comment "a b"', "-j DROP"]


def test_a_comment_never_makes_a_rule_stateful() -> None:
    for words in ('"-m state --state NEW"', "-m", '"-j CT"', "--state"):
        rule = parse_rule(f"-A INPUT -m comment --comment {words} -j ACCEPT")
        assert dependency(rule) is None and rule.target == "ACCEPT", words


# --- the rule-set as a whole ------------------------------------------------------------


def test_chains_policies_and_order() -> None:
    text = (
        "*filter\n:INPUT DROP [0:0]\n-N U1\n-P OUTPUT DROP\n-A INPUT -j U1\n-A FORWARD -j DROP\n-I INPUT -j ACCEPT\n"
        "-I INPUT 2 -j LOG\n-A U1 -j U2\n:U2 - [0:0]\nCOMMIT\n"
    )
    ruleset = parse_ruleset(text, "ipv4")
    assert dict(ruleset.chains["filter"]) == {
        "INPUT": "DROP",
        "U1": "-",
        "OUTPUT": "DROP",
        "FORWARD": "ACCEPT",
        "U2": "-",
    }
    assert [x.rule.target for x in ruleset.appended["filter", "INPUT"]] == ["ACCEPT", "LOG", "U1"]
    assert ruleset.hooks["filter", "U2"] == ("INPUT",)
    assert ruleset.tables() == ("filter",)
