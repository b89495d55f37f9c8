"""The files of haproxy's configuration, read as haproxy finds them."""

from __future__ import annotations

from collections.abc import Iterable

from ..state import SourceFile
from .root import HOST, Root


def haproxy_files(paths: Iterable[str], root: Root = HOST) -> tuple[SourceFile, ...]:
    """What ``haproxy -f`` would read for each of *paths*, in its order.

    Of a directory those are the regular files ``*.cfg`` in byte order, none hidden and none
    below it (haproxy 2.6, ``cfgfiles_expand_directories``).  HostError for what cannot be read.
    """
    found: list[SourceFile] = []
    for path in dict.fromkeys(paths):
        found += _directory(path, root) if root.is_directory(path) else [SourceFile(path, root.read_bytes(path))]
    return tuple(found)


def _directory(path: str, root: Root) -> list[SourceFile]:
    names = [f"{path.rstrip('/')}/{name}" for name in root.listdir(path) if _is_read(name)]
    files = [SourceFile(name, root.read_bytes(name)) for name in names if not root.is_directory(name)]
    return files or [SourceFile(path, None)]


def _is_read(name: str) -> bool:
    # haproxy looks at the first ".cfg" of a name: a.cfg.cfg is left out
    return not name.startswith(".") and name.partition(".cfg")[1:] == (".cfg", "")
