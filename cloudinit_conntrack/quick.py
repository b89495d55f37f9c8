"""The command's way in.

``apply`` as the boot service runs it and ``verify`` as a monitor does mostly find nothing to do, which is told
without a parser and without planning; everything else is the command's.
"""

from __future__ import annotations

import sys

from . import report
from .errors import ConntrackError
from .exits import DONE, exit_code
from .host.inputs import is_superuser, wants_colour
from .host.root import HOST
from .unchanged import nothing_to_do, verified

_LOOKS = {
    ("apply",): (nothing_to_do, "text"),
    ("verify",): (verified, "text"),
    ("verify", "--format", "json"): (verified, "json"),
}
_NOT_TOLD = -1


def main() -> int:
    """Run it; gives the exit code.  Whatever is not plainly nothing to do is left to the command."""
    words = tuple(sys.argv[1:])
    code = exit_code(lambda: _quickly(words)) if words in _LOOKS else _NOT_TOLD
    if code != _NOT_TOLD:
        return code
    from .cli import main as command

    return command()


def _quickly(words: tuple[str, ...]) -> int:
    look, form = _LOOKS[words]
    try:
        found = look(HOST) if is_superuser() else None
    except (ConntrackError, MemoryError):
        found = None  # the command meets it again, and says it
    if found is None:
        return _NOT_TOLD
    sys.stdout.write(report.json_text(found) if form == "json" else report.text(found, wants_colour(sys.stdout)))
    return DONE
