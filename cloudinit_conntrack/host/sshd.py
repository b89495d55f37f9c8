"""The ports that sshd listens on: from its configuration, its sockets, and systemd's socket unit."""

from __future__ import annotations

import fnmatch
import posixpath
import re
from collections.abc import Iterator
from contextlib import suppress

from ..errors import HostError
from .listening import listening
from .root import HOST, Root

DEFAULT = (22,)

_CONFIG = "/etc/ssh/sshd_config"
_DEPTH = 16  # of Include, as sshd itself: SERVCONF_MAX_DEPTH
_UNITS = ("ssh.socket", "sshd.socket")
_UNIT_PLACES = ("/etc/systemd/system", "/run/systemd/system", "/run/systemd/generator",
                "/usr/lib/systemd/system", "/lib/systemd/system")


def sshd_ports(root: Root = HOST, live: bool = True) -> tuple[int, ...]:
    """The TCP ports on which sshd is reachable, sorted; 22 when nothing says otherwise.

    Both what is configured, which holds at the next start, and with *live* what is listened
    on now.  A socket that systemd holds for sshd counts when the configuration or the
    socket unit names its port.
    """
    configured = _configured(root)
    ports = set(configured)
    if live:
        ports_by_inode = {found.inode: found.port for found in listening(root)}
        ports |= _ports_of(root, ports_by_inode, "sshd")
        ports |= _ports_of(root, ports_by_inode, "systemd", only_pid="1") & set(_unit_ports(root))
    elif _unit_enabled(root):
        ports |= set(_unit_ports(root))
    return tuple(sorted(ports)) or DEFAULT


def _configured(root: Root) -> tuple[int, ...]:
    """sshd_config(5): a ListenAddress without a port uses every Port; none of either is port 22."""
    ports: list[int] = []
    explicit: list[int] = []
    bare = False
    for keyword, value in _settings(root, _CONFIG, _DEPTH):
        if keyword == "port" and value.isdigit():
            ports.append(int(value))
        elif keyword == "listenaddress":
            port = _port_of(value)
            bare = bare or port is None
            explicit += [port] if port is not None else []
    if explicit and not bare:
        ports = []
    elif not ports:
        ports = list(DEFAULT)
    return tuple(p for p in (*explicit, *ports) if 0 < p < 65536)


def _settings(root: Root, path: str, depth: int) -> Iterator[tuple[str, str]]:
    """Keyword (lower case) and first value of each line, includes followed, up to a Match block."""
    text = _text(root, path)
    for line in (text or "").splitlines():
        words = re.findall(r'"([^"]*)"|([^\s"=]+)', line.partition("#")[0])
        plain = [quoted or bare for quoted, bare in words]
        if len(plain) < 2:
            continue
        keyword = plain[0].lower()
        if keyword == "match":
            return  # Port and ListenAddress are not allowed in there
        if keyword == "include" and depth:
            for pattern in plain[1:]:
                for found in _matching(root, posixpath.join("/etc/ssh", pattern)):
                    yield from _settings(root, found, depth - 1)
        yield keyword, plain[1]


def _matching(root: Root, pattern: str) -> tuple[str, ...]:
    """The files that *pattern* names; wildcards in the last component, as everybody writes them."""
    directory, name = posixpath.split(pattern)
    return tuple(f"{directory}/{n}" for n in root.listdir(directory) if fnmatch.fnmatchcase(n, name))


def _port_of(address: str) -> int | None:
    """The port in ``host:port`` or ``[v6]:port``; a bare IPv6 address has none."""
    found = re.fullmatch(r"(?:\[[^\]]*\]|[^:\[\]]*):(\d{1,5})", address)
    return int(found.group(1)) if found else None


def _ports_of(root: Root, ports_by_inode: dict[str, int], comm: str, only_pid: str = "") -> set[int]:
    ports: set[int] = set()
    for pid in (only_pid,) if only_pid else root.listdir("/proc"):
        if pid.isdigit() and (_text(root, f"/proc/{pid}/comm") or "").strip() == comm:
            ports |= {ports_by_inode[inode] for inode in _sockets(root, pid) if inode in ports_by_inode}
    return ports


def _sockets(root: Root, pid: str) -> frozenset[str]:
    """The inodes of the sockets that *pid* has open: its descriptors are links to ``socket:[N]``."""
    with suppress(HostError):
        names = root.listdir(f"/proc/{pid}/fd")
        targets = (root.link_text(f"/proc/{pid}/fd/{name}") for name in names)
        return frozenset(t[8:-1] for t in targets if t.startswith("socket:["))
    return frozenset()


def _unit_ports(root: Root) -> tuple[int, ...]:
    """ListenStream of the socket unit and its drop-ins, systemd.socket(5)."""
    values: list[str] = []
    for unit in _UNITS:
        files = [f"{place}/{unit}" for place in _UNIT_PLACES]
        first = next((path for path in files if root.exists(path)), None)
        drops = [f"{path}.d/{n}" for path in files for n in root.listdir(f"{path}.d") if n.endswith(".conf")]
        for path in ([first] if first else []) + drops:
            found = re.findall(r"^\s*ListenStream\s*=\s*(\S*)\s*$", _text(root, path) or "", re.MULTILINE)
            values.extend(found)
    numbers = (value.rpartition(":")[2] for value in values)
    return tuple(int(n) for n in numbers if n.isdigit() and 0 < int(n) < 65536)


def _unit_enabled(root: Root) -> bool:
    """Whether an image starts the socket unit (``systemctl enable`` makes this link)."""
    return any(unit in root.listdir("/etc/systemd/system/sockets.target.wants") for unit in _UNITS)


def _text(root: Root, path: str) -> str | None:
    with suppress(HostError):  # a process ends while we look; a file of ours to read may be odd
        return root.read_text(path)
    return None
