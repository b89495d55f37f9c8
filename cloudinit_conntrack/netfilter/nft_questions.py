"""What a rule asks of a connection's state: read once, with what stands before and after the question."""

from __future__ import annotations

from dataclasses import dataclass

from . import nft_stateful as stateful
from .nft_concatenated import lookups
from .nft_kinds import Statement
from .nft_ruleset import Entry, Json
from .nft_work import Work, counts, from_zero
from .stateful import STATES

_LEAVING = frozenset(("return", "goto"))


@dataclass(frozen=True)
class Asked:
    """A rule, or one arm of its verdict map: what stands *before* and *after* the question for *states*."""

    before: tuple[Statement, ...]
    states: frozenset[str]
    after: tuple[Statement, ...]

    @property
    def verdict(self) -> str:
        """The last statement's name; empty for a rule that asks only."""
        return next(iter(self.after[-1])) if self.after else ""

    @property
    def leaves(self) -> bool:
        """Whether the rule may leave its chain other than by a final verdict."""
        if self.verdict == "vmap":
            return any(f"'{key}'" in str(self.after[-1]["vmap"]["data"]) for key in _LEAVING) or isinstance(
                self.after[-1]["vmap"]["data"], str)
        return self.verdict in _LEAVING


class CannotBeSaidError(Exception):
    """Why a rule cannot be rewritten, and what to do about it."""


def questions(work: Work, entry: Entry) -> list[Asked]:
    """What the rule asks; the arms of a verdict map of states, and those of a concatenation, one by one."""
    places = [at for at, statement in enumerate(entry.statements) if stateful.asks_state(statement)]
    if len(places) == 1 and (looked_up := _looked_up(work, entry, places[0])) is not None:
        return looked_up
    first, last = places[0], places[-1]
    states = frozenset(STATES)
    arms: list[tuple[frozenset[str], Statement]] = []
    for at in places:
        kind, body = next(iter(entry.statements[at].items()))
        if kind == "vmap" and stateful.is_state(body["key"]) and at == len(entry.statements) - 1:
            arms = _arms(work, entry, body["data"])
            continue
        found = _states(work, entry, body) if kind == "match" else None
        if found is None:
            raise CannotBeSaidError(*_odd(kind, body))
        states &= found
    between = entry.statements[first : last + 1]
    if any("match" not in statement for statement in between[: -1 if arms else None]):
        raise CannotBeSaidError("it asks twice for the state, and does something in between", "make two rules of it")
    before, after = entry.statements[:first], tuple(s for s in entry.statements[first:] if not stateful.asks_state(s))
    if not arms:
        return [Asked(before, states, after)]
    return [Asked(before, states & mine, (*after, verdict)) for mine, verdict in arms if states & mine]


def _looked_up(work: Work, entry: Entry, at: int) -> list[Asked] | None:
    """The questions of a lookup of the state together with something else; ``None`` where it is none."""
    kind, body = next(iter(entry.statements[at].items()))
    after = entry.statements[at + 1 :]
    found = lookups(work.ruleset, entry, kind, body) if kind == "match" or (kind == "vmap" and not after) else None
    if found is None:
        return None
    if len(found) > 1:
        if any(counts(statement) for statement in after):
            raise CannotBeSaidError("it limits what it looks up by state and something else",
                                    "make a rule for each state, and look up the rest")
        after = tuple(from_zero(statement) for statement in after)
    right = body["right" if kind == "match" else "data"]
    if isinstance(right, str):
        _note_named(work, entry, "set" if kind == "match" else "map", right)
    return [Asked(entry.statements[:at], states, (one, *after)) for states, one in found]


def _note_named(work: Work, entry: Entry, what: str, name: str) -> None:
    work.note(entry, f"the {what} {name[1:]} is read as it is now; the rule does not follow it any more")


def _states(work: Work, entry: Entry, body: Json) -> frozenset[str] | None:
    right = body["right"]
    if not (isinstance(right, str) and right.startswith("@")):
        return stateful.states_of(body)
    _note_named(work, entry, "set", right)
    return stateful.states_of(body, work.ruleset.members(entry, right))


def _odd(kind: str, body: Json) -> tuple[str, str]:
    if kind in ("match", "vmap") and "concat" in str(body.get("left", body.get("key"))):
        return "it looks up the state together with something else", "make a rule for each state, and look up the rest"
    if kind == "vmap":
        return "its verdict map of states is not the rule's end", "move what follows into a rule of its own"
    if kind == "match":
        return "it compares the state with what is no state", "name the states: ct state { ... }"
    return "it uses the state for more than a match", "make a rule for each state"


def _arms(work: Work, entry: Entry, data: Json) -> list[tuple[frozenset[str], Statement]]:
    """The arms of a verdict map, those of one verdict together; what ends most connections' packets first."""
    arms = work.ruleset.arms(entry, data)
    if not arms or len(arms) != len(work.ruleset.members(entry, data)):
        raise CannotBeSaidError("its verdict map has elements that cannot be told", "write its elements into the rule")
    if isinstance(data, str):
        _note_named(work, entry, "map", data)
    found: dict[str, tuple[frozenset[str], Statement]] = {}
    for key, verdict in arms:
        states = stateful.states_of_key(key)
        if not states:
            raise CannotBeSaidError("its verdict map has a key that is no single state", "write its elements as names")
        known = found.get(str(verdict), (frozenset(), verdict))
        found[str(verdict)] = (known[0] | states, verdict)
    order = ("ESTABLISHED", "RELATED", "INVALID", "UNTRACKED", "NEW")
    useful = [arm for arm in found.values() if "continue" not in arm[1]]
    return sorted(useful, key=lambda arm: min(order.index(state) for state in arm[0]))
