"""What a run says: one value, printed for a person or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from .said import Evidence, Item, Node, Run

TYPE_CHECKING = False
if TYPE_CHECKING:  # a boot that has nothing to do needs no plan, and no typing
    from typing import Any

    from .actions import Action
    from .plan import Plan
    from .planned import Planned
    from .tracking import Counters, Space

SCHEMA = 1
COLOURS = {"red": "31", "yellow": "33", "green": "32", "cyan": "36", "dim": "2", "bold": "1"}
OUTCOME_COLOUR = {
    "done": "green", "nothing-to-do": "green", "verified": "green", "reverted": "green",
    "blocked": "red", "failed": "red", "drift": "yellow", "changes": "yellow", "unconfirmed": "yellow",
    "confirmed": "green", "enabled": "green", "disabled": "green",
}


@dataclass(frozen=True)
class Sight:
    """What ``status`` sees beside its findings: who holds conntrack, what it does, where it is hooked in.

    *drawn* are the ids of the findings that the tree says already; *alarms* the facts that call
    for a colour, with it.
    """

    tree: tuple[Node, ...] = ()
    counters: Counters | None = None
    spaces: tuple[Space, ...] = ()
    drawn: frozenset[str] = frozenset()
    alarms: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Report:
    """The answer of one verb.  *outcome* is one word; *facts* are (name, value) lines.

    *planned* is what ``plan`` says beyond that: diffs, and what the plan was made for; *sight* what ``status`` does.
    """

    mode: str
    outcome: str
    actions: tuple[Action, ...] = ()
    blockers: tuple[Item, ...] = ()
    widenings: tuple[Item, ...] = ()
    findings: tuple[Item, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    message: str = ""
    planned: Planned | None = None
    run: Run | None = None  # of what is kept for others
    sight: Sight | None = None


def of_plan(plan: Plan, outcome: str, evidence: tuple[Evidence, ...] = ()) -> Report:
    """A report with everything that *plan* holds."""
    return Report(plan.mode, outcome, plan.actions, plan.blockers, plan.widenings, plan.findings, evidence)


def to_json(report: Report) -> dict[str, Any]:
    """The report as plain values, as ``schema/report.schema.json`` describes them."""
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "mode": report.mode,
        "outcome": report.outcome,
        "actions": _actions(report.actions),
        "blockers": _items(report.blockers),
        "widenings": _items(report.widenings),
        "findings": _items(report.findings),
        "evidence": [{"id": e.id, "holds": e.holds, "what": e.what} for e in report.evidence],
        "facts": dict(report.facts),
    }
    if report.sight is not None:
        from .seeing import sight_json  # here: every boot reads this file

        found.update(sight_json(report.sight))
    if report.message:
        found["message"] = report.message
    if report.run:
        found["run"] = vars(report.run)
    return found if report.planned is None else _with_plan(found, report.planned)


def _with_plan(found: dict[str, Any], planned: Planned) -> dict[str, Any]:
    from .planned import diff_json, to_json

    for told, (_, diff) in zip(found["actions"], planned.changes):
        told.update(diff_json(diff))
    return {**found, **to_json(planned)}


def _actions(actions: Sequence[Action]) -> list[dict[str, Any]]:
    if not actions:
        return []
    from . import kinds  # here: a boot with nothing to do has no action

    return [kinds.to_json(action) for action in actions]


def _items(items: Sequence[Item]) -> list[dict[str, str]]:
    return [{"id": i.id, "where": i.where, "reason": i.reason, "remedy": i.remedy} for i in items]


def json_text(report: Report) -> str:
    """JSON with a final newline; bytes that are no text show as replacement characters."""
    text = json.dumps(to_json(report), indent=2, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode() + "\n"


def text(report: Report, colour: bool = False, verbose: bool = False, unicode: bool = True) -> str:
    """The report for a person: the answer first, then what is behind it; *unicode*: the tree has lines of its own."""
    sight = report.sight or Sight()
    lines = [_headline(report, colour)]
    if report.message:
        lines.append(f"  {report.message}")
    width = max((len(name) for name, _ in report.facts), default=0)
    alarms = dict(sight.alarms)
    for name, value in report.facts:
        told = paint(value, alarms[name], colour) if name in alarms else value
        lines.append(f"  {name:<{width}}  {told}")
    lines += _section("blocked by", "red", colour, _grouped(report.blockers))
    lines += _section("actions, in this order", "bold", colour, _numbered(report.actions))
    lines += _section("accepted now and not before", "yellow", colour, _grouped(report.widenings))
    lines += _seen(report, unicode, colour, verbose)
    lines += _section("good to know", "bold", colour, _grouped([f for f in report.findings if f.id not in sight.drawn]))
    shown = [e for e in report.evidence if verbose or e.holds is not True]
    lines += _section("the kernel says", "bold", colour, [_evidence(e) for e in shown])
    if report.evidence and not shown:
        lines.append(f"  the kernel agrees ({len(report.evidence)} checks; -v shows them)")
    if report.planned is not None:
        from .showing import changes

        lines += _section("what changes", "bold", colour, changes(report.planned, colour, verbose))
    return "\n".join(lines) + "\n"


def _seen(report: Report, unicode: bool, colour: bool, verbose: bool) -> list[str]:
    if report.sight is None:
        return []
    from .seeing import sections  # here: every boot reads this file

    found = sections(report.sight, unicode, colour, verbose)
    return [line for title, body in found for line in _section(title, "bold", colour, body)]


def _headline(report: Report, colour: bool) -> str:
    word = report.outcome.replace("-", " ")
    return f"{paint(word, OUTCOME_COLOUR.get(report.outcome, 'bold'), colour)}  mode {report.mode or '-'}"


def paint(words: str, name: str, colour: bool) -> str:
    """*words* in a colour, on a terminal."""
    return f"\033[{COLOURS[name]}m{words}\033[0m" if colour else words


def _section(title: str, name: str, colour: bool, body: list[str]) -> list[str]:
    return ["", paint(title, name, colour), *body] if body else []


def _numbered(actions: tuple[Action, ...]) -> list[str]:
    return [f"  {n:>2}  {a.verb} {a.where}\n      {a.reason}" for n, a in enumerate(actions, 1)]


def grouped(items: Sequence[Item]) -> list[tuple[str, str, list[str]]]:
    """(reason, remedy, places) of *items*: what is said of several places is said once."""
    places: dict[tuple[str, str], list[str]] = {}
    for item in items:
        places.setdefault((item.reason, item.remedy), []).append(item.where)
    return [(reason, remedy, wheres) for (reason, remedy), wheres in places.items()]


def _grouped(items: Sequence[Item]) -> list[str]:
    return [
        "\n".join([f"  {where}" for where in wheres] + [f"      {reason}"] + ([f"      -> {remedy}"] if remedy else []))
        for reason, remedy, wheres in grouped(items)
    ]


def _evidence(item: Evidence) -> str:
    mark = {True: "yes", False: "NO ", None: "?  "}[item.holds]
    return f"  {mark} {item.what}"
