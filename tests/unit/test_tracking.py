"""What conntrack does right now: the kernel's texts as values, and where they are read."""

from __future__ import annotations

import pytest
from fakehost import FakeHost, fake_host

from cloudinit_conntrack.host.hooks import hooked_families
from cloudinit_conntrack.host.observe import observe
from cloudinit_conntrack.host.tracking import counters, observe_tracking
from cloudinit_conntrack.state import Kernel, State
from cloudinit_conntrack.tracking import (
    Counters,
    Listener,
    Tracking,
    VirtualService,
    event_sockets,
    families_of,
    stat_columns,
    virtual_services,
)

__all__ = ["fake_host"]

# As printed by 6.1 (two CPUs) and by 2.6.32 (one): other columns, other places.
NEW = """\
entries  clashres found new invalid ignore delete chainlength insert insert_failed drop early_drop icmp_error  expect_new expect_create expect_delete search_restart
0000000a  00000001 00000002 00000000 00000003 00000000 00000000 00000000 00000010 00000004 00000005 00000006 00000007  00000000 00000000 00000000 000000ff
0000000a  00000000 00000002 00000000 00000001 00000000 00000000 00000000 0000000f 00000000 00000001 00000000 00000000  00000000 00000000 00000000 00000001
"""  # noqa: E501 - the kernel's own lines
OLD = """\
entries  searched found new invalid ignore delete delete_list insert insert_failed drop early_drop icmp_error  expect_new expect_create expect_delete
0000000a  000000f0 00000002 00000020 00000003 00000000 00000008 00000008 00000020 00000001 00000002 00000003 00000004  00000000 00000000 00000000
"""  # noqa: E501


def test_columns_are_summed_over_the_cpus_by_the_kernels_names() -> None:
    found = dict(stat_columns(NEW))
    assert "entries" not in found  # each line repeats the whole table's
    assert (found["found"], found["invalid"], found["insert"], found["drop"]) == (4, 4, 31, 6)
    assert (found["insert_failed"], found["early_drop"], found["search_restart"]) == (4, 6, 256)
    old = dict(stat_columns(OLD))
    assert (old["searched"], old["insert"], old["early_drop"]) == (240, 32, 3)
    assert "clashres" not in old and "search_restart" not in old


@pytest.mark.parametrize("text", ["", "entries found\n", "entries found\n0000000a\n", "entries found\nzz zz\n"])
def test_what_is_no_table_of_counts_tells_nothing(text: str) -> None:
    assert stat_columns(text) == ()


def test_how_full_a_table_is() -> None:
    assert Counters(95, 100).percent_full == 95
    assert Counters(999, 1000).percent_full == 99  # rounded down: 100 is full
    assert Counters(5, 0).percent_full is None  # no limit
    assert Counters(None, 100).percent_full is Counters().percent_full is None
    assert Counters(1, 2, 3, (("drop", 7),)).column("drop") == 7
    assert Counters().column("drop") is None


HOOKS = """\
family ip {
\thook prerouting {
\t\t-0000000200 ipv4_conntrack_in [nf_conntrack]
\t}
}
family ip6 {
\thook input {
\t\t 0000000000 chain inet fw input [nf_tables]
\t}
}
family bridge {
\thook prerouting {
\t\t 0000000000 nf_ct_bridge_pre [nf_conntrack_bridge]
\t}
}
"""


def test_hooks_by_family() -> None:
    assert dict(families_of(HOOKS)) == {"ipv4": True, "ipv6": False, "bridge": True}
    assert dict(families_of("")) == {"ipv4": False, "ipv6": False, "bridge": False}


def test_hooks_of_another_namespace_are_asked_there(fake_host: FakeHost) -> None:
    fake_host.boot("nfnetlink_hook 1 0 - Live 0x0\n")
    fake_host.stub("nft")
    fake_host.stub("nsenter", HOOKS)
    assert dict(hooked_families(fake_host.root, "/run/netns/blue") or ()) == {
        "ipv4": True, "ipv6": False, "bridge": True}  # fmt: skip
    assert fake_host.calls("nsenter") == [("nsenter", "--net=/run/netns/blue", "--", "nft", "list", "hooks")]
    assert hooked_families(fake_host.root) is None  # here nft prints nothing


NETLINK = """\
sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode
0000000000000000 0   812        00000551 0        0        0     2        0        11
0000000000000000 12  816        00000007 0        0        0     2        0        12
0000000000000000 12  4294962295 00000020 0        0        0     2        0        13
0000000000000000 12  820        00000100 0        0        0     2        0        14
0000000000000000 12  0          00000000 0        0        0     2        0        15
"""


def test_sockets_for_conntracks_events() -> None:
    """Not those of routes (protocol 0), of nftables (group 9), of the kernel's own."""
    assert event_sockets(NETLINK) == ((816, "12"), (4294962295, "13"))


IPVS = """\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A000001:0050 rr
  -> 0A000002:0050      Masq    1      0          0
UDP  [fd00:0000:0000:0000:0000:0000:0000:0001]:0035 wrr persistent 300 FFFFFFFF
FWM  000003E7 rr ops
SCTP C0A80001:270F lc
"""


def test_virtual_services_in_ipvsadms_words() -> None:
    assert virtual_services(IPVS) == (
        VirtualService("-t", "10.0.0.1:80", "rr"),
        VirtualService("-u", "[fd00::1]:53", "wrr"),
        VirtualService("-f", "999", "rr"),
        VirtualService("--sctp-service", "192.168.0.1:9999", "lc"),
    )
    assert virtual_services("") == ()


# --- read --------------------------------------------------------------------------------


def test_counters_of_this_kernel_and_of_an_old_one(fake_host: FakeHost) -> None:
    assert counters(fake_host.root) == Counters()
    fake_host.write("/proc/sys/net/ipv4/netfilter/ip_conntrack_count", "7\n")
    fake_host.write("/proc/sys/net/ipv4/ip_conntrack_max", "65536\n")
    fake_host.write("/proc/net/stat/ip_conntrack", OLD)
    old = counters(fake_host.root)
    assert (old.entries, old.limit, old.buckets, old.column("searched")) == (7, 65536, None, 240)
    fake_host.write("/proc/sys/net/netfilter/nf_conntrack_count", "9\n")
    fake_host.write("/proc/sys/net/netfilter/nf_conntrack_max", "10\n")
    fake_host.write("/proc/sys/net/netfilter/nf_conntrack_buckets", "4\n")
    fake_host.write("/proc/net/stat/nf_conntrack", NEW)
    new = counters(fake_host.root)
    assert (new.entries, new.limit, new.buckets, new.percent_full, new.column("found")) == (9, 10, 4, 90, 4)


def test_where_conntrack_is_absent_nothing_is_looked_at(fake_host: FakeHost) -> None:
    fake_host.write("/proc/sys/net/netfilter/nf_conntrack_count", "9\n")
    assert observe_tracking(State(None), fake_host.root) == Tracking()
    absent = State(Kernel("6.1", True, False, "absent", False))
    assert observe_tracking(absent, fake_host.root) == Tracking()


def test_a_listener_is_found_by_its_socket(fake_host: FakeHost) -> None:
    fake_host.boot("nf_conntrack_netlink 1 0 - Live 0x0\nnf_conntrack 1 1 nf_conntrack_netlink, Live 0x0\n")
    fake_host.write("/proc/net/netlink", NETLINK)
    for pid, inode, name in ((816, 99, "sh"), (900, 12, "conntrack"), (901, 13, "conntrackd")):
        fake_host.write(f"/proc/{pid}/comm", f"{name}\n")
        fake_host.write(f"/proc/{pid}/cgroup", "0::/system.slice/conntrackd.service\n" if pid == 901 else "0::/\n")
        fake_host.write(f"/proc/{pid}/fd/0").unlink()
        (fake_host.tree / f"proc/{pid}/fd/0").symlink_to(f"socket:[{inode}]")
    for tool in ("iptables", "ip6tables", "nft", "modprobe"):
        fake_host.stub(tool)
    state = State(Kernel("6.1", True, False, "loaded", True))
    assert observe_tracking(state, fake_host.root).listeners == (
        Listener(900, "conntrack"), Listener(901, "conntrackd", "unit conntrackd.service"))  # fmt: skip


def test_no_listener_is_looked_for_where_their_module_is_not_there(fake_host: FakeHost) -> None:
    fake_host.boot("nf_conntrack 1 0 - Live 0x0\n")
    fake_host.write("/proc/net/netlink", NETLINK)
    state = State(Kernel("6.1", True, False, "loaded", True))
    assert observe_tracking(state, fake_host.root).listeners == ()


def test_observe_of_the_real_host_and_its_tracking_agree() -> None:
    """On the machine that runs the tests, whatever it has."""
    state = observe()
    found = observe_tracking(state)
    assert state.kernel is not None
    if state.kernel.conntrack == "absent":
        assert found == Tracking()
    else:
        assert found.counters is not None and found.spaces[0].own
        assert found.counters.entries == found.spaces[0].entries is not None
