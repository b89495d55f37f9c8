"""The twin of a native rule that asks for a state: what it says of tracked packets, said of untracked ones.

The same as :mod:`.twins`, for nftables.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .bypass import Bypass, Flow
from .effects import described
from .nft_kinds import FAMILIES, Kind, Statement, kinds_for
from .nft_match import Test, field_ranges, tests_of
from .nft_questions import Asked, CannotBeSaidError, questions
from .nft_replies import FamilyReply, replies_by_hook
from .nft_ruleset import Entry, NftRuleSet
from .nft_selection import select
from .nft_stateful import asks_state
from .nft_states import settle, settle_plain
from .nft_values import common
from .nft_words import object_text
from .nft_work import Work
from .replies import Reply
from .stateless import RuleBlocker

UNTRACKED: Statement = {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "untracked"}}
_WATCHING = frozenset(("", "log", "counter"))


@dataclass(frozen=True)
class FamilyFlow:
    """A flow, and the family that it is of; empty for both."""

    flow: Flow
    family: str = ""


@dataclass(frozen=True)
class NftBypass:
    """What bypasses conntrack, of both families; *plain* has the rest of the settings."""

    frontends: tuple[FamilyFlow, ...]
    backends: tuple[FamilyFlow, ...]
    plain: Bypass

    @property
    def flows(self) -> tuple[FamilyFlow, ...]:
        """Frontends and backends."""
        return self.frontends + self.backends


@dataclass(frozen=True)
class Twin:
    """A rule for untracked packets, without a comment, and what it lets in."""

    statements: tuple[Statement, ...]
    widens: str | None = None


def twins_of(work: Work, entry: Entry, bypass: NftBypass) -> tuple[Twin, ...]:
    """The twins of the rule *entry*; nothing where it asks for no state or concerns no flow.

    To be asked in the order of the rules: *work* remembers what earlier ones have ended.

    What cannot be said becomes a blocker of *work*.
    """
    if entry.family not in FAMILIES:
        return ()
    if not any(asks_state(statement) for statement in entry.statements):
        settle_plain(work, entry)
        return ()
    try:
        return tuple(rule for asked in questions(work, entry) for rule in _twins(work, entry, asked, bypass))
    except CannotBeSaidError as error:
        if _of_state_alone(entry):
            work.block(entry, *error.args)
        return ()


def _of_state_alone(entry: Entry) -> bool:
    """Whether it is the state that a rule asks for: what a connection is marked with, untracked packets have not."""
    return "'key': 'state'" in str(entry.statements)


def _twins(work: Work, entry: Entry, asked: Asked, bypass: NftBypass) -> Iterator[Twin]:
    tests = tests_of(work.ruleset, entry, asked.before + asked.after)
    if _elsewhere(tests, asked.states, bypass):
        return
    kinds = kinds_for(FAMILIES[entry.family], tests, work.replies_for(entry))
    kinds = tuple(kind for kind in kinds if _concerns(kind, bypass))
    if "UNTRACKED" in asked.states:
        _refuse_catching(work, entry, asked, kinds, bypass)
        return
    decided = work.decided.get(entry.place, frozenset())
    chosen = select(kinds, asked.states, decided, asked.verdict == "accept", tests)
    if chosen.pieces is None and asked.verdict not in _WATCHING:
        work.blockers.append(RuleBlocker(
            entry.index, object_text(entry), "what it says of untracked packets takes a chain of its own",
            "name protocols and ports in it, or put what it decides into a user chain"))
    for piece in chosen.pieces or ():
        rule = (UNTRACKED, *piece.matches, *(_from_zero(s) for s in (*asked.before, *asked.after)))
        gained = [kind.part for kind in piece.kinds if not kind.part.stray <= asked.states]
        refuses = asked.verdict in ("drop", "reject") or asked.verdict in _WATCHING
        told = f"{described(gained)} that belong to no connection are let through" if gained and not refuses else None
        yield Twin(rule, told)
    settle(work, entry, asked, tests)


def _from_zero(statement: Statement) -> Statement:
    return {"counter": {"packets": 0, "bytes": 0}} if isinstance(statement.get("counter"), dict) else statement


def _elsewhere(tests: tuple[Test, ...], states: frozenset[str], bypass: NftBypass) -> bool:
    """Whether the rule names ports that none of the flows uses, so that no twin is needed."""
    ports = field_ranges(tests, "dport")
    if bypass.plain.everything or "ESTABLISHED" in states or ports is None:
        return False
    return not any(common(ports, (one.flow.ports,)) for one in bypass.flows)


def _concerns(kind: Kind, bypass: NftBypass) -> bool:
    """Whether packets of *kind* can be untracked: those of the flows, errors about them, and discovery always."""
    part = kind.part
    if bypass.plain.everything or (part.group == "icmp" and part.state in ("RELATED", "UNTRACKED")):
        return True
    return any(one.flow.protocol == part.group for one in bypass.flows)


def replies_of(ruleset: NftRuleSet, bypass: NftBypass) -> dict[str, tuple[FamilyReply, ...]]:
    """UDP replies among the flows, by hook: from our frontends going out, from backends coming in."""
    plain = bypass.plain
    if plain.everything:
        return replies_by_hook(ruleset, plain.local_ports, plain.asked, ())
    coming = [(one.family, Reply(one.flow.ports, plain.local_ports, one.flow.address)) for one in bypass.backends
              if _udp(one)]
    going = [(one.family, Reply(one.flow.ports)) for one in bypass.frontends if _udp(one)]
    return {"input": tuple(dict.fromkeys(coming)), "output": tuple(dict.fromkeys(going))}


def _udp(one: FamilyFlow) -> bool:
    return one.flow.protocol == "udp"


def _refuse_catching(
    work: Work, entry: Entry, asked: Asked, kinds: tuple[Kind, ...], bypass: NftBypass
) -> None:
    """Block a rule that matches UNTRACKED itself and so stops what it did not stop, or opens what it did not open.

    Accepting UNTRACKED is how an administrator prepares for named flows.
    """
    others = [k for k in kinds if k.part.state not in asked.states | {"INVALID"} and not k.part.rare]
    accepts = asked.verdict == "accept" and not bypass.plain.everything
    if others and asked.verdict not in _WATCHING and not accepts:
        work.block(entry, "it matches untracked, and so every packet of the flows that are to bypass conntrack",
                   "name the states that it is for without '!=' and without untracked")
