"""The terminal: what it can show, and a screen of its own for a view that is drawn again and again."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

# xterm's controls, which every terminal emulator of today knows: another screen, no cursor; and back.
_ENTER = "\033[?1049h\033[?25l\033[H\033[2J"
_LEAVE = "\033[?25h\033[?1049l"
_REST_OF_LINE, _REST_OF_SCREEN, _HOME = "\033[K", "\033[J", "\033[H"


class Ended(Exception):
    """A signal asks us to end: Ctrl-C, SIGTERM, or the terminal is gone."""


def draws_lines() -> bool:
    """Whether the user's locale can show characters beyond ASCII.

    Python 3.7 and newer take UTF-8 in the locale C, too, and put ``LC_CTYPE=C.UTF-8`` into the
    environment for it (PEP 538, PEP 540), so its own encoding does not tell.
    """
    given = os.environ
    if not given.get("LC_ALL") and given.get("LC_CTYPE") == "C.UTF-8" and sys.flags.utf8_mode:
        return _is_utf8(given.get("LANG", ""))  # LC_CTYPE is Python's own
    return _is_utf8(given.get("LC_ALL") or given.get("LC_CTYPE") or given.get("LANG", ""))


def _is_utf8(name: str) -> bool:
    return name.lower().replace("-", "").endswith(("utf8", "utf8@euro"))


def clock() -> float:
    """Seconds that only grow."""
    return time.monotonic()


def has_screen() -> bool:
    """Whether standard output is a terminal that can be drawn on."""
    return sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


class Screen:
    """A screen of our own.  *changed*: the window has another size since the last :meth:`wait`."""

    def __init__(self, wakeup: int) -> None:
        self._wakeup = wakeup

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines."""
        with suppress(OSError):
            found = os.get_terminal_size(sys.stdout.fileno())
            if found.columns and found.lines:
                return found.columns, found.lines
        return 80, 24

    def show(self, lines: list[str]) -> None:
        """Draw *lines* over what is there, in one write: nothing is cleared first, so nothing flickers."""
        body = "\r\n".join(line + _REST_OF_LINE for line in lines)
        sys.stdout.write(_HOME + body + _REST_OF_SCREEN)
        sys.stdout.flush()

    def wait(self, until: float) -> bool:
        """Wait until the clock shows *until*; True when the window got another size meanwhile."""
        ready, _, _ = select.select([self._wakeup], [], [], max(0.0, until - clock()))
        if ready:
            os.read(self._wakeup, 4096)
        return bool(ready)


@contextmanager
def screen() -> Iterator[Screen]:
    """A screen of our own, until the end, however it comes: then the terminal is as it was.

    Raises :class:`Ended` inside for SIGINT, SIGTERM and SIGHUP.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    former = {number: signal.getsignal(number) for number in (*_ENDING, signal.SIGWINCH)}
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        for number in _ENDING:
            signal.signal(number, _end)
        signal.signal(signal.SIGWINCH, _pass)
        sys.stdout.write(_ENTER)
        sys.stdout.flush()
        yield Screen(reader)
    finally:
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)  # nothing may cut off what follows
        with suppress(OSError):  # the terminal is gone
            sys.stdout.write(_LEAVE)
            sys.stdout.flush()
        signal.set_wakeup_fd(wakeup)
        for number, handler in former.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _end(number: int, frame: FrameType | None) -> None:
    raise Ended


def _pass(number: int, frame: FrameType | None) -> None:
    """A change of size only wakes :meth:`Screen.wait`."""
