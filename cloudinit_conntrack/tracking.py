"""What connection tracking does right now, as values: counters, hooks by namespace, who listens, IPVS services.

Pure: the texts of ``/proc`` in, values out.  :mod:`cloudinit_conntrack.host.tracking` reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

HOOK_FAMILIES = ("ipv4", "ipv6", "bridge")
# nft's word for a family -> ours.  A hook of "inet" is one of each IP family (nft(8), "ADDRESS FAMILIES").
_NFT_FAMILIES = {"ip": ("ipv4",), "ip6": ("ipv6",), "inet": ("ipv4", "ipv6"), "bridge": ("bridge",)}
# net/netfilter/nf_conntrack_proto.c and nf_conntrack_bridge.c; up to 6.1 confirming was a function per family.
_FUNCTIONS = frozenset((
    "ipv4_conntrack_in", "ipv4_conntrack_local", "ipv6_conntrack_in", "ipv6_conntrack_local", "nf_confirm",
    "ipv4_confirm", "ipv6_confirm", "nf_ct_bridge_pre", "nf_ct_bridge_post", "nf_ct_bridge_in",
))
_MODULES = frozenset(("[nf_conntrack]", "[nf_conntrack_bridge]"))


@dataclass(frozen=True)
class Counters:
    """The table of this network namespace.

    *entries* of at most *limit*, in *buckets* hash buckets; *columns* are the other counts of
    ``/proc/net/stat/nf_conntrack`` since the namespace began, summed over all CPUs, by the
    kernel's own names.  ``None`` and no columns where the kernel does not tell.  ``insert``
    counts every new connection on old kernels (2.6 to 4.8), and only those that a program wrote
    since (measured on 6.18: 29 new entries, insert 0); the change of *entries* tells more there.
    """

    entries: int | None = None
    limit: int | None = None
    buckets: int | None = None
    columns: tuple[tuple[str, int], ...] = ()

    @property
    def percent_full(self) -> int | None:
        """How full the table is, rounded down; ``None`` where that is not told, or there is no limit."""
        return self.entries * 100 // self.limit if self.entries is not None and self.limit else None

    def column(self, name: str) -> int | None:
        """The count *name*, or ``None``."""
        return dict(self.columns).get(name)


@dataclass(frozen=True)
class Space:
    """One network namespace: *own* is that of the host.

    *hooks* says for each of :data:`HOOK_FAMILIES` whether conntrack is hooked in (``None``: not
    told), *evidence* by what.  *path* leads into it, *listing* is the JSON of its native nft
    tables where they use conntrack.
    """

    inode: int
    owner: str
    path: str
    entries: int | None = None
    hooks: tuple[tuple[str, bool | None], ...] = ()
    evidence: str = ""
    listing: str = ""

    @property
    def own(self) -> bool:
        """Whether it is the host's own."""
        return not self.path


@dataclass(frozen=True)
class Listener:
    """A process that listens to conntrack's events over netlink."""

    pid: int
    name: str
    owner: str = ""


@dataclass(frozen=True)
class VirtualService:
    """One service of IPVS: *address* as ipvsadm takes it behind *option* (``-t``, ``-u``, ``-f``)."""

    option: str
    address: str
    scheduler: str


@dataclass(frozen=True)
class Tracking:
    """Everything of this file, looked at once.  *counters* is ``None`` where conntrack is absent."""

    counters: Counters | None = None
    spaces: tuple[Space, ...] = ()
    listeners: tuple[Listener, ...] = ()
    services: tuple[VirtualService, ...] = ()

    def space(self, inode: int) -> Space | None:
        """The namespace *inode*, or ``None``."""
        return next((s for s in self.spaces if s.inode == inode), None)


def stat_columns(text: str) -> tuple[tuple[str, int], ...]:
    """The columns of ``/proc/net/stat/nf_conntrack``, summed over the lines, one for each CPU.

    The header names them and they changed between kernels (``searched`` and ``delete_list`` became
    ``clashres`` and ``chainlength``).  ``entries`` is left out: every line repeats the whole table's.
    A line of another length is not counted.
    """
    rows = [line.split() for line in text.splitlines() if line.strip()]
    if not rows:
        return ()
    names, counts = rows[0], [row for row in rows[1:] if len(row) == len(rows[0]) and all(map(_is_hex, row))]
    sums = [sum(int(row[at], 16) for row in counts) for at in range(len(names))]
    return tuple((name, total) for name, total in zip(names, sums) if name != "entries") if counts else ()


def _is_hex(word: str) -> bool:
    return bool(word) and all(char in "0123456789abcdefABCDEF" for char in word)


def hooks_of(text: str) -> tuple[str, ...]:
    """Conntrack's functions in the answer *text* of ``nft list hooks``, each once."""
    return tuple(dict.fromkeys(function for _, function in _hooked(text)))


def families_of(text: str) -> tuple[tuple[str, bool | None], ...]:
    """For each family whether the answer *text* of ``nft list hooks`` names conntrack below it."""
    found = {family for word, _ in _hooked(text) for family in _NFT_FAMILIES.get(word, ())}
    return tuple((family, family in found) for family in HOOK_FAMILIES)


def _hooked(text: str) -> Iterator[tuple[str, str]]:
    """(nft's family, function) of each hook of conntrack."""
    family = ""
    for words in (line.split() for line in text.splitlines()):
        if words[:1] == ["family"]:
            family = words[1] if len(words) > 1 else ""
        functions = [word for word in words if word in _FUNCTIONS]
        if functions or _MODULES.intersection(words):
            yield family, functions[0] if functions else " ".join(words[1:])


def event_sockets(text: str) -> tuple[tuple[int, str], ...]:
    """(port, inode) of the netlink sockets of ``/proc/net/netlink`` that listen to conntrack's events.

    Protocol 12 is NETLINK_NETFILTER; groups 1 to 6 are NFNLGRP_CONNTRACK_NEW to
    NFNLGRP_CONNTRACK_EXP_DESTROY (linux/netfilter/nfnetlink_compat.h); a port is most often the pid.
    """
    rows = (line.split() for line in text.splitlines()[1:])
    return tuple((int(row[2]), row[-1]) for row in rows
                 if len(row) >= 10 and row[1] == "12" and row[2].isdigit() and _is_hex(row[3])
                 and int(row[3], 16) & 0x3F)


def virtual_services(text: str) -> tuple[VirtualService, ...]:
    """The services in the text of ``/proc/net/ip_vs`` (net/netfilter/ipvs/ip_vs_ctl.c, ip_vs_info_seq_show)."""
    found = []
    for words in (line.split() for line in text.splitlines()):
        if words[:1] == ["FWM"] and len(words) > 2 and _is_hex(words[1]):
            found.append(VirtualService("-f", str(int(words[1], 16)), words[2]))
        elif words and words[0] in _OPTIONS and len(words) > 2:
            found.append(VirtualService(_OPTIONS[words[0]], _address(words[1]), words[2]))
    return tuple(found)


_OPTIONS = {"TCP": "-t", "UDP": "-u", "SCTP": "--sctp-service"}


def _address(text: str) -> str:
    """``0A000001:0050`` -> ``10.0.0.1:80``; IPv6 has brackets and all its zeros."""
    host, _, port = text.rpartition(":")
    number = str(int(port, 16)) if _is_hex(port) else port
    if len(host) == 8 and _is_hex(host):
        return ".".join(str(int(host[at:at + 2], 16)) for at in range(0, 8, 2)) + f":{number}"
    from ipaddress import AddressValueError, IPv6Address  # here: few hosts have such a service

    try:
        return f"[{IPv6Address(host.strip('[]'))}]:{number}"
    except AddressValueError:
        return f"{host}:{number}"
