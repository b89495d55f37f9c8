"""Rules that leave their chain (RETURN, ``-g``), said from inside a chain of their own.

Where what a rule matches has no match of its own, the rule moves into a new chain behind
RETURNs.  From there a RETURN or a goto no longer leaves the chain that the rule stood in, so
it is said as the verdict to which leaving leads, where there is a single one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from .commands import may_be_undone
from .parts import groups_of
from .ruleset import Line, Rule, RuleSet

VERDICTS = frozenset(("ACCEPT", "DROP", "REJECT"))
ENDING = frozenset(("ACCEPT", "QUEUE", "NFQUEUE"))
EVERY_GROUP = frozenset(("tcp", "udp", "icmp", "other"))
# Options that say nothing about which packets a rule matches.
_SAYING = frozenset(("-A", "-I", "-j", "-g", "--comment", "--reject-with"))
_DEEP = 64  # chains; a set with more on one way gets no answer, and no RecursionError


@dataclass
class Ways:
    """Where packets of one table come from and go to.  Every answer is worked out once."""

    ruleset: RuleSet
    table: str
    _beyond: dict[str, str | None] = field(default_factory=dict)
    _back: dict[str, bool] = field(default_factory=dict)
    _accepting: dict[str, bool] = field(default_factory=dict)
    _groups: dict[str, frozenset[str]] = field(default_factory=dict)

    @cached_property
    def _chains(self) -> dict[str, tuple[Line, ...]]:
        return {chain: self.ruleset.appended.get((self.table, chain), ()) for chain in self._policies}

    @cached_property
    def _policies(self) -> dict[str, str]:
        return dict(self.ruleset.chains.get(self.table, {}))

    @cached_property
    def known(self) -> bool:
        """Whether the text shows every rule: no command takes one away again."""
        return not may_be_undone(self.ruleset)

    @cached_property
    def _callers(self) -> dict[str, list[tuple[Line, Line | None]]]:
        """chain -> the rules that lead to it, each with the rule that follows; a goto has none."""
        found: dict[str, list[tuple[Line, Line | None]]] = {}
        for lines in self._chains.values():
            for line, following in zip(lines, (*lines[1:], None)):
                if line.rule.target in self._policies:
                    found.setdefault(line.rule.target, []).append((line, None if line.rule.first("-g") else following))
        return found

    def beyond(self, chain: str, depth: int = 0) -> str | None:
        """What happens to every packet that leaves *chain*: ``DROP``, ``REJECT --reject-with ...``.

        A built-in chain has its policy; a user chain what follows each jump to it.  ``None``
        where that is no single verdict, or nothing leads to the chain.
        """
        policy = self._policies.get(chain, "-")
        if policy != "-" or depth > _DEEP:
            return policy if policy in VERDICTS else None
        if chain not in self._beyond:
            self._beyond[chain] = None  # for a loop, which the kernel refuses
            found = {self._after(line, following, depth) for line, following in self._callers.get(chain, ())}
            self._beyond[chain] = found.pop() if len(found) == 1 else None
        return self._beyond[chain]

    def _after(self, caller: Line, following: Line | None, depth: int) -> str | None:
        if following is None:
            return self.beyond(caller.chain, depth + 1)
        rule = following.rule
        if rule.target not in VERDICTS or not _unconditional(rule):
            return None
        option = rule.first("--reject-with")
        return f"{rule.target} --reject-with {option.value}" if option else rule.target

    def comes_back(self, chain: str, depth: int = 0) -> bool:
        """Whether a packet may come out of *chain* again; where none does, a goto is a jump."""
        if self._policies.get(chain) != "-" or depth > _DEEP:
            return True
        if chain not in self._back:
            self._back[chain] = True
            self._back[chain] = self._falls_through(chain, depth)
        return self._back[chain]

    def _falls_through(self, chain: str, depth: int) -> bool:
        for rule in (line.rule for line in self._chains[chain]):
            inner = rule.target in self._policies
            ends = rule.target in VERDICTS or (inner and not self.comes_back(rule.target, depth + 1))
            if rule.target == "RETURN" or (rule.first("-g") and not ends):
                return True
            if ends and _unconditional(rule):
                return False
        return True

    def may_accept(self, target: str) -> bool:
        """Whether a packet that a rule sends to *target* may be accepted for it: by a chain, or behind a RETURN."""
        if target not in self._policies:
            return target in ("ACCEPT", "RETURN")
        if target not in self._accepting:
            inner = self.ruleset.reached(self.table, target)
            self._accepting[target] = any(x.rule.target in ENDING for c in inner for x in self._chains.get(c, ()))
        return self._accepting[target]

    def entering(self, chain: str, depth: int = 0) -> frozenset[str]:
        """The protocol groups of the packets that come to *chain*, by the ``-p`` of every rule that leads there."""
        if self._policies.get(chain, "-") != "-" or depth > _DEEP or chain not in self._callers:
            return EVERY_GROUP
        if chain not in self._groups:
            self._groups[chain] = EVERY_GROUP
            self._groups[chain] = frozenset(group for groups in self._each(chain, depth) for group in groups)
        return self._groups[chain]

    def _each(self, chain: str, depth: int) -> Iterator[frozenset[str]]:
        for line, _ in self._callers[chain]:
            own = frozenset(groups_of(line.rule, self.ruleset.family))
            yield own & self.entering(line.chain, depth + 1)


def leaves(rule: Rule) -> bool:
    """Whether a packet that *rule* matches leaves the chain without a verdict of the rule's own."""
    return rule.target == "RETURN" or rule.first("-g") is not None


def _unconditional(rule: Rule) -> bool:
    return all(o.name in _SAYING or (o.name == "-m" and o.value == "comment") for o in rule.options)
