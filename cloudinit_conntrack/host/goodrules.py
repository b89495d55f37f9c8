"""The last good rule-sets on disk: of each saved file, the rules in it that were seen to load under the block.

And, for as long as the system is up, which saved files did not load.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from .. import journal
from ..errors import HostError
from ..state import FileImage
from .root import Root

DIRECTORY = f"{os.path.dirname(journal.PATH)}/good"
REFUSED = "/run/cloudinit-conntrack/refused.json"


@dataclass(frozen=True)
class Good:
    """*text* is what to load in place of a saved file; *digest* that of the file's content which it stands for."""

    digest: str
    text: str


@dataclass(frozen=True)
class Refused:
    """A saved file whose content, of this *digest*, does not load under the block; *reason* says so."""

    path: str
    digest: str
    reason: str


def digest(text: str) -> str:
    """What tells one content of a saved file from another."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def read(path: str, root: Root) -> Good | None:
    """What is kept for the saved file *path*; ``None`` where there is nothing, or it is damaged."""
    content = root.read_bytes(_place(path))
    with suppress(ValueError, KeyError, TypeError):
        found = json.loads(content or b"{}")
        return Good(str(found["digest"]), str(found["text"]))
    return None


def keep(path: str, good: Good, root: Root) -> None:
    """Keep *good* for *path*, in place of what was kept before."""
    root.make_private_dir(os.path.dirname(DIRECTORY))
    root.make_private_dir(DIRECTORY)
    root.write_image(_place(path), FileImage(json.dumps(vars(good)).encode(), 0o600))


def forget(root: Root) -> None:
    """Nothing is kept any more."""
    for name in root.listdir(DIRECTORY):
        root.remove(f"{DIRECTORY}/{name}")
    root.remove_directory(DIRECTORY)
    root.remove(REFUSED)


def note(refused: Iterable[Refused], root: Root) -> None:
    """Write down which saved files did not load, for ``status`` and ``verify``."""
    found = [vars(one) for one in refused]
    if found:
        root.make_directory(os.path.dirname(REFUSED))
        root.write_image(REFUSED, FileImage(json.dumps(found).encode(), 0o600))
    else:
        root.remove(REFUSED)


def noted(root: Root) -> tuple[Refused, ...]:
    """What :func:`note` wrote in this boot."""
    with suppress(ValueError, TypeError, HostError):
        return tuple(Refused(**one) for one in json.loads(root.read_bytes(REFUSED) or b"[]"))
    return ()


def _place(path: str) -> str:
    return f"{DIRECTORY}/{path.strip('/').replace('/', '_')}"
