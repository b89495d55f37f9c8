"""What is said of a rewritten rule-set, in whatever language it is: blockers, notes, the difference, closed ports."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable

from ..netfilter.outcome import Change, RuleBlocker
from .draft import Draft, Item

if TYPE_CHECKING:  # a boot with nothing to do does not load it
    from ..netfilter.difference import Difference

OPEN_IT = "add an accept rule for the port, or take it out of guard.keep"


@dataclass(frozen=True)
class Place:
    """A rule-set as it is named: *where* for people, *key* in ids; *line* gives a line's own place."""

    where: str
    key: str
    line: Callable[[int], str]

    def at(self, number: int) -> str:
        """Where line *number* is; the rule-set itself for a line that is new (0)."""
        return f"{self.where}: {self.line(number)}" if number else self.where


def say_blockers(draft: Draft, blockers: Iterable[RuleBlocker], place: Place) -> None:
    """A blocker for each rule that cannot be rewritten."""
    for blocker in blockers:
        draft.blockers.append(Item(f"rule:{place.key}:{blocker.line}", place.at(blocker.line),
                                   f"{blocker.rule.strip()}: {blocker.reason}", blocker.remedy))


def say_notes(draft: Draft, notes: Iterable[tuple[str, str]], key: str) -> None:
    """A finding for each of *notes*, which are (where, text)."""
    draft.findings += (Item(f"note:{key}:{number}", *note) for number, note in enumerate(notes, 1))


# --- the difference --------------------------------------------------------------------------


def say_difference(draft: Draft, found: tuple[Difference | None, str], changes: Iterable[Change], place: Place) -> None:
    """Say which packets are let through otherwise than before, computed from the two rule-sets.

    *found* is what :mod:`..netfilter.stated` gives; where nothing was computed, each of *changes* says what it widens.
    A handshake that the rewrite newly let in would be our defect: it blocks.  The bypass opens what the configuration
    names, and rules.stateful: remove what a rule had limited; both say so.
    """
    difference, why_not = found
    if difference is None:
        draft.findings.append(Item(f"difference:{place.key}", place.where, why_not))
        draft.widenings += (
            Item(f"widening:{place.key}:{change.line or f'new{number}'}", place.at(change.line), change.widens)
            for number, change in enumerate(changes) if change.widens)
        return
    draft.widenings += (Item(f"widening:{place.key}:{number}", place.where, str(told))
                        for number, told in enumerate(difference.widened, 1))
    draft.findings += (Item(f"narrowing:{place.key}:{number}", place.where, f"no longer accepted: {told}")
                       for number, told in enumerate(difference.narrowed, 1))
    if draft.desired.mode != "notrack" and draft.desired.rules.stateful != "remove":
        draft.blockers += (Item(f"handshake:{place.key}:{number}", place.where, f"the new rules would let in {told}",
                                "this is our defect: report it with the rule-set")
                           for number, told in enumerate(difference.handshakes[:3], 1))


# --- ports -----------------------------------------------------------------------------------


def say_closed(draft: Draft, closed: Iterable[tuple[int, str]], where: str, remedy: str = OPEN_IT) -> None:
    """A blocker for each (port, why) that must stay reachable and would not."""
    draft.blockers += (Item(f"guard:{where}:{port}", where, reason, remedy) for port, reason in closed)


def say_closed_frontends(draft: Draft, unreachable: Callable[[list[int]], list[int]], where: str) -> None:
    """A finding for the frontends' ports that were closed all along; ``notrack`` opens them."""
    if draft.desired.mode == "notrack":
        return
    tcp = [f.ports[0] for f in draft.desired.flows.frontends if f.protocol == "tcp"]
    closed = ", ".join(map(str, unreachable(tcp)))
    if closed:
        draft.findings.append(Item(f"closed:{where}", where, f"frontend port {closed}: closed, before and after",
                                   "add an accept rule if clients shall reach it"))
