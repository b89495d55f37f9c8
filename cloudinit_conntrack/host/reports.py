"""Reports of other nodes, as somebody has gathered them: files, and directories of files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Callable

from ..errors import ConntrackError

_MOST_FILES = 200_000
_OURS = ("run", "cloudinit-conntrack", "result")  # as it lies on a node, and as Ansible's fetch keeps it


def named(paths: Sequence[str], refuse: Callable[[str, str], None]) -> Iterator[tuple[str, str]]:
    """(node, file) for each report that *paths* lead to, in order; the name of a node may be empty.

    ``-`` is standard input.  Of a directory every ``*.json`` below it is one, regular files only.
    A directory that cannot be read is told to *refuse*, with what is wrong.  ConntrackError for too many files.
    """
    left = _MOST_FILES
    for path in paths:
        if not os.path.isdir(path):
            yield ("" if path == "-" else _node(os.path.abspath(path).split("/")[-4:], 1)), path
            continue
        for file in _below(path, refuse):
            left -= 1
            if left < 0:
                raise ConntrackError(f"there are more than {_MOST_FILES:,} files", path, "give fewer at a time")
            yield _node(os.path.relpath(file, path).split("/"), None), file


def _below(path: str, refuse: Callable[[str, str], None]) -> Iterator[str]:
    def told(error: OSError) -> None:
        refuse(str(error.filename), f"cannot be read ({error.strerror})")

    for place, directories, files in os.walk(path, onerror=told):
        directories.sort()
        for name in sorted(files):
            if name.endswith(".json") and os.path.isfile(os.path.join(place, name)):
                yield os.path.join(place, name)


def _node(parts: list[str], most: int | None) -> str:
    """The node that a file belongs to: what of its path is no part of ours, the last *most* words of it."""
    parts = [*parts[:-1], parts[-1].removesuffix(".json")]
    for ours in (_OURS, _OURS[1:], _OURS[2:]):
        if tuple(parts[-len(ours):]) == ours:
            parts = parts[: -len(ours)]
            break
    return "/".join(parts[-most:] if most else parts)
