"""Other network namespaces: a rule in a container holds the host's module as well as one of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..errors import HostError
from ..state import OtherNamespace
from .native import native_notes
from .root import HOST, Root
from .rules import live_rules

_MOUNTED = ("/run/netns", "/run/docker/netns")
_MOST = 4096


@dataclass(frozen=True)
class Found:
    """A network namespace and a path that leads into it."""

    inode: int
    path: str
    owner: str


def other_namespaces(root: Root = HOST) -> tuple[tuple[OtherNamespace, ...], tuple[str, ...]]:
    """Every network namespace but this process's own, with its rules; and what could not be read.

    Namespaces that nothing but an open file or a socket keeps alive have no name and are
    not seen.  Loads nothing, as :func:`live_rules`.
    """
    seen = []
    unread = []
    for found in find_namespaces(root):
        try:
            rules = live_rules(root, found.path)
            seen.append(OtherNamespace(found.inode, found.owner, rules, native_notes(rules, root, found.path)))
        except HostError as error:
            if inode_of(root, found.path) == found.inode:  # else it ended meanwhile
                seen.append(OtherNamespace(found.inode, found.owner))
                unread.append(f"network namespace of {found.owner}: {error}")
    return tuple(seen), tuple(unread)


def find_namespaces(root: Root = HOST) -> tuple[Found, ...]:
    """The network namespaces other than this one, by inode; named ones by their name."""
    found: dict[int, Found] = {}
    own = inode_of(root, "/proc/self/ns/net")
    for one in _mounted(root):
        found.setdefault(one.inode, one)
    for one in _of_processes(root, own):
        if one.inode not in found:
            found[one.inode] = one
        elif not found[one.inode].path.startswith("/proc/") and ", " not in found[one.inode].owner:
            found[one.inode] = replace(found[one.inode], owner=f"{found[one.inode].owner}, {one.owner}")
    found.pop(own or 0, None)
    return tuple(found[inode] for inode in sorted(found)[:_MOST])


def _mounted(root: Root) -> Iterator[Found]:
    """Bind mounts of ``ip netns`` and docker.  A file that is no mount is on another device."""
    device = _device(root, "/proc/self/ns/net")
    for place in _MOUNTED:
        for name in root.listdir(place):
            path = f"{place}/{name}"
            inode = inode_of(root, path)
            if inode is not None and device is not None and _device(root, path) == device:
                yield Found(inode, path, path)


def _of_processes(root: Root, own: int | None) -> Iterator[Found]:
    """Processes of every namespace but *own*, which nobody asks about."""
    for pid in sorted(int(name) for name in root.listdir("/proc") if name.isdigit()):
        path = f"/proc/{pid}/ns/net"
        inode = inode_of(root, path)
        if inode is not None and inode != own:
            container = container_of(root, pid)
            yield Found(inode, path, f"pid {pid} ({name_of(root, pid)}{', ' if container else ''}{container})")


def name_of(root: Root, pid: int) -> str:
    """The name of the process *pid*, ``?`` where it has ended."""
    try:
        return (root.read_text(f"/proc/{pid}/comm") or "").strip() or "?"
    except HostError:
        return "?"


def container_of(root: Root, pid: int) -> str:
    """The container or unit of the process *pid*, by its control group; empty where that does not tell."""
    from ..containers import owner_of  # here: a host may have no other namespace

    try:
        return owner_of(root.read_text(f"/proc/{pid}/cgroup") or "")
    except HostError:
        return ""


def inode_of(root: Root, path: str) -> int | None:
    """The number of the namespace to which *path* leads."""
    found = _stat(root, path)
    return found.st_ino if found else None


def _device(root: Root, path: str) -> int | None:
    found = _stat(root, path)
    return found.st_dev if found else None


def _stat(root: Root, path: str) -> os.stat_result | None:
    """The namespace itself: ``/proc/PID/ns/net`` is a link that only the kernel can follow."""
    try:
        return os.stat(os.path.join(root.path, path.lstrip("/")))
    except OSError:
        return None
