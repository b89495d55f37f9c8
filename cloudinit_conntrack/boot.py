"""What cloud-init's module calls: apply a section, say what was done, raise what failed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Callable

from .config import desired_from_section
from .errors import ConntrackError
from .host import journalfile
from .host.inputs import is_superuser
from .host.root import HOST, Root
from .report import Report, grouped, json_text
from .run import applied

_MOST_LETTERS = 900  # Hyper-V's handler cuts values at 1,024 bytes
_MOST_ATTACHED = 64 * 1024


@dataclass(frozen=True)
class Conclusion:
    """What cloud-init's reporting is told: ``SUCCESS``, ``WARN`` or ``FAIL``, one line, and files to send along.

    ``WARN``: ``fallback`` settled for less than the mode that was asked for.
    """

    result: str
    description: str
    files: tuple[str, ...] = ()


def apply_section(
    section: object, root: Root = HOST, conclude: Callable[[Conclusion], None] = lambda conclusion: None
) -> Iterator[str]:
    """Apply the ``conntrack`` section on this host, *root*; yields lines for the log, all of them INFO.

    *conclude* is called once, when it is clear what came of it.  Raises ConfigError for a bad
    section, ConntrackError when it is blocked or failed; the host is then as it was.
    """
    report: Report | None = None
    try:
        desired = desired_from_section(section)
        if not is_superuser():
            raise ConntrackError("it must run as root", "cloudinit-conntrack", "use sudo")
        report, error = applied(desired, section, root, True, lambda line: None)
        error = error or _blocked(report)
        if error is not None:
            raise error
    except ConntrackError as wrong:
        outcome = report.outcome if report else "failed"
        told = f"{outcome}: {str(wrong).replace('blocked: ', '', outcome == 'blocked')}"
        conclude(Conclusion("FAIL", _one_line(told), _attached(report, root)))
        raise
    result = "SUCCESS" if report.mode == desired.mode else "WARN"
    conclude(Conclusion(result, _one_line(_summary(report, desired.mode)), _attached(report, root)))
    yield f"mode {report.mode}: {report.outcome.replace('-', ' ')}"
    for action in report.actions:
        yield f"{action.verb} {action.where}: {action.reason}"
    for title, items in (("accepted now and not before", report.widenings), ("good to know", report.findings)):
        for reason, _, places in grouped(items):
            yield f"{title}: {reason} ({', '.join(places)})"


def _blocked(report: Report) -> ConntrackError | None:
    if not report.blockers:
        return None
    first = report.blockers[0]
    more = f" (and {len(report.blockers) - 1} more)" if len(report.blockers) > 1 else ""
    told = f"; {report.message}" if report.message else ""
    return ConntrackError(f"blocked: {first.reason}{more}{told}", first.where, first.remedy)


def _summary(report: Report, desired: str) -> str:
    """``mode stateless (unload was asked for): done, 3 actions, 1 widening``."""
    asked = "" if report.mode == desired else f" ({desired} was asked for)"
    counts = [f"{len(getattr(report, name))} {name if len(getattr(report, name)) != 1 else name[:-1]}"
              for name in ("actions", "widenings", "findings") if getattr(report, name)]
    return f"mode {report.mode}{asked}: {', '.join((report.outcome.replace('-', ' '), *counts))}"


def _one_line(text: str) -> str:
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= _MOST_LETTERS else line[: _MOST_LETTERS - 1] + "…"


def _attached(report: Report | None, root: Root) -> tuple[str, ...]:
    """The kept report, if it is this one and not large: an endpoint may store what it is sent in its event."""
    if report is None:
        return ()
    try:
        content = root.read_bytes(journalfile.RESULT) or b""
    except ConntrackError:
        return ()
    same = content == json_text(report).encode() and len(content) <= _MOST_ATTACHED
    return (journalfile.RESULT,) if same else ()
