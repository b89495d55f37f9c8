"""Whose network namespace it is, and what ends it."""

from __future__ import annotations

import re

from ..said import Node
from ..state import OtherNamespace

_NAMED = "/run/netns/"
_PROCESS = re.compile(r"pid (\d+) \(([^,)]*)(?:, ([^)]*))?\)")
# The words of containers.owner_of -> the command that stops what they name.
_STOPPING = (
    ("docker container ", "docker stop "), ("podman container ", "podman stop "), ("CRI-O container ", "crictl stop "),
    ("containerd container ", "crictl stop "), ("Kubernetes container ", "crictl stop "),
    ("lxc container ", "lxc-stop -n "), ("systemd-nspawn machine ", "machinectl terminate "),
    ("machine ", "machinectl terminate "), ("unit ", "systemctl disable --now "),
)


def namespace_node(space: OtherNamespace, path: str, under: str, tables: tuple[Node, ...]) -> Node:
    """The namespace above its owner, and the owner above what it has in it."""
    process = _PROCESS.search(space.owner)
    name = space.owner.split(",")[0] if space.owner.startswith("/") else ""
    inner = tables
    if process is not None:
        inner = (Node(f"owner:{under}:{space.inode}", "owner", f"held by {process[0]}", f"pid {process[1]}",
                      _stopping(process[1], process[3] or ""), tables),)
    what = f"network namespace {name.rpartition('/')[2] or space.inode}"
    remedy = f"ip netns delete {name[len(_NAMED):]}" if name.startswith(_NAMED) else ""
    return Node(f"netns:{under}:{space.inode}", "namespace", what, name or path, remedy, inner)


def _stopping(pid: str, container: str) -> str:
    for words, command in _STOPPING:
        if container.startswith(words):
            return command + container[len(words):]
    return f"kill {pid}"
