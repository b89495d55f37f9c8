"""Observing a whole fake host, and an image tree; and the table of entries as text."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fakehost import FAMILIES, RELEASE, FakeHost, fake_host

from cloudinit_conntrack.errors import HostError
from cloudinit_conntrack.host.entries import Direction, Entry, list_entries, parse_line
from cloudinit_conntrack.host.observe import observe
from cloudinit_conntrack.host.saved import PLACES, find_saved
from cloudinit_conntrack.kmod import BLOCK_PATH, INSTALL_BLOCKED

__all__ = ["fake_host"]

TABLE = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -m state --state NEW -j ACCEPT\nCOMMIT\n"


def furnish(host: FakeHost) -> None:
    """A host with everything there is to find."""
    for path, kind, _ in PLACES:
        host.write(path, TABLE if kind == "rules" else 'IPTABLES_MODULES="nf_conntrack_ftp"\n', 0o600)
    host.write(BLOCK_PATH, "install nf_conntrack /bin/false\n")
    host.write("/etc/ssh/sshd_config", "Port 2222\n")


def test_a_whole_host(fake_host: FakeHost) -> None:
    furnish(fake_host)
    fake_host.boot("xt_conntrack 16384 1 - Live 0x0\nnf_conntrack 172032 1 xt_conntrack, Live 0x0\n")
    fake_host.write("/proc/net/ip_tables_names", "filter\n")
    fake_host.stub("iptables-legacy-save", TABLE)
    fake_host.stub("iptables-save", "iptables-save v1.8.9 (legacy)\n")
    fake_host.stub("modprobe", "install /bin/false \n")
    state = observe(fake_host.root)
    assert state.kernel is not None
    assert (state.kernel.conntrack, state.kernel.release) == ("loaded", RELEASE)
    assert [live.text for live in state.live] == [TABLE, "", "", ""]
    assert [(s.path, s.kind, s.family) for s in state.saved] == list(PLACES)
    assert all(s.image.mode == 0o600 for s in state.saved)
    assert state.block is not None
    assert [(r.name, r.effect) for r in state.resolutions] == [(name, "blocked") for name in INSTALL_BLOCKED]
    assert (state.sshd_ports, state.notes, state.default_backend) == ((2222,), (), "legacy")
    assert observe(fake_host.root) == state


def test_looking_leaves_no_trace(fake_host: FakeHost) -> None:
    furnish(fake_host)
    fake_host.boot("")
    fake_host.stub("iptables-save", "iptables-save v1.8.9 (nf_tables)\n")
    fake_host.stub("modprobe", "insmod x.ko\n")
    before = [(path, path.stat()) for path in sorted(fake_host.tree.rglob("*"))]
    observe(fake_host.root)
    assert [(path, path.stat()) for path in sorted(fake_host.tree.rglob("*"))] == before
    assert {call[0] for call in fake_host.calls()} == {"iptables-save", "modprobe"}


def test_an_image_tree_needs_no_command_and_no_kernel(fake_host: FakeHost) -> None:
    furnish(fake_host)
    state = observe(fake_host.root, live=False)
    assert state.kernel is None
    assert (state.live, state.namespaces, state.notes) == ((), (), ())
    assert len(state.saved) == len(PLACES)
    assert state.sshd_ports == (2222,)
    assert {r.effect for r in state.resolutions} == {"missing"}


def test_a_bare_host_gives_an_empty_state(fake_host: FakeHost) -> None:
    fake_host.boot(None)
    fake_host.without(*(f"{family}{variant}-save" for family in FAMILIES for variant in ("", "-legacy", "-nft")),
                      "modprobe", "nft")
    state = observe(fake_host.root)
    assert (state.saved, state.block, state.sshd_ports, state.default_backend) == ((), None, (22,), "")
    assert not any(live.text for live in state.live)
    assert state.notes == ("whether modules are blocked is not known: modprobe -n -v -D nf_conntrack: "
                           "the command modprobe is not there; install the package kmod",)


def test_more_modules_are_asked_about(fake_host: FakeHost) -> None:
    fake_host.boot("")
    fake_host.stub("iptables-save", status=1)
    fake_host.stub("modprobe", "insmod x.ko\n")
    assert [r.name for r in observe(fake_host.root, extra=("sctp",)).resolutions] == [*INSTALL_BLOCKED, "sctp"]


@pytest.mark.parametrize("path", [place[0] for place in PLACES])
def test_a_link_in_place_of_a_saved_file_is_refused(fake_host: FakeHost, tmp_path: Path, path: str) -> None:
    (tmp_path / "elsewhere").write_text(TABLE)
    place = fake_host.write(path)
    place.unlink()
    os.symlink(tmp_path / "elsewhere", place)
    with pytest.raises(HostError, match=f"{path}: is a symbolic link.*put a regular file there"):
        find_saved(fake_host.root)


def test_a_list_of_settings_that_is_none(fake_host: FakeHost) -> None:
    fake_host.write("/etc/default/ufw", "x" * 300_000)
    with pytest.raises(HostError, match="larger than 256 KiB"):
        find_saved(fake_host.root)


# --- /proc/net/nf_conntrack --------------------------------------------------------------

UDP = ("ipv4     2 udp      17 29 src=10.0.0.1 dst=10.0.0.2 sport=4000 dport=53 [UNREPLIED] "
       "src=10.0.0.2 dst=10.0.0.1 sport=53 dport=4000 mark=0 zone=0 use=2")
TCP6 = ("ipv6     10 tcp      6 431999 ESTABLISHED src=2001:0db8:0000:0000:0000:0000:0000:0001 dst=fe80::2 sport=1 "
        "dport=443 packets=1 bytes=2 src=fe80::2 dst=2001:db8::1 sport=443 dport=1 [ASSURED] mark=0 use=2")
PING = ("ipv4     2 icmp     1 29 src=127.0.0.1 dst=127.0.0.1 type=8 code=0 id=7 src=127.0.0.1 dst=127.0.0.1 type=0 "
        "code=0 id=7 mark=0 zone=0 use=2")


@pytest.mark.parametrize(("line", "entry"), [
    (UDP, Entry("ipv4", "udp", Direction("10.0.0.1", "10.0.0.2", 4000, 53),
                Direction("10.0.0.2", "10.0.0.1", 53, 4000))),
    (TCP6, Entry("ipv6", "tcp", Direction("2001:db8::1", "fe80::2", 1, 443),
                 Direction("fe80::2", "2001:db8::1", 443, 1))),
    (PING, Entry("ipv4", "icmp", Direction("127.0.0.1", "127.0.0.1"), Direction("127.0.0.1", "127.0.0.1"))),
    ("something else", None),
    ("", None),
])
def test_lines_of_the_table(line: str, entry: Entry | None) -> None:
    assert parse_line(line) == entry


def test_an_entry_goes_by_its_first_packet() -> None:
    entry = parse_line(UDP)
    assert entry is not None
    assert (entry.src, entry.sport, entry.dst, entry.dport) == ("10.0.0.1", 4000, "10.0.0.2", 53)


def test_entries_are_listed_from_the_proc_file(fake_host: FakeHost) -> None:
    fake_host.boot(None, conntrack_builtin=True)
    fake_host.write("/proc/net/nf_conntrack", f"{UDP}\n{PING}\n")
    assert [entry.protocol for entry in list_entries(fake_host.root)] == ["udp", "icmp"]


def test_without_the_proc_file_nothing_is_loaded_to_see_entries(fake_host: FakeHost) -> None:
    fake_host.boot("")
    assert list_entries(fake_host.root) == ()
    fake_host.boot("nf_conntrack 172032 0 - Live 0x0\n")
    (fake_host.tree / "proc/net/nf_conntrack").unlink()
    with pytest.raises(HostError, match="does not show its entries"):
        list_entries(fake_host.root)
