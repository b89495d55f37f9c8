"""The saved files that a boot reads: rules, and the module lists beside them."""

from __future__ import annotations

from ..errors import HostError
from ..state import SavedFile
from .root import HOST, Root

# path, kind, family
PLACES: tuple[tuple[str, str, str], ...] = (
    ("/etc/sysconfig/iptables", "rules", "ipv4"),  # Red Hat: iptables.service
    ("/etc/sysconfig/ip6tables", "rules", "ipv6"),
    ("/etc/sysconfig/iptables.fallback", "rules", "ipv4"),  # loaded when the first does not load (EL7 and newer)
    ("/etc/sysconfig/ip6tables.fallback", "rules", "ipv6"),
    ("/etc/iptables/rules.v4", "rules", "ipv4"),  # Debian: netfilter-persistent.service
    ("/etc/iptables/rules.v6", "rules", "ipv6"),
    ("/etc/sysconfig/iptables-config", "iptables-config", "ipv4"),
    ("/etc/sysconfig/ip6tables-config", "iptables-config", "ipv6"),
    ("/etc/default/ufw", "ufw-defaults", "ipv4"),
)

_MOST_ASSIGNMENTS = 256 * 1024


def find_saved(root: Root = HOST) -> tuple[SavedFile, ...]:
    """The saved files that are there.  :class:`HostError` for one that is no regular file."""
    found = (saved_file(root, *place) for place in PLACES)
    return tuple(item for one in found for item in one)


def saved_file(root: Root, path: str, kind: str, family: str) -> tuple[SavedFile, ...]:
    """The file at *path*, or nothing when there is none."""
    image = root.read_image(path)
    if image is None:
        return ()
    if kind != "rules" and len(image.content) > _MOST_ASSIGNMENTS:
        what = f"is larger than {_MOST_ASSIGNMENTS >> 10} KiB"
        raise HostError(what, path, "see whether this really is a file of settings")
    return (SavedFile(path, kind, family, image),)
