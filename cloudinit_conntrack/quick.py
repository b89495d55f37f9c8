"""``apply`` without options, as the boot service runs it: mostly there is nothing to do, and that is told quickly."""

from __future__ import annotations

import sys

from .errors import ConntrackError
from .host.inputs import is_superuser, wants_colour
from .host.root import HOST
from .unchanged import nothing_to_do


def main() -> int:
    """Run it; gives the exit code.  Whatever is not plainly nothing to do is left to the command."""
    if sys.stdout is not None and is_superuser():
        try:
            report = nothing_to_do(HOST)
        except ConntrackError:
            report = None  # the command meets it again, and says it
        if report is not None:
            from .report import text

            sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
            sys.stdout.write(text(report, wants_colour(sys.stdout)))
            return 0
    from .cli import main as command

    return command()
