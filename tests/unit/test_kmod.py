"""Module graph and modprobe.d text, judged by real modules.dep files and by modprobe itself."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudinit_conntrack import kmod
from cloudinit_conntrack.errors import ConfigError
from cloudinit_conntrack.state import Module

# /proc/modules of the user-mode kernel 6.1 after "-m state" rules and a nat table.
PROC_MODULES = """\
nfnetlink 7869 0 - Live 0x0000000069c2f000
iptable_nat 2180 0 - Live 0x0000000069c2c000
nf_nat 24546 1 iptable_nat, Live 0x0000000069c1f000
iptable_filter 1729 1 - Live 0x0000000069c1c000
xt_conntrack 3354 1 - Live 0x0000000069c19000
ip_tables 11777 2 iptable_nat,iptable_filter, Live 0x0000000069c0e000
x_tables 20561 4 iptable_nat,iptable_filter,xt_conntrack,ip_tables, Live 0x0000000069c02000
nf_conntrack 99163 2 nf_nat,xt_conntrack, Live 0x0000000069be0000
nf_defrag_ipv6 7483 1 nf_conntrack, Live 0x0000000069bdb000
nf_defrag_ipv4 2018 1 nf_conntrack, Live 0x0000000069bd8000
"""


def test_proc_modules_are_read_as_the_kernel_writes_them() -> None:
    modules = kmod.parse_proc_modules(PROC_MODULES)
    assert len(modules) == 10
    assert modules[7] == Module("nf_conntrack", 2, ("nf_nat", "xt_conntrack"))
    assert modules[4].other_users == 1  # the one rule
    assert modules[7].other_users == 0


@pytest.mark.parametrize(("line", "module"), [
    ("foo 4096 - - Live 0x0", Module("foo", 0, ())),  # a kernel without CONFIG_MODULE_UNLOAD
    ("foo 4096 0 [permanent], Live 0x0", Module("foo", 0, ())),
    ("foo 4096 2 bar,[permanent], Unloading 0x0 (OE)", Module("foo", 2, ("bar",))),
])
def test_odd_lines_of_proc_modules(line: str, module: Module) -> None:
    assert kmod.parse_proc_modules(line) == (module,)


def test_unload_order_is_leaf_first_and_leaves_the_rest_alone() -> None:
    modules = kmod.parse_proc_modules(PROC_MODULES)
    assert kmod.unload_order(modules) == ("iptable_nat", "xt_conntrack", "nf_nat", "nf_conntrack")


def test_unload_order_takes_targets_in_both_spellings_but_not_their_holders() -> None:
    modules = (*kmod.parse_proc_modules(PROC_MODULES), Module("ip_set", 1, ("xt_set",)), Module("xt_set", 1, ()))
    assert kmod.unload_order(modules, ("ip-set", "not_loaded")) == (
        "iptable_nat", "xt_conntrack", "ip_set", "nf_nat", "nf_conntrack")


def test_nothing_to_unload_where_conntrack_is_not_loaded() -> None:
    assert kmod.unload_order(kmod.parse_proc_modules("x_tables 20561 0 - Live 0x0\n")) == ()


@given(st.data())
def test_no_module_goes_before_its_holders(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    names = ["nf_conntrack", *(f"m{i}" for i in range(1, count))]
    holders = {name: data.draw(st.sets(st.sampled_from(names[i + 1:]))) if names[i + 1:] else set()
               for i, name in enumerate(names)}
    modules = [Module(name, len(holders[name]), tuple(sorted(holders[name]))) for name in names]
    order = kmod.unload_order(tuple(data.draw(st.permutations(modules))))
    assert order[-1] == "nf_conntrack"
    assert len(set(order)) == len(order)
    for name in order:
        assert all(order.index(holder) < order.index(name) for holder in holders[name])


def test_a_cycle_cannot_hang_us() -> None:
    loop = (Module("nf_conntrack", 1, ("a",)), Module("a", 1, ("nf_conntrack",)))
    assert sorted(kmod.unload_order(loop)) == ["a", "nf_conntrack"]


def real_modules_dep() -> str:
    """modules.dep of the user-mode kernel, which depmod wrote (package user-mode-linux)."""
    found = sorted(Path("/usr/lib/uml/modules").glob("*/modules.dep"))
    assert found, "install the package user-mode-linux"
    return found[-1].read_text()


def test_every_dependant_of_a_real_kernel_is_in_the_table() -> None:
    found = kmod.dependants(real_modules_dep())
    assert {"xt_conntrack", "nf_nat", "iptable_nat", "nf_conntrack_netlink", "xt_state"} <= set(found)
    assert set(found) <= set(kmod.CONNTRACK_MODULES)
    assert not {"nf_defrag_ipv4", "nf_defrag_ipv6", "x_tables", "xt_socket", "nf_conntrack"} & set(found)


def test_dependants_follow_compressed_names_and_chains() -> None:
    dep = ("kernel/net/netfilter/nf_conntrack.ko.xz: kernel/net/ipv4/netfilter/nf_defrag_ipv4.ko.xz\n"
           "kernel/net/netfilter/nf-nat.ko.zst: kernel/net/netfilter/nf_conntrack.ko.xz\n"
           "updates/leaf.ko: kernel/net/netfilter/nf-nat.ko.zst kernel/net/netfilter/nf_conntrack.ko.xz\n"
           "kernel/net/netfilter/x_tables.ko.gz:\n\n")
    assert kmod.dependants(dep) == ("leaf", "nf_nat")


@pytest.mark.parametrize("name", [
    "nf_conntrack", "nf-conntrack", "nf_conntrack_netbios_ns", "ip_conntrack_netbios_ns", "ip_nat_ftp", "xt_NOTRACK",
    "ipt_NOTRACK", "ip6t_state", "ipt_MASQUERADE", "ipt_DNAT", "nf_conntrack_ipv6", "xt_state", "iptable_nat", "nf_nat",
    "nft_ct", "openvswitch", "ip_vs_rr", "nf_conntrack_of_tomorrow", "nf_conntrack-10",
])
def test_conntrack_names(name: str) -> None:
    assert kmod.is_conntrack_module(name)


@pytest.mark.parametrize("name", [
    "xt_socket", "xt_TPROXY", "nf_defrag_ipv4", "iptable_filter", "iptable_raw", "xt_recent", "ip_set", "ipt_LOG",
    "ip_tables", "nf_tables", "nft_compat", "tun", "", "nf_conntrackless", "my_nf_nat", "br_netfilter",
])
def test_other_names(name: str) -> None:
    assert not kmod.is_conntrack_module(name)


def test_modprobe_itself_reads_the_block_as_meant(tmp_path: Path) -> None:
    (tmp_path / "00-block.conf").write_text(kmod.modprobe_conf(("sctp", "ip-set", "nf_nat")))
    # firewalld's own line, in a file that sorts later: the first one counts
    (tmp_path / "firewalld.conf").write_text("install nf_conntrack /bin/true\n")
    shown = subprocess.run(["/usr/sbin/modprobe", "-C", str(tmp_path), "--showconfig"], check=True, timeout=30,
                           stdout=subprocess.PIPE, text=True).stdout.splitlines()
    lines = {line.strip() for line in shown}
    for name in (*kmod.INSTALL_BLOCKED, "sctp", "ip_set", "nf_nat"):
        assert f"install {name} /bin/false" in lines
    for name in (*kmod.CONNTRACK_MODULES, "sctp", "ip_set"):
        assert f"blacklist {name}" in lines
    first = next(line for line in shown if line.startswith("install nf_conntrack "))
    assert first.strip().endswith("/bin/false")
    assert sum(line.startswith("blacklist ") for line in shown) == len(kmod.CONNTRACK_MODULES) + 2


def test_the_block_is_the_same_whatever_the_order_of_extra() -> None:
    assert kmod.modprobe_conf(("b", "a")) == kmod.modprobe_conf(("a", "b", "a"))


@pytest.mark.parametrize("name", ["", "a b", "a\ninstall ext4 /bin/false", "../x", "x" * 65, "-a", "a/b", "é"])
def test_a_name_that_is_no_module_never_reaches_the_file(name: str) -> None:
    with pytest.raises(ConfigError):
        kmod.modprobe_conf((name,))


def test_the_table_names_each_module_once() -> None:
    assert len(set(kmod.CONNTRACK_MODULES)) == len(kmod.CONNTRACK_MODULES) == 131
