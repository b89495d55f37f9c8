"""When and where a report is made."""

from __future__ import annotations

import time
from contextlib import suppress

from .. import __version__
from ..errors import HostError
from ..said import Run
from .root import Root


def clock() -> float:
    """Seconds since some moment, for durations."""
    return time.monotonic()


def wall_clock() -> float:
    """Seconds since the epoch."""
    return time.time()


def run_since(began: float, root: Root) -> Run:
    """The run of ours that began at *began*, in terms of :func:`clock`, and ends now."""
    name = ""
    with suppress(HostError):  # a report without it is better than none
        name = (root.read_text("/proc/sys/kernel/hostname") or "").strip()
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return Run(__version__, name, now, round(time.monotonic() - began, 3))
