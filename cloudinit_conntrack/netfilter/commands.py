"""Commands other than ``-A``, and tables that stand twice: what they ask of a rewrite.

A file written by hand is a script: a restore program empties a table at each of its headers
and then does one command after another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from .ruleset import Line, Rule, RuleSet

UNDOING = frozenset(("-D", "-R", "-F", "-X", "-E"))
SAVE_FIRST = "save the rules with iptables-save and use that file"
NUMBERED = "it names a rule by its number, and its chain has more or fewer rules now"
COUNTING = frozenset(("-I", "-D", "-R"))


def may_be_undone(ruleset: RuleSet) -> bool:
    """Whether a rule may be gone again before the end, so that nothing is settled by it."""
    tables = ruleset.tables()
    return len(set(tables)) < len(tables) or any(line.command in UNDOING for line in ruleset.rules())


def shifted(before: RuleSet, after: RuleSet) -> tuple[Line, ...]:
    """The commands of *before* with a rule number (``-I INPUT 3``), in chains that have more or fewer rules *after*."""
    numbered = [x for x in before.rules() if x.command in COUNTING and _number(x) > (x.command == "-I")]
    if not numbered:
        return ()
    was, now = (Counter((x.table, x.chain) for x in ruleset.rules()) for ruleset in (before, after))
    return tuple(x for x in numbered if was[x.table, x.chain] != now[x.table, x.chain])


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
