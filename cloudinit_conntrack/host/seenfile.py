"""What earlier runs that found nothing to do have seen, on disk; and what they rest on beside the host's state."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator

from ..state import FileImage
from . import goodrules, journalfile
from .root import Root

TYPE_CHECKING = False
if TYPE_CHECKING:  # a boot does without typing
    from typing import Any

PATH = journalfile.SEEN


def read(root: Root) -> dict[str, Any]:
    """What was written; nothing where it is damaged: it is worth no more than time."""
    checksum, _, text = (root.read_bytes(PATH) or b"").partition(b"\n")
    if checksum.decode("ascii", "replace") != _sum(text):
        return {}
    found: dict[str, Any] = json.loads(text)
    return found


def write(value: dict[str, Any], root: Root) -> None:
    """Write *value*."""
    root.make_private_dir(journalfile.DIRECTORY)
    text = json.dumps(value).encode()
    root.write_image(PATH, FileImage(f"{_sum(text)}\n".encode() + text, 0o600))


def _sum(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def ground(root: Root) -> str:
    """A digest of the program, the section that is kept, the journal, and the last good rules.

    Empty where planning has more to look at: an apply that waits to be confirmed, a saved file that does not load.
    """
    if root.exists(journalfile.UNCONFIRMED) or root.exists(goodrules.REFUSED):
        return ""
    found = hashlib.sha256(sys.version.encode())
    for line in _program():
        found.update(line.encode("utf-8", "surrogateescape"))
    for path in (journalfile.DESIRED, journalfile.JOURNAL):
        found.update(hashlib.sha256(root.read_bytes(path) or b"").digest())
    for name in root.listdir(goodrules.DIRECTORY):
        found.update(f"{name} {root.modified(f'{goodrules.DIRECTORY}/{name}')}\n".encode())
    return found.hexdigest()


def _program() -> Iterator[str]:
    """A line for each file of this package, or for the zip file that it is in: its name, size and time."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if not os.path.isdir(package):
        archive = os.stat(os.path.dirname(package))
        yield f"{package} {archive.st_size} {archive.st_mtime_ns}\n"
        return
    for place, directories, names in os.walk(package):
        directories[:] = sorted(name for name in directories if name != "__pycache__")
        for name in sorted(name for name in names if name.endswith(".py")):
            file = os.stat(os.path.join(place, name))
            yield f"{place}/{name} {file.st_size} {file.st_mtime_ns}\n"
