"""What connection tracking does right now, in each network namespace.  Only reads: nothing here loads a module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from ..errors import HostError
from ..state import OtherNamespace, State
from ..tracking import (
    HOOK_FAMILIES,
    Counters,
    Listener,
    Space,
    Tracking,
    event_sockets,
    stat_columns,
    virtual_services,
)
from . import kernel
from .hooks import hooked_families
from .namespaces import container_of, find_namespaces, inode_of, name_of
from .native import foreign_listing
from .process import run
from .root import HOST, Root

# The newest name first; the last ones are those of 2.6.18 (ip_conntrack).
_COUNT = ("/proc/sys/net/netfilter/nf_conntrack_count", "/proc/sys/net/ipv4/netfilter/ip_conntrack_count")
_LIMIT = ("/proc/sys/net/netfilter/nf_conntrack_max", "/proc/sys/net/nf_conntrack_max",
          "/proc/sys/net/ipv4/netfilter/ip_conntrack_max", "/proc/sys/net/ipv4/ip_conntrack_max")
_BUCKETS = ("/proc/sys/net/netfilter/nf_conntrack_buckets", "/sys/module/nf_conntrack/parameters/hashsize",
            "/proc/sys/net/ipv4/netfilter/ip_conntrack_buckets")
_STAT = ("/proc/net/stat/nf_conntrack", "/proc/net/stat/ip_conntrack")
_MOST_PROCESSES = 20_000
_NOT_TOLD = tuple((family, None) for family in HOOK_FAMILIES)
TOLD = "nft list hooks"


def observe_tracking(state: State, root: Root = HOST) -> Tracking:
    """The counters, hooks and users of the host that *state* describes; nothing for an image tree.

    Where conntrack is absent nothing is looked at: there is nothing to count.
    """
    if state.kernel is None or state.kernel.conntrack == "absent":
        return Tracking()
    own = Space(inode_of(root, "/proc/self/ns/net") or 0, "this host", "", _number(_first(root, _COUNT)),
                *_hooks(root, None))
    return Tracking(counters(root), (own, *_others(state.namespaces, root)), tuple(_listeners(root)),
                    virtual_services(_text(root, "/proc/net/ip_vs")))


def counters(root: Root = HOST) -> Counters:
    """The counters of this network namespace."""
    return Counters(_number(_first(root, _COUNT)), _number(_first(root, _LIMIT)), _number(_first(root, _BUCKETS)),
                    stat_columns(_first(root, _STAT)))


def _others(namespaces: tuple[OtherNamespace, ...], root: Root) -> Iterator[Space]:
    paths = {found.inode: found.path for found in find_namespaces(root)} if namespaces else {}
    for other in namespaces:
        path = paths.get(other.inode)
        if path is None:  # it ended meanwhile
            continue
        with suppress(HostError):
            yield Space(other.inode, other.owner, path, _entries(root, path), *_hooks(root, path),
                        foreign_listing(other.rules, path) if other.native else "")


def _entries(root: Root, path: str) -> int | None:
    """The entries of another namespace: what /proc/sys/net shows depends on who looks."""
    count = next(filter(root.exists, _COUNT), "")
    return _number(run(["cat", count], check=False, netns=path).stdout.strip()) if count else None


def _hooks(root: Root, path: str | None) -> tuple[tuple[tuple[str, bool | None], ...], str]:
    told = hooked_families(root, path)
    return (_NOT_TOLD, "") if told is None else (told, TOLD)


def _listeners(root: Root) -> Iterator[Listener]:
    """Processes with a socket for conntrack's events; asked only where their module is there."""
    if not kernel.available(root, "nf_conntrack_netlink"):
        return
    wanted = dict((inode, port) for port, inode in event_sockets(_text(root, "/proc/net/netlink")))
    likely = [str(port) for port in wanted.values()]  # a socket's port is its process's id, unless that has several
    for pid in dict.fromkeys((*likely, *root.listdir("/proc")[:_MOST_PROCESSES])):
        if not wanted:
            return
        held = _sockets(root, pid) & set(wanted) if pid.isdigit() else set()
        if held:
            yield Listener(int(pid), name_of(root, int(pid)), container_of(root, int(pid)))
        wanted = {inode: port for inode, port in wanted.items() if inode not in held}


def _sockets(root: Root, pid: str) -> set[str]:
    """The inodes of the sockets that *pid* has open: its descriptors are links to ``socket:[N]``."""
    with suppress(HostError):
        targets = (root.link_text(f"/proc/{pid}/fd/{name}") for name in root.listdir(f"/proc/{pid}/fd"))
        return {target[8:-1] for target in targets if target.startswith("socket:[")}
    return set()


def _first(root: Root, paths: tuple[str, ...]) -> str:
    return next(filter(None, (_text(root, path).strip() for path in paths)), "")


def _text(root: Root, path: str) -> str:
    with suppress(HostError):
        return root.read_text(path) or ""
    return ""


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None
