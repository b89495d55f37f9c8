"""The diffs of a plan for a person: coloured as git does it, and no longer than can be read."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .planned import Planned
from .report import paint

# Lines shown of one file or table, of a new file, and of all together; -v shows every line.
MOST_OF_ONE, MOST_OF_NEW, MOST_OF_ALL = 40, 12, 240
_NAME = re.compile(r"^diff --git a/(\S*) ", re.MULTILINE)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_PLACES = re.compile(r"^@@ .*\n", re.MULTILINE)


def changes(planned: Planned, colour: bool, verbose: bool) -> list[str]:
    """The lines of all diffs, in the order of the actions."""
    found: list[str] = []
    seen: dict[str, str] = {}
    for action, diff in planned.changes:
        found += [f"{action.where}: no diff: {diff.why}"] if diff.why else []
        for part in diff.parts:
            named = _NAME.search(part)
            name, change = named.group(1) if named else action.where, _apart_from_names(part)
            if verbose:
                found += _painted(part, colour)
            elif change in seen:
                found.append(paint(f"{name}: as {seen[change]}", "bold", colour))
            else:
                found += _shown(part, colour, MOST_OF_ALL - len(found))
            seen.setdefault(change, name)
    return found


def _apart_from_names(part: str) -> str:
    """What *part* changes, wherever that is."""
    head, _, body = part.partition("\n@@ ")
    modes = [line for line in head.split("\n") if not line.startswith(("diff --git ", "--- ", "+++ "))]
    return "\n".join((*modes, _PLACES.sub("", f"@@ {body}")))


def _shown(part: str, colour: bool, room: int) -> Iterator[str]:
    """The first lines of *part*, and how many more there are."""
    many = part.count("\n")
    new = "\n--- /dev/null\n" in part and not part.startswith("diff --git a/live/")
    most = max(4, min(room, MOST_OF_NEW if new else MOST_OF_ONE))
    if many <= most + 1:  # the line that says so would be as long
        most = many
    yield from _painted("".join(f"{line}\n" for line in part.split("\n", most)[:most]), colour)
    if most < many:
        yield paint(f"… {many - most} more lines; -v shows all", "dim", colour)


def _painted(part: str, colour: bool) -> Iterator[str]:
    """The lines of *part*, on a terminal in git's colours; what a terminal would obey is written as ``^[``."""
    inside = False
    for line in part.split("\n")[:-1]:
        inside = inside or line.startswith("@@ ")
        name = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "") if inside else "bold"
        line = _CONTROLS.sub(lambda found: f"^{chr(ord(found.group()) ^ 64)}", line) if colour else line
        yield paint(line, name, colour) if name else line
