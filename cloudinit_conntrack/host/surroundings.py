"""Files of other programs that may bring conntrack back, and the units that start them.

Only the file names are known here; what a file means is decided by
:mod:`cloudinit_conntrack.planning.surroundings`.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import HostError
from ..scripts import restored_files
from ..state import FileImage, FoundFile, SavedFile, Surroundings
from .root import HOST, Root
from .saved import saved_file
from .units import find_units

FILES = (
    "/etc/sysctl.conf", "/etc/modules", "/etc/modprobe.conf", "/etc/default/grub", "/etc/kernel/cmdline",
    "/etc/waagent.conf", "/etc/ufw/ufw.conf", "/etc/default/ufw", "/etc/docker/daemon.json",
    "/etc/keepalived/keepalived.conf", "/etc/ipvsadm.rules", "/etc/sysconfig/ipvsadm",
    "/etc/tuned/active_profile", "/etc/ulogd.conf", "/etc/collectd.conf",
    "/etc/collectd/collectd.conf", "/etc/fail2ban/jail.local",
    "/etc/ufw/before.init", "/etc/ufw/after.init", "/etc/network/interfaces", "/etc/rc.local", "/etc/rc.d/rc.local",
    "/etc/crontab",
)
# directory, what its files' names end with
DIRECTORIES = (
    ("/etc/sysctl.d", ".conf"), ("/usr/local/lib/sysctl.d", ".conf"), ("/usr/lib/sysctl.d", ".conf"),
    ("/etc/modules-load.d", ".conf"), ("/usr/local/lib/modules-load.d", ".conf"), ("/usr/lib/modules-load.d", ".conf"),
    ("/etc/modprobe.d", ".conf"), ("/usr/local/lib/modprobe.d", ".conf"), ("/usr/lib/modprobe.d", ".conf"),
    ("/lib/modprobe.d", ".conf"), ("/etc/default/grub.d", ".cfg"), ("/etc/ufw", ".rules"),
    ("/etc/network/interfaces.d", ""), ("/etc/network/if-pre-up.d", ""), ("/etc/network/if-up.d", ""),
    ("/etc/network/if-down.d", ""), ("/etc/network/if-post-down.d", ""), ("/etc/NetworkManager/dispatcher.d", ""),
    ("/etc/networkd-dispatcher/routable.d", ""), ("/etc/cron.d", ""), ("/etc/sysconfig/modules", ".modules"),
    ("/etc/NetworkManager/system-connections", ""), ("/etc/systemd/network", ".network"),
    ("/etc/containers/systemd", ".container"), ("/etc/libvirt/qemu/networks/autostart", ".xml"),
    ("/etc/cni/net.d", ""), ("/etc/fail2ban/jail.d", ""), ("/etc/collectd/collectd.conf.d", ".conf"),
    ("/etc/collectd.d", ".conf"), ("/usr/share/netfilter-persistent/plugins.d", ""),
)
_LAYERED = ("sysctl.d", "modules-load.d", "modprobe.d")  # the order above is their order of precedence
_LINKED = ("/etc/libvirt/qemu/networks/autostart/",)  # links to definitions beside it; only looked at
_TUNED = ("/etc/tuned", "/etc/tuned/profiles", "/usr/lib/tuned", "/usr/lib/tuned/profiles")
_MOST = 256 * 1024
_MOST_FILES = 2_000


def find_surroundings(root: Root = HOST, live: bool = False) -> Surroundings:
    """What is below *root*; *live*: also which units are active, and the running kernel's command line."""
    found: dict[str, FoundFile] = {}
    for path in (*FILES, *_in_directories(root), *_of_tuned(root)):
        image = _file(root, path) if len(found) < _MOST_FILES else None
        if image is not None:
            found.setdefault(path, FoundFile(path, image))
    command_line = (root.read_text("/proc/cmdline") or "").strip() if live else ""
    return Surroundings(find_units(root, live), tuple(found.values()), command_line)


def restored(root: Root, surroundings: Surroundings) -> tuple[SavedFile, ...]:
    """The saved rules that a script of *surroundings* restores at boot: ``iptables-restore < FILE``."""
    places: dict[str, str] = {}
    for file in surroundings.files:
        for path, family in restored_files(file):
            places.setdefault(path, family)
    found = (saved_file(root, path, "rules", family) for path, family in places.items())
    return tuple(item for one in found for item in one)


def _in_directories(root: Root) -> Iterator[str]:
    seen: set[tuple[str, str]] = set()
    for place, suffix in DIRECTORIES:
        kind = place.rpartition("/")[2]
        for name in (n for n in root.listdir(place) if n.endswith(suffix)):
            # One name counts once, the first (sysctl.d(5) and its like): a link to /dev/null masks the others.
            if kind not in _LAYERED or (kind, name) not in seen:
                yield f"{place}/{name}"
            seen.add((kind, name))


def _of_tuned(root: Root) -> Iterator[str]:
    """The files of the profiles that are active; a profile may include others, which are looked at too."""
    words = (_text(root, "/etc/tuned/active_profile")).split()
    seen: set[str] = set()
    while words and len(seen) < 64:
        name = words.pop()
        if name in seen or "/" in name or name in (".", ".."):
            continue
        seen.add(name)
        for path in (f"{place}/{name}/tuned.conf" for place in _TUNED):
            text = _text(root, path)
            if text:
                yield path
                included = (x.partition("=")[2] for x in text.splitlines() if x.strip().startswith("include"))
                words += [word.strip() for line in included for word in line.split(",")]
                break


def _text(root: Root, path: str) -> str:
    image = _file(root, path)
    return image.content.decode("utf-8", "replace") if image else ""


def _file(root: Root, path: str) -> FileImage | None:
    """The file, if it is a regular one of a believable size; a link is another file's second name, or a mask."""
    try:
        if path.startswith(_LINKED):
            return FileImage(root.read_bytes(path) or b"")
        image = root.read_image(path)
    except HostError:
        return None
    return image if image is not None and len(image.content) <= _MOST else None
