"""What one look at a host gave, as Prometheus text (exposition format 0.0.4).

Pure.  Every sample of one name stands in one block under its HELP and TYPE; what could not be told
has no sample, so that an alert sees "unknown" as absent and never as zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from .state import Kernel
from .tracking import Counters

PREFIX = "cloudinit_conntrack_"
MODES = ("notrack", "stateless", "unload")
# The outcomes that a kept report may have, each with the exit code of its run.
OUTCOMES = {"done": 0, "nothing-to-do": 0, "unconfirmed": 0, "confirmed": 0, "reverted": 0, "failed": 1, "blocked": 3}
# The kernel's counters that a watcher needs, by their column in /proc/net/stat/nf_conntrack.
COUNTERS = (
    ("insert", "inserts", "Entries put into the table; since Linux 4.9 only those that a program wrote."),
    ("insert_failed", "insert_failures", "Entries that did not go into the table."),
    ("drop", "drops", "Packets dropped because no entry could be made: the table is full."),
    ("early_drop", "early_drops", "Entries thrown out early to make room for a new one."),
    ("invalid", "invalid_packets", "Packets that belong to no connection."),
)
_HOLDS = {"agrees": True, "disagrees": False, "unknown": None}
_ODD = {"\\": "\\\\", "\n": "\\n", '"': '\\"'}

Labels = tuple[tuple[str, str], ...]
Number = float  # an int is one too
Sample = tuple[Labels, Number]


@dataclass(frozen=True)
class Metric:
    """One name without the common prefix, its *kind* (``gauge`` or ``counter``), and its samples."""

    name: str
    kind: str
    help: str
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class LastRun:
    """The report that the last run left: its outcome, when (seconds since the epoch), and how long it took."""

    outcome: str
    moment: float
    seconds: float | None = None


@dataclass(frozen=True)
class Standing:
    """What verify found: the mode that can be established here, what is left to do, what the kernel says."""

    mode: str
    actions: int
    blockers: int
    evidence: tuple[bool | None, ...]
    verified: bool


@dataclass(frozen=True)
class Measured:
    """One look at a host; ``None`` is what could not be told.

    *mode* is the one asked for, empty where no section is known.  *standing* is ``None`` there too.
    *unloadable* counts the saved files for which last good rules stand in.  *moment* is when this
    was measured, in seconds since the epoch, *seconds* how long it took.
    """

    version: str
    moment: float
    seconds: float
    complete: bool
    mode: str = ""
    kernel: Kernel | None = None
    counters: Counters | None = None
    standing: Standing | None = None
    unconfirmed: bool | None = None
    unloadable: int | None = None
    last: LastRun | None = None
    boot_enabled: bool | None = None
    boot_failed: bool | None = None


def exposition(found: Measured) -> str:
    """*found* as text; ends with a line feed, as the format wants."""
    return "".join(_text(metric) for metric in metrics(found) if metric.samples)


def metrics(found: Measured) -> Iterator[Metric]:
    """Every metric, in the order of the text; one that cannot be told has no samples."""
    yield from _of_the_section(found)
    yield from _of_the_kernel(found)
    yield from _of_runs(found)


def _of_the_section(found: Measured) -> Iterator[Metric]:
    standing = found.standing
    conntrack = found.kernel.conntrack if found.kernel else "unknown"
    info = (("version", found.version), ("mode", found.mode or "none"), ("conntrack", conntrack))
    yield Metric("info", "gauge", "Always 1: our version, the mode asked for, conntrack in this kernel.", ((info, 1),))
    yield Metric("mode_desired", "gauge", "1 for the mode that is asked for.", _one_of("mode", MODES, found.mode))
    yield Metric("mode_effective", "gauge", "1 for the mode that is established; fallback may have settled for less.",
                 _one_of("mode", MODES, standing.mode) if standing else ())
    yield _plain("verified", "gauge", "1 if nothing is left to do and the kernel agrees, else 0.",
                 standing.verified if standing else None)
    yield _plain("drift_actions", "gauge", "Actions that apply would do now.",
                 standing.actions if standing else None)
    yield _plain("blockers", "gauge", "Reasons for which apply would refuse now.",
                 standing.blockers if standing else None)
    yield Metric("evidence_checks", "gauge", "Checks of the kernel, by what they say about the mode.",
                 _checks(standing) if standing else ())
    yield _plain("unconfirmed", "gauge", "1 while an apply waits to be confirmed, and is undone otherwise.",
                 found.unconfirmed)
    yield _plain("unloadable_saved_files", "gauge", "Saved files that do not load; last good rules stand in for them.",
                 found.unloadable)


def _checks(standing: Standing) -> tuple[Sample, ...]:
    return tuple(((("result", name),), standing.evidence.count(holds)) for name, holds in _HOLDS.items())


def _of_the_kernel(found: Measured) -> Iterator[Metric]:
    yield _plain("entries", "gauge", "Tracked connections in the host's network namespace.", _entries(found))
    yield _plain("entries_limit", "gauge", "Tracked connections that the table has room for.",
                 found.counters.limit if found.counters else None)
    for column, name, words in COUNTERS:
        yield _plain(f"{name}_total", "counter", words, found.counters.column(column) if found.counters else None)


def _entries(found: Measured) -> int | None:
    """None is tracked where there is no conntrack at all."""
    if found.kernel is None:
        return None
    return 0 if found.kernel.conntrack == "absent" else found.kernel.entries


def _of_runs(found: Measured) -> Iterator[Metric]:
    last = found.last
    names = dict.fromkeys((*OUTCOMES, last.outcome)) if last else ()
    yield Metric("last_run_outcome", "gauge", "1 for the outcome of the last run of this boot that changes a host.",
                 _one_of("outcome", names, last.outcome) if last else ())
    yield _plain("last_run_exit_code", "gauge", "Exit code of that run.", OUTCOMES.get(last.outcome) if last else None)
    yield _plain("last_run_timestamp_seconds", "gauge", "When that run ended, since the epoch.",
                 last.moment if last else None)
    yield _plain("last_run_duration_seconds", "gauge", "How long that run took.", last.seconds if last else None)
    yield _plain("boot_service_enabled", "gauge", "1 if the unit that applies at every boot is enabled.",
                 found.boot_enabled)
    yield _plain("boot_service_failed", "gauge", "1 if that unit has failed.", found.boot_failed)
    yield _plain("scrape_error", "gauge", "1 if something could not be looked at; its metrics are missing then.",
                 not found.complete)
    yield _plain("scrape_timestamp_seconds", "gauge", "When this was measured, since the epoch.", found.moment)
    yield _plain("scrape_duration_seconds", "gauge", "How long that took.", found.seconds)


def _plain(name: str, kind: str, words: str, value: Number | None) -> Metric:
    return Metric(name, kind, words, () if value is None else (((), value),))


def _one_of(label: str, names: Iterable[str], chosen: str) -> tuple[Sample, ...]:
    return tuple((((label, name),), int(name == chosen)) for name in names)


# --- the format ----------------------------------------------------------------------------


def _text(metric: Metric) -> str:
    name = PREFIX + metric.name
    lines = [f"# HELP {name} {_escaped(metric.help, quotes=False)}", f"# TYPE {name} {metric.kind}"]
    lines += [f"{name}{_labels(labels)} {_number(value)}" for labels, value in metric.samples]
    return "\n".join(lines) + "\n"


def _labels(labels: Sequence[tuple[str, str]]) -> str:
    told = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels)
    return f"{{{told}}}" if told else ""


def _escaped(text: str, quotes: bool = True) -> str:
    """Backslash and line feed, in label values the quote too; bytes that are no text become a replacement."""
    told = "".join(_ODD[c] if c in _ODD and (quotes or c != '"') else c for c in text)
    return told.encode("utf-8", "replace").decode()


def _number(value: Number) -> str:
    """Go's ParseFloat reads what Python writes, whole numbers without a fraction."""
    return str(int(value)) if value == int(value) else repr(float(value))
