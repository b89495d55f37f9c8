"""One regular file in an open directory: read whole, or filled before it takes its name.

The steps that :class:`cloudinit_conntrack.host.root.Root` puts together.
"""

from __future__ import annotations

import errno
import os
import re
import stat

from ..errors import HostError
from ..state import FileImage

_MOST_BYTES = 64 * 1024 * 1024
_MARK = ".cloudinit-conntrack-"


def image_of(opened: int, path: str) -> FileImage:
    """The whole file that *opened* is."""
    found = os.fstat(opened)  # before reading, which may touch the access time
    xattrs = tuple((name, os.getxattr(opened, name)) for name in _xattr_names(opened))
    return FileImage(read_bounded(opened, path), stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid,
                     found.st_atime_ns, found.st_mtime_ns, xattrs)


def refuse_irregular(parent: int, name: str, path: str) -> bool:
    """Whether there is a regular file; HostError for anything else in its place."""
    try:
        mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(mode):
        kinds = ((stat.S_ISLNK, "a symbolic link"), (stat.S_ISDIR, "a directory"), (stat.S_ISFIFO, "a FIFO"),
                 (stat.S_ISSOCK, "a socket"))
        kind = next((text for test, text in kinds if test(mode)), "a device")
        raise HostError(f"is {kind}, not a regular file", path, "put a regular file there, or remove it")
    return True


def read_bounded(opened: int, path: str) -> bytes:
    """The content of *opened*; HostError when it is no regular file, or too large."""
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        raise HostError("is no longer a regular file", path)
    pieces: list[bytes] = []
    left = _MOST_BYTES + 1
    while left > 0:
        piece = os.read(opened, min(left, 1 << 20))
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)
        left -= len(piece)
    raise HostError(f"is larger than {_MOST_BYTES >> 20} MiB", path, "no file of this kind is that large")


def _xattr_names(opened: int) -> list[str]:
    try:
        return sorted(os.listxattr(opened))
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return []
        raise


def fill(opened: int, image: FileImage) -> None:
    """Everything but the name.  The owner comes first: changing it clears set-id bits and capabilities."""
    write_all(opened, image.content)
    found = os.fstat(opened)
    if (found.st_uid, found.st_gid) != (image.uid, image.gid):
        os.fchown(opened, image.uid, image.gid)
    for name, value in image.xattrs:
        _set_xattr(opened, name, value)
    os.fchmod(opened, image.mode)
    if image.atime_ns or image.mtime_ns:
        os.utime(opened, ns=(image.atime_ns, image.mtime_ns))
    os.fsync(opened)


def write_all(opened: int, content: bytes) -> None:
    """Write *content*, however the kernel cuts it."""
    left = memoryview(content)
    while left:
        left = left[os.write(opened, left):]


def _set_xattr(opened: int, name: str, value: bytes) -> None:
    try:
        if name not in os.listxattr(opened) or os.getxattr(opened, name) != value:
            os.setxattr(opened, name, value)
    except OSError as error:
        if error.errno != errno.ENOTSUP:  # a file system without labels keeps the file itself
            raise


def name_beside(name: str) -> str:
    """A name for the new file while it is written: hidden, not guessable, ours to recognise."""
    return f".{name}{_MARK}{os.urandom(8).hex()}"


def sweep_beside(parent: int, name: str) -> None:
    """Remove what an interrupted writing of *name* left."""
    pattern = re.compile(rf"\.{re.escape(name)}{re.escape(_MARK)}[0-9a-f]{{16}}")
    for leftover in os.listdir(parent):
        if pattern.fullmatch(leftover):
            os.unlink(leftover, dir_fd=parent)
