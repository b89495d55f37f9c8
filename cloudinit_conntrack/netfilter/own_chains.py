"""Rules that need a chain of their own: behind RETURNs, or as one rule that several lead to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from . import edit
from .commands import declared
from .leaving import Ways
from .ruleset import Line, Rule, RuleSet
from .selection import Piece, Selection
from .untracked import Exemption

CHAIN_PREFIX = "stateless-"


@dataclass
class OwnChains:
    """The chains that one rewrite of *ruleset* adds."""

    ruleset: RuleSet
    _made: dict[str, dict[str, int]] = field(default_factory=dict)
    _ways: dict[str, Ways] = field(default_factory=dict)

    def ways(self, table: str) -> Ways:
        """Where packets of *table* come from and go to."""
        return self._ways.setdefault(table, Ways(self.ruleset, table))

    def new(self, table: str) -> str:
        """A name that no chain of *table* has."""
        made = self._made.setdefault(table, {})
        number = next(reversed(made.values()), 0) + 1
        while f"{CHAIN_PREFIX}{number}" in self.ruleset.chains[table]:
            number += 1
        made[f"{CHAIN_PREFIX}{number}"] = number
        return f"{CHAIN_PREFIX}{number}"

    def write(
        self, line: Line, chosen: Selection, exempt: tuple[Exemption, ...], texts: Sequence[str]
    ) -> list[str]:
        """The rule, the last of *texts*, in a chain of its own: behind RETURNs, or as one rule for many pieces."""
        chain = self.new(line.table)
        final = edit.moved(line.rule, chain, texts[-1])
        own = _own_protocol(line.rule)
        returns = [*texts[:-1], *(_plain(chain, Piece("", e.options or "", ()), "RETURN") for e in exempt)]
        if chosen.form == "around":
            returns += [_plain(chain, piece, "RETURN") for piece in chosen.pieces]
            return [*returns, final, _plain(line.chain, Piece(own, "", ()), chain)]
        jumps = [_plain(line.chain, Piece(p.protocol or own, p.matches, ()), chain) for p in chosen.pieces]
        return [*returns, final, *jumps]

    def leaving(self, line: Line) -> list[str]:
        """What stands in a chain of its own for *line*, which leaves its chain; nothing where that cannot be said.

        The last is the rule itself; those before it are for a chain that it goes to.
        """
        rule, text, ways = line.rule, edit.rebuilt(line.rule), self.ways(line.table)
        if not ways.known:
            return []
        if rule.target != "RETURN" and not ways.comes_back(rule.target):
            return [text]
        verdict = ways.beyond(line.chain)
        if verdict is None:
            return []
        if rule.target == "RETURN":
            return [edit.retargeted(text, f"-j {verdict}")]
        between = self.new(line.table)
        return [f"-A {between} -j {rule.target}", f"-A {between} -j {verdict}", edit.retargeted(text, f"-g {between}")]

    def declared(self, lines: Sequence[Line]) -> list[Line]:
        """*lines* with a declaration of each chain."""
        return declared(lines, self._made)


def _own_protocol(rule: Rule) -> str:
    option = rule.first("-p")
    if option is None:
        return ""
    return f"! {option.value}" if option.negated else option.value


def _plain(chain: str, piece: Piece, target: str) -> str:
    protocol = piece.protocol
    head = f"! -p {protocol[2:]}" if protocol.startswith("! ") else (f"-p {protocol}" if protocol else "")
    return " ".join(word for word in ("-A", chain, head, piece.matches, "-j", target) if word)
