"""``status --watch`` on a real terminal (a pty), and what else the options of ``status`` refuse."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cloudinit_conntrack.host import terminal
from cloudinit_conntrack.tracking import Counters
from cloudinit_conntrack.watching import rates

ROOT = Path(__file__).resolve().parents[2]
ENTER, LEAVE, FRAME = b"\x1b[?1049h", b"\x1b[?25h\x1b[?1049l", b"\x1b[J"
STATUS = [sys.executable, "-m", "cloudinit_conntrack", "status"]


class Pty:
    """``status --watch`` in a session of its own on a terminal of its own; it sees its own namespaces alone."""

    def __init__(self, *options: str, environment: dict[str, str] | None = None) -> None:
        self.master, slave = pty.openpty()
        self.resize(100, 30)
        self.before = termios.tcgetattr(self.master)
        # The child of unshare is the one that draws; --kill-child ends it with unshare.
        command = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child", *STATUS, *options]
        self.popen = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, cwd=ROOT, start_new_session=True,
            env={**os.environ, "TERM": "xterm", "LC_ALL": "C.UTF-8", **(environment or {})},
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(slave)
        self.seen = b""

    def resize(self, columns: int, lines: int) -> None:
        """Another size of the window; the kernel tells the processes in front by SIGWINCH."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def until(self, holds: Callable[[], bool], seconds: float = 60) -> None:
        """Read until *holds*; fails with what was seen."""
        deadline = time.monotonic() + seconds
        while not holds():
            ready, _, _ = select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"not within {seconds:g} s: {self.seen[-3000:]!r}"
            try:
                piece = os.read(self.master, 65536)
            except OSError:  # EIO: the last process on it has ended
                piece = b""
            assert piece or holds(), f"it ended: {self.seen[-3000:]!r}"
            self.seen += piece

    def frames(self) -> list[bytes]:
        """The screens that were drawn whole."""
        return self.seen.split(FRAME)[:-1]

    def drawn(self, count: int) -> Callable[[], bool]:
        return lambda: len(self.frames()) >= count

    def end(self) -> int:
        """The exit status, once everything was read."""
        self.until(lambda: LEAVE in self.seen)
        return self.popen.wait(30)


@contextmanager
def watching(*options: str, environment: dict[str, str] | None = None) -> Iterator[Pty]:
    found = Pty(*options, environment=environment)
    try:
        yield found
    finally:
        if found.popen.poll() is None:
            found.popen.kill()
            found.popen.wait(30)
        os.close(found.master)


def test_it_draws_again_follows_the_window_and_leaves_a_clean_terminal() -> None:
    with watching("--watch", "0.3") as shown:
        shown.until(shown.drawn(2))
        assert shown.seen.count(ENTER) == 1
        assert all(b"every 0.3 s, Ctrl-C ends" in frame for frame in shown.frames())
        lines = shown.frames()[-1].split(b"\r\n")
        assert len(lines) <= 30
        before = len(shown.frames())
        shown.resize(40, 6)
        shown.until(shown.drawn(before + 3))
        small = shown.frames()[-1].split(b"\r\n")
        assert len(small) == 6 and b"more lines" in small[-1]
        assert max(len(plain(line)) for line in small) < 40
        os.write(shown.master, b"\x03")
        assert shown.end() == 0
        assert shown.seen.endswith(LEAVE)
        assert b"Traceback" not in shown.seen and b"interrupted" not in shown.seen
        assert termios.tcgetattr(shown.master) == shown.before
        assert b"\x1b[2J" not in shown.seen.split(ENTER)[1].split(b"\x1b[H", 2)[2]  # nothing is cleared: no flicker


def plain(line: bytes) -> str:
    text = line.decode().rstrip("\r")  # the terminal adds one of its own
    for code in ("\033[H", "\033[K"):
        text = text.replace(code, "")
    while "\033[" in text:
        at = text.index("\033[")
        text = text[:at] + text[text.index("m", at) + 1 :]
    return text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_ends_leave_a_clean_terminal_too(number: signal.Signals) -> None:
    with watching("--watch", "30") as shown:
        shown.until(shown.drawn(1))
        shown.resize(40, 6)
        shown.until(shown.drawn(2), 20)  # at once, long before the next look
        # unshare waits for the process that draws, which is its only child.
        children = Path(f"/proc/{shown.popen.pid}/task/{shown.popen.pid}/children").read_text().split()
        os.kill(int(children[0]), number)
        assert shown.end() == 0
        assert shown.seen.endswith(LEAVE)


def ran(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*STATUS, *options], cwd=ROOT, capture_output=True, text=True, timeout=120,
                          env={**os.environ, **environment})  # fmt: skip


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--watch",), "no terminal"),
        (("--watch", "--format", "json"), "--format json"),
        (("--watch", "--root", "/"), "no terminal"),  # the host itself
        (("--watch", "--root", "/etc"), "image tree"),
        (("--watch", "0"), "'0' is no number of seconds from 0.1 to 3600"),
        (("--watch", "fast"), "'fast' is no number"),
        (("--watch", "nan"), "'nan' is no number"),
        (("--watch", "--picture", "a.dot"), "stands still"),
        (("--picture", "a.png"), "ends in .dot or .svg"),
        (("--picture", "a.dot", "--root", "/etc"), "image tree"),
    ],
)
def test_what_does_not_go_together_is_wrong_usage(options: tuple[str, ...], words: str) -> None:
    done = ran(*options)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr and len(done.stderr.splitlines()) <= 3 and "Traceback" not in done.stderr


def test_a_terminal_that_cannot_be_drawn_on() -> None:
    with watching("--watch", environment={"TERM": "dumb"}) as shown:
        shown.until(lambda: b"no terminal that can be drawn on" in shown.seen and b"TERM" in shown.seen)
        assert shown.popen.wait(30) == 2
        assert ENTER not in shown.seen


def test_a_picture_is_written_beside_the_status(tmp_path: Path) -> None:
    for name, start in (("tree.dot", "digraph"), ("tree.svg", "<?xml")):
        done = ran("--picture", str(tmp_path / name))
        assert done.returncode == 0 and "conntrack" in done.stdout
        assert (tmp_path / name).read_text().startswith(start)


def test_a_picture_without_graphviz_or_without_a_place(tmp_path: Path) -> None:
    """One message with a remedy, and no file."""
    empty = tmp_path / "bin"
    empty.mkdir()
    for tool in Path("/usr/sbin").glob("*tables*"):
        (empty / tool.name).symlink_to(tool)
    done = ran("--picture", str(tmp_path / "tree.svg"), PATH=str(empty))
    assert done.returncode == 1 and "install the package graphviz" in done.stderr
    assert not (tmp_path / "tree.svg").exists()
    done = ran("--picture", str(tmp_path / "no/tree.dot"))
    assert done.returncode == 1 and "cannot be written" in done.stderr


# --- pure --------------------------------------------------------------------------------


def test_rates_are_of_what_changed() -> None:
    before = Counters(100, 200, 64, (("insert", 5), ("drop", 10), ("found", 1)))
    now = Counters(90, 200, 64, (("insert", 25), ("drop", 10), ("found", 9)))
    assert rates(before, now, 4) == "entries -2.5, insert 5.0, drop 0.0 a second"
    assert rates(None, now, 4) == rates(before, None, 4) == rates(before, now, 0) == ""


def test_a_count_that_began_anew_is_no_negative_rate() -> None:
    assert rates(Counters(columns=(("drop", 10),)), Counters(columns=(("drop", 4),)), 2) == "drop 2.0 a second"


@pytest.mark.parametrize(
    ("environment", "lines"),
    [
        ({"LANG": "C"}, False),
        ({}, False),
        ({"LC_ALL": "C", "LANG": "en_US.UTF-8"}, False),
        ({"LANG": "de_DE.ISO-8859-1"}, False),
        ({"LANG": "C.UTF-8"}, True),
        ({"LANG": "C", "LC_CTYPE": "C.utf8"}, True),
        ({"LC_ALL": "C.UTF-8"}, True),
    ],
)
def test_characters_by_the_locale(environment: dict[str, str], lines: bool) -> None:
    """A new Python each time: it changes the environment itself where the locale is C (PEP 538)."""
    code = "from cloudinit_conntrack.host.terminal import draws_lines; print(draws_lines())"
    done = subprocess.run(["/usr/bin/python3", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60,
                          env={"PATH": "/usr/bin:/bin", **environment}, check=True)  # fmt: skip
    assert done.stdout == f"{lines}\n"


def test_no_screen_where_output_is_no_terminal() -> None:
    assert not terminal.has_screen()  # pytest captures it
