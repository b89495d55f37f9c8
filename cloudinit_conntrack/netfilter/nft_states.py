"""One rule that asks for a connection's state, written as rules that ask for parts of traffic."""

from __future__ import annotations

from collections.abc import Iterable

from .nft_effects import WATCHING, counted, lost, reason, widening
from .nft_fates import ACCEPTS, GOES_ON, fates
from .nft_kinds import FAMILIES, Kind, Statement, kinds_for
from .nft_match import Test, field_ranges, narrowed, tests_of
from .nft_questions import Asked, CannotBeSaidError, questions
from .nft_ruleset import Entry
from .nft_selection import Selection, select
from .nft_untracked import Exemption, in_family, may_meet
from .nft_work import Work, counts, from_zero
from .stateful import STATES

_FINAL = frozenset(("accept", "drop", "reject"))
# What a rule may hold that is to settle what becomes of a part of traffic.
_SETTLING = frozenset(("counter", "log", "accept", "drop", "reject"))
_SETTLING_FIELDS = frozenset(("nfproto", "l4proto", "state"))


def rewrite_states(work: Work, entry: Entry) -> None:
    """Replace *entry*, which asks for a state, or block it."""
    try:
        _rewrite(work, entry, questions(work, entry))
    except CannotBeSaidError as error:
        work.block(entry, *error.args)  # what was made for it is never used then


def _rewrite(work: Work, entry: Entry, asked_for: list[Asked]) -> None:
    tails: list[tuple[Statement, ...]] = []
    reasons: list[str] = []
    widens: list[str] = []
    for asked in asked_for:
        tests = tests_of(work.ruleset, entry, asked.before + asked.after)
        # what may come in uninvited may come in invited: then no reply needs to be told apart
        invited = asked.verdict == "accept" and "NEW" in asked.states
        kinds = kinds_for(FAMILIES[entry.family], tests, () if invited else work.replies_for(entry))
        behind = fates(work.ruleset, entry, asked.after[-1], work.behind) if asked.after else frozenset()
        decided = work.decided.get(entry.place, frozenset())
        if "RELATED" in asked.states and asked.verdict != "accept" and behind & {ACCEPTS, GOES_ON}:
            decided |= _rare_errors(kinds)  # a chain that accepts is as careful with them as an accept
        chosen = select(kinds, asked.states, decided, asked.verdict == "accept", tests)
        tails += _tails(work, entry, asked, chosen, tests)
        reasons.append(reason(asked, chosen, behind))
        widens += [told] if (told := widening(asked, chosen)) else []
        for text in (counted(asked, chosen), lost(asked, chosen, behind)):
            if text:
                work.note(entry, text)
        if "UNTRACKED" in asked.states or not work.exempt or entry.place in work.exempt_ended:
            settle(work, entry, asked, tests)  # an exempt packet has passed by, whatever its part
    rules = _whole(work, entry, asked_for, tails)
    work.replaced(entry, rules, "; ".join(reasons), "; ".join(widens) or None)


def _rare_errors(kinds: Iterable[Kind]) -> frozenset[Kind]:
    """Source quench and redirects: errors that nobody needs, and that no rule accepts for being RELATED."""
    return frozenset(kind for kind in kinds if kind.part.rare and kind.part.state == "RELATED")


# --- writing it ------------------------------------------------------------------------


def _tails(
    work: Work, entry: Entry, asked: Asked, chosen: Selection, tests: tuple[Test, ...]
) -> list[tuple[Statement, ...]]:
    """The rules for *asked*, without what stands before its question."""
    exempt = tuple(_around(work, entry, asked, chosen, tests))
    unclear = next((one for one in exempt if one.matches is None), None)
    if unclear:
        raise CannotBeSaidError(*_unclear(unclear))
    pieces = chosen.pieces or ()
    counted = len(pieces) > 1 and asked.verdict != "return" and any(counts(statement) for statement in asked.after)
    if chosen.pieces is not None and not exempt and not counted:
        after = asked.after if len(pieces) == 1 else tuple(from_zero(statement) for statement in asked.after)
        found = [(*piece.matches, *after) for piece in pieces]
    else:
        found = _own_chain(work, entry, asked, chosen, exempt)
    if "UNTRACKED" in asked.states and not any(not piece.matches for piece in pieces):
        found += [(*matches, *asked.after) for matches in _untracked(work, entry, asked, tests)]
    return found


def _own_chain(
    work: Work, entry: Entry, asked: Asked, chosen: Selection, exempt: tuple[Exemption, ...]
) -> list[tuple[Statement, ...]]:
    """The rule in a chain of its own: behind RETURNs, or as one rule for many pieces."""
    _stays(asked)
    returns = [(*in_family(one, entry.family), _RETURN) for one in exempt]
    returns += [(*piece.matches, _RETURN) for piece in chosen.around]
    chain = work.new_chain(entry, [*returns, asked.after])
    jump = {"jump": {"target": chain}}
    return [(*piece.matches, jump) for piece in chosen.pieces] if chosen.pieces is not None else [(jump,)]


_RETURN: Statement = {"return": None}


def _stays(asked: Asked) -> None:
    if asked.leaves:
        raise CannotBeSaidError("what it matches takes a chain of its own, and it leaves its chain",
                            "put what it decides into a chain and jump there")


def _whole(
    work: Work, entry: Entry, asked_for: list[Asked], tails: list[tuple[Statement, ...]]
) -> list[tuple[Statement, ...]]:
    """The rules as they go in: what does something before the question does it once."""
    before = asked_for[0].before if asked_for else ()
    acts = any("match" not in statement for statement in before)
    if not acts or len(tails) == 1:
        return [_joined(work, entry, before, tail) for tail in tails]
    if not tails:
        return [before]
    for asked in asked_for:
        _stays(asked)
    return [(*before, {"jump": {"target": work.new_chain(entry, tails)}})]


def _joined(
    work: Work, entry: Entry, before: tuple[Statement, ...], tail: tuple[Statement, ...]
) -> tuple[Statement, ...]:
    """Both, without a match that stands there already.

    nft refuses ``meta l4proto { tcp, udp } tcp flags ...`` ("conflicting protocols"), so a
    set of protocols or families gives way to the one that the rule is about now.
    """
    tests = tests_of(work.ruleset, entry, before + tail)
    found: list[Statement] = []
    for statement in (*before, *tail):
        narrow = narrowed(statement, tests)
        found += [narrow] if "match" not in narrow or narrow not in found else []
    return tuple(found)


# --- exemptions ------------------------------------------------------------------------


def _around(
    work: Work, entry: Entry, asked: Asked, chosen: Selection, tests: tuple[Test, ...]
) -> list[Exemption]:
    """The exemptions whose packets, in none of the rule's states until now, must go around it.

    Not around an ACCEPT of what belongs to connections: that is a widening, and told as one.
    """
    if entry.place in work.exempt_ended or "UNTRACKED" in asked.states:
        return []
    if not chosen.matched or (asked.verdict or "log") in WATCHING:
        return []
    if asked.verdict == "accept" and asked.states <= {"ESTABLISHED", "RELATED"}:
        return []
    if asked.verdict != "accept" and all(kind.part.state == "INVALID" for kind in chosen.matched):
        return []  # segments that no connection needs
    return [one for one in work.exemptions_for(entry) if may_meet(tests, one.tests)]


def _untracked(work: Work, entry: Entry, asked: Asked, tests: tuple[Test, ...]) -> Iterable[tuple[Statement, ...]]:
    """The matches that stand for UNTRACKED: one for each exemption that a ``notrack`` grants."""
    for one in work.exemptions_for(entry):
        if one.matches is None:
            raise CannotBeSaidError(*_unclear(one))
        if may_meet(tests, one.tests):
            yield in_family(one, entry.family)


def _unclear(exemption: Exemption) -> tuple[str, str]:
    return (f"which packets are UNTRACKED is decided by {exemption.rule!r}, which cannot be merged",
            "name the ports in this rule instead of the state")


# --- what later rules see, and what a person is told -----------------------------------


def settle_plain(work: Work, entry: Entry) -> None:
    """Remember what a rule that stays as it is leaves for no later rule of its chain."""
    if _may_settle(entry.statements):
        tests = tests_of(work.ruleset, entry, entry.statements)
        settle(work, entry, Asked(entry.statements, frozenset(STATES), ()), tests)


def _may_settle(statements: tuple[Statement, ...]) -> bool:
    names = [next(iter(statement)) for statement in statements]
    return bool(names) and names[-1] in _FINAL and all(name == "match" or name in _SETTLING for name in names)


def settle(work: Work, entry: Entry, asked: Asked, tests: tuple[Test, ...]) -> None:
    """Remember the kinds that end at *asked*: only a rule with no condition but protocol and state ends any."""
    if not _may_settle(asked.before + asked.after) or any(test.field not in _SETTLING_FIELDS for test in tests):
        return
    if "UNTRACKED" in asked.states and all(test.field == "state" for test in tests):
        work.exempt_ended.add(entry.place)
    families = FAMILIES.get(entry.family, ())
    kinds = kinds_for(families, tests, work.replies_for(entry))
    one_family = field_ranges(tests, "nfproto") is not None and len(families) > 1
    any_protocol = field_ranges(tests, "l4proto") is None
    ended = frozenset(
        kind for kind in kinds
        if kind.part.state in asked.states and (kind.family or not one_family) and (kind.protocol or any_protocol)
    )
    work.decided[entry.place] = work.decided.get(entry.place, frozenset()) | ended
