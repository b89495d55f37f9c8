"""``--root`` on a whole Debian with a kernel and an initramfs: everything in the tree, and nothing outside.

The tree's links are absolute and lead to places that are there outside too.  While apply works, the kernel lets nobody
write outside of the tree, and strace tells what was started.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from chroots import SUITES, Suite
from firewalls import enable, unpack
from installation import PRODUCT
from machines import Machine
from stateful_host import files_below

from cloudinit_conntrack.errors import HostError
from cloudinit_conntrack.host.inside import run_inside
from cloudinit_conntrack.host.root import Root
from tests import reports

BOOKWORM = next(suite for suite in SUITES if suite.name == "bookworm")
on_bookworm = pytest.mark.parametrize("version", [BOOKWORM], ids=attrgetter("version"))
INITRAMFS = ("initramfs-tools", "initramfs-tools-core", "klibc-utils", "libklibc", "cpio", "logsave", "linux-base")
BLOCK = "modprobe.d/00-cloudinit-conntrack.conf"
LINKED = ("etc/modprobe.d", "etc/sysconfig", "boot", "usr/lib/modules")
SYS_MODULE = 1 << 16  # CAP_SYS_MODULE in linux/capability.h
SECTION = "conntrack: {mode: unload}\n"
# Nobody may write but in the tree, /dev and /proc.
SEALED = """
mount -o remount,bind,ro /
if touch /sealed-$$ 2>/dev/null; then echo the file system can be written; exit 99; fi
exec "$@"
"""
Packages = Callable[[Suite], AbstractContextManager[Machine]]


@dataclass(frozen=True)
class Tree:
    """An image tree of *machine*; *outside* is the directory to which its links lead, inside of it and outside."""

    machine: Machine
    outside: Path
    release: str

    @property
    def inside(self) -> Path:
        """The same directory, where a chroot finds it."""
        return self.machine.root / str(self.outside).lstrip("/")

    @property
    def image(self) -> Path:
        return self.inside / "boot" / f"initrd.img-{self.release}"

    def ours(self, *words: str, code: int = 0) -> tuple[dict[str, Any], str]:
        """What our command answers, and what it started and asked of the kernel."""
        trace = Path(f"/dev/shm/trace-{uuid.uuid4().hex}")
        command = [sys.executable, "-B", "-m", "cloudinit_conntrack", *words, "--format", "json", "--root",
                   str(self.machine.mount_point / "root")]
        calls = "execve,chroot,init_module,finit_module,delete_module"
        sealed = ["nsenter", f"--target={self.machine.keeper}", "--mount", "--", "unshare", "--mount",
                  "sh", "-c", SEALED, "sealed", "env", "-C", str(PRODUCT), "TMPDIR=/dev/shm",
                  "strace", "-f", "-s", "200", "-e", f"trace={calls}", "-o", str(trace)]
        try:
            done = subprocess.run([*sealed, *command], capture_output=True, text=True, timeout=300, check=False)
            assert done.returncode == code, done.stdout + done.stderr
            return reports.read(done.stdout), trace.read_text()
        finally:
            trace.unlink(missing_ok=True)

    def listed(self) -> list[str]:
        """The files in the initramfs."""
        unpacked = subprocess.run(["zcat", self.image], check=True, capture_output=True, timeout=60)
        words = ["chroot", str(self.machine.root), "cpio", "-t", "--quiet"]
        done = subprocess.run(words, input=unpacked.stdout, capture_output=True, check=True, timeout=60)
        return done.stdout.decode().split("\n")

    def files(self) -> dict[str, str]:
        """All that is in the tree, but for the initramfs."""
        found = files_below(self.machine.root, "proc", "sys", times=False)
        return {path: looks for path, looks in found.items() if "initrd.img" not in path}


@pytest.fixture
def tree(packages: Packages, version: Suite, tmp_path: Path) -> Iterator[Tree]:
    source = sorted(Path("/usr/lib/uml/modules").glob("*"))[-1]
    with packages(version) as machine:
        unpack(machine, version, *INITRAMFS, "netfilter-persistent", "iptables-persistent")
        enable(machine, "netfilter-persistent.service")
        made = Tree(machine, tmp_path / "outside", source.name)
        _kernel(machine.root, source)
        _link_out(machine.root, made)
        yield made


def _kernel(root: Path, source: Path) -> None:
    modules = root / "usr/lib/modules" / source.name
    shutil.copytree(source / "kernel/net", modules / "kernel/net")
    for file in source.glob("modules.*"):
        shutil.copy(file, modules)
    with (modules / "modules.dep").open("a") as index:  # a module that is in no table of ours
        index.write("kernel/net/made_ct.ko: kernel/net/netfilter/nf_conntrack.ko\n")
    (root / f"boot/vmlinuz-{source.name}").touch()
    (root / f"boot/config-{source.name}").write_text("CONFIG_RD_GZIP=y\n")
    (root / "etc/initramfs-tools/initramfs.conf").write_text("MODULES=list\nCOMPRESS=gzip\nBUSYBOX=n\n")
    (root / "etc/initramfs-tools/modules").write_text("nf_conntrack\n")
    (root / "etc/sysconfig").mkdir()
    (root / "etc/sysconfig/iptables-config").write_text('IPTABLES_MODULES="nf_conntrack_ftp"\n')


def _link_out(root: Path, made: Tree) -> None:
    """The places of the tree that apply works on become links to where the same is outside, and other files."""
    for path in LINKED:
        name = path.rpartition("/")[2]
        (made.outside / name).mkdir(parents=True)
        (made.outside / name / "secret").write_text("outside\n")
        made.inside.mkdir(parents=True, exist_ok=True)
        shutil.move(root / path, made.inside / name)
        (root / path).symlink_to(made.outside / name)
    (made.outside / "modprobe.d/let.conf").write_text("install nf_conntrack /bin/echo outside\n")
    subprocess.run(["chroot", root, "update-initramfs", "-c", "-k", made.release], check=True, capture_output=True,
                   timeout=300)


def started(trace: str) -> list[str]:
    """What was started outside of the tree: the words of each execve that succeeded.

    From a chroot() to the end of the process that called it, nobody else is at work.
    """
    found: list[str] = []
    inside = ""
    for line in trace.splitlines():
        pid, call = line.split(None, 1)
        if not inside and call.startswith("chroot(") and call.endswith("= 0"):
            inside = pid
        elif pid == inside and call.startswith("+++ exited"):
            inside = ""
        elif not inside and (words := re.match(r'execve\("[^"]*", \[(.*)\], .*= 0$', call)):
            found.append(words[1].replace('"', "").replace(", ", " "))
    return found


# Looking at a copy of the tree's modules, and a /dev for the tree in mounts that nobody else has.
HARMLESS = re.compile(
    r"\S*python3? -B -m cloudinit_conntrack .*|nsenter --mount=/proc/\d+/ns/mnt -- .*|unshare --mount .*|cat"
    r"|setpriv --bounding-set=-sys_module,\S+ -- chroot .*|chroot \S+ (true|update-initramfs -u -k all)"
    r"|modprobe -d /dev/shm/\S+ -C /dev/shm/\S+ -S \S+ -n -v -D \S+"
    r"|(mount -t tmpfs -o \S+ dev|mknod -m 666|ln -s \S+) \S+/machine/root/dev(/\w+)?( c 1 \d)?"
)


@on_bookworm
def test_apply_and_revert_write_in_the_tree_alone(version: Suite, tree: Tree) -> None:
    before, outside = tree.files(), files_below(tree.outside)
    assert f"usr/lib/modules/{tree.release}/kernel/net/netfilter/nf_conntrack.ko" in tree.listed()
    assert not [name for name in tree.listed() if BLOCK in name]
    section = tree.machine.root / "section"
    section.write_text(SECTION)
    inside_section = str(tree.machine.mount_point / "root/section")
    found, trace = tree.ours("apply", "-c", inside_section)
    section.unlink()
    assert found["outcome"] == "done"
    assert {"refresh", "link", "write", "rewrite"} <= {action["verb"] for action in found["actions"]}
    assert (tree.inside / BLOCK).exists()
    assert "etc/" + BLOCK in tree.listed()
    blocked = (tree.inside / BLOCK).read_text().split()
    assert "nf_conntrack" in blocked and "made_ct" in blocked
    assert {item["holds"] for item in found["evidence"]} == {True} and "install /bin/false" in str(found["evidence"])
    assert (tree.machine.root / "etc/systemd/system/sysinit.target.wants/cloudinit-conntrack.service").is_symlink()
    assert "state" not in (tree.machine.root / "etc/iptables/rules.v4").read_text()
    judge(trace)
    assert "chroot(" in trace
    assert tree.ours("apply")[0]["outcome"] == "nothing-to-do"
    assert tree.ours("verify")[0]["outcome"] == "verified"
    found, trace = tree.ours("revert")
    judge(trace)
    assert found["outcome"] == "reverted"
    assert not [name for name in tree.listed() if BLOCK in name]
    assert tree.files() == before
    assert files_below(tree.outside) == outside


def judge(trace: str) -> None:
    """Nothing was asked of the running kernel, and nothing else was started outside of the tree."""
    assert not re.search(r"(init|finit|delete)_module\(", trace)
    assert len(started(trace)) > 2
    assert [words for words in started(trace) if not HARMLESS.fullmatch(words)] == []


@on_bookworm
def test_a_tree_of_another_machine_is_left_as_it_is(version: Suite, tree: Tree) -> None:
    true = tree.machine.root / "usr/bin/true"
    true.unlink()
    true.write_bytes(b"\x7fELF of another machine")
    true.chmod(0o755)
    before = tree.files()
    (tree.machine.root / "section").write_text(SECTION)
    found, _ = tree.ours("apply", "-c", str(tree.machine.mount_point / "root/section"), code=1)
    (tree.machine.root / "section").unlink()
    assert "do not run here" in found["message"] and "machine of the same kind" in found["message"]
    assert tree.files() == before


@on_bookworm
def test_a_program_of_the_tree_sees_nothing_but_the_tree(version: Suite, chroot_of: Callable[[Suite], Path]) -> None:
    tree = chroot_of(version)
    before = files_below(tree / "dev")
    script = "grep CapBnd /proc/self/status; ls /dev; sed 1,2d /proc/net/dev; echo $$; touch /dev/new && echo written"
    done = run_inside(Root(str(tree)), ("sh", "-c", script), 60)
    capabilities, *devices, interface, pid, written = done.stdout.splitlines()
    assert int(Path("/proc/self/status").read_text().partition("CapBnd:")[2].split()[0], 16) & SYS_MODULE
    assert not int(capabilities.split()[1], 16) & SYS_MODULE
    assert devices == ["fd", "full", "null", "random", "stderr", "stdin", "stdout", "urandom", "zero"]
    assert interface.split()[0] == "lo:" and int(pid) < 10 and written == "written"
    assert files_below(tree / "dev") == before


def test_a_tree_whose_dev_is_a_link_is_refused(tmp_path: Path) -> None:
    for place in ("dev", "proc"):
        (tmp_path / place).symlink_to(f"/{place}")
    with pytest.raises(HostError, match="is no directory"):
        run_inside(Root(str(tmp_path)), ("true",), 5)
