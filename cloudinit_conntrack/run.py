"""One apply with its report kept for others, shared by the command and cloud-init's module."""

from __future__ import annotations

from . import transaction
from .config import Desired
from .errors import ConntrackError, HostError
from .host import journalfile
from .host.root import Root
from .report import Report, json_text, of_plan
from .state import FileImage
from .transaction import Progress


def applied(
    desired: Desired, section: object, root: Root, live: bool, progress: Progress
) -> tuple[Report, ConntrackError | None]:
    """Apply, and leave the report as ``/run/cloudinit-conntrack/result.json``.

    Gives the report, and the error where apply failed.
    """
    error: ConntrackError | None = None
    try:
        outcome = transaction.apply(desired, section, root, live, progress)
        report = of_plan(outcome.plan, outcome.outcome, outcome.evidence)
    except ConntrackError as failed:
        error = failed
        report = Report(desired.mode, "failed", message=str(failed))
    if live:
        try:
            root.make_directory("/run/cloudinit-conntrack")
            root.write_image(journalfile.RESULT, FileImage(json_text(report).encode(), 0o644))
        except HostError as unwritten:
            error = error or unwritten
    return report, error
