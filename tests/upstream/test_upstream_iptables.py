"""The language of rules, judged by the rules with which iptables tests itself.

Every rule of ``extensions/*.t`` and ``*.txlate`` is tried with the real restore programs,
both families, both back ends.  What they accept we must read, keep, and understand as they
do: what we take for one option is one option, and a rewrite touches nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Callable

from cloudinit_conntrack.netfilter.iptables import parse_rule, parse_ruleset
from cloudinit_conntrack.netfilter.ruleset import Option, Rule, RuleSet, format_ruleset
from cloudinit_conntrack.netfilter.stateful import dependency, may_depend, unknown_extension
from cloudinit_conntrack.netfilter.stateless import Change, make_stateless

from .extension_rules import Candidate, candidates
from .restoring import PREFIX, Outcome, file_of, load, outcomes

WAYS = [(family, backend) for family in ("ipv4", "ipv6") for backend in ("legacy", "nft")]
# Accepted with iptables 1.8.9 and a 6.18 kernel: 687 of IPv4 and 538 of IPv6, by both back ends.
FLOOR = 500
# Matches that ``-p`` brings along, and the names that the save program has for some protocols.
IMPLIED = frozenset(("tcp", "udp", "udplite", "sctp", "dccp", "icmp", "icmp6", "icmpv6", "ah", "esp", "mh"))
SAME_TARGET = {"NOTRACK": "CT"}
# What the rewrite looks for in a rule, under the name that the save program prints.
ASKED = {name: name for name in ("-s", "-d", "-i", "-o", "-f", "--tcp-flags", "--state", "--ctstate", "--notrack")}
ANYTHING = ("0.0.0.0/0", "::/0", "+")
ASKED["--syn"] = "--tcp-flags"
Way = tuple[str, str]
Make = Callable[[Outcome, int], "str | None"]


@lru_cache(maxsize=1)
def tried(tree: Path) -> dict[Way, list[Outcome]]:
    """Every rule, tried in each of WAYS, two at a time."""
    return _in_each_way(lambda family, backend: [c for c in candidates(tree) if c.family == family])


def _in_each_way(choose: Callable[[str, str], list[Candidate]]) -> dict[Way, list[Outcome]]:
    with ThreadPoolExecutor(2) as pool:
        jobs = {way: pool.submit(outcomes, choose(*way), *way) for way in WAYS}
        return {way: job.result() for way, job in jobs.items()}


def accepted(tree: Path, way: Way) -> list[Outcome]:
    """What the real program of *way* accepted and printed as one rule again."""
    return [x for x in tried(tree)[way] if x.accepted and len(x.saved) == 1]


def changed(tree: Path, make: Make) -> Iterator[tuple[Way, Outcome, Outcome]]:
    """(way, before, after) for every accepted rule of which *make* makes another text."""
    made: dict[Way, list[tuple[Outcome, Candidate]]] = {way: [] for way in WAYS}
    for way in WAYS:
        for number, before in enumerate(accepted(tree, way)):
            text = make(before, number)
            if text is not None:
                made[way].append((before, before.candidate.but(text)))
    after = _in_each_way(lambda family, backend: [c for _, c in made[family, backend]])
    for way in WAYS:
        for (before, _), outcome in zip(made[way], after[way]):
            yield way, before, outcome


def test_enough_rules_are_accepted(tree: Path, measured: list[str]) -> None:
    for way, found in tried(tree).items():
        took = sum(x.accepted for x in found)
        measured.append(f"iptables' own rules, {' '.join(way)}: {len(found)} tried, {took} accepted")
        assert took > FLOOR, way


def test_what_restore_accepts_is_read_and_written_back(tree: Path) -> None:
    for way in WAYS:
        for found in tried(tree)[way]:
            for rule in (found.candidate.text, *found.saved) if found.accepted else ():
                text = file_of(found.candidate.table, [rule])
                assert format_ruleset(parse_ruleset(text, way[0])) == text


def test_every_extension_is_known(tree: Path) -> None:
    """iptables ships no match and no target of which we do not say whether it needs conntrack."""
    rules = [parse_rule(x.candidate.text) for way in WAYS for x in tried(tree)[way] if x.accepted]
    assert not [rule.text for rule in rules if unknown_extension(rule, {})]


def shape(rule: Rule) -> tuple[object, ...]:
    """What the rewrite asks of a rule: its chain, matches, target, and how much is negated."""
    target = SAME_TARGET.get(rule.target, rule.target)
    matches = sorted(name for name in rule.matches if name not in IMPLIED)
    # 1.8.9 loses the "!" of "! -i +" (no interface at all), and prints "! --weekdays" as the other days
    negated = [o.name for o in rule.options if o.negated and o.args != ("+",) and o.name != "--weekdays"]
    asked = sorted(ASKED[o.name] for o in rule.options if o.name in ASKED and o.value not in ANYTHING)
    return rule.chain, matches, target, len(negated), asked


def option_names(tree: Path) -> set[str]:
    """Every long option in the tables of the extensions' sources."""
    names: set[str] = set()
    for path in (path for kind in ("xt", "ipt", "ip6t") for path in (tree / "extensions").glob(f"lib{kind}_*.c")):
        for table in re.findall(r"struct (?:xt_option_entry|option) \w+\[\] = \{(.*?)\n\};", path.read_text(), re.S):
            names.update(re.findall(r'\.name\s*=\s*"([^"]+)"', table))
    return names


def test_no_option_is_taken_for_the_beginning_of_another(tree: Path) -> None:
    """An extension's whole name goes before a longer one's beginning: ``--pol`` of policy is no ``--policy``."""
    names = option_names(tree)
    assert len(names) > 200
    read = {name: parse_rule(f"-A INPUT --{name} x").options[-1].name for name in names - {"proto"}}
    other = {name: found for name, found in read.items() if found != f"--{name}"}
    assert other == {
        "source-port": "--sport", "destination-port": "--dport", "source-ports": "--sports",
        "destination-ports": "--dports",
    }  # fmt: skip


def test_a_rule_is_understood_like_what_save_prints_of_it(tree: Path) -> None:
    for way in WAYS:
        for found in accepted(tree, way):
            rule, saved = parse_rule(found.candidate.text), parse_rule(found.saved[0])
            assert shape(rule) == shape(saved), (found.candidate.where, rule.text, saved.text)
            assert (dependency(rule) is None) == (dependency(saved) is None), rule.text


def quoted(word: str) -> str:
    plain = word and not set(word) & set(' "\\\t')
    return word if plain else '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def joined(option: Option) -> str:
    return " ".join(["!"] * option.negated + [option.name, *map(quoted, option.args)])


def test_options_joined_again_are_the_same_rule(tree: Path) -> None:
    pairs = list(changed(tree, lambda x, number: " ".join(map(joined, parse_rule(x.candidate.text).options))))
    assert len(pairs) > FLOOR * len(WAYS)
    for _, before, after in pairs:
        assert after.saved == before.saved, (before.candidate, after.candidate.text, after.error)


def cut_short(found: Outcome, number: int) -> str | None:
    """The rule with a long option one to six letters shorter, as getopt allows while it is no other's beginning."""
    rule = parse_rule(found.candidate.text)
    if number % 4:
        return None  # most are refused, and cost their neighbours a second try
    long = [o for o in rule.options if rule.text.startswith("--", o.start)]
    if not long:
        return None
    option = long[number // 4 % len(long)]
    end = option.start + len(rule.text[option.start : option.end].split("=")[0].split()[0])
    short = max(option.start + 3, end - 1 - number // 4 % 6)
    return rule.text[:short] + rule.text[end:]


def test_options_cut_short_are_understood(tree: Path) -> None:
    taken = [after for _, before, after in changed(tree, cut_short) if after.accepted and after.saved == before.saved]
    assert len(taken) > FLOOR // 4
    for after in taken:
        rule, saved = parse_rule(after.candidate.text), parse_rule(after.saved[0])
        (*said, names), (*meant, wanted) = shape(rule), shape(saved)
        assert said == meant and (dependency(rule) is None) == (dependency(saved) is None), (rule.text, saved.text)
        # "--st" is --state only while no -m string is there; such a rule is refused, not misread
        assert names == wanted or "state" in rule.matches, (rule.text, saved.text)


# A state may say these more narrowly.
NARROWED = frozenset(("-p", "--sport", "--dport", "--tcp-flags", "--syn", "--icmp-type", "--icmpv6-type", "--state"))
NOTE = "-m comment --comment between"


def with_note(found: Outcome, number: int) -> str | None:
    """The rule, with a comment between two of what we take for its options; every place has its turn."""
    rule = parse_rule(found.candidate.text)
    if "comment" in rule.matches:
        return None  # a second one is refused
    at = rule.options[number % len(rule.options)].end
    return f"{rule.text[:at]} {NOTE}{rule.text[at:]}"


def test_options_end_where_we_think(tree: Path) -> None:
    """A comment written in at a wrong place, between an option and its value, would break the rule."""
    pairs = list(changed(tree, with_note))
    assert len(pairs) > FLOOR * len(WAYS)
    for _, before, after in pairs:
        assert after.accepted, (after.candidate.text, after.error)
        (saved,) = after.saved
        assert saved.replace(f" {NOTE}", "", 1) == before.saved[0], after.candidate.text


def with_state(found: Outcome, number: int) -> str | None:
    """The rule, asking for a state as well; ``None`` where the rewrite would refuse it for another reason."""
    rule = parse_rule(found.candidate.text)
    leaves = rule.target == "RETURN" or rule.command != "-A"
    if leaves or dependency(rule, found.candidate.table) or found.candidate.table == "raw":
        return None
    state = ("NEW", "ESTABLISHED", "RELATED,ESTABLISHED", "INVALID", "NEW,ESTABLISHED")[number % 5]
    return f"{rule.text} -m state --state {state}"


def test_every_rule_is_rewritten_or_blocked_and_nothing_else_changes(tree: Path) -> None:
    for way in WAYS:
        for found in tried(tree)[way]:
            ruleset = parse_ruleset(file_of(found.candidate.table, [found.candidate.text]), way[0])
            (line,) = ruleset.rules()
            needs = dependency(line.rule, line.table) is not None
            done = make_stateless(ruleset)
            assert may_depend(line) or not needs, line.text
            assert needs or line.table == "nat" or (done.ruleset is ruleset and not done.blockers), line.text
            assert done.blockers or not stateful(done.ruleset), line.text


def stateful(ruleset: RuleSet) -> list[str]:
    return [line.text for line in ruleset.rules() if dependency(line.rule, line.table)]


def test_whatever_stands_beside_a_state_survives_and_loads(tree: Path) -> None:
    """Every extension in one rule with a state: the rewrite keeps it, and the real program takes the result."""
    rules: dict[tuple[Way, str], list[str]] = {}
    for way, before, after in changed(tree, with_state):
        assert after.accepted, (after.candidate.text, after.error)
        rules.setdefault((way, before.candidate.table), []).append(after.candidate.text)
    for way in WAYS:
        assert sum(len(mine) for (of, _), mine in rules.items() if of == way) > FLOOR // 2
        files = [(table, written(way[0], table, mine)) for (of, table), mine in rules.items() if of == way]
        for (_, text), loaded in zip(files, load(files, f"{PREFIX[way[0]]}-{way[1]}")):
            assert loaded.accepted, (loaded.error, text)


def written(family: str, table: str, rules: list[str]) -> str:
    """What the rewrite makes of a table of *rules*, each of which it must change and keep."""
    done = make_stateless(parse_ruleset(file_of(table, rules), family))
    assert not done.blockers and not stateful(done.ruleset)
    for change in done.changes:
        if change.line:
            assert_kept(parse_rule(change.rule), change)
    assert len({change.line for change in done.changes} - {0}) == len(rules)
    return format_ruleset(done.ruleset)


def assert_kept(rule: Rule, change: Change) -> None:
    """What *rule* says of more than ports, flags and protocol stands in one of the rules that it became."""
    for option in rule.options[1:]:
        text = rule.text[option.start : option.end]
        plain = text in ("-m tcp", "-m state") or option.name in NARROWED
        if change.becomes and not plain:
            assert any(text in become for become in change.becomes), (rule.text, change.becomes)
