"""What boot scripts restore and add, and that only what needs conntrack counts."""

from __future__ import annotations

import pytest
from fakehost import FakeHost, fake_host
from hypothesis import given
from hypothesis import strategies as st
from surrounded import ABSENT, Surrounded, ids

from cloudinit_conntrack.scripts import restored_files, stateful_commands
from cloudinit_conntrack.state import FileImage, FoundFile

__all__ = ["fake_host"]

RC = "/etc/rc.local"


def script(text: str, path: str = RC, mode: int = 0o755) -> FoundFile:
    return FoundFile(path, FileImage(text.encode("utf-8", "surrogateescape"), mode))


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("iptables-restore < /etc/iptables.rules", ("/etc/iptables.rules", "ipv4")),
        ("/sbin/ip6tables-restore </etc/iptables.rules6", ("/etc/iptables.rules6", "ipv6")),
        ("  pre-up iptables-restore -n < /etc/fw || true", ("/etc/fw", "ipv4")),
        ("iptables-legacy-restore -w 5 /etc/fw", ("/etc/fw", "ipv4")),
        ("iptables-restore -T filter /etc/fw", ("/etc/fw", "ipv4")),
        ("test -e /etc/fw && iptables-restore < '/etc/f w'", ("/etc/f w", "ipv4")),
        ("post-up iptables-restore < /etc/fw; echo done", ("/etc/fw", "ipv4")),
        ("# iptables-restore < /etc/fw", None),
        ("iptables-restore < $FILE", None),
        ("iptables-restore < rules", None),
        ("iptables-restore < /dev/stdin", None),
        ("iptables-save > /etc/fw", None),
        ("echo iptables restore < /etc/fw", None),
        ("iptables-restore <", None),
        ("iptables-restore", None),
    ],
)
def test_restored(line: str, found: tuple[str, str] | None) -> None:
    assert restored_files(script(line)) == ((found,) if found else ())


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("iptables -A INPUT -m state --state NEW -j ACCEPT", "rule"),
        ("/usr/sbin/ip6tables -A INPUT -m conntrack --ctstate NEW -j ACCEPT", "rule"),
        ("iptables -t nat -A POSTROUTING -o eth0 -j MASQUERADE", "rule"),
        ("iptables --table nat -L", "rule"),
        ("up iptables -A INPUT -m connlimit --connlimit-above 3 -j DROP", "rule"),
        ("if true; then iptables -t raw -A PREROUTING -j CT --notrack; fi", "rule"),
        ("nft add rule inet f i ct state established accept", "rule"),
        ("modprobe nf_conntrack_ftp", "module"),
        ("/sbin/modprobe -q ip_conntrack || :", "module"),
        ("insmod /lib/modules/x/nf_conntrack.ko", "module"),
        ("conntrack -F", "asks"),
        ("*/5 * * * * root conntrack -C", "asks"),
        ("sysctl -w net.netfilter.nf_conntrack_max=1", "sysctl"),
        ("iptables -A INPUT -p tcp --dport 80 -j ACCEPT", ""),
        ("iptables -D INPUT -m state --state NEW -j ACCEPT", ""),
        ("modprobe -r nf_conntrack", ""),
        ("modprobe bonding", ""),
        ("# iptables -t nat -A POSTROUTING -j MASQUERADE", ""),
        ("echo conntrack is fun", ""),
        ("sysctl -w net.netfilter.nf_conntrack_frag6_timeout=1", ""),
    ],
)
def test_stateful_commands(line: str, kind: str) -> None:
    assert [command.kind for command in stateful_commands(script(line))] == ([kind] if kind else [])


def test_lines_are_counted_through_continued_ones() -> None:
    text = ("#!/bin/sh\niptables -A INPUT \\\n  -p tcp -j ACCEPT\n"
            "iptables -A INPUT -m state \\\n --state NEW -j ACCEPT\n\nconntrack -F\n")  # fmt: skip
    assert [(c.line, c.kind) for c in stateful_commands(script(text))] == [(4, "rule"), (7, "asks")]


def test_only_what_runs_counts() -> None:
    line = "iptables -t nat -L"
    assert stateful_commands(script(line, mode=0o644)) == ()  # rc.local is run only where it is executable
    assert stateful_commands(script(line, "/etc/cron.d/fw", 0o644))
    assert stateful_commands(script(line, "/etc/network/interfaces", 0o644))
    assert stateful_commands(script(line, "/etc/sysctl.conf")) == ()


@given(st.text())
def test_any_text_is_survived(text: str) -> None:
    file = script(text.encode("utf-8", "replace").decode())
    restored_files(file)
    stateful_commands(file)


def test_a_restored_file_is_a_saved_one(fake_host: FakeHost) -> None:
    """The rules that ifupdown restores are rewritten like those of netfilter-persistent."""
    fake_host.write("/etc/network/interfaces", "iface eth0 inet dhcp\n pre-up iptables-restore < /etc/fw.rules\n")
    fake_host.write("/etc/fw.rules", "*filter\n:INPUT DROP [0:0]\n-A INPUT -m state --state ESTABLISHED -j ACCEPT\n"
                    "-A INPUT -p tcp --dport 22 -j ACCEPT\nCOMMIT\n")  # fmt: skip
    here = Surrounded(fake_host)
    plan = here.plan("stateless")
    text = here.mend(plan, "/etc/fw.rules")["/etc/fw.rules"]
    assert "state" not in text and "--tcp-flags ACK ACK" in text
    assert here.plan("stateless").actions == ()


def test_a_script_that_adds_stateful_rules_blocks(fake_host: FakeHost) -> None:
    fake_host.write("/etc/rc.local", "#!/bin/sh\nconntrack -F\niptables -t nat -A POSTROUTING -j MASQUERADE\n", 0o755)
    here = Surrounded(fake_host)
    for mode in ("stateless", "unload"):
        (blocker,) = here.plan(mode).blockers
        assert blocker.where == "/etc/rc.local:3" and "MASQUERADE" in blocker.reason
    assert ids(here.plan("notrack").blockers) == set()
    assert "script:/etc/rc.local:2:asks" in ids(here.plan("unload").findings)
    assert "script:/etc/rc.local:2:asks" not in ids(here.plan("stateless").findings)


def test_items_can_be_told_apart(fake_host: FakeHost) -> None:
    line = "iptables -t nat -F; iptables -t nat -X; conntrack -F; conntrack -C; modprobe nf_nat"
    fake_host.write("/etc/rc.local", f"#!/bin/sh\n{line}\n", 0o755)
    state = "nf_conntrack.enable_hooks=1 nf_conntrack.enable_hooks=Y modules-load=nf_nat modules_load=nf_nat"
    for mode in ("stateless", "unload"):
        plan = Surrounded(fake_host).plan(mode, ABSENT, state)
        assert len(plan.blockers) == (3 if mode == "stateless" else 1)
        for items in (plan.blockers, plan.findings):
            assert len(ids(items)) == len(items)
