"""What differs between a machine's disk and the chroot that it was made from, byte for byte.

The machine's upper layer (overlayfs) holds all that was ever written; what is there and like the chroot's is no
difference.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from tests.cloudinit.machines import Machine

# What dpkg and its tools write about themselves.
BOOKKEEPING = ("var/lib/dpkg", "var/log", "var/cache", "tmp", "run")


def differing(machine: Machine, chroot: Path) -> list[str]:
    """Paths that are new, gone (``-``) or not as in *chroot*, but for dpkg's bookkeeping."""
    return sorted(_differing(machine.changed, chroot))


def _differing(upper: Path, lower: Path) -> Iterator[str]:
    for place, directories, files in os.walk(upper):
        inner = Path(place).relative_to(upper)
        directories[:] = [d for d in directories if str(inner / d) not in BOOKKEEPING]
        for name in (*directories, *files):
            path = inner / name
            told = _compared(upper / path, lower / path)
            if told:
                yield f"{told}{path}"


def _compared(upper: Path, lower: Path) -> str:
    """``+`` new, ``-`` gone, ``!`` not the same, empty for alike."""
    found = upper.lstat()
    if stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
        return "-"
    if not os.path.lexists(lower):
        return "+"
    before = lower.lstat()
    if (found.st_mode, found.st_uid, found.st_gid) != (before.st_mode, before.st_uid, before.st_gid):
        return "!"
    if stat.S_ISREG(found.st_mode):
        return "" if upper.read_bytes() == lower.read_bytes() else "!"
    if stat.S_ISLNK(found.st_mode):
        return "" if os.readlink(upper) == os.readlink(lower) else "!"
    return ""
