"""apply and revert: the journal first, then the act; whole, or undone whole.

Before each action its record is on disk, synced.  If anything fails, or if the process
dies, what was begun is undone newest first, and one failure on the way back never stops
the rest.  Actions look before they act, so doing or undoing one twice does no harm.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Callable

from . import journal, perform, verify
from .actions import Action, inverse
from .config import Desired
from .errors import BusyError, ConntrackError, HostError, RollbackError, UnconfirmedError, UsageError, words_of
from .host import journalfile, modules, pending
from .host.pending import Pending
from .host.root import HOST, Root
from .journal import Entry
from .plan import Plan, make_plan
from .rehearsal import rehearsed
from .state import FileImage
from .verify import Before, Evidence, Verified

Progress = Callable[[str], None]
_OF_IMAGE = "an apply that came with the image is undone in its files; live rules and modules follow at the next boot"
# What does not stop the way back.
_FAILURES = (ConntrackError, OSError, MemoryError)


@dataclass(frozen=True)
class Applied:
    """What an apply did.  *outcome* is ``done``, ``nothing-to-do`` or ``blocked``; *notes* are for the operator.

    *verified* is the empty plan in which it ended, and what that was made for.
    """

    outcome: str
    plan: Plan
    evidence: tuple[Evidence, ...] = ()
    notes: tuple[str, ...] = ()
    verified: Verified | None = None


@dataclass(frozen=True)
class Reverted:
    """What a revert did: the inverse actions in the order they were done, and what failed."""

    actions: tuple[Action, ...]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def apply(
    desired: Desired, section: object, root: Root, live: bool, progress: Progress, confirm: float = 0.0
) -> Applied:
    """Bring the host to *desired*, as one transaction; *section* is kept for later boots.

    With *confirm* it is undone after so many seconds, unless it is confirmed.

    Raises what failed, after everything was rolled back (unless ``on_failure: keep``);
    RollbackError when undoing failed in part; UnconfirmedError while an earlier one may still be confirmed.
    """
    with journalfile.alone(root):
        notes = settled(root, progress)
        before = perform.loaded_modules(root)
        state = verify.observed(desired, root, live, looking=False)
        plan = make_plan(desired, state)
        if plan.blockers:
            return Applied("blocked", plan, (), notes)
        if not plan.actions:
            evidence = verify.evidence(desired, plan, root, live)
            verify.demand(evidence)
            _keep(desired, section, root)
            return Applied("nothing-to-do", plan, evidence, notes, Verified(plan, evidence, state))
        kernels = root if live else HOST  # an image tree's rules are tried on this machine
        loaded = perform.loaded_modules(kernels)
        try:
            plan = rehearsed(plan)
        finally:  # and may have loaded what they need
            modules.unload_strays(loaded, None, kernels)
        reached = verify.before_apply(desired, plan, state, root) if live else Before()
        found = _perform(desired, section, plan, before, reached, root, live, progress, confirm)
        return Applied("unconfirmed" if confirm else "done", plan, found.evidence, notes, found)


def _perform(
    desired: Desired, section: object, plan: Plan, before: tuple[str, ...], reached: Before, root: Root, live: bool,
    progress: Progress, confirm: float,
) -> Verified:
    entries = journalfile.read(root)
    number = max((e.number for e in entries), default=0) + 1
    kept = root.read_image(journalfile.DESIRED)
    begun: list[Action] = []
    waiting = Pending(number, journalfile.boot_id(root), kept.content if kept else None)
    try:
        journalfile.append(root, journal.begin(number, waiting.boot, plan.mode, before, plan.actions))
        if confirm:
            pending.write(root, waiting)
            pending.watch()
        for action in plan.actions:
            progress(f"{action.verb} {action.where}")
            perform.check(action, root)
            journalfile.append(root, journal.intent(number, len(begun)))
            begun.append(action)
            perform.perform(action, root)
        found = verify.after_apply(desired, root, live, reached)
        _keep(desired, section, root)
        if confirm:
            pending.write(root, replace(waiting, since=pending.now(), until=pending.now() + confirm))
        journalfile.append(root, journal.commit(number, perform.loaded_modules(root)))
    except BaseException as error:
        if begun and desired.on_failure == "keep" and isinstance(error, ConntrackError):
            journalfile.append(root, journal.commit(number, perform.loaded_modules(root)))
            pending.remove(root)
            raise
        _roll_back(error, Entry(number, "", plan.mode, before, tuple(begun)), kept, root, progress)
        raise
    return found


def _keep(desired: Desired, section: object, root: Root) -> None:
    """Keep the section for later boots; what is there already is not written again."""
    if desired.persist and not _is_kept(section, root):
        journalfile.keep_desired(root, section)


def _is_kept(section: object, root: Root) -> bool:
    try:
        return journalfile.kept_desired(root) == section
    except HostError:  # damaged: it is written anew
        return False


def _roll_back(error: BaseException, entry: Entry, kept: FileImage | None, root: Root, progress: Progress) -> None:
    """Undo what was begun of *entry*, after *error*; *kept* is the section that was kept before."""
    progress("it failed: rolling back")
    problems, notes = _undo(entry.actions, root, progress)
    try:
        if root.read_image(journalfile.DESIRED) != kept:
            perform.put(journalfile.DESIRED, kept, root)
        modules.unload_strays(entry.modules, None, root)
        if not problems:
            _close(entry, root)
            pending.remove(root)
    except _FAILURES as failed:
        problems.append(words_of(failed))
    if problems:
        raise _not_undone(f"{words_of(error)}; and rolling back failed in part", problems, "apply") from error
    if notes and isinstance(error, ConntrackError):
        error.remedy = "; ".join((error.remedy, *notes))


def _not_undone(what: str, problems: list[str], where: str = journal.PATH) -> RollbackError:
    remedy = "mend the cause and run 'cloudinit-conntrack revert'"
    return RollbackError(f"{what}: {'; '.join(problems)}", where, remedy)


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
        except _FAILURES as error:
            problems.append(words_of(error))
    return problems, notes


def _undo_entry(entry: Entry, root: Root, progress: Progress) -> tuple[list[str], list[str]]:
    """:func:`_undo` of a whole entry; that it is not whole any more is on disk before."""
    if entry.closed and not entry.undoing:
        journalfile.append(root, journal.undoing(entry.number))
    return _undo(_to_undo(entry, root), root, progress)


def _to_undo(entry: Entry, root: Root) -> tuple[Action, ...]:
    return journal.to_undo(entry, journalfile.boot_id(root))


def _recover(root: Root, progress: Progress) -> tuple[str, ...]:
    """Undo an apply or finish a revert whose process died; gives what the operator should know of it."""
    notes: list[str] = []
    while (entry := journal.open_entry(journalfile.read(root))) is not None:
        what, end = ("a revert", "finished") if entry.closed else ("an earlier apply", "rolled back")
        progress(f"{what} was cut off: undoing what is left of it first")
        problems, told = _undo_entry(entry, root, progress)
        if problems and entry.closed:  # the plan goes by what is there, and another revert tries again
            return (*notes, f"{what} was not finished, and cannot be: {'; '.join(problems)}", *told)
        if problems:
            raise _not_undone(f"{what} was cut off, and undoing it failed", problems)
        notes += (f"{what} was cut off and was {end} first", *told)
        _after_undo(entry, root)
        _close(entry, root)
    return tuple(notes)


def settled(root: Root, progress: Progress) -> tuple[str, ...]:
    """Undo an apply whose process died, and one that was not confirmed in time; gives what to know of it.

    The caller holds the lock.  UnconfirmedError while there is time to confirm.
    """
    notes = _recover(root, progress)
    found = pending.read(root)
    if found is None:
        return notes
    entry = next((e for e in journalfile.read(root) if e.number == found.number), None)
    if entry is not None and not pending.is_over(found, root):
        raise UnconfirmedError("an apply waits to be confirmed", pending.PATH,
                               "run 'cloudinit-conntrack confirm' over a new connection, or 'revert'")
    if entry is not None:
        progress("an apply was not confirmed in time: rolling it back")
        problems, told = _undo_entry(entry, root, progress)
        if problems:
            raise _not_undone("an apply was not confirmed, and undoing it failed", problems)
        notes = (*notes, "an apply that nobody confirmed in time was rolled back", *told)
    perform.put(journalfile.DESIRED, None if found.kept is None else FileImage(found.kept, 0o600), root)
    if entry is not None:
        _after_undo(entry, root)
        _close(entry, root)
    pending.remove(root)
    return notes


def settle(root: Root, progress: Progress) -> tuple[str, ...]:
    """:func:`settled` under the lock."""
    with journalfile.alone(root):
        return settled(root, progress)


def await_confirmation(root: Root, progress: Progress) -> tuple[str, ...]:
    """Wait until the apply that is at work or done is confirmed, reverted, or out of time; then undo it.

    Gives what to know of the undoing; nothing where there was none.
    """
    while True:
        found = pending.read(root)
        if found is None:
            return ()
        if found.until is None or pending.is_over(found, root):
            try:
                return settle(root, progress)
            except (BusyError, UnconfirmedError):  # it is at work, or was done just now
                pass
        pending.pause()


def confirm(root: Root) -> None:
    """Keep the change that waits to be confirmed.

    HostError when there is none; UsageError over a connection that is older than the change.
    """
    with journalfile.alone(root):
        found = pending.read(root)
        if found is None or found.since is None or pending.is_over(found, root):
            raise HostError("nothing waits to be confirmed", "cloudinit-conntrack confirm",
                            "it was confirmed, reverted, or not confirmed in time: see 'cloudinit-conntrack status'")
        began = pending.connection_began()
        if began is not None and began <= found.since:
            raise UsageError("this ssh connection is older than the change and proves nothing",
                             "cloudinit-conntrack confirm", "log in anew, and confirm there")
        pending.remove(root)


def _close(entry: Entry, root: Root) -> None:
    """Write down that *entry* is undone; a first line that could not be written needs no last one."""
    if any(known.number == entry.number for known in journalfile.read(root)):
        journalfile.append(root, journal.undone(entry.number))
    if not journalfile.read(root):
        root.remove(journal.PATH)


def revert(root: Root, progress: Progress) -> Reverted:
    """Undo every apply in the journal, newest first.  What fails is told and kept for another try.

    Behind a failure the older applies are undone too, and stay in the journal: the next try
    begins at the newest again, and must come out at what was before the oldest.
    """
    with journalfile.alone(root):
        entries = journalfile.read(root)
        undone: list[Action] = []
        problems: list[str] = []
        notes: list[str] = []
        for entry in reversed(entries):
            failed, told = _undo_entry(entry, root, progress)
            notes += told
            if root.is_host and not entry.boot:
                notes.append(_OF_IMAGE)
            problems += failed
            if problems:
                continue
            undone += [back for back in map(inverse, reversed(_to_undo(entry, root))) if back is not None]
            _after_undo(entry, root)
            journalfile.append(root, journal.undone(entry.number))
        if not problems:
            journalfile.clear(root)
        return Reverted(tuple(undone), tuple(problems), tuple(notes))


def _after_undo(entry: Entry, root: Root) -> None:
    """Unload what was loaded only because of us: within one boot all of it, later the tables that we made."""
    if entry.boot != journalfile.boot_id(root):
        modules.unload_strays(entry.modules, perform.modules_of_tables(entry.planned), root)
    else:
        modules.unload_strays(entry.modules, entry.loaded if entry.closed else None, root)
