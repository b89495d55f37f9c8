"""An apply that waits to be confirmed: what is kept of it, who watches the clock, who may confirm.

The file is there from before the first act until the change is confirmed or undone.  A process
of its own undoes it (``await-confirmation``), so that the end of the caller's connection ends nothing.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import time
from dataclasses import dataclass

from ..errors import ConntrackError, HostError
from ..state import FileImage
from .journalfile import DIRECTORY, UNCONFIRMED, boot_id
from .process import detach, find, run
from .root import HOST, Root
from .service import running_program

PATH = UNCONFIRMED
UNIT = "cloudinit-conntrack-unconfirmed"
VERB = "await-confirmation"  # of our own command, for nobody to type

_MOST_PARENTS = 64
_PAUSE = 0.3  # seconds
_SYSTEMD = "/run/systemd/system"  # sd_booted(3)


@dataclass(frozen=True)
class Pending:
    """Apply *number* of the boot *boot* is undone at *until*, in seconds on CLOCK_BOOTTIME, unless it is confirmed.

    It was done at *since*; both are ``None`` while it is at work.  *kept* is the section's file
    as it was before, ``None`` where there was none.
    """

    number: int
    boot: str
    kept: bytes | None
    since: float | None = None
    until: float | None = None


def pause() -> None:
    """Wait a little before looking again."""
    time.sleep(_PAUSE)


def now() -> float:
    """Seconds since this boot, sleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def read(root: Root) -> Pending | None:
    """What waits, or ``None``.  HostError where its file is damaged."""
    content = root.read_bytes(PATH)
    if content is None:
        return None
    try:
        found = json.loads(content)
        kept = None if found["kept"] is None else base64.b64decode(found["kept"], validate=True)
        times = tuple(None if found[key] is None else float(found[key]) for key in ("since", "until"))
        return Pending(int(found["number"]), str(found["boot"]), kept, *times)
    except (ValueError, KeyError, TypeError, binascii.Error, RecursionError) as error:
        raise HostError(f"it is damaged ({error})", PATH,
                        "run 'cloudinit-conntrack revert', or remove it to keep the change") from None


def write(root: Root, pending: Pending) -> None:
    """Keep *pending*, synced."""
    kept = None if pending.kept is None else base64.b64encode(pending.kept).decode()
    value = {"number": pending.number, "boot": pending.boot, "kept": kept, "since": pending.since,
             "until": pending.until}
    root.make_private_dir(DIRECTORY)
    root.write_image(PATH, FileImage((json.dumps(value) + "\n").encode(), 0o600))


def remove(root: Root) -> None:
    """Nothing waits any more."""
    root.remove(PATH)


def is_over(pending: Pending, root: Root) -> bool:
    """Whether the time to confirm has passed; a reboot ends it too."""
    return pending.boot != boot_id(root) or (pending.until is not None and now() >= pending.until)


def watch() -> None:
    """Start the process that undoes an unconfirmed change.  HostError when it cannot be started.

    Where systemd runs it is a unit: a process of the login session may be killed with it
    (logind.conf(5), KillUserProcesses).
    """
    program = running_program()
    if program is None:
        raise HostError("this Python does not know its own path", "apply --confirm-within", "start it by its path")
    words = [program.python, "-I", program.script, VERB]
    if HOST.is_directory(_SYSTEMD) and find("systemd-run"):
        try:
            run(["systemctl", "reset-failed", f"{UNIT}.service"], check=False)
            run(["systemd-run", "--quiet", f"--unit={UNIT}", "--property=KillSignal=SIGINT", "--", *words])
            return
        except ConntrackError:  # no bus: a process of its own session is the next best
            pass
    detach(words)


def connection_began() -> float | None:
    """When the ssh connection began by which this process was called, as :func:`now`; ``None`` without ssh.

    sshd gives each connection a process, and its children SSH_CONNECTION (ssh(1)); several
    sessions over one connection have that process in common.
    """
    pid, topmost = os.getpid(), 0
    for _ in range(_MOST_PARENTS):
        if pid <= 1:
            break
        if b"\0SSH_CONNECTION=" in b"\0" + _bytes(f"/proc/{pid}/environ"):
            topmost = pid
        pid = _stat(pid)[0]
    if not topmost:
        return None
    parent = _stat(topmost)[0]
    began = parent if _bytes(f"/proc/{parent}/comm").startswith(b"sshd") else topmost
    return _stat(began)[1] / os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> tuple[int, int]:
    """Parent and start, in clock ticks since the boot: fields 4 and 22 of proc(5)'s stat."""
    fields = _bytes(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    return (int(fields[1]), int(fields[19])) if len(fields) > 19 else (0, 0)


def _bytes(path: str) -> bytes:
    try:
        return HOST.read_bytes(path) or b""
    except HostError:  # it ended meanwhile
        return b""
