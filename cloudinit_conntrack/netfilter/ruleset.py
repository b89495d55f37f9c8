"""A saved rule-set as lines, so that what nobody changed stays as it was, byte for byte.

A rule-set is what ``iptables-save`` prints and ``iptables-restore`` reads: tables
(``*filter`` ... ``COMMIT``), chain declarations (``:INPUT DROP [0:0]``), and commands
(``-A INPUT ...``).  Nothing is normalised: ``format_ruleset(parse(text)) == text``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

TABLES = ("raw", "mangle", "nat", "filter", "security")
BLANKS = re.compile("[ \t]+")
POSITION = re.compile("[1-9][0-9]{0,8}")
HOOKS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")


class Option(NamedTuple):
    """One option of a rule: ``! --dport 80`` is ``Option("--dport", ("80",), True, ...)``.

    *name* is canonical (``-p``, ``-j``, ``--dport``); *start* and *end* are the offsets of
    the whole option, a leading ``!`` included, in the rule's text.
    """

    name: str
    args: tuple[str, ...]
    negated: bool
    start: int
    end: int

    @property
    def value(self) -> str:
        """The first argument, or an empty string."""
        return self.args[0] if self.args else ""


class Shape(NamedTuple):
    """What many rules have in common: *text* has a gap for each of *values*, in their order.

    *counters* is what stood before it, ``[5:300]`` with its blanks.
    """

    text: str
    values: tuple[str, ...]
    counters: str


@dataclass(frozen=True)
class Rule:
    """One command of a table.  *text* has no line end; *counters* is ``[1:60]`` or empty."""

    text: str
    command: str
    chain: str
    counters: str
    options: tuple[Option, ...]

    def all(self, *names: str) -> tuple[Option, ...]:
        """Every option whose canonical name is among *names*, in order."""
        return tuple([o for o in self.options if o.name in names])

    def first(self, *names: str) -> Option | None:
        """The first option among *names*, or ``None``."""
        for option in self.options:  # a plain loop: this is asked many times for each rule
            if option.name in names:
                return option
        return None

    @cached_property
    def matches(self) -> tuple[str, ...]:
        """Names given to ``-m``, in order."""
        return tuple([o.value for o in self.options if o.name == "-m"])

    @cached_property
    def target(self) -> str:
        """What ``-j`` or ``-g`` names; empty for a rule that only counts."""
        jump = self.first("-j", "-g")
        return jump.value if jump else ""

    @cached_property
    def comment(self) -> str:
        """The text of ``--comment``, or empty."""
        option = self.first("--comment")
        return option.value if option else ""


@dataclass(frozen=True)
class Line:
    """One line.  *kind* is ``comment``, ``blank``, ``table``, ``chain``, ``rule`` or ``commit``.

    *number* counts from 1 in the input; a line that we made has the number of the line it
    came from.  *table* and *chain* say where the line belongs (empty outside).
    """

    number: int
    text: str
    kind: str
    table: str = ""
    chain: str = ""

    @cached_property
    def rule(self) -> Rule:
        """The parsed command of a ``rule`` line."""
        return iptables.parse_rule(self.text) if self.shape is None else iptables.cast(self.text, self.shape)

    @cached_property
    def shape(self) -> Shape | None:
        """What this ``rule`` line has in common with others."""
        return iptables.shape_of(self.text)

    @cached_property
    def like(self) -> Rule:
        """The rule, maybe with gaps for addresses, interfaces and ports: where they have no part in the question."""
        return self.rule if self.shape is None else iptables.like_of(self.shape.text)

    @property
    def command(self) -> str:
        """The command of a ``rule`` line (``-A``), found without parsing the rest where that is possible."""
        if self.text.startswith("-A "):
            return "-A"
        start = iptables.start_of(self.text)
        return start[0] if start else self.rule.command


@dataclass(frozen=True)
class RuleSet:
    """A whole saved rule-set of one family.  *name* is the file's, for messages."""

    family: str
    name: str
    lines: tuple[Line, ...]
    final_newline: bool = True

    def tables(self) -> tuple[str, ...]:
        """Names of the tables that the text holds, in order."""
        return tuple(line.table for line in self.lines if line.kind == "table")

    def of_table(self, table: str) -> tuple[Line, ...]:
        """The lines of *table*, header and COMMIT included."""
        return tuple(line for line in self.lines if line.table == table)

    def rules(self, table: str | None = None) -> Iterator[Line]:
        """Every command line, of one table or of all."""
        return (x for x in self.lines if x.kind == "rule" and table in (None, x.table))

    @cached_property
    def chains(self) -> Mapping[str, Mapping[str, str]]:
        """table -> chain -> policy; a user chain has the policy ``-``.

        A built-in chain that is used and not declared keeps the kernel's own ACCEPT.
        """
        found: dict[str, dict[str, str]] = {}
        for line in self.lines:
            if line.kind == "table":
                found.setdefault(line.table, {})
            elif line.kind == "chain":
                found[line.table][line.chain] = BLANKS.split(line.text[1:].strip(" \t"))[1]
            elif line.kind == "rule" and line.command in ("-N", "-P"):
                policy = line.rule.options[0].args[1:2]
                found[line.table][line.chain] = policy[0] if line.rule.command == "-P" and policy else "-"
            elif line.kind == "rule" and line.chain in HOOKS:
                found[line.table].setdefault(line.chain, "ACCEPT")
        return found

    @cached_property
    def appended(self) -> Mapping[tuple[str, str], tuple[Line, ...]]:
        """(table, chain) -> its rules in the order in which packets meet them.

        A restore program empties a table at each of its headers; only the last one counts.
        """
        found: dict[tuple[str, str], list[Line]] = {}
        for line in self.lines:
            if line.kind == "table":
                _emptied(found, line.table, "")
            elif line.kind == "rule":
                command = line.command
                if command == "-A":
                    found.setdefault((line.table, line.chain), []).append(line)
                elif command == "-F":
                    _emptied(found, line.table, line.chain)
                elif command in ("-I", "-R", "-D"):
                    _by_number(found.setdefault((line.table, line.chain), []), line)
        return {key: tuple(lines) for key, lines in found.items()}

    @cached_property
    def kept(self) -> dict[tuple[str, ...], object]:
        """What those who walk these rules many times keep of them, by a name of their own."""
        return {}

    @cached_property
    def hooks(self) -> Mapping[tuple[str, str], tuple[str, ...]]:
        """(table, chain) -> the built-in chains from which it is reached, itself included."""
        found: dict[tuple[str, str], set[str]] = {}
        for table, chains in self.chains.items():
            for hook in (c for c in chains if c in HOOKS):
                for chain in self.reached(table, hook):
                    found.setdefault((table, chain), set()).add(hook)
        return {key: tuple(h for h in HOOKS if h in hooks) for key, hooks in found.items()}

    def walked(self) -> Iterator[Line]:
        """Every command line, as packets meet them: what a rule jumps to stands behind the rule."""
        seen: set[tuple[str, str]] = set()
        for table, chains in self.chains.items():
            for chain in sorted(chains, key=lambda name: name not in HOOKS):  # what no hook reaches comes last
                yield from self._walked(table, chain, seen)
        yield from (line for line in self.rules() if line.command not in ("-A", "-I"))

    def _walked(self, table: str, start: str, seen: set[tuple[str, str]]) -> Iterator[Line]:
        waiting = [iter(self._entered(table, start, seen))]
        while waiting:
            for line in waiting[-1]:
                yield line
                target = line.like.target
                if target in self.chains[table]:
                    waiting.append(iter(self._entered(table, target, seen)))
                    break
            else:
                waiting.pop()

    def _entered(self, table: str, chain: str, seen: set[tuple[str, str]]) -> tuple[Line, ...]:
        """The rules of *chain*, the first time only."""
        if (table, chain) in seen:
            return ()
        seen.add((table, chain))
        return self.appended.get((table, chain), ())

    def reached(self, table: str, start: str) -> set[str]:
        """The chains of *table* that a packet may come to from *start*, itself included."""
        if all(chain in HOOKS for chain in self.chains[table]):
            return {start}  # no rule can jump
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            chain = waiting.pop()
            if chain in seen:
                continue
            seen.add(chain)
            targets = (x.like.target for x in self.appended.get((table, chain), ()))
            waiting.extend(t for t in targets if t in self.chains[table])
        return seen

    def with_lines(self, lines: Iterable[Line]) -> RuleSet:
        """The same rule-set with other lines."""
        return replace(self, lines=tuple(lines))


def _emptied(found: dict[tuple[str, str], list[Line]], table: str, chain: str) -> None:
    """Forget the rules of *chain*, or of every chain of *table*."""
    for key in [key for key in found if key[0] == table and chain in ("", key[1])]:
        del found[key]


def _by_number(rules: list[Line], line: Line) -> None:
    """Insert, replace or delete one of *rules*, which the command names by number or spells out."""
    command, *said = line.rule.options
    number = "".join(command.args[1:2])
    at = int(number) - 1 if POSITION.fullmatch(number) else 0
    if line.command == "-I":
        rules.insert(at, line)
        return
    if not number:
        wanted = [option[:3] for option in said]
        at = next((i for i, rule in enumerate(rules) if [o[:3] for o in rule.rule.options[1:]] == wanted), len(rules))
    rules[at : at + 1] = [line] if line.command == "-R" else []


def format_ruleset(ruleset: RuleSet) -> str:
    """The text of *ruleset*, ready for ``iptables-restore``."""
    text = "\n".join(line.text for line in ruleset.lines)
    return text + "\n" if ruleset.final_newline and ruleset.lines else text


from . import iptables  # noqa: E402 - the grammar stands above these values, and a line asks it when it is read
