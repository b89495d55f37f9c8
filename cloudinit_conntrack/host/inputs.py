"""What the caller hands us: files named on the command line, standard input, who calls."""

from __future__ import annotations

import os
import sys

from ..errors import ConntrackError, UsageError
from ..state import FileImage
from .root import Root

TYPE_CHECKING = False
if TYPE_CHECKING:  # a boot does without typing
    from typing import TextIO


def read_input(path: str, most: int) -> bytes:
    """The content of *path*, or of standard input for ``-``, at most *most* + 1 bytes.

    A file named on the command line is the caller's own choice: links and pipes are followed.
    """
    try:
        if path == "-":
            return sys.stdin.buffer.read(most + 1)
        with open(path, "rb") as opened:
            return opened.read(most + 1)
    except OSError as error:
        raise ConntrackError(f"cannot be read ({error.strerror})", path, "give a readable file") from None


def write_output(path: str, content: bytes) -> None:
    """Write *content* to the file that the caller named: links and pipes are followed."""
    try:
        with open(path, "wb") as opened:
            opened.write(content)
    except OSError as error:
        raise ConntrackError(f"cannot be written ({error.strerror})", path, "name another place") from None


def replace_output(path: str, content: bytes) -> None:
    """Make *path*, which the caller named, a file that holds *content*: whoever reads it never sees half.

    HostError for anything but a regular file in its place.
    """
    Root("/").write_image(os.path.abspath(path), FileImage(content, 0o644))


def own_text(name: str) -> str:
    """A file of our own package, wherever it is (a directory, or a zip file)."""
    import pkgutil  # here: it takes 20 ms, and every boot reads this file

    found = pkgutil.get_data(__package__.partition(".")[0], name)
    assert found is not None  # its loader knows files
    return found.decode()


def tree(path: str) -> Root:
    """The file tree at *path*; ``Root("/")`` is the running host."""
    if not os.path.isdir(path):
        raise UsageError("no such directory", path, "give the root of a file tree")
    return Root(os.path.realpath(path))


def is_superuser() -> bool:
    """Whether we run as root."""
    return os.geteuid() == 0


def wants_colour(stream: TextIO) -> bool:
    """Whether *stream* is a terminal that knows colours, of somebody who wants them (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def swallow_output() -> None:
    """Send the rest of standard output nowhere: its reader is gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
