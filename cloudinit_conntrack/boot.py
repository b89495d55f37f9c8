"""What cloud-init's module calls: apply a section, say what was done, raise what failed."""

from __future__ import annotations

from collections.abc import Iterator

from .config import desired_from_section
from .errors import ConntrackError
from .host.inputs import is_superuser
from .host.root import HOST, Root
from .report import grouped
from .run import applied


def apply_section(section: object, root: Root = HOST) -> Iterator[str]:
    """Apply the ``conntrack`` section on this host, *root*; yields lines for the log, all of them INFO.

    Raises ConfigError for a bad section, ConntrackError when it is blocked or failed; the
    host is then as it was.
    """
    desired = desired_from_section(section)
    if not is_superuser():
        raise ConntrackError("it must run as root", "cloudinit-conntrack", "use sudo")
    report, error = applied(desired, section, root, True, lambda line: None)
    if error is not None:
        raise error
    if report.blockers:
        first = report.blockers[0]
        more = f" (and {len(report.blockers) - 1} more)" if len(report.blockers) > 1 else ""
        told = f"; {report.message}" if report.message else ""
        raise ConntrackError(f"blocked: {first.reason}{more}{told}", first.where, first.remedy)
    yield f"mode {report.mode}: {report.outcome.replace('-', ' ')}"
    for action in report.actions:
        yield f"{action.verb} {action.where}: {action.reason}"
    for title, items in (("accepted now and not before", report.widenings), ("good to know", report.findings)):
        for reason, _, places in grouped(items):
            yield f"{title}: {reason} ({', '.join(places)})"
