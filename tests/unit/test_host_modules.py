"""Modules: asked about through the real kmod on a real kernel's tree; unloading on a fake host."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from fakehost import FakeHost, fake_host

from cloudinit_conntrack.errors import CommandError
from cloudinit_conntrack.host import modules
from cloudinit_conntrack.host.root import Root
from cloudinit_conntrack.kmod import modprobe_conf
from cloudinit_conntrack.state import Resolution

__all__ = ["fake_host"]

LOADED = "xt_conntrack 16384 0 - Live 0x0\nnf_conntrack 172032 1 xt_conntrack, Live 0x0\n"
DELETE = '/bin/sed -i "/^$1 /d; s/ 1 $1, / 0 - /" "$ROOT/proc/modules"'


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image tree with the modules of the user-mode kernel, found through a link as on Debian."""
    source = sorted(Path("/usr/lib/uml/modules").glob("*"))
    assert source, "install the package user-mode-linux"
    tree = tmp_path / "image"
    for place in ("etc/modprobe.d", "usr/lib/modprobe.d", "usr/lib/modules"):
        (tree / place).mkdir(parents=True)
    (tree / "lib").symlink_to("usr/lib")
    target = tree / "usr/lib/modules" / source[-1].name
    target.mkdir()
    for file in source[-1].glob("modules.*"):
        shutil.copy(file, target)
    shutil.copytree(source[-1] / "kernel/net", target / "kernel/net")
    return tree


def effects(tree: Path, *names: str) -> list[str]:
    return [found.effect for found in modules.resolve(names, Root(str(tree)))]


def test_an_image_without_a_block_loads(image: Path) -> None:
    found = modules.resolve(("nf_conntrack", "ipt_conntrack", "ext4", "no_such"), Root(str(image)))
    assert [r.effect for r in found] == ["loads", "loads", "builtin", "missing"]
    release = next((image / "lib/modules").iterdir()).name
    assert found[0].evidence.startswith(f"{release}: insmod ")
    assert found[0].evidence.endswith("nf_conntrack.ko")
    assert found[2].evidence == f"{release}: builtin ext4"


def test_links_of_the_image_lead_nowhere_else(image: Path, tmp_path: Path) -> None:
    """By itself modprobe would follow them out of the tree, and find the block of this machine."""
    outside, inside = tmp_path / "outside", image / str(tmp_path).lstrip("/") / "outside"
    inside.mkdir(parents=True)
    shutil.move(image / "usr/lib/modules", inside / "modules")
    (image / "usr/lib/modules").symlink_to(outside / "modules")
    (image / "etc/modprobe.d").rmdir()
    (image / "etc/modprobe.d").symlink_to(outside)
    outside.mkdir()
    (outside / "block.conf").write_text(modprobe_conf())
    assert effects(image, "nf_conntrack", "xt_conntrack") == ["loads", "loads"]
    shutil.copy(outside / "block.conf", inside)
    assert effects(image, "nf_conntrack", "xt_conntrack") == ["blocked", "blocked"]


def test_our_block_stops_every_way_in(image: Path) -> None:
    (image / "etc/modprobe.d/00-cloudinit-conntrack.conf").write_text(modprobe_conf())
    (image / "etc/modprobe.d/firewalld.conf").write_text("install nf_conntrack /bin/echo loaded\n")
    found = modules.resolve(("nf_conntrack",), Root(str(image)))[0]
    assert found.effect == "blocked"
    assert found.evidence.endswith(": install /bin/false")
    names = ("xt_conntrack", "iptable_nat", "xt_state", "ip_conntrack", "nf_conntrack_ipv4")
    assert effects(image, *names) == ["blocked"] * 5
    # the kernel's own requests, by alias
    assert effects(image, "nft-expr-ct", "nfnetlink-subsys-1", "ipt_NOTRACK") == ["blocked"] * 3
    assert effects(image, "x_tables", "nf_defrag_ipv4") == ["loads"] * 2


def test_blacklist_alone_blocks_nothing(image: Path) -> None:
    (image / "etc/modprobe.d/a.conf").write_text("blacklist nf_conntrack\nblacklist xt_conntrack\n")
    assert effects(image, "nf_conntrack", "xt_conntrack") == ["loads"] * 2


def test_a_file_in_etc_hides_the_one_of_its_name_in_lib(image: Path) -> None:
    (image / "usr/lib/modprobe.d/a.conf").write_text("install nf_conntrack /bin/false\n")
    assert effects(image, "nf_conntrack") == ["blocked"]
    (image / "etc/modprobe.d/a.conf").write_text("# nothing\n")
    assert effects(image, "nf_conntrack") == ["loads"]


def test_the_configuration_of_this_machine_does_not_leak_in(image: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.conf"
    outside.write_text("install nf_conntrack /bin/false\n")
    (image / "etc/modprobe.d/link.conf").symlink_to(outside)
    assert effects(image, "nf_conntrack") == ["loads"]


def test_the_kernel_that_lets_most_through_counts(image: Path) -> None:
    (image / "usr/lib/modules/1.0-bare").mkdir()
    subprocess.run(["/usr/sbin/depmod", "-b", str(image), "1.0-bare"], check=True, timeout=30)
    assert effects(image, "nf_conntrack") == ["loads"]
    shutil.rmtree(next(p for p in (image / "usr/lib/modules").iterdir() if p.name != "1.0-bare"))
    assert effects(image, "nf_conntrack") == ["missing"]


def test_an_image_without_a_kernel_has_no_modules(tmp_path: Path) -> None:
    assert modules.resolve(("nf_conntrack",), Root(str(tmp_path))) == (
        Resolution("nf_conntrack", "missing", "there is no kernel under /lib/modules"),)


@pytest.mark.parametrize(("stdout", "stderr", "status", "effect"), [
    ("insmod /lib/nf_defrag_ipv4.ko \ninstall /bin/false \n", "", 0, "blocked"),
    ("install /usr/bin/true acct=1\n", "", 0, "blocked"),
    ("install /usr/sbin/modprobe --ignore-install nf_conntrack\n", "", 0, "loads"),
    ("insmod /lib/nf_conntrack.ko.xz acct=1\n", "", 0, "loads"),
    ("builtin nf_conntrack\n", "", 0, "builtin"),
    ("", "", 0, "blocked"),
    ("", "modprobe: FATAL: Module nf_conntrack not found in directory /lib/modules/6.1.0\n", 1, "missing"),
])
def test_answers_of_modprobe(fake_host: FakeHost, stdout: str, stderr: str, status: int, effect: str) -> None:
    fake_host.stub("modprobe", stdout, stderr, status)
    assert modules.resolve(("nf_conntrack",), fake_host.root, live=True)[0].effect == effect
    assert fake_host.calls() == [("modprobe", "-n", "-v", "-D", "nf_conntrack")]


def test_an_answer_that_is_none_is_an_error(fake_host: FakeHost) -> None:
    fake_host.stub("modprobe", "", "modprobe: ERROR: ../tools: out of memory\n", 1)
    with pytest.raises(CommandError, match="out of memory"):
        modules.resolve(("nf_conntrack",), fake_host.root, live=True)


# --- loading and unloading ---------------------------------------------------------------


def test_unloading_is_judged_by_the_kernels_list(fake_host: FakeHost) -> None:
    fake_host.boot(LOADED)
    fake_host.stub("rmmod", stderr="rmmod: ERROR: whatever", status=1, script=DELETE)
    assert modules.unload("xt-conntrack", fake_host.root)
    assert modules.unload("nf_conntrack", fake_host.root)
    assert modules.unload("nf_conntrack", fake_host.root)  # again: it is not there
    assert fake_host.calls() == [("rmmod", "xt_conntrack"), ("rmmod", "nf_conntrack")]


def test_a_lie_of_rmmod_is_seen_through(fake_host: FakeHost) -> None:
    fake_host.boot(LOADED)
    fake_host.stub("rmmod", status=0)
    assert not modules.unload("xt_conntrack", fake_host.root)
    assert 2 <= len(fake_host.calls()) <= 10


def test_a_module_with_holders_is_not_even_tried(fake_host: FakeHost) -> None:
    fake_host.boot(LOADED)
    assert not modules.unload("nf_conntrack", fake_host.root)
    assert fake_host.calls() == []


def test_a_count_that_drops_is_waited_for(fake_host: FakeHost) -> None:
    fake_host.boot("nf_conntrack 172032 1 - Live 0x0\n")
    fake_host.stub("rmmod", script=f'[ -e "$ROOT/once" ] && {DELETE}; : >"$ROOT/once"')
    assert modules.unload("nf_conntrack", fake_host.root)
    assert len(fake_host.calls()) == 2


def test_force_is_only_force_when_asked(fake_host: FakeHost) -> None:
    fake_host.boot("xt_conntrack 16384 3 - Live 0x0\n")
    fake_host.stub("rmmod", script='[ "$1" = -f ] || exit 1; shift; ' + DELETE)
    assert not modules.unload("xt_conntrack", fake_host.root)
    assert modules.force_unload("xt_conntrack", fake_host.root)
    assert fake_host.calls()[-1] == ("rmmod", "-f", "xt_conntrack")


def test_loading_passes_parameters_and_is_judged_too(fake_host: FakeHost) -> None:
    fake_host.boot("")
    fake_host.stub("modprobe", script='echo "$1 1 0 - Live 0x0" >>"$ROOT/proc/modules"; exit 1')
    modules.load("nf_conntrack", (("hashsize", "65536"), ("acct", "N")), fake_host.root)
    assert fake_host.calls() == [("modprobe", "nf_conntrack", "hashsize=65536", "acct=N")]
    fake_host.stub("modprobe")
    with pytest.raises(CommandError, match="module nf_nat is not loaded"):
        modules.load("nf_nat", (), fake_host.root)


def test_sysctls_are_set_where_they_differ(fake_host: FakeHost) -> None:
    fake_host.boot(LOADED)
    same = fake_host.write("/proc/sys/net/netfilter/nf_conntrack_acct", "0\n")
    stamp = same.stat().st_mtime_ns
    values = (("max", "12345"), ("acct", "0"), ("helper", "1"))
    problems = modules.set_sysctls([(f"net.netfilter.nf_conntrack_{name}", v) for name, v in values], fake_host.root)
    assert fake_host.read("/proc/sys/net/netfilter/nf_conntrack_max") == "12345\n"
    assert same.stat().st_mtime_ns == stamp
    assert len(problems) == 1
    assert problems[0].startswith("net.netfilter.nf_conntrack_helper = 1: ")
