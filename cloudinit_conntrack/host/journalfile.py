"""The journal on disk: appended and synced before each act, private to root."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager

from .. import journal
from ..errors import BusyError, HostError
from ..journal import Entry
from ..state import FileImage
from . import goodrules
from .process import held_by_commands
from .root import Root

DIRECTORY = os.path.dirname(journal.PATH)
REPORTS = "/run/cloudinit-conntrack"
DESIRED = f"{DIRECTORY}/desired.json"
JOURNAL = journal.PATH
UNCONFIRMED = f"{DIRECTORY}/unconfirmed.json"
SEEN = f"{DIRECTORY}/seen.json"
RESULT = f"{REPORTS}/result.json"


def read(root: Root) -> tuple[Entry, ...]:
    """The applies that are not undone, oldest first; none where there is no journal."""
    content = root.read_bytes(journal.PATH)
    return journal.parse(content) if content is not None else ()


def append(root: Root, line: bytes) -> None:
    """Add *line* and sync it; when this returns, a power cut no longer loses it.

    A line that an earlier crash tore off is cut away first.
    """
    root.make_private_dir(DIRECTORY)
    old = root.read_bytes(journal.PATH) or b""
    whole = journal.whole(old)
    if whole != old or not old:
        _replace(root, whole + line)
        return
    root.append(journal.PATH, line)


def _replace(root: Root, content: bytes) -> None:
    root.write_image(journal.PATH, FileImage(content, 0o600))


def clear(root: Root) -> None:
    """Forget everything: nothing is left to undo.

    What brings a section back goes before the journal: first an earlier one that waits to be kept again, then
    the one of the next boot.
    """
    for path in (UNCONFIRMED, DESIRED, SEEN, journal.PATH):
        root.remove(path)
    goodrules.forget(root)


def keep_desired(root: Root, section: object) -> None:
    """Keep the section for later boots."""
    root.make_private_dir(DIRECTORY)
    text = json.dumps(section, indent=2, sort_keys=True, default=str) + "\n"
    root.write_image(DESIRED, FileImage(text.encode(), 0o600))


def kept_desired(root: Root) -> object | None:
    """The section that an earlier apply kept, or ``None``."""
    content = root.read_bytes(DESIRED)
    if content is None:
        return None
    try:
        found: object = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise HostError(f"it is damaged ({error})", DESIRED, "apply again with -c FILE") from None
    return found


def last_outcome(root: Root) -> str:
    """The outcome that the last apply of this boot reported; empty when there was none, or its report is damaged."""
    try:
        found = json.loads(root.read_bytes(RESULT) or b"{}")
    except (ValueError, RecursionError, HostError):
        return ""
    return str(found.get("outcome", "")) if isinstance(found, dict) else ""


def boot_id(root: Root) -> str:
    """The kernel's boot id; empty for an image tree."""
    return (root.read_text("/proc/sys/kernel/random/boot_id") or "").strip()


@contextmanager
def alone(root: Root) -> Iterator[None]:
    """Only one apply or revert at a time; the second is refused at once.

    The lock of a running host lies in /run: a refused apply leaves no trace on disk.  Commands
    hold it too: what a killed process had begun to load must not arrive after it was undone.
    """
    place = REPORTS if root.is_host else DIRECTORY
    if root.is_host:
        root.make_directory(place)
    else:
        root.make_private_dir(place)
    with root.lock(f"{place}/lock") as opened:
        if opened is None:
            raise BusyError("another cloudinit-conntrack is at work", f"{place}/lock", "wait for it and try again")
        try:
            with held_by_commands(opened):
                yield
        finally:
            if not root.is_host and root.listdir(place) == ("lock",):  # a tree as it was before
                root.remove(f"{place}/lock")
                root.remove_directory(place)
