"""apply and revert: the journal first, then the act; whole, or undone whole.

Before each action its record is on disk, synced.  If anything fails, or if the process
dies, what was begun is undone newest first, and one failure on the way back never stops
the rest.  Actions look before they act, so doing or undoing one twice does no harm.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Callable

from . import journal, perform, verify
from .actions import Action, inverse
from .config import Desired
from .errors import ConntrackError, HostError, RollbackError
from .host import journalfile, observe
from .host.root import Root
from .journal import Entry
from .plan import Plan, make_plan
from .verify import Evidence

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Applied:
    """What an apply did.  *outcome* is ``done``, ``nothing-to-do`` or ``blocked``."""

    outcome: str
    plan: Plan
    evidence: tuple[Evidence, ...] = ()
    recovered: bool = False


@dataclass(frozen=True)
class Reverted:
    """What a revert did: the inverse actions in the order they were done, and what failed."""

    actions: tuple[Action, ...]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def apply(desired: Desired, section: object, root: Root, live: bool, progress: Progress) -> Applied:
    """Bring the host to *desired*, as one transaction; *section* is kept for later boots.

    Raises what failed, after everything was rolled back (unless ``on_failure: keep``);
    RollbackError when undoing failed in part.
    """
    with _alone(root):
        recovered = _recover(root, progress)
        plan = make_plan(desired, observe.observe(root, live))
        if plan.blockers:
            return Applied("blocked", plan, (), recovered)
        if not plan.actions:
            evidence = verify.evidence(desired, plan.mode, root, live)
            verify.demand(evidence)
            _keep(desired, section, root)
            return Applied("nothing-to-do", plan, evidence, recovered)
        return _perform(desired, section, plan, root, live, recovered, progress)


def _perform(
    desired: Desired, section: object, plan: Plan, root: Root, live: bool, recovered: bool, progress: Progress
) -> Applied:
    entries = journalfile.read(root)
    number = max((e.number for e in entries), default=0) + 1
    probes = verify.answering(desired.guard.probes) if live else ()
    before = perform.loaded_modules(root)
    journalfile.append(root, journal.begin(number, journalfile.boot_id(root), plan.mode, before))
    begun: list[Action] = []
    try:
        for action in plan.actions:
            progress(f"{action.verb} {action.where}")
            journalfile.append(root, journal.intent(number, action))
            begun.append(action)
            perform.perform(action, root)
        evidence = verify.after_apply(desired, root, live, probes)
    except BaseException as error:
        if desired.on_failure == "keep" and isinstance(error, ConntrackError):
            journalfile.append(root, journal.commit(number, perform.loaded_modules(root)))
            raise
        _roll_back(error, number, tuple(begun), before, root, progress)
        raise
    journalfile.append(root, journal.commit(number, perform.loaded_modules(root)))
    _keep(desired, section, root)
    return Applied("done", plan, evidence, recovered)


def _keep(desired: Desired, section: object, root: Root) -> None:
    """Keep the section for later boots; what is there already is not written again."""
    if desired.persist and journalfile.kept_desired(root) != section:
        journalfile.keep_desired(root, section)


def _roll_back(
    error: BaseException, number: int, begun: tuple[Action, ...], modules: tuple[str, ...], root: Root, progress: Progress
) -> None:
    progress("it failed: rolling back")
    problems, _ = _undo(begun, root, progress)
    perform.unload_strays(modules, None, root)
    if problems:
        raise RollbackError(f"{error}; and rolling back failed in part: {'; '.join(problems)}", "apply",
                            "mend the cause and run 'cloudinit-conntrack revert'") from error  # fmt: skip
    journalfile.append(root, journal.undone(number))
    _forget_if_empty(root)


def _undo(actions: tuple[Action, ...], root: Root, progress: Progress) -> tuple[list[str], list[str]]:
    """Undo *actions*, the last one first; gives problems and notes, never stops on the way."""
    problems: list[str] = []
    notes: list[str] = []
    for action in reversed(actions):
        back = inverse(action)
        if back is None:
            continue
        progress(f"{back.verb} {back.where}")
        try:
            notes += perform.undo(back, root)
        except ConntrackError as error:
            problems.append(str(error))
    return problems, notes


def _recover(root: Root, progress: Progress) -> bool:
    """Undo an apply whose process died; whether there was one."""
    entry = journal.open_entry(journalfile.read(root))
    if entry is None:
        return False
    progress("an earlier apply was cut off: rolling it back first")
    problems, _ = _undo(entry.actions, root, progress)
    if problems:
        raise RollbackError(f"an earlier apply was cut off, and undoing it failed: {'; '.join(problems)}",
                            journal.PATH, "mend the cause and run 'cloudinit-conntrack revert'")
    journalfile.append(root, journal.undone(entry.number))
    _forget_if_empty(root)
    return True


def revert(root: Root, progress: Progress) -> Reverted:
    """Undo every apply in the journal, newest first.  What fails is told and kept for another try."""
    with _alone(root):
        entries = journalfile.read(root)
        undone: list[Action] = []
        problems: list[str] = []
        notes: list[str] = []
        for entry in reversed(entries):
            failed, told = _undo(entry.actions, root, progress)
            notes += told
            if failed:
                problems += failed
                continue
            undone += [back for back in map(inverse, reversed(entry.actions)) if back is not None]
            _after_undo(entry, root)
            journalfile.append(root, journal.undone(entry.number))
        if not problems:
            journalfile.clear(root)
        return Reverted(tuple(undone), tuple(problems), tuple(notes))


def _after_undo(entry: Entry, root: Root) -> None:
    """Unload what was loaded only because of us, while that is still known: within one boot."""
    if entry.boot == journalfile.boot_id(root):
        perform.unload_strays(entry.modules, entry.loaded if entry.closed else None, root)


def _forget_if_empty(root: Root) -> None:
    if not journalfile.read(root):
        root.remove(journal.PATH)


@contextmanager
def _alone(root: Root) -> Iterator[None]:
    """Only one apply or revert at a time; the second is refused at once."""
    root.make_private_dir(journalfile.DIRECTORY)
    with root.lock(journalfile.LOCK) as free:
        if not free:
            raise HostError("another cloudinit-conntrack is at work", journalfile.LOCK, "wait for it and try again")
        yield
