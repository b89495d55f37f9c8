"""Settings that are mended: what goes, what stays byte for byte, and that undoing gives back every byte."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from fakehost import FakeHost, fake_host
from hypothesis import given
from hypothesis import strategies as st
from surrounded import ABSENT, LOADED, Surrounded, ids

from cloudinit_conntrack.planning.mending import commented, without_hooks_option, without_waagent_firewall

__all__ = ["fake_host"]

M = "#cloudinit-conntrack: "
# path, mode, before, after
CASES = [
    ("/etc/sysctl.d/90-lb.conf", "unload",
     "# tuning\nnet.core.somaxconn = 4096\nnet.netfilter.nf_conntrack_max = 1048576\n"
     "  net/netfilter/nf_conntrack_buckets=1\n"
     "net.nf_conntrack_max=1\n-net.netfilter.nf_conntrack_acct = 1\nnet.netfilter.nf_conntrack_frag6_timeout=60\n"
     "; net.netfilter.nf_conntrack_max = 2",
     f"# tuning\nnet.core.somaxconn = 4096\n{M}net.netfilter.nf_conntrack_max = 1048576\n"
     f"{M}  net/netfilter/nf_conntrack_buckets=1\n{M}net.nf_conntrack_max=1\n-net.netfilter.nf_conntrack_acct = 1\n"
     "net.netfilter.nf_conntrack_frag6_timeout=60\n; net.netfilter.nf_conntrack_max = 2"),
    ("/etc/sysctl.conf", "unload", "net.ipv4.netfilter.ip_conntrack_max=1\r\nnet.ipv4.ip_forward=0\r\n",
     f"{M}net.ipv4.netfilter.ip_conntrack_max=1\r\nnet.ipv4.ip_forward=0\r\n"),
    ("/etc/modules", "unload", "loop\nnf_conntrack hashsize=65536\n# nf_nat\nip_conntrack_ftp\n\nbonding\n",
     f"loop\n{M}nf_conntrack hashsize=65536\n# nf_nat\n{M}ip_conntrack_ftp\n\nbonding\n"),
    ("/etc/modules-load.d/k8s.conf", "unload", "br_netfilter\n nf-conntrack \n;nf_nat\nxt_conntrack",
     f"br_netfilter\n{M} nf-conntrack \n;nf_nat\n{M}xt_conntrack"),
    ("/etc/modprobe.d/ct.conf", "stateless",
     "options nf_conntrack hashsize=65536 enable_hooks=1 acct=1\noptions  nf-conntrack\tenable_hooks=Y\n"
     "options nf_conntrack enable_hooks=0\noptions other enable_hooks=1\n# options nf_conntrack enable_hooks=1\n",
     f"options nf_conntrack hashsize=65536 acct=1\n{M}options  nf-conntrack\tenable_hooks=Y\n"
     "options nf_conntrack enable_hooks=0\noptions other enable_hooks=1\n# options nf_conntrack enable_hooks=1\n"),
    ("/etc/waagent.conf", "stateless",
     "OS.RootDeviceScsiTimeout=300\nOS.EnableFirewall=y  # yes\nHttpProxy.Host=None\n",
     "OS.RootDeviceScsiTimeout=300\nOS.EnableFirewall=n  # yes\nHttpProxy.Host=None\n"),
    ("/etc/waagent.conf", "unload", "OS.EnableFirewall = Y\n", "OS.EnableFirewall = n\n"),
]  # fmt: skip
UNTOUCHED = [
    ("notrack", "/etc/sysctl.conf", "net.netfilter.nf_conntrack_max = 1\n"),
    ("stateless", "/etc/sysctl.conf", "net.netfilter.nf_conntrack_max = 1\n"),
    ("notrack", "/etc/modules", "nf_conntrack\n"),
    ("stateless", "/etc/modules", "nf_conntrack\n"),
    ("notrack", "/etc/modprobe.d/ct.conf", "options nf_conntrack enable_hooks=1\n"),
    ("unload", "/etc/modprobe.d/ct.conf", "options nf_conntrack enable_hooks=1\n"),
    ("notrack", "/etc/waagent.conf", "OS.EnableFirewall=y\n"),
    ("unload", "/etc/waagent.conf", "#OS.EnableFirewall=y\nOS.EnableFirewall=n\n"),
    ("unload", "/etc/sysctl.d/README", "net.netfilter.nf_conntrack_max = 1\n"),
]


@pytest.mark.parametrize(("path", "mode", "before", "after"), CASES, ids=[f"{m}-{p}" for p, m, *_ in CASES])
def test_mended_and_put_back(fake_host: FakeHost, path: str, mode: str, before: str, after: str) -> None:
    place = fake_host.write(path, before.encode(), 0o640)
    here = Surrounded(fake_host)
    plan = here.plan(mode)
    here.mend(plan)
    assert place.read_bytes() == after.encode()
    assert place.stat().st_mode & 0o777 == 0o640
    again = here.plan(mode)
    assert [action for action in again.actions if action.where == path] == []
    here.undo(plan)
    assert place.read_bytes() == before.encode()


@pytest.mark.parametrize(("mode", "path", "text"), UNTOUCHED)
def test_left_alone(fake_host: FakeHost, mode: str, path: str, text: str) -> None:
    fake_host.write(path, text)
    plan = Surrounded(fake_host).plan(mode)
    assert [action for action in plan.actions if action.where == path] == []


def test_bytes_that_are_no_text_stay(fake_host: FakeHost) -> None:
    place = fake_host.write("/etc/sysctl.conf", b"# caf\xe9\nnet.nf_conntrack_max=1\n\x0b\x0c\x85x=1")
    here = Surrounded(fake_host)
    here.mend(here.plan("unload"))
    assert place.read_bytes() == b"# caf\xe9\n" + M.encode() + b"net.nf_conntrack_max=1\n\x0b\x0c\x85x=1"


def test_a_package_file_is_replaced_by_one_of_its_name_in_etc(fake_host: FakeHost) -> None:
    """sysctl.d(5), modules-load.d(5): a file in /etc takes the place of one with its name in /usr/lib."""
    vendor = fake_host.write("/usr/lib/sysctl.d/60-ct.conf", "net.netfilter.nf_conntrack_max=1\nvm.swappiness=1\n")
    here = Surrounded(fake_host)
    fake_host.write("/etc/sysctl.d/99-own.conf", "a=1\n")
    plan = here.plan("unload")
    here.mend(plan)
    assert fake_host.read("/etc/sysctl.d/60-ct.conf") == f"{M}net.netfilter.nf_conntrack_max=1\nvm.swappiness=1\n"
    assert vendor.read_text() == "net.netfilter.nf_conntrack_max=1\nvm.swappiness=1\n"
    assert not [a for a in here.plan("unload").actions if "sysctl.d" in a.where]
    here.undo(plan)
    assert not (fake_host.tree / "etc/sysctl.d/60-ct.conf").exists()


def test_what_etc_masks_is_not_mended(fake_host: FakeHost) -> None:
    fake_host.write("/usr/lib/modules-load.d/ct.conf", "nf_conntrack\n")
    (fake_host.tree / "etc/modules-load.d").mkdir(parents=True)
    os.symlink("/dev/null", fake_host.tree / "etc/modules-load.d/ct.conf")
    assert not [a for a in Surrounded(fake_host).plan("unload").actions if "modules-load" in a.where]


def test_a_linked_file_is_mended_once(fake_host: FakeHost) -> None:
    """Debian links /etc/sysctl.d/99-sysctl.conf to /etc/sysctl.conf."""
    fake_host.write("/etc/sysctl.conf", "net.nf_conntrack_max=1\n")
    (fake_host.tree / "etc/sysctl.d").mkdir()
    os.symlink("../sysctl.conf", fake_host.tree / "etc/sysctl.d/99-sysctl.conf")
    plan = Surrounded(fake_host).plan("unload")
    assert [a.where for a in plan.actions if "sysctl" in a.where] == ["/etc/sysctl.conf"]


def test_not_persistent_mends_nothing(fake_host: FakeHost) -> None:
    fake_host.write("/etc/sysctl.conf", "net.nf_conntrack_max=1\n")
    assert Surrounded(fake_host).plan("conntrack: {mode: unload, persist: false}").actions == ()


def test_waagents_rules_are_missed_aloud(fake_host: FakeHost) -> None:
    fake_host.write("/etc/waagent.conf", "OS.EnableFirewall=y\n")
    plan = Surrounded(fake_host).plan("stateless")
    (told,) = [item for item in plan.findings if item.id == "waagent"]
    assert "168.63.129.16" in told.remedy


def test_settings_of_an_image_are_mended_too(fake_host: FakeHost) -> None:
    fake_host.write("/etc/modules", "nf_conntrack\n")
    here = Surrounded(fake_host)
    plan = here.plan("unload", None)
    assert here.mend(plan, "/etc/modules") == {"/etc/modules": f"{M}nf_conntrack\n"}


def test_module_lists_of_ufw_and_its_policy_line_are_one_action(fake_host: FakeHost) -> None:
    """/etc/default/ufw is changed by two rooms: there must be one action, which can be undone."""
    fake_host.write("/etc/default/ufw", 'IPV6=no\nDEFAULT_INPUT_POLICY="DROP"\nDEFAULT_OUTPUT_POLICY="ACCEPT"\n'
                    'DEFAULT_FORWARD_POLICY="DROP"\nIPT_MODULES="nf_conntrack_ftp"\n')  # fmt: skip
    fake_host.write("/etc/ufw/ufw.conf", "ENABLED=yes\nLOGLEVEL=off\n")
    here = Surrounded(fake_host)
    here.enable("ufw.service")
    before = fake_host.read("/etc/default/ufw")
    plan = here.plan("stateless")
    assert [a.where for a in plan.actions] == ["/etc/default/ufw"]
    text = here.mend(plan, "/etc/default/ufw")["/etc/default/ufw"]
    assert 'IPT_MODULES=""\n' in text and 'DEFAULT_OUTPUT_POLICY="ACCEPT "' in text
    assert here.plan("stateless").actions == ()
    here.undo(plan)
    assert fake_host.read("/etc/default/ufw") == before


@given(st.text(alphabet=st.characters(codec="utf-8")))
def test_any_text_survives(text: str) -> None:
    assert commented(text, lambda _: False) == text
    for edit in (without_hooks_option, without_waagent_firewall):
        assert edit(edit(text)) == edit(text)


def test_real_modprobe_reads_what_is_left(tmp_path: Path) -> None:
    """kmod's own view of the edited file: ``modprobe --showconfig`` with it as the whole configuration."""
    before = "options nf_conntrack hashsize=65536 enable_hooks=1\noptions nf_conntrack enable_hooks=1\n"
    (tmp_path / "ct.conf").write_text(without_hooks_option(before))
    words = ["modprobe", "-C", str(tmp_path), "--showconfig"]
    shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [x for x in shown if x.startswith("options nf_")] == ["options nf_conntrack hashsize=65536"]


def test_kernel_that_has_the_module_is_no_obstacle_to_mending_sysctls(fake_host: FakeHost) -> None:
    fake_host.write("/etc/sysctl.conf", "net.nf_conntrack_max=1\n")
    for kernel in (LOADED, ABSENT):
        assert "file:/etc/sysctl.conf" in {a.id for a in Surrounded(fake_host).plan("unload", kernel).actions}
    assert ids(Surrounded(fake_host).plan("unload").blockers) == set()
