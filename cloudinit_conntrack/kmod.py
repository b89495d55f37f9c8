"""Kernel modules: which ones depend on connection tracking, and in which order they go.

Pure: texts and values in, texts and values out.  What is read from ``/proc/modules`` and
``modules.dep`` and what modprobe answers is fetched by :mod:`cloudinit_conntrack.host`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from .errors import ConfigError
from .state import Module

BLOCK_PATH = "/etc/modprobe.d/00-cloudinit-conntrack.conf"

# The two modules that are connection tracking itself; everything else hangs on one of them.
ROOTS = ("nf_conntrack", "ip_conntrack")

# modprobe follows an "install" line for dependencies too, so these few stop every path to
# connection tracking.  The IPv4/IPv6 halves existed up to 4.18 and register the hooks there;
# ip_conntrack is a module of its own on 2.6.18 and an alias of nf_conntrack ever since.
CORE = ("nf_conntrack", "nf_conntrack_ipv4", "nf_conntrack_ipv6", "ip_conntrack")
INSTALL_BLOCKED = CORE

# Everything that depends on nf_conntrack (or ip_conntrack), directly or not, in any era.
# Debian's rows are from depmod's own modules.dep, Red Hat's from the kernel sources.
# Not here: xt_socket.  It needed conntrack on 2.6.32 only, and blocking it would take
# transparent proxying from every later host; modules.dep of such a kernel still names it.
_TABLE: tuple[tuple[str, str], ...] = (
    ("the core", "nf_conntrack ip_conntrack"),
    ("Debian 5.10, 6.1, 6.12, 7.2: helpers, netlink, bridge",
     "nf_conncount nf_conntrack_amanda nf_conntrack_bridge nf_conntrack_broadcast nf_conntrack_ftp"
     " nf_conntrack_h323 nf_conntrack_irc nf_conntrack_netbios_ns nf_conntrack_netlink"
     " nf_conntrack_pptp nf_conntrack_sane nf_conntrack_sip nf_conntrack_snmp nf_conntrack_tftp"
     " nf_synproxy_core nfnetlink_cthelper nfnetlink_cttimeout"),
    ("same: NAT",
     "nf_nat nf_nat_amanda nf_nat_ftp nf_nat_h323 nf_nat_irc nf_nat_pptp nf_nat_sip"
     " nf_nat_snmp_basic nf_nat_tftp iptable_nat ip6table_nat"),
    ("same: x_tables",
     "ipt_SYNPROXY ip6t_SYNPROXY xt_CONNSECMARK xt_CT xt_MASQUERADE xt_NETMAP xt_REDIRECT"
     " xt_cluster xt_connbytes xt_connlabel xt_connlimit xt_connmark xt_conntrack xt_helper"
     " xt_ipvs xt_nat xt_state"),
    ("same: nf_tables and flow tables",
     "nf_flow_table nf_flow_table_inet nft_chain_nat nft_connlimit nft_ct nft_flow_offload"
     " nft_masq nft_nat nft_redir nft_synproxy"),
    ("same: traffic control, IPVS, Open vSwitch",
     "act_connmark act_ct act_ctinfo ip_vs ip_vs_dh ip_vs_fo ip_vs_ftp ip_vs_lblc ip_vs_lblcr"
     " ip_vs_lc ip_vs_mh ip_vs_nq ip_vs_ovf ip_vs_pe_sip ip_vs_rr ip_vs_sed ip_vs_sh ip_vs_wlc"
     " ip_vs_wrr openvswitch vport_geneve vport_gre vport_vxlan"),
    ("Debian 6.12, 7.2", "ip_vs_twos"),
    ("Debian 5.10 and 6.1, Red Hat up to 8", "ipt_CLUSTERIP"),
    ("Debian 5.10, Red Hat 8", "nf_flow_table_ipv4 nf_flow_table_ipv6 ipt_MASQUERADE ip6t_MASQUERADE"),
    ("Red Hat 7 (3.10)",
     "nf_conntrack_ipv4 nf_conntrack_ipv6 nf_conntrack_proto_dccp nf_conntrack_proto_gre"
     " nf_conntrack_proto_sctp nf_conntrack_proto_udplite nf_nat_ipv4 nf_nat_ipv6"
     " nf_nat_masquerade_ipv4 nf_nat_masquerade_ipv6 nf_nat_proto_gre nf_nat_redirect"
     " nft_chain_nat_ipv4 nft_chain_nat_ipv6 nft_masq_ipv4 nft_masq_ipv6 nft_redir_ipv4 nft_redir_ipv6"),
    ("Red Hat 6 (2.6.32)",
     "ipt_NETMAP ipt_REDIRECT nf_nat_proto_dccp nf_nat_proto_sctp nf_nat_proto_udplite"
     " xt_CONNMARK xt_NOTRACK"),
    ("Red Hat 5 (2.6.18)",
     "ip_conntrack_amanda ip_conntrack_ftp ip_conntrack_h323 ip_conntrack_irc"
     " ip_conntrack_netbios_ns ip_conntrack_netlink ip_conntrack_pptp ip_conntrack_proto_sctp"
     " ip_conntrack_sip ip_conntrack_tftp ip_nat ip_nat_amanda ip_nat_ftp ip_nat_h323 ip_nat_irc"
     " ip_nat_pptp ip_nat_sip ip_nat_snmp_basic ip_nat_tftp ipt_SAME"),
)

CONNTRACK_MODULES: tuple[str, ...] = tuple(name for _, names in _TABLE for name in names.split())

# Names that modprobe resolves to a module above (modinfo's aliases), as an old
# iptables-config may write them.  ipt_X and ip6t_X for xt_X are derived, not listed.
_ALIASES = ("ipt_DNAT", "ipt_SNAT", "ip6t_DNAT", "ip6t_SNAT", "nf_nat_snmp", "ip_nat_snmp")

CONNTRACK_NAMES: frozenset[str] = frozenset(CONNTRACK_MODULES + _ALIASES)

# Modules that come with rules, and libraries of them.  Their counts can be believed; a driver's
# cannot: it is 0 while its interfaces are up, and rmmod takes them down.
_PACKET_FILTER = re.compile(
    r"(x|ip|ip6)_tables|ip6?table_\w+|(xt|ipt|ip6t|nf|nft|nfnetlink)_\w+|nfnetlink|ip_(set|conntrack|nat)(_\w+)?"
    r"|bpfilter|libcrc32c"
)
_FAMILY = re.compile(r"(nf|ip)_(conntrack|nat)(_\w+)?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def normal(name: str) -> str:
    """*name* as the kernel spells it: ``-`` is ``_`` (modprobe takes both)."""
    return name.replace("-", "_")


def is_conntrack_module(name: str) -> bool:
    """Whether *name*, a module or an alias of one, cannot be loaded without conntrack."""
    plain = normal(name)
    if plain in CONNTRACK_NAMES or _FAMILY.fullmatch(plain):
        return True
    prefix, _, rest = plain.partition("_")
    return prefix in ("ipt", "ip6t") and f"xt_{rest}" in CONNTRACK_NAMES


def is_packet_filter_module(name: str) -> bool:
    """Whether *name* is one of netfilter's own modules, which come and go with the rules that use them."""
    return _PACKET_FILTER.fullmatch(normal(name)) is not None


def parse_proc_modules(text: str) -> tuple[Module, ...]:
    """The lines of ``/proc/modules``, in the kernel's order (newest first).

    A kernel built without CONFIG_MODULE_UNLOAD prints ``-`` for the count, and a module
    that can never go has ``[permanent]`` among its holders (kernel/module/procfs.c).
    """
    modules: list[Module] = []
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < 4:
            continue
        count = int(fields[2]) if fields[2].isdigit() else 0
        holders = tuple(h for h in fields[3].split(",") if h and not h.startswith(("-", "[")))
        modules.append(Module(fields[0], count, holders))
    return tuple(modules)


def dependants(modules_dep: str) -> tuple[str, ...]:
    """Every module in the text of a ``modules.dep`` that needs conntrack, directly or not; sorted.

    depmod writes behind each module all that it needs, not only what it needs itself
    (kmod: ``mod_get_all_sorted_dependencies``; module-init-tools did the same).
    """
    roots = tuple(f"/{name}.ko" for name in ROOTS)
    rows = (line.partition(":") for line in modules_dep.splitlines() if "conntrack.ko" in line)
    found = {_module_of(left) for left, _, right in rows if any(root in right for root in roots)}
    return tuple(sorted(found - set(ROOTS)))


def _module_of(path: str) -> str:
    """``kernel/net/netfilter/nf_nat.ko.xz`` -> ``nf_nat``."""
    return normal(path.strip().rpartition("/")[2].partition(".ko")[0])


def loaded_dependants(modules: tuple[Module, ...]) -> tuple[str, ...]:
    """The loaded modules that are conntrack or hold it, by the kernel's own list of holders."""
    by_name = {m.name: m for m in modules}
    found: dict[str, None] = {}
    todo = [root for root in ROOTS if root in by_name]
    while todo:
        name = todo.pop()
        if name in by_name and name not in found:
            found[name] = None
            todo.extend(by_name[name].holders)
    return tuple(m.name for m in modules if m.name in found)


def unload_order(modules: tuple[Module, ...], targets: Iterable[str] = ()) -> tuple[str, ...]:
    """The names to unload, leaves first: conntrack, all that depends on it, and *targets*.

    Only loaded modules are named.  What holds one of the *targets* is not added: nobody
    asked for it to go, so unloading then fails and names it.
    """
    wanted = set(loaded_dependants(modules)) | {normal(t) for t in targets}
    left = [m for m in modules if m.name in wanted]
    order: list[str] = []
    while left:
        names = {m.name for m in left}
        ready = [m for m in left if not names.intersection(m.holders)]
        ready = ready or left[:1]  # the kernel has no cycles; never loop on a text that has one
        order.extend(m.name for m in ready)
        left = [m for m in left if m not in ready]
    return tuple(order)


_HEADER = """\
# Written by cloudinit-conntrack (conntrack.modules.block); changes here are overwritten.
#
# "install X /bin/false" makes every path through modprobe fail, dependent modules included.
# "blacklist X" keeps the kernel's requests by alias from trying, and lets
# systemd-modules-load pass over the name instead of failing the unit.
# The file sorts before firewalld's own "install nf_conntrack" line, and the first one counts.
#
# To undo: run "cloudinit-conntrack revert", or remove this file.
"""


def modprobe_conf(extra: Iterable[str] = (), dependants: Iterable[str] = ()) -> str:
    """The text of ``/etc/modprobe.d/00-cloudinit-conntrack.conf`` (modprobe.d(5)).

    *extra* are more modules to block; *dependants* those that a kernel's own modules.dep names,
    as a newer kernel may have some that are not in our table.  :class:`ConfigError` for a name
    that is none, since a line break in it would become a line of its own in the file.
    """
    more = tuple(sorted({normal(_checked(name)) for name in extra} - set(INSTALL_BLOCKED)))
    newer = {normal(name) for name in dependants if _NAME.fullmatch(name)}
    blacklisted = CONNTRACK_MODULES + tuple(sorted(newer.union(more) - set(CONNTRACK_MODULES)))
    lines = [f"install {name} /bin/false" for name in INSTALL_BLOCKED + more]
    lines += [f"blacklist {name}" for name in blacklisted]
    return _HEADER + "\n".join(lines) + "\n"


def dependants_blocked(text: str) -> set[str]:
    """The names that the text of a block blacklists and no more: *extra* ones have an install line too."""
    rows = [line.split() for line in text.splitlines()]
    installed = {row[1] for row in rows if row[:1] == ["install"] and len(row) > 1}
    return {row[1] for row in rows if row[:1] == ["blacklist"] and len(row) == 2} - installed


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is not the name of a kernel module", "conntrack.modules.extra",
                          "use letters, digits, - and _")
    return name
