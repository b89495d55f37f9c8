"""A host with everything that a tree can hold, as values: for the tests of the tree, its drawing and its picture."""

from __future__ import annotations

from cloudinit_conntrack.kmod import parse_proc_modules
from cloudinit_conntrack.report import Sight
from cloudinit_conntrack.said import Node
from cloudinit_conntrack.state import (
    FileImage,
    FoundFile,
    Kernel,
    LiveRules,
    NativeFile,
    NativeRules,
    OtherNamespace,
    SavedFile,
    State,
    Surroundings,
    Units,
)
from cloudinit_conntrack.status import make_status
from cloudinit_conntrack.tracking import Counters, Listener, Space, Tracking, VirtualService
from cloudinit_conntrack.tree.building import make_tree
from cloudinit_conntrack.tree.uses import all_uses

HOSTILE = r'say \"hi\" \\ $(reboot) <b>&amp;'
FILTER = f"""\
*raw
:PREROUTING ACCEPT [0:0]
[0:0] -A PREROUTING -p tcp -m tcp --dport 443 -j CT --notrack
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:DOCKER - [0:0]
[0:0] -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
[0:0] -A DOCKER -p tcp -m tcp --dport 8080 -j REDIRECT --to-ports 80
COMMIT
*filter
:INPUT ACCEPT [0:0]
[3:180] -A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
[3:180] -A INPUT -i lo -j ACCEPT
[3:180] -A INPUT -s 10.0.0.1/32 -p tcp -m state --state NEW -m tcp --dport 22 -j ACCEPT
[3:180] -A INPUT -m comment --comment "{HOSTILE}" -m conntrack --ctstate INVALID -j DROP
[3:180] -A INPUT -p tcp -m state --state NEW -m connlimit --connlimit-above 3 -j DROP
COMMIT
"""
SAVED = b"""\
*filter
:INPUT ACCEPT [0:0]
-A INPUT -p tcp -m tcp --dport 22 -m conntrack --ctstate NEW -s 10.0.0.1 -j ACCEPT
-A INPUT -m state --state ESTABLISHED,RELATED -j ACCEPT
COMMIT
"""
LISTING = (
    '{"nftables": [{"table": {"family": "inet", "name": "fw", "handle": 1}},'
    '{"chain": {"family": "inet", "table": "fw", "name": "input", "handle": 1, "type": "filter", "hook": "input",'
    ' "prio": 0, "policy": "accept"}},'
    '{"rule": {"family": "inet", "table": "fw", "chain": "input", "handle": 3, "expr": [{"match": {"op": "in",'
    ' "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}}, {"accept": null}]}}]}'
)
INSIDE = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -m state --state NEW -j ACCEPT\nCOMMIT\n"
MODULES = """\
nf_conntrack_netlink 40960 0 - Live 0x0
ip_vs_rr 16384 1 - Live 0x0
ip_vs 180224 3 ip_vs_rr, Live 0x0
act_ct 16384 1 - Live 0x0
nft_ct 16384 2 - Live 0x0
iptable_nat 16384 1 - Live 0x0
xt_connlimit 16384 1 - Live 0x0
nf_conncount 16384 1 xt_connlimit, Live 0x0
nf_conntrack_ftp 16384 0 - Live 0x0
xt_CT 16384 1 - Live 0x0
xt_conntrack 16384 6 - Live 0x0
xt_REDIRECT 16384 1 - Live 0x0
nf_nat 16384 2 xt_REDIRECT,iptable_nat, Live 0x0
nf_conntrack 180224 10 nf_conntrack_netlink,ip_vs,act_ct,nft_ct,xt_connlimit,nf_conncount,nf_conntrack_ftp,xt_CT,\
xt_conntrack,nf_nat, Live 0x0
nf_defrag_ipv4 16384 1 nf_conntrack, Live 0x0
"""
KERNEL = Kernel("6.1.0", True, False, "loaded", True, parse_proc_modules(MODULES), entries=12)
UNITS = Units(enabled=frozenset(("netfilter-persistent.service", "conntrackd.service", "docker.socket")),
              active=frozenset(("docker.service", "docker.socket")))  # fmt: skip
STATE = State(
    KERNEL,
    (LiveRules("legacy", "ipv4", FILTER),),
    (
        SavedFile("/etc/iptables/rules.v4", "rules", "ipv4", FileImage(SAVED)),
        SavedFile("/etc/sysconfig/iptables-config", "iptables-config", "ipv4",
                  FileImage(b'# lists\nIPTABLES_MODULES="ip_conntrack_ftp"\n')),
    ),
    namespaces=(
        OtherNamespace(7, "/run/netns/blue, pid 40 (haproxy)", (LiveRules("legacy", "ipv4", INSIDE),)),
        OtherNamespace(8, "pid 41 (nginx, docker container 0123456789ab)", (), ("native nftables: table inet fw ...",)),
        OtherNamespace(9, "pid 42 (sh)"),
    ),
    native=NativeRules(LISTING),
    native_saved=(NativeFile("/etc/nftables.conf", FileImage(b""),
                             "table inet fw {\n  chain input {\n    ct state { established,related }  accept\n"
                             "    ct state established,related accept\n  }\n}\n"),),
    surroundings=Surroundings(UNITS, (FoundFile("/etc/modules-load.d/x.conf", FileImage(b"# x\nnf-conntrack\n")),)),
)  # fmt: skip
TRACKING = Tracking(
    Counters(80, 100, 64, (("insert", 5), ("found", 1), ("drop", 2))),
    (
        Space(1, "this host", "", 80, (("ipv4", None), ("ipv6", None), ("bridge", None))),
        Space(7, "/run/netns/blue, pid 40 (haproxy)", "/run/netns/blue", 3,
              (("ipv4", True), ("ipv6", False), ("bridge", False)), "nft list hooks"),
        Space(8, "pid 41 (nginx, docker container 0123456789ab)", "/proc/41/ns/net", 0,
              (("ipv4", None), ("ipv6", None), ("bridge", None)), "", LISTING),
        Space(9, "pid 42 (sh)", "/proc/42/ns/net", 0, (("ipv4", None), ("ipv6", None), ("bridge", None))),
    ),
    (Listener(50, "conntrackd", "unit conntrackd.service"), Listener(51, "conntrack")),
    (VirtualService("-t", "10.0.0.1:80", "rr"),),
)  # fmt: skip


def tree_of(state: State = STATE, tracking: Tracking = TRACKING) -> tuple[Node, ...]:
    return make_tree(state, tracking, all_uses(state, tracking))


def sight_of(state: State = STATE, tracking: Tracking = TRACKING) -> Sight:
    found = make_status(state, "unload", "", tracking).sight
    assert found is not None
    return found
