"""One apply with its report kept for others, shared by the command and cloud-init's module."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import partial

from . import lastgood, transaction, unchanged
from .config import Desired
from .errors import ConntrackError, HostError, words_of
from .host import journalfile
from .host.root import Root
from .host.stamp import clock, run_since
from .plan import Item
from .planning.nativefiles import to_list
from .report import Report, json_text, of_plan
from .state import FileImage
from .transaction import Progress
from .verify import Verified, probed

_NO_MEMORY = "free some memory and run again"


def applied(
    desired: Desired, section: object, root: Root, live: bool, progress: Progress, confirm: float = 0.0,
    notes: tuple[str, ...] = (),
) -> tuple[Report, ConntrackError | None]:
    """Apply, and leave the report as ``/run/cloudinit-conntrack/result.json``; it says *notes* too.

    Gives the report, and the error where apply failed.
    """
    error: ConntrackError | None = None
    began = clock()
    verified: Verified | None = None
    try:
        outcome = transaction.apply(desired, section, root, live, progress, confirm)
        verified = outcome.verified
        report = _with_notes(of_plan(outcome.plan, outcome.outcome, outcome.evidence), (*notes, *outcome.notes))
        if outcome.outcome == "unconfirmed":
            told = f"undone in {confirm:g} seconds, unless 'cloudinit-conntrack confirm' comes over a new connection"
            report = replace(report, message=told)
    except (ConntrackError, MemoryError) as failed:
        error = failed if isinstance(failed, ConntrackError) else HostError(words_of(failed), "apply", _NO_MEMORY)
        report = Report(desired.mode, "failed", message=str(error))
    if not live:
        return report, error
    report, error = _settled(report, error, root)
    if desired.persist and verified is not None and error is None and report.outcome in ("done", "nothing-to-do"):
        _remember(desired, section, verified, root)
    return kept(report, root, began), error


def kept(report: Report, root: Root, began: float) -> Report:
    """Leave *report* of a run since *began* (:func:`.stamp.clock`) for others; gives it, with a note if that failed."""
    report = replace(report, run=run_since(began, root))
    try:
        root.make_directory(journalfile.REPORTS)
        root.write_image(journalfile.RESULT, FileImage(json_text(report).encode(), 0o644))
    except (HostError, MemoryError) as unwritten:  # what was done is done all the same
        return _with_notes(report, (f"this report is not kept for others: {words_of(unwritten)}",))
    return report


def _settled(report: Report, error: ConntrackError | None, root: Root) -> tuple[Report, ConntrackError | None]:
    """What became of saved files that do not load under the block; with such a file, apply has failed."""
    try:
        with journalfile.alone(root):
            refused, changed = lastgood.settle(root, report.outcome in ("done", "nothing-to-do"))
    except (ConntrackError, MemoryError) as failed:
        told = words_of(failed)
        return _with_notes(report, (f"whether each saved file loads at boot is not known: {told}",)), error
    if not refused:
        return report, error
    told = "; ".join(f"{item.where}: {item.reason}" for item in refused)
    report = replace(report, findings=report.findings + refused)
    if report.outcome == "blocked" and not changed:
        return replace(report, message=told), error
    if error is None and report.blockers:  # 'blocked' says that nothing was changed
        first = report.blockers[0]
        error = HostError(told, "apply", f"blocked too: {first.where}: {first.reason}; {refused[0].remedy}")
    elif error is None:
        error = HostError(refused[0].reason, refused[0].where, refused[0].remedy)
    else:
        error.remedy = "; ".join(filter(None, (error.remedy, told)))
    return replace(report, outcome="failed", message=str(error)), error


def _remember(desired: Desired, section: object, verified: Verified, root: Root) -> None:
    """Write down for the next boot what the empty plan has seen.  It saves time only."""
    plan, state = verified.plan, verified.state
    if not plan.empty or any(map(partial(to_list(desired), state), state.native_saved)):
        return  # what such a file loads is not in the state: it has to be loaded each time
    with suppress(ConntrackError, MemoryError), journalfile.alone(root):
        if journalfile.kept_desired(root) == section:
            run = {"mode": plan.mode, "block": desired.modules.block, "flows": probed(plan.flows)}
            unchanged.remember(state, of_plan(plan, "nothing-to-do"), run, desired.modules.extra,
                               desired.flows.haproxy_cfg, root)


def _with_notes(report: Report, notes: tuple[str, ...]) -> Report:
    items = tuple(Item(f"apply:{number}", "apply", note) for number, note in enumerate(notes, 1))
    return replace(report, findings=report.findings + items)


def mode_of(section: object) -> str:
    """The mode of a kept section; empty where there is none."""
    return str(section.get("mode", "")) if isinstance(section, dict) else ""
