"""Commands: lists of words, never a shell.  The only file that imports subprocess."""

from __future__ import annotations

import os
import selectors
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from ..errors import CommandError, HostError

TYPE_CHECKING = False
if TYPE_CHECKING:  # a boot does without typing
    from typing import IO

_STANDARD_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MOST_OUTPUT = 256 * 1024 * 1024  # a million rules are about 100 MB
_SHOWN = 1500
_GRACE = 2.0  # seconds that a killed process gets to disappear

# Where a missing command comes from; the names are the same on Debian and Red Hat.
_PACKAGES = {
    "nft": "nftables", "modprobe": "kmod", "rmmod": "kmod", "nsenter": "util-linux",
    "unshare": "util-linux", "ipset": "ipset", "cat": "coreutils",
}


# Open files that commands keep open too.
_held: list[int] = []


@dataclass(frozen=True)
class Completed:
    """A command that ended.  *stdout* keeps foreign bytes as surrogates, *stderr* is for reading."""

    argv: tuple[str, ...]
    status: int
    stdout: str
    stderr: str


def find(name: str) -> str | None:
    """The path of the executable *name*, or ``None``.  The sbin directories are searched too."""
    for place in _search_path().split(":"):  # shutil.which() costs five modules more at every boot
        path = os.path.join(place, name)
        if os.access(path, os.X_OK) and not os.path.isdir(path):
            return path
    return None


def run(argv: Sequence[str], stdin: bytes | None = None, timeout: float = 60.0,
        check: bool = True, netns: str | None = None, most: int = _MOST_OUTPUT) -> Completed:
    """Run *argv* with *stdin* and wait at most *timeout* seconds for at most *most* bytes of output.

    *netns* is the path of a network namespace to run in (``/run/netns/blue``,
    ``/proc/812/ns/net``); files are those of this process all the same.
    :class:`CommandError` when the command fails (unless *check* is false), hangs or never
    stops printing; :class:`HostError` when it is not there or cannot be started.
    """
    words = ("nsenter", f"--net={netns}", "--", *argv) if netns else tuple(argv)
    process = _start(words, subprocess.PIPE if stdin is not None else subprocess.DEVNULL)
    try:
        out, err = _converse(process, stdin or b"", time.monotonic() + timeout, most)
    except OverflowError:
        raise CommandError(f"printed more than {most} bytes and was killed", quoted(words)) from None
    except TimeoutError:
        raise CommandError(f"did not end within {timeout:g} seconds and was killed", quoted(words),
                           "find out what it waits for, then run again") from None
    finally:
        _end(process)
    done = Completed(words, process.returncode, out.decode("utf-8", "surrogateescape"),
                     err.decode("utf-8", "replace"))
    if check and done.status != 0:
        raise failure(done)
    return done


def detach(argv: Sequence[str]) -> None:
    """Start *argv* on its own: it says nothing, and outlives this process and its terminal.

    HostError when it cannot be started.
    """
    _start(tuple(argv), subprocess.DEVNULL, subprocess.DEVNULL, ())


@contextmanager
def held_by_commands(opened: int) -> Iterator[None]:
    """Commands that are started meanwhile keep *opened* open until they end, even if this process is killed."""
    _held.append(opened)
    try:
        yield
    finally:
        _held.remove(opened)


def failure(done: Completed, remedy: str = "") -> CommandError:
    """The error that says how *done* failed."""
    how = f"exit status {done.status}" if done.status >= 0 else f"killed by signal {-done.status}"
    said = _shortened(done.stderr) or _shortened(done.stdout)
    return CommandError(f"{how}: {said}" if said else how, quoted(done.argv), remedy)


def quoted(argv: Sequence[str]) -> str:
    """*argv* as a person could paste it."""
    return " ".join(shlex.quote(word) for word in argv)


@contextmanager
def private_namespace() -> Iterator[str]:
    """A fresh network namespace, gone at the end; gives its path for ``run(netns=...)``."""
    with _private("net", "--net") as path:
        yield path


@contextmanager
def private_mounts() -> Iterator[str]:
    """A copy of our mounts for ``nsenter --mount=``, gone at the end with all that is mounted in it."""
    with _private("mnt", "--mount", "--propagation", "private") as path:
        yield path


@contextmanager
def _private(kind: str, *options: str) -> Iterator[str]:
    words = ("unshare", *options, "--", "cat")
    process = _start(words, subprocess.PIPE)
    try:
        path = f"/proc/{process.pid}/ns/{kind}"
        deadline = time.monotonic() + 10
        while process.poll() is None and not _is_made(process.pid, path, kind):
            if time.monotonic() > deadline:
                raise CommandError("made no namespace within 10 seconds", quoted(words))
            time.sleep(0.002)
        if process.returncode is not None:
            err = process.stderr.read(_SHOWN) if process.stderr else b""
            raise failure(Completed(words, process.returncode, "", err.decode("utf-8", "replace")),
                          "run as root, on a kernel with namespaces")
        yield path
    finally:
        _end(process)


def _is_made(pid: int, path: str, kind: str) -> bool:
    """Whether the namespace is there, and what makes it has given way to cat: mounts are private only then."""
    there = _link(path) not in ("", _link(f"/proc/self/ns/{kind}"))
    return there and os.path.basename(_link(f"/proc/{pid}/exe")) != "unshare"


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""  # the process is just ending


def _search_path() -> str:
    """PATH, and behind it the sbin beside every bin: cron and sudo leave those out."""
    given = [p for p in os.environ.get("PATH", "").split(":") if p] or _STANDARD_PATH.split(":")
    beside = [p[:-3] + "sbin" for p in given if p.endswith("/bin")]
    return ":".join(dict.fromkeys(given + beside))


def _environment() -> dict[str, str]:
    """Nothing inherited but PATH: MODPROBE_OPTIONS or XTABLES_LIBDIR would change the answers."""
    return {"PATH": _search_path(), "LC_ALL": "C", "HOME": "/"}


def _start(
    words: tuple[str, ...], stdin: int, output: int = subprocess.PIPE, held: Sequence[int] | None = None
) -> subprocess.Popen[bytes]:
    executable = find(words[0])
    if executable is None:
        raise HostError(f"the command {words[0]} is not there", quoted(words), _where_from(words[0]))
    try:
        # A session of its own: a hanging command is killed with its children, and a key
        # pressed at our terminal never kills half of a restore.
        return subprocess.Popen(list(words), executable=executable, stdin=stdin, stdout=output,
                                stderr=output, env=_environment(), cwd="/", start_new_session=True,
                                pass_fds=_held if held is None else held)
    except (OSError, ValueError) as error:
        raise HostError(f"cannot be started: {error}", quoted(words)) from error


def _where_from(name: str) -> str:
    package = "iptables" if name.startswith(("iptables", "ip6tables")) else _PACKAGES.get(name, "")
    return f"install the package {package}" if package else ""


def _converse(process: subprocess.Popen[bytes], stdin: bytes, deadline: float, most: int) -> tuple[bytes, bytes]:
    """Feed *stdin*, collect both outputs until the process is gone.

    TimeoutError at *deadline*, OverflowError beyond *most* bytes.
    """
    got: dict[IO[bytes], list[bytes]] = {}
    size = 0
    with selectors.DefaultSelector() as selector:
        for pipe in filter(None, (process.stdout, process.stderr)):
            got[pipe] = []
            selector.register(pipe, selectors.EVENT_READ)
        if process.stdin is not None:
            os.set_blocking(process.stdin.fileno(), False)
            selector.register(process.stdin, selectors.EVENT_WRITE)
        unsent = memoryview(stdin)
        while selector.get_map():
            for key, _ in selector.select(_patience(process, deadline)):
                if key.fileobj is process.stdin:
                    unsent = _feed(process.stdin, unsent, selector)
                    continue
                pipe = next(p for p in got if p is key.fileobj)
                piece = os.read(pipe.fileno(), 1 << 16)
                size += len(piece)
                got[pipe].append(piece)
                if not piece:
                    selector.unregister(pipe)
            if size > most:
                raise OverflowError
            if time.monotonic() > deadline and process.poll() is None:
                raise TimeoutError
            if process.poll() is not None and not selector.select(0):
                break  # a child left in the background may hold the pipes open for ever
    try:
        process.wait(timeout=max(0.0, deadline - time.monotonic()) + 0.01)
    except subprocess.TimeoutExpired:
        raise TimeoutError from None
    out, err = (b"".join(pieces) for pieces in got.values())
    return out, err


def _patience(process: subprocess.Popen[bytes], deadline: float) -> float:
    """How long to wait for output: not for ever, since the end of a process wakes no selector."""
    return min(0.2, max(0.0, deadline - time.monotonic())) if process.poll() is None else 0.0


def _feed(pipe: IO[bytes], unsent: memoryview, selector: selectors.BaseSelector) -> memoryview:
    try:
        unsent = unsent[os.write(pipe.fileno(), unsent[:1 << 16]):] if unsent else unsent
    except BrokenPipeError:
        unsent = unsent[:0]  # it stopped reading; its status says why
    if not unsent:
        selector.unregister(pipe)
        pipe.close()
    return unsent


def _end(process: subprocess.Popen[bytes]) -> None:
    """Leave nothing behind: kill what still runs, close the pipes."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    for pipe in filter(None, (process.stdin, process.stdout, process.stderr)):
        with suppress(BrokenPipeError):
            pipe.close()
    with suppress(subprocess.TimeoutExpired):  # asleep in the kernel; it dies when it wakes
        process.wait(timeout=_GRACE)


def _shortened(text: str) -> str:
    """*text* on one line, without control characters, its end when it is long."""
    line = "; ".join(part.strip() for part in text.splitlines() if part.strip())
    line = "".join(c if c.isprintable() else "?" for c in line)
    return line if len(line) <= _SHOWN else "... " + line[-_SHOWN:]
