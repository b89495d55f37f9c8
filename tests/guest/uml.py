"""Guests with a real kernel and loadable modules, in User-mode Linux.

Two kinds: a quick guest (here) boots in seconds on a copy-on-write view of this machine
and runs one shell script; a full guest (``full_guest.py``) is a Debian with systemd and
cloud-init on a disk of its own.

Every guest lives in network and PID namespaces of its own.  Nothing is left behind: when
the guest ends, or this process dies by whatever cause, the kernel ends the whole PID
namespace, and the network namespace with its tap device goes with it.
"""

from __future__ import annotations

import os
import select
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
KERNEL = "linux.uml"
MODULES = Path("/usr/lib/uml/modules")

# A script's own view: `step NAME COMMAND...` keeps status, stdout and stderr of one command.
PRELUDE = """\
SHARE=/run/guest/share
mkdir -p $SHARE/steps
step() {
    step_name=$1; shift
    "$@" >"$SHARE/steps/$step_name.out" 2>"$SHARE/steps/$step_name.err"
    echo $? >"$SHARE/steps/$step_name.status"
}
"""


class GuestError(Exception):
    """A guest did not boot, died, or did not answer in time; holds the end of its console."""


@dataclass(frozen=True)
class Ran:
    """One command's result; *stdout* and *stderr* hold nothing of the kernel's console."""

    status: int
    stdout: str
    stderr: str

    @property
    def ok(self) -> bool:
        """Whether the command's exit status was 0."""
        return self.status == 0

    @property
    def output(self) -> str:
        """Both streams, stdout first."""
        return self.stdout + self.stderr


@dataclass(frozen=True)
class QuickResult(Ran):
    """What a quick guest's script gave: also its named steps, console, and seconds in all."""

    steps: Mapping[str, Ran]
    console: str
    seconds: float


class Process:
    """A running User-mode Linux, and everything that belongs to it.

    *arguments* is the kernel's command line; *inside* shell text that runs in the new
    namespaces before the kernel starts (it must not fail); *pass_fds* stay open for it.
    The console goes to *work*/console.log.
    """

    def __init__(self, arguments: Sequence[str], work: Path, inside: str = "", pass_fds: tuple[int, ...] = ()) -> None:
        self.console = work / "console.log"
        if any(" " in argument for argument in arguments):
            raise GuestError(f"a kernel's command line cannot hold a space: {arguments}")
        kernel = shlex.join([KERNEL, *arguments, f"uml_dir={work}", "con0=fd:0,fd:1", "con=null"])
        # Each process dies with its parent: setpriv ties unshare to us, --kill-child ties
        # the shell, process 1 of the PID namespace, to unshare; the kernel does the rest.
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--pid", "--fork", "--kill-child"]
        command += ["sh", "-ec", f"{inside}\n{kernel}"]
        # The kernel wants an epoll-able console input that never ends: a pipe that we hold.
        self._alive, child_end = os.pipe()
        with self.console.open("wb") as console:
            self._popen = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=console,
                stderr=subprocess.STDOUT,
                pass_fds=(child_end, *pass_fds),
                start_new_session=True,
                env={**os.environ, "TMPDIR": "/dev/shm" if os.access("/dev/shm", os.W_OK) else "/tmp"},
            )
        os.close(child_end)

    @property
    def pid(self) -> int:
        """The process whose network namespace is the guest's outside."""
        return self._popen.pid

    def running(self) -> bool:
        """Whether the guest is still there."""
        return self._popen.poll() is None

    def wait(self, seconds: float) -> bool:
        """Wait for the guest to end by itself; False when it has not after *seconds*."""
        try:
            self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """End the guest at once, and wait until its last process is gone."""
        self._popen.kill()
        self._popen.wait()
        if self._popen.stdin:
            self._popen.stdin.close()
        if self._alive >= 0:
            # Readable, at its end, once the last process that held the other end is gone.
            select.select([self._alive], [], [], 30)
            os.close(self._alive)
            self._alive = -1

    def tail(self, lines: int = 25) -> str:
        """The end of the console, for a message."""
        text = self.console.read_text(errors="replace") if self.console.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


def require_uml() -> None:
    """Raise :class:`GuestError` unless user-mode-linux and its modules are installed."""
    if shutil.which(KERNEL) is None or not MODULES.is_dir():
        raise GuestError("User-mode Linux is missing: apt-get install user-mode-linux")


def run_quick(
    script: str,
    *,
    timeout: float = 120,
    files: Mapping[str, str] | None = None,
    disk: Path | None = None,
    memory: str = "384M",
) -> QuickResult:
    """Boot a quick guest, run *script* (sh) in it as root, power it off.

    *files* maps absolute guest paths to contents that are there before the script starts.
    *disk* names a tar file on this machine that keeps every change to the file system:
    a second call with the same *disk* is the next boot of the same host (processes, rules
    and modules start afresh; /run and /dev are new).  The script finds our package on
    PYTHONPATH; `step NAME COMMAND...` records one command for :attr:`QuickResult.steps`.
    Raises :class:`GuestError` when the guest fails or *timeout* seconds pass.
    """
    require_uml()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="quick-guest-") as name:
        work = Path(name)
        share = work / "share"
        _fill_share(share, script, files or {}, disk)
        arguments = [f"mem={memory}", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "rw"]
        arguments += ["selinux=0", f"init={HERE / 'quick-init'}"]
        process = Process([*arguments, f"GUEST_SHARE={share}", f"GUEST_CHECKOUT={CHECKOUT}"], work)
        try:
            ended = process.wait(timeout)
        finally:
            process.kill()
        if not (share / "status").exists():
            why = "failed" if ended else f"was not done after {timeout:.0f} s"
            raise GuestError(f"the quick guest {why}; {_partial(share)}its console ends:\n{process.tail()}")
        if disk:
            shutil.move(str(share / "disk.tar"), str(disk))
        console = process.console.read_text(errors="replace")
        return _result(share, console, time.monotonic() - started)


def _fill_share(share: Path, script: str, files: Mapping[str, str], disk: Path | None) -> None:
    share.mkdir()
    (share / "script").write_text(PRELUDE + script)
    for path, content in files.items():
        target = share / "files" / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)
    if disk:
        (share / "keep-disk").touch()
        if disk.exists():
            shutil.copyfile(disk, share / "disk.tar")


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _partial(share: Path) -> str:
    """What the script had written when the guest was ended."""
    written = (_read(share / "stdout") + _read(share / "stderr"))[-2000:]
    return f"its script wrote:\n{written}\n" if written else ""


def _result(share: Path, console: str, seconds: float) -> QuickResult:
    steps = {
        path.stem: Ran(int(path.read_text()), _read(path.with_suffix(".out")), _read(path.with_suffix(".err")))
        for path in sorted((share / "steps").glob("*.status"))
    }
    status = int((share / "status").read_text())
    return QuickResult(status, _read(share / "stdout"), _read(share / "stderr"), steps, console, seconds)
