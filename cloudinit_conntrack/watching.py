"""``status --watch``: the same status, drawn again every few seconds, with rates in between."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Callable

from . import report
from .drawing import clipped
from .errors import ConntrackError, UsageError
from .host import terminal
from .report import Report
from .tracking import Counters

RATES = ("insert", "insert_failed", "drop", "early_drop")
Look = Callable[[], Report]


def watch(look: Look, seconds: float, colour: bool, verbose: bool, unicode: bool) -> None:
    """Draw what *look* sees every *seconds*, until Ctrl-C; UsageError where there is no terminal."""
    if not terminal.has_screen():
        raise UsageError("standard output is no terminal that can be drawn on", "--watch",
                         "leave --watch out, or run it in a terminal (TERM is set there)")
    found = look()  # an error is told before the screen is taken
    try:
        with terminal.screen() as screen:
            before, began = _counters(found), terminal.clock()
            lines = _frame(found, "", seconds, colour, verbose, unicode)
            while True:
                _draw(screen, lines)
                due = began + seconds
                while screen.wait(due):  # another size: the same again
                    _draw(screen, lines)
                began, passed = terminal.clock(), terminal.clock() - began
                try:
                    found = look()
                except ConntrackError as error:
                    lines = [f"every {seconds:g} s, Ctrl-C ends", "", *str(error).split("\n")]
                    continue
                now = _counters(found)
                lines = _frame(found, rates(before, now, passed), seconds, colour, verbose, unicode)
                before = now
    except terminal.Ended:
        return


def _counters(found: Report) -> Counters | None:
    return found.sight.counters if found.sight else None


def rates(before: Counters | None, now: Counters | None, seconds: float) -> str:
    """``entries +3.0, insert 0.0, drop 2.5 a second``: what changed since *before*; empty without two counts.

    A counter that went back was started anew: the module was loaded again.
    """
    if before is None or now is None or seconds <= 0:
        return ""
    return ", ".join(_rates(before, now, seconds)) + " a second"


def _rates(before: Counters, now: Counters, seconds: float) -> Iterator[str]:
    if before.entries is not None and now.entries is not None:
        yield f"entries {(now.entries - before.entries) / seconds:+.1f}"
    for name in RATES:
        old, new = before.column(name), now.column(name)
        if old is not None and new is not None:
            yield f"{name} {(new - old if new >= old else new) / seconds:.1f}"


def _frame(found: Report, rate: str, seconds: float, colour: bool, verbose: bool, unicode: bool) -> list[str]:
    """The lines of the view: how to end it, the status, the rates beside the counters."""
    if rate:
        at = next((n for n, (name, _) in enumerate(found.facts) if name == "counters"), len(found.facts) - 1) + 1
        found = replace(found, facts=(*found.facts[:at], ("rates", rate), *found.facts[at:]))
    text = report.text(found, colour, verbose, unicode).rstrip("\n").split("\n")
    return [report.paint(f"every {seconds:g} s, Ctrl-C ends", "dim", colour), *text]


def _draw(screen: terminal.Screen, lines: list[str]) -> None:
    """As many of *lines* as fit; the last one says how many do not."""
    width, height = screen.size
    shown = lines if len(lines) <= height else lines[:height - 1]
    if len(shown) < len(lines):
        shown = [*shown, f"{len(lines) - len(shown)} more lines: 'cloudinit-conntrack status' shows all"]
    # One column stays free: in the last one a terminal waits before it wraps, and "clear to the end" would eat it.
    screen.show([clipped(line, width - 1) for line in shown])
