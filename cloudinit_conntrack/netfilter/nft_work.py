"""What one run of the native rewrite carries along, and how it writes rules."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from .nft_fates import behind
from .nft_kinds import Kind, Statement
from .nft_replies import FamilyReply
from .nft_ruleset import Base, Entry, NftRuleSet, Place, made
from .nft_untracked import Exemption, seen_by
from .nft_words import object_text, statements_text
from .outcome import MOST_LINES, Change, Policy, RuleBlocker
from .own_chains import CHAIN_PREFIX

HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
# Rules times the UDP replies and exemptions that each has to do with; this many take some seconds.
MOST_EFFORT = 300_000
_SEES = {"prerouting": ("input", "forward"), "postrouting": ("output", "forward")}


@dataclass(frozen=True)
class NftRewritten:
    """The result; *ruleset* is the input itself where there are blockers.

    A change's *line* is the place of the object in the array, from 1; *owned* are the
    tables of iptables-nft, which are left alone.
    """

    ruleset: NftRuleSet
    changes: tuple[Change, ...] = ()
    blockers: tuple[RuleBlocker, ...] = ()
    notes: tuple[str, ...] = ()
    owned: tuple[tuple[str, str], ...] = ()


@dataclass
class Work:
    """What one run of the rewrite carries along.

    *decided* are the kinds of packets that earlier rules of a chain have ended;
    *exempt_ended* the chains where an earlier rule ended every untracked packet.
    """

    ruleset: NftRuleSet
    policy: Policy
    replies: dict[str, tuple[FamilyReply, ...]]
    exempt: dict[str, tuple[Exemption, ...]]
    owned: frozenset[tuple[str, str]]
    entries: list[Entry] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    blockers: list[RuleBlocker] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)
    decided: dict[Place, frozenset[Kind]] = field(default_factory=dict)
    exempt_ended: set[Place] = field(default_factory=set)
    new_chains: dict[tuple[str, str], list[Entry]] = field(default_factory=dict)
    new_rules: dict[tuple[str, str], list[Entry]] = field(default_factory=dict)
    numbers: dict[tuple[str, str], int] = field(default_factory=dict)
    seen: dict[tuple[str, ...], tuple[FamilyReply, ...]] = field(default_factory=dict)
    effort: int = 0

    exempt_seen: dict[tuple[tuple[Base, ...], tuple[str, str]], tuple[Exemption, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.behind = behind(self.ruleset)
        self.taken = frozenset(entry.place for entry in self.ruleset.of_kind("chain"))

    def bases(self, entry: Entry) -> tuple[Base, ...]:
        """The hooks from which packets come to *entry*'s chain."""
        return self.ruleset.hooks.get(entry.place, ())

    def replies_for(self, entry: Entry) -> tuple[FamilyReply, ...]:
        """The UDP replies that *entry*'s chain sees; a chain reached from nowhere may see all."""
        hooks = [base.hook for base in self.bases(entry)] or list(HOOKS)
        names = dict.fromkeys(name for hook in hooks for name in _SEES.get(hook, (hook,)))
        key = tuple(names)
        if key not in self.seen:
            self.seen[key] = tuple(dict.fromkeys(reply for name in names for reply in self.replies.get(name, ())))
        self.effort += len(self.seen[key])
        return self.seen[key]

    def exemptions_for(self, entry: Entry) -> tuple[Exemption, ...]:
        """What the packets that *entry*'s chain sees may be exempt by."""
        key = self.bases(entry), entry.table
        if key not in self.exempt_seen:
            self.exempt_seen[key] = seen_by(self.exempt, *key)
        self.effort += len(self.exempt_seen[key])
        return self.exempt_seen[key]

    @property
    def too_much(self) -> bool:
        """Whether a hostile rule-set, many states times many UDP ports or exemptions, grows beyond all use."""
        return len(self.entries) > MOST_LINES or self.effort > MOST_EFFORT

    def block(self, entry: Entry, reason: str, remedy: str) -> None:
        """Note that *entry* cannot be made stateless."""
        self.blockers.append(RuleBlocker(entry.index, object_text(entry), reason, remedy))

    def remove(self, entry: Entry, reason: str) -> None:
        """Leave *entry* out."""
        self.changes.append(Change(entry.index, object_text(entry), (), reason))

    def note(self, entry: Entry, text: str) -> None:
        """Say something about *entry* to the person."""
        self.notes[f"{self.ruleset.name}: object {entry.index}: {text}"] = None

    def replaced(self, entry: Entry, rules: list[tuple[Statement, ...]], reason: str, widens: str | None) -> None:
        """Put *rules* in *entry*'s place; one rule keeps its handle, several have none."""
        body = dict(entry.body)
        if len(rules) != 1:
            body.pop("handle", None)
        new = [made(entry, "rule", {**body, "expr": list(rule)}) for rule in rules]
        self.entries += [one if at == 0 else replace(one, before=entry.before or " ") for at, one in enumerate(new)]
        becomes = tuple(statements_text(one) for one in new)
        self.changes.append(Change(entry.index, object_text(entry), becomes, reason, widens))

    def new_chain(self, source: Entry, rules: Iterable[tuple[Statement, ...]]) -> str:
        """Make a chain of our own in *source*'s table, with *rules*; gives its name."""
        family, table = source.table
        number = self.numbers.get(source.table, 0) + 1
        while (family, table, f"{CHAIN_PREFIX}{number}") in self.taken:
            number += 1
        self.numbers[source.table] = number
        name = f"{CHAIN_PREFIX}{number}"
        chain = made(source, "chain", {"family": family, "table": table, "name": name})
        self.new_chains.setdefault(source.table, []).append(chain)
        place = {"family": family, "table": table, "chain": name}
        comment = {"comment": source.body["comment"]} if source.kind == "rule" and "comment" in source.body else {}
        made_rules = [made(source, "rule", {**place, **comment, "expr": list(rule)}) for rule in rules]
        self.new_rules.setdefault(source.table, []).extend(made_rules)
        return name

    def forget_chains(self, table: tuple[str, str], chains: int, rules: int) -> None:
        """Take back the chains and rules of *table* made since there were that many."""
        del self.new_chains.get(table, [])[chains:], self.new_rules.get(table, [])[rules:]

    def place_new(self) -> None:
        """Our chains stand behind the table's own, their rules behind its rules, as nft lists them."""
        for table, chains in self.new_chains.items():
            at = max(i for i, entry in enumerate(self.entries) if entry.kind == "chain" and entry.table == table)
            self.entries[at + 1 : at + 1] = chains
            last = max(i for i, e in enumerate(self.entries) if e.kind in ("chain", "rule") and e.table == table)
            self.entries[last + 1 : last + 1] = self.new_rules[table]
        self.new_chains.clear()
        self.new_rules.clear()


def from_zero(statement: Statement) -> Statement:
    """A counter that several rules now have begins anew in each."""
    anonymous = isinstance(statement.get("counter"), dict)
    return {"counter": {**statement["counter"], "packets": 0, "bytes": 0}} if anonymous else statement


def counts(statement: Statement) -> bool:
    """Whether it keeps a count of its own, that several rules would keep several times."""
    kind, body = next(iter(statement.items()))
    return kind == "meter" or (kind in ("limit", "quota") and isinstance(body, dict)) or "'mode': 'inc'" in str(body)
