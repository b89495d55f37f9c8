"""Who keeps a module in use: each by name, with what frees it."""

from __future__ import annotations

from cloudinit_conntrack.holders import all_holders, foreign_holders, rule_uses
from cloudinit_conntrack.kmod import parse_proc_modules
from cloudinit_conntrack.state import Kernel, LiveRules, OtherNamespace, State

TABLES = """\
*nat
:PREROUTING ACCEPT [0:0]
-A PREROUTING -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 8080
COMMIT
*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A PREROUTING -p tcp -m tcp --dport 81 -j ACCEPT
-A PREROUTING -p tcp -m tcp --dport 80 -j CT --notrack
COMMIT
*filter
:INPUT ACCEPT [0:0]
[3:180] -A INPUT -i lo -j ACCEPT
[3:180] -A INPUT -m state --state NEW -j ACCEPT
[3:180] -A INPUT -p tcp -m connlimit --connlimit-above 3 -j DROP
COMMIT
"""


def kernel(*lines: str) -> Kernel:
    """A kernel with the modules of *lines*: name, count, holders."""
    text = "".join(f"{name} 16384 {count} {holders} Live 0x0\n" for name, count, holders in map(str.split, lines))
    return Kernel("6.1.0", True, False, "loaded", True, parse_proc_modules(text))


LOADED = kernel(
    "xt_connlimit 1 -",
    "nf_conncount 1 xt_connlimit,",
    "xt_CT 1 -",
    "xt_conntrack 1 -",
    "xt_REDIRECT 1 -",
    "nf_nat 1 xt_REDIRECT,",
    "nf_conntrack 5 xt_conntrack,nf_nat,xt_CT,nf_conncount,xt_connlimit,",
    "nf_defrag_ipv4 1 nf_conntrack,",
)


def test_rules_by_back_end_family_table_chain_and_number() -> None:
    found = all_holders(State(LOADED, (LiveRules("nft", "ipv6", TABLES),)))
    assert [(h.module, h.where) for h in found if h.kind == "rule"] == [
        ("xt_REDIRECT", "iptables-nft ipv6, table nat, chain PREROUTING, rule 1"),
        ("xt_CT", "iptables-nft ipv6, table raw, chain PREROUTING, rule 2"),
        ("xt_conntrack", "iptables-nft ipv6, table filter, chain INPUT, rule 2"),
        ("xt_connlimit", "iptables-nft ipv6, table filter, chain INPUT, rule 3"),
    ]
    assert [h.remedy for h in found if h.kind == "rule"] == [
        "ip6tables-nft -t nat -D PREROUTING 1",
        "ip6tables-nft -t raw -D PREROUTING 2",
        "ip6tables-nft -t filter -D INPUT 2",
        "ip6tables-nft -t filter -D INPUT 3",
    ]
    assert all(h.what in TABLES for h in found if h.kind == "rule")
    assert len({h.id for h in found}) == len(found)
    assert [h for h in found if h.kind == "unseen"] == []


def test_modules_that_depend_on_it() -> None:
    found = [h for h in all_holders(State(LOADED)) if h.kind == "module"]
    assert [(h.module, h.where) for h in found if h.module == "nf_conntrack"] == [
        ("nf_conntrack", f"module {name}")
        for name in ("xt_conntrack", "nf_nat", "xt_CT", "nf_conncount", "xt_connlimit")
    ]
    assert {h.remedy for h in found} >= {"rmmod xt_conntrack", "rmmod xt_REDIRECT"}
    assert not [h for h in found if h.module == "nf_defrag_ipv4"]  # it is no part of conntrack


def test_rules_in_another_namespace() -> None:
    blue = OtherNamespace(42, "/run/netns/blue", (LiveRules("legacy", "ipv4", TABLES),))
    green = OtherNamespace(43, "pid 7 (pod)", (LiveRules("legacy", "ipv4", "*filter\nCOMMIT\n"),))
    state = State(kernel("xt_conntrack 1 -", "nf_conntrack 1 xt_conntrack,"), namespaces=(blue, green))
    found = foreign_holders(state)
    assert [h.id for h in found] == ["namespace:42:1", "namespace:42:2", "namespace:42:3", "namespace:42:4"]
    where = "network namespace of /run/netns/blue: iptables-legacy ipv4, table filter, chain INPUT, rule 2"
    assert (found[2].where, found[2].module, found[2].kind) == (where, "xt_conntrack", "namespace")
    assert "keeps xt_conntrack in use" in found[2].what and "namespace" in found[2].remedy
    assert [h for h in all_holders(state) if h.kind == "unseen"] == []


def test_users_that_no_rule_accounts_for_are_told_and_not_guessed() -> None:
    """They block nothing: a native nft rule may be among those that go."""
    state = State(kernel("nft_ct 1 -", "xt_conntrack 3 -", "nf_conntrack 2 xt_conntrack,nft_ct,"),
                  (LiveRules("legacy", "ipv4", TABLES),))  # fmt: skip
    unseen = [(h.module, h.what) for h in all_holders(state) if h.kind == "unseen"]
    # xt_connlimit and xt_CT are not loaded here, so their rules count for nothing
    assert unseen == [
        ("nft_ct", "1 more user than the rules that can be seen"),
        ("xt_conntrack", "2 more users than the rules that can be seen"),
    ]
    assert foreign_holders(state) == ()


def test_services() -> None:
    loaded = (
        "openvswitch 1 -",
        "act_ct 2 -",
        "ip_vs_rr 1 -",
        "ip_vs 2 ip_vs_rr,",
        "nf_conntrack 3 openvswitch,act_ct,ip_vs,",
    )
    found = foreign_holders(State(kernel(*loaded)))
    assert [h.module for h in found] == ["openvswitch", "act_ct", "ip_vs_rr"]
    assert [h.remedy.split()[0] for h in found] == ["ovs-dpctl", "tc", "ipvsadm"]
    assert all(h.kind == "unseen" for h in found)
    idle = kernel("ip_vs 0 -", "act_ct 0 -", "nf_conntrack 2 ip_vs,act_ct,")
    assert foreign_holders(State(idle)) == ()


def test_rules_that_cannot_be_read_are_told_elsewhere() -> None:
    assert list(rule_uses([LiveRules("legacy", "ipv4", "no rules at all\n")])) == []


def test_without_conntrack_there_is_nothing_to_hold() -> None:
    assert all_holders(State(None)) == ()
    assert foreign_holders(State(None)) == ()
    assert all_holders(State(kernel("ip_tables 4 -"))) == ()
