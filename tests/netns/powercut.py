"""What a disk may hold after a power cut at each boundary of a recorded run.

The strictest reading of POSIX: a file's content, mode, owner, times and attributes are on
disk once the file was synced, its name (made, moved, removed) once its directory was.  What
was not synced may be there or not, each thing by itself: every combination is made.  A
content that was not synced is there, or not, or half: cut short, or with zeros in place of
a half.  /run does not survive.  What the commands write to disk is not modelled: none of
those that apply and revert start here does.
"""

from __future__ import annotations

import ast
import base64
import itertools
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

SEEN = ("etc/iptables", "etc/sysconfig", "etc/modprobe.d", "etc/systemd/system", "var/lib")
Files = dict[str, tuple[Any, ...]]
Entry = tuple[Any, ...]  # as in crashing: mode, uid, gid, link, atime, mtime, xattrs, content
MODE, UID, GID, LINK, ATIME, MTIME, XATTRS, CONTENT = range(8)
NOW = 1_700_000_000_000_000_000  # any time that is not long ago
MOST = 4096  # combinations at one boundary; more would mean that hardly anything is synced


@dataclass(eq=False)
class _Node:
    """A file, directory or link: as programs see it, and as it is on disk (``None``: not at all)."""

    seen: Entry
    kept: Entry | None = None

    def change(self, at: int, value: Any) -> None:
        self.seen = (*self.seen[:at], value, *self.seen[at + 1:])

    def after_cut(self) -> list[Entry]:
        if self.kept == self.seen or not stat.S_ISREG(self.seen[MODE]):
            return [self.seen]
        kept = self.kept or (*self.seen[:CONTENT], b"")
        new = self.seen[CONTENT]
        old = kept[CONTENT] if new.startswith(kept[CONTENT]) else b""
        middle = len(old) + (len(new) - len(old)) // 2
        holes = (old + bytes(middle - len(old)) + new[middle:], new[:middle] + bytes(len(new) - middle))
        contents = (new[:middle], new, *holes) if len(new) > len(old) else (new,)
        return list(dict.fromkeys((kept, *((*kept[:CONTENT], content) for content in contents), self.seen)))


Names = dict[str, "_Node | None"]


@dataclass
class Disk:
    """A file system that the acts of a record are done to, one by one."""

    seen: dict[str, _Node]
    kept: dict[str, _Node]
    pending: dict[str, list[Names]] = field(default_factory=dict)  # by directory

    def states(self) -> Iterator[Files]:
        """Everything that may be found after a power cut now."""
        names = [self.kept]
        for changes in self.pending.values():
            names = [{**old, **new} for old in names for new in _subsets(changes)]  # type: ignore[dict-item]
        assert len(names) <= MOST
        for one in names:
            there = {path: node for path, node in one.items() if node is not None and _reached(path, one)}
            choices = [[(path, entry) for entry in node.after_cut()] for path, node in sorted(there.items())]
            for number, chosen in enumerate(itertools.product(*choices)):
                assert number < MOST
                yield dict(chosen)

    def do(self, point: dict[str, Any]) -> None:
        """Do the act that the recorded boundary stands before."""
        places = [_inside(place) for place in point["places"]]
        act = getattr(self, "_" + point["kind"].replace("os.", ""), None)
        if act is not None and places and all(places):
            act(point, *places)

    def _name(self, path: str, node: _Node | None, more: Names | None = None) -> None:
        names: Names = {path: node, **(more or {})}
        for name, one in names.items():
            if one is None:
                del self.seen[name]
            else:
                self.seen[name] = one
        self.pending.setdefault(os.path.dirname(path), []).append(names)

    def _create(self, point: dict[str, Any], path: str) -> None:
        self._name(path, _Node((stat.S_IFREG | point["mode"], 0, 0, "", NOW, NOW, (), b"")))

    def _mkdir(self, point: dict[str, Any], path: str) -> None:
        self._name(path, _Node((stat.S_IFDIR | point["arguments"][1], 0, 0, "", 0, 0, (), b"")))

    def _symlink(self, point: dict[str, Any], path: str) -> None:
        self._name(path, _Node((stat.S_IFLNK | 0o777, 0, 0, point["arguments"][0], 0, 0, (), b"")))

    def _rename(self, _: dict[str, Any], source: str, target: str) -> None:
        assert os.path.dirname(source) == os.path.dirname(target)
        self._name(source, None, {target: self.seen[source]})

    def _remove(self, _: dict[str, Any], path: str) -> None:
        if path in self.seen:  # else it finds nothing to remove
            self._name(path, None)

    _rmdir = _remove

    def _write(self, point: dict[str, Any], path: str) -> None:
        node = self.seen[path]
        node.change(CONTENT, node.seen[CONTENT] + base64.b64decode(point["content"]))
        node.change(MTIME, NOW)

    def _chmod(self, point: dict[str, Any], path: str) -> None:
        node = self.seen[path]
        node.change(MODE, stat.S_IFMT(node.seen[MODE]) | point["arguments"][1])

    def _chown(self, point: dict[str, Any], path: str) -> None:
        self.seen[path].change(UID, point["arguments"][1])
        self.seen[path].change(GID, point["arguments"][2])

    def _utime(self, point: dict[str, Any], path: str) -> None:
        for at, value in zip((ATIME, MTIME), ast.literal_eval(point["arguments"][2])):
            self.seen[path].change(at, value)

    def _setxattr(self, point: dict[str, Any], path: str) -> None:
        name, value = point["arguments"][1], ast.literal_eval(point["arguments"][2])
        node = self.seen[path]
        node.change(XATTRS, tuple(sorted({**dict(node.seen[XATTRS]), name: value}.items())))

    def _fsync(self, _: dict[str, Any], path: str) -> None:
        if path in self.seen:
            self.seen[path].kept = self.seen[path].seen
        for names in self.pending.pop(path, []):
            for name, node in names.items():
                if node is None:
                    self.kept.pop(name, None)
                else:
                    self.kept[name] = node


def disk(files: Files) -> Disk:
    """A disk on which *files* are, synced long ago."""
    nodes = {path: _Node(entry, entry) for path, entry in files.items()}
    return Disk(dict(nodes), dict(nodes))


def states_at_each_boundary(files: Files, points: list[dict[str, Any]]) -> Iterator[tuple[int, Files]]:
    """Boundary, and one thing that a power cut there may leave; states that were there before come again."""
    now = disk(files)
    for point in points:
        for state in now.states():
            yield int(point["at"]), state
        now.do(point)
    for state in now.states():
        yield len(points) + 1, state


def _inside(place: str) -> str:
    """The name below the host's files; empty for what is not on its disk."""
    name = place.strip("/")
    return name if place.startswith("/") and name.startswith(tuple(SEEN)) else ""


def _reached(path: str, names: Any) -> bool:
    """Whether the directories above *path* are there."""
    parent = os.path.dirname(path)
    return parent in SEEN or (names.get(parent) is not None and _reached(parent, names))


def _subsets(changes: list[Names]) -> Iterator[Names]:
    for chosen in itertools.product((False, True), repeat=len(changes)):
        found: Names = {}
        for change, wanted in zip(changes, chosen):
            if wanted:
                found.update(change)
        yield found
