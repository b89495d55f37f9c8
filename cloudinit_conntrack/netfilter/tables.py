"""Two rule-sets of one host compared: which tables differ."""

from __future__ import annotations

from collections.abc import Collection

from .ruleset import Line, RuleSet

CHAINS = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "security": ("INPUT", "FORWARD", "OUTPUT"),
}


def split_tables(before: RuleSet, after: RuleSet) -> tuple[str, str, tuple[str, ...], tuple[str, ...]]:
    """The texts of the tables that differ, of *before* and of *after*, and the tables that
    only the one and only the other has (dropped, created).

    A table that only *after* has stands in the first text as an empty one, so that loading
    that text undoes it.
    """
    old, new = before.tables(), after.tables()
    differ = [t for t in dict.fromkeys(old + new) if _lines(before, t) != _lines(after, t)]
    dropped = tuple(t for t in differ if t not in new)
    created = tuple(t for t in differ if t not in old)
    # Each table is one transaction of its own, in the order of the text: the rules that accept
    # untracked packets must be there before raw makes packets untracked, and go after it does not.
    differ.sort(key=lambda table: table == "raw")
    first = "".join(_table(before, t) if t in old else _empty(t) for t in reversed(differ))
    second = "".join(_table(after, t) if t in new else _empty(t) for t in differ)
    return first, second, dropped, created


def without_tables(text: str, names: tuple[str, ...]) -> str:
    """*text*, one of :func:`split_tables`, without the tables *names*."""
    kept: list[str] = []
    table = ""
    for line in text.splitlines(keepends=True):
        table = line[1:].rstrip() if line.startswith("*") else table
        if table not in names:
            kept.append(line)
    return "".join(kept)


def filled(ruleset: RuleSet) -> tuple[str, ...]:
    """The tables of *ruleset* that do anything: with a rule, or a policy other than ACCEPT."""
    return tuple(table for table, chains in ruleset.chains.items()
                 if any(ruleset.rules(table)) or not set(chains.values()) <= {"ACCEPT", "-"})


def tables_alone(ruleset: RuleSet, tables: Collection[str]) -> RuleSet:
    """*ruleset* with nothing but *tables*."""
    return ruleset.with_lines(line for line in ruleset.lines if line.table in tables)


def _lines(ruleset: RuleSet, table: str) -> list[str]:
    return [line.text for line in ruleset.of_table(table) if line.kind != "comment"]


def _table(ruleset: RuleSet, table: str) -> str:
    def text(line: Line) -> str:
        return line.text + "\n"

    return "".join(text(x) for x in ruleset.of_table(table) if x.kind not in ("comment", "blank"))


def _empty(table: str) -> str:
    chains = "".join(f":{chain} ACCEPT [0:0]\n" for chain in CHAINS[table])
    return f"*{table}\n{chains}COMMIT\n"
