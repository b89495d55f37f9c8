"""Saved files in nft's language: with what they include, and, where it does no harm, what they load."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from ..errors import ConntrackError
from ..netfilter.nft_text import includes
from ..state import NativeFile
from . import kernel
from .root import HOST, Root

# Where distributions have them: Debian and others; Red Hat.
PLACES = ("/etc/nftables.conf", "/etc/sysconfig/nftables.conf")
_INCLUDE_PATH = "/etc"  # DEFAULT_INCLUDE_PATH of nft's build, in both
_DEEPEST = 16  # MAX_INCLUDE_DEPTH of nft's scanner
_MOST_FILES = 1000
_GLOB = re.compile(r"[*?\[]")


def saved_native(root: Root = HOST) -> tuple[NativeFile, ...]:
    """The saved files that are there, not loaded.  HostError for one that is no regular file."""
    found = (_read(root, path) for path in PLACES)
    return tuple(file for file in found if file is not None)


def with_rules(file: NativeFile, root: Root, live: bool, looking: bool) -> NativeFile:
    """*file* with the rules that it loads, or with nft's error.

    It is loaded in a network namespace of its own, where it changes nothing; but loading
    rules may load modules.  So while only *looking* at a *live* host this is left out, unless
    its kernel cannot load any.
    """
    if file.problem or (live and looking and _may_load(root)):
        return file
    from . import nft  # here: a boot with nothing to do loads no file

    try:
        with nft.loaded(file.text) as path:
            return replace(file, listing=nft.listing(path))
    except nft.NotLoadedError as error:
        where = _Text.read(root, file.path).place(error.line) if error.line else file.path
        return replace(file, problem=error.what, where=where)
    except ConntrackError as error:
        return replace(file, problem=str(error))


def _may_load(root: Root) -> bool:
    """Whether this kernel could load a module now."""
    return not kernel.available(root, "no_such_module")


def _read(root: Root, path: str) -> NativeFile | None:
    image = root.read_image(path)
    if image is None:
        return None
    text = _Text(root)
    try:
        text.add(path, image.content.decode("utf-8", "surrogateescape"), ())
    except _CannotReadError as error:
        return NativeFile(path, image, image.content.decode("utf-8", "surrogateescape"), (), None, *error.args)
    return NativeFile(path, image, text.whole, tuple(text.files[1:]))


class _CannotReadError(Exception):
    """(what is wrong, FILE:LINE)"""


@dataclass
class _Text:
    """A text put together of files; *starts* says where each piece of it comes from."""

    root: Root
    pieces: list[str] = field(default_factory=list)
    starts: list[tuple[int, str, int]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    lines: int = 1

    @classmethod
    def read(cls, root: Root, path: str) -> _Text:
        """The whole text of *path*, which could be read a moment ago."""
        made = cls(root)
        made.add(path, root.read_text(path) or "", ())
        return made

    @property
    def whole(self) -> str:
        return "".join(self.pieces)

    def place(self, line: int) -> str:
        """FILE:LINE of a line of the whole text."""
        start, path, first = next((s for s in reversed(self.starts) if s[0] <= line), (1, self.files[0], 1))
        return f"{path}:{first + line - start}"

    def add(self, path: str, text: str, above: tuple[str, ...]) -> None:
        """*text* of the file *path*, with its includes in their places."""
        if len(above) >= _DEEPEST or len(self.files) >= _MOST_FILES:
            raise _CannotReadError("it includes files without end", above[0] if above else path)
        self.files.append(path)
        at, line = 0, 1
        for one in includes(text):
            self._piece(text[at : one.start], path, line)
            for name in self._named(one.pattern, f"{path}:{one.line}"):
                content = self.root.read_text(name)
                if content is None:
                    raise _CannotReadError(f"it includes {name}, which is not there", f"{path}:{one.line}")
                self.add(name, content + ("" if content.endswith("\n") else "\n"), (*above, path))
            at, line = one.end, one.line
        self._piece(text[at:], path, line)

    def _piece(self, text: str, path: str, line: int) -> None:
        self.starts.append((self.lines, path, line))
        self.pieces.append(text)
        self.lines += text.count("\n")

    def _named(self, pattern: str, where: str) -> Iterator[str]:
        """The files of an include, as nft finds them: below /etc, or from the root directory for ``./``."""
        path = pattern if pattern.startswith("/") else f"{'' if pattern.startswith('.') else _INCLUDE_PATH}/{pattern}"
        path = path.replace("/./", "/")
        if not _GLOB.search(path):
            yield path
            return
        directory, _, name = path.rpartition("/")
        if _GLOB.search(directory):
            raise _CannotReadError(f"it includes {pattern}, whose directory is a pattern", where)
        names = (n for n in self.root.listdir(directory) if fnmatch.fnmatchcase(n, name))
        yield from (f"{directory}/{n}" for n in sorted(names) if not n.startswith("."))
