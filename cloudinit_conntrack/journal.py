"""The undo log's format: what was done, written down before it is done.

One record a line: JSON, a tab, and a checksum of the JSON.  A line that a crash tore off
at the end was never acted on (each line is synced before its act), so it is left out; any
other damage is refused, because undoing half of something unknown is worse than asking.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from .errors import JournalError

TYPE_CHECKING = False
if TYPE_CHECKING:  # what apply can do is much to import for a boot that has nothing to do
    from typing import Any

    from .actions import Action

VERSION = 1
PATH = "/var/lib/cloudinit-conntrack/journal"
_SUM_LENGTH = 16
REMEDY = "look at it, restore the files it names by hand, and move it away"


@dataclass(frozen=True)
class Entry:
    """One apply.  *actions* are in the order in which they were begun; *closed* once committed.

    *modules* were loaded before, *loaded* after the commit; *boot* is the kernel's boot id.
    """

    number: int
    boot: str
    mode: str
    modules: tuple[str, ...]
    actions: tuple[Action, ...]
    closed: bool = False
    loaded: tuple[str, ...] = ()


def record(kind: str, **fields: Any) -> bytes:
    """One line of the journal."""
    text = json.dumps({"journal": VERSION, "kind": kind, **fields}, sort_keys=True, separators=(",", ":"))
    return f"{text}\t{_sum(text)}\n".encode("utf-8", "surrogateescape")


def begin(number: int, boot: str, mode: str, modules: tuple[str, ...]) -> bytes:
    """The line that opens an apply."""
    return record("begin", number=number, boot=boot, mode=mode, modules=list(modules))


def intent(number: int, action: Action) -> bytes:
    """The line that must be on disk before *action* is performed."""
    from .actions import to_json

    return record("act", number=number, **{"do": to_json(action)})


def commit(number: int, loaded: tuple[str, ...]) -> bytes:
    """The line that makes an apply whole."""
    return record("commit", number=number, loaded=list(loaded))


def undone(number: int) -> bytes:
    """The line that says an apply was rolled back or reverted whole."""
    return record("undone", number=number)


def _sum(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:_SUM_LENGTH]


def parse(content: bytes) -> tuple[Entry, ...]:
    """The applies that are not undone, oldest first.  Raises JournalError for a damaged journal."""
    lines = content.decode("utf-8", "surrogateescape").split("\n")
    torn = lines.pop()  # empty, or cut off by a crash before its act
    if len(torn.partition("\t")[2]) > _SUM_LENGTH:  # nothing was cut off: it is the newline that is damaged
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
            found[key] = Entry(key, value["boot"], value["mode"], tuple(value["modules"]), ())
            return
        entry = found[key]
        if kind == "act":
            actions: list[Action] = [*entry.actions, from_json(value["do"])]
            found[key] = Entry(key, entry.boot, entry.mode, entry.modules, tuple(actions))
        elif kind == "commit":
            loaded = tuple(value["loaded"])
            found[key] = Entry(key, entry.boot, entry.mode, entry.modules, entry.actions, True, loaded)
        elif kind == "undone":
            del found[key]
        else:
            raise ValueError(kind)
    except (KeyError, TypeError, ValueError) as error:
        raise JournalError(f"a record that we did not write ({error})", where, REMEDY) from None


def open_entry(entries: tuple[Entry, ...]) -> Entry | None:
    """The apply that was begun and neither committed nor undone: its process died."""
    return next((entry for entry in reversed(entries) if not entry.closed), None)
