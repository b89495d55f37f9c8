"""The undo log's format: what was done, written down before it is done.

One record a line: JSON, a tab, and a checksum of the JSON.  The first of an apply holds the
whole plan, so that a full disk is met before anything is done; then one line before each act.
A line that a crash tore off at the end was never acted on (each line is synced before its
act), so it is left out; any other damage is refused, because undoing half of something
unknown is worse than asking.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from .errors import JournalError

TYPE_CHECKING = False
if TYPE_CHECKING:  # what apply can do is much to import for a boot that has nothing to do
    from typing import Any

    from .actions import Action

VERSION = 2
PATH = "/var/lib/cloudinit-conntrack/journal"
_SUM_LENGTH = 16
REMEDY = "look at it, restore the files it names by hand, and move it away"


@dataclass(frozen=True)
class Entry:
    """One apply.  *actions* are in the order in which they were begun, the first ones of *planned*.

    *closed* once committed.

    *modules* were loaded before, *loaded* after the commit; *boot* is the kernel's boot id.
    *undoing* from the moment in which undoing it was begun.
    """

    number: int
    boot: str
    mode: str
    modules: tuple[str, ...]
    actions: tuple[Action, ...]
    closed: bool = False
    loaded: tuple[str, ...] = ()
    undoing: bool = False
    planned: tuple[Action, ...] = ()


def record(kind: str, **fields: Any) -> bytes:
    """One line of the journal."""
    text = json.dumps({"journal": VERSION, "kind": kind, **fields}, sort_keys=True, separators=(",", ":"))
    return f"{text}\t{_sum(text)}\n".encode("utf-8", "surrogateescape")


def begin(number: int, boot: str, mode: str, modules: tuple[str, ...], planned: tuple[Action, ...]) -> bytes:
    """The line that opens an apply."""
    from .actions import to_json

    plan = [to_json(action) for action in planned]
    return record("begin", number=number, boot=boot, mode=mode, modules=list(modules), plan=plan)


def intent(number: int, at: int) -> bytes:
    """The line that must be on disk before the action *at* this place in the plan is performed."""
    return record("act", number=number, at=at)


def commit(number: int, loaded: tuple[str, ...]) -> bytes:
    """The line that makes an apply whole."""
    return record("commit", number=number, loaded=list(loaded))


def undoing(number: int) -> bytes:
    """The line that must be on disk before a whole apply is undone: half undone it is not whole any more."""
    return record("undoing", number=number)


def undone(number: int) -> bytes:
    """The line that says an apply was rolled back or reverted whole."""
    return record("undone", number=number)


def _sum(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:_SUM_LENGTH]


def whole(content: bytes) -> bytes:
    """*content* without a last line that a crash tore off, or of which it left holes.

    What was not synced may be on disk in part: cut short, or with zeros where a block is
    missing (the size of a file and its blocks are written in any order).  We write no zeros.
    """
    found = content[: content.rfind(b"\n") + 1]
    last = found.rfind(b"\n", 0, -1) + 1
    return found[:last] if b"\0" in found[last:] else found


def parse(content: bytes) -> tuple[Entry, ...]:
    """The applies that are not undone, oldest first.  Raises JournalError for a damaged journal."""
    good = whole(content)
    lines = good.decode("utf-8", "surrogateescape").split("\n")[:-1]
    torn = content[len(good):]
    # as long as a line with its sum: nothing was cut off, it is the newline that is damaged
    if b"\0" not in torn and len(torn.partition(b"\t")[2]) > _SUM_LENGTH:
        raise JournalError("the journal is damaged here", f"{PATH}:{len(lines) + 1}", REMEDY)
    found: dict[int, Entry] = {}
    for number, line in enumerate(lines, 1):
        _take(found, _decode(line, number), number)
    return tuple(found.values())


def _decode(line: str, number: int) -> Mapping[str, Any]:
    text, tab, checksum = line.rpartition("\t")
    where = f"{PATH}:{number}"
    if not tab or checksum != _sum(text):
        raise JournalError("the journal is damaged here", where, REMEDY)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or value.get("journal") != VERSION:
        raise JournalError(f"the journal is not of version {VERSION}", where, "use the release that wrote it to revert")
    return value


def _take(found: dict[int, Entry], value: Mapping[str, Any], number: int) -> None:
    from .actions import from_json

    where = f"{PATH}:{number}"
    try:
        kind, key = value["kind"], int(value["number"])
        if kind == "begin":
            plan = tuple(from_json(action) for action in value["plan"])
            found[key] = Entry(key, value["boot"], value["mode"], tuple(value["modules"]), (), planned=plan)
            return
        entry = found[key]
        if kind == "act":
            if value["at"] != len(entry.actions):  # one after another
                raise ValueError(f"act {value['at']}")
            found[key] = replace(entry, actions=(*entry.actions, entry.planned[value["at"]]))
        elif kind == "commit":
            found[key] = replace(entry, closed=True, loaded=tuple(value["loaded"]))
        elif kind == "undoing":
            found[key] = replace(entry, undoing=True)
        elif kind == "undone":
            del found[key]
        else:
            raise ValueError(kind)
    except (LookupError, AttributeError, TypeError, ValueError) as error:
        raise JournalError(f"a record that we did not write ({error})", where, REMEDY) from None


def open_entry(entries: tuple[Entry, ...]) -> Entry | None:
    """The apply that was begun and neither committed nor undone, or half undone: its process died."""
    return next((entry for entry in reversed(entries) if entry.undoing or not entry.closed), None)


def to_undo(entry: Entry, boot: str) -> tuple[Action, ...]:
    """What of *entry* is to be undone in the boot *boot*, oldest first: what was begun.

    In a later boot also what was only planned of the live host: the saved files that were
    begun have brought it about, or have kept away what was there before.
    """
    if entry.closed or entry.boot == boot or not entry.actions:
        return entry.actions
    from .actions import LoadNative, LoadRules, UnloadModule

    rest = entry.planned[len(entry.actions):]
    return entry.actions + tuple(a for a in rest if isinstance(a, (LoadRules, LoadNative, UnloadModule)))


def files_alone(entries: tuple[Entry, ...]) -> bytes:
    """The journal of *entries* for a clone of this host's disk: what undoes files, and nothing of this host's kernel.

    Rules and modules that were live before are those of this host, in one of its boots; a clone never had them.  An
    entry of which nothing stays is left out.  Like that of an image tree it belongs to no boot.
    """
    from .actions import Link, RefreshInitramfs, WriteFile

    lines: list[bytes] = []
    for entry in entries:
        kept = [n for n, action in enumerate(entry.planned) if isinstance(action, (WriteFile, Link, RefreshInitramfs))]
        begun = sum(n < len(entry.actions) for n in kept)
        if not (kept if entry.closed else begun):
            continue
        lines.append(begin(entry.number, "", entry.mode, (), tuple(entry.planned[n] for n in kept)))
        lines += [intent(entry.number, at) for at in range(begun)]
        lines += [commit(entry.number, ())] if entry.closed else []
        lines += [undoing(entry.number)] if entry.undoing else []
    return b"".join(lines)
