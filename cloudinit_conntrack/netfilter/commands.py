"""Commands other than ``-A``, and tables that stand twice: what they ask of a rewrite.

A file written by hand is a script: a restore program empties a table at each of its headers
and then does one command after another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from .iptables import chain_of
from .ruleset import Line, Rule, RuleSet

UNDOING = frozenset(("-D", "-R", "-F", "-X", "-E"))
SAVE_FIRST = "save the rules with iptables-save and use that file"
COUNTING = frozenset(("-I", "-D", "-R"))


def may_be_undone(ruleset: RuleSet) -> bool:
    """Whether a rule may be gone again before the end, so that nothing is settled by it."""
    tables = ruleset.tables()
    return len(set(tables)) < len(tables) or any(line.command in UNDOING for line in ruleset.rules())


def miscounting(ruleset: RuleSet, became: Mapping[int, tuple[str, ...]]) -> Iterator[Line]:
    """The commands with a rule number (``-I INPUT 3``) whose chain has more or fewer rules before them now.

    *became* says of each changed line, by its number, what it became.
    """
    moved: set[tuple[str, str]] = set()
    if not any(line.command in COUNTING for line in ruleset.rules()):
        return  # the many rule-sets that iptables-save printed
    for line in ruleset.rules():
        place = (line.table, line.chain)
        if line.number in became:
            if sum(chain_of(text) == line.chain for text in became[line.number]) != 1:
                moved.add(place)
        elif place in moved and line.command in COUNTING and _number(line) > 1 - (line.command != "-I"):
            yield line


def _number(line: Line) -> int:
    word = "".join(line.rule.options[0].args[1:2])
    return int(word) if word.isascii() and word.isdigit() and len(word) < 10 else 0


def unfit_for_rewrite(rule: Rule, family: str) -> tuple[str, str] | None:
    """Why the stateful *rule* cannot become others where it stands, and what to do; ``None`` when it can."""
    if rule.command not in ("-A", "-I"):
        return f"{rule.command} of a stateful rule", SAVE_FIRST
    if rule.first("-6" if family == "ipv4" else "-4"):  # a restore program of this family passes it over
        return (
            "it is for the other family alone (-4, -6), whose rules are other ones",
            "keep a file for each family: what iptables-save prints, and what ip6tables-save prints",
        )
    return None


def declared(lines: Iterable[Line], chains: Mapping[str, Iterable[str]]) -> list[Line]:
    """*lines* with a declaration of each of *chains* (by table), behind those before the chain's first rule."""
    waiting = {(table, chain) for table, mine in chains.items() for chain in mine}
    found: list[Line] = []
    at = 0
    for line in lines:
        place = (line.table, line.chain)
        if line.kind == "rule" and place in waiting:
            waiting.discard(place)
            found.insert(at, Line(found[at - 1].number, f":{line.chain} - [0:0]", "chain", *place))
            at += 1
        found.append(line)
        if line.kind in ("table", "chain"):
            at = len(found)
    return found
