"""The .rpm: what is in it, and what rpm makes of it in a root of its own, with the Python that RHEL 9 has.

RHEL's own tree is not to be had here.  A Debian 11 is made to look for modules where RHEL's Python 3.9 does.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.cloudinit.machines import Boot, Machine

from .building import ROOT, Dist, run
from .changes import differing
from .test_packages_deb import DROP_IN, chroot_of
from .test_packages_python import program, version

PYTHONS = {"el9": "3.9", "el10": "3.12"}
SITE = "/usr/lib/python3.9/site-packages"
BESIDE = {
    "/usr/bin/cloudinit-conntrack",
    "/usr/share/man/man8/cloudinit-conntrack.8.gz",
    "/usr/share/bash-completion/completions/cloudinit-conntrack",
    "/usr/share/zsh/site-functions/_cloudinit-conntrack",
    "/usr/share/fish/vendor_completions.d/cloudinit-conntrack.fish",
}


def query(rpm: Path, *words: str) -> str:
    return run("rpm", "--query", "--package", *words, str(rpm))


@pytest.mark.parametrize("dist_tag", PYTHONS)
def test_it_holds_the_program_where_this_python_looks(dist: Dist, dist_tag: str) -> None:
    site = f"/usr/lib/python{PYTHONS[dist_tag]}/site-packages"
    listed = set(query(dist.rpm(dist_tag), "--list").splitlines())
    assert {f"{site}/{name}" for name in program()} | BESIDE <= listed
    assert {path for path in listed if "/local/" in path or path.startswith("/etc")} == set()
    needed = query(dist.rpm(dist_tag), "--requires").splitlines()
    assert {f"python(abi) = {PYTHONS[dist_tag]}", "python3-pyyaml"} <= set(needed)
    assert not [name for name in needed if "debian" in name.lower()]


def test_its_scripts_enable_nothing(dist: Dist) -> None:
    scripts = query(dist.rpm("el9"), "--scripts", "--filetriggers")
    titles = [line.split()[0] for line in scripts.splitlines() if " scriptlet (using /bin/sh)" in line]
    assert sorted(titles) == ["postinstall", "posttrans", "preuninstall", "transfiletriggerin"]
    for line in scripts.splitlines():
        assert "systemctl" not in line and "modprobe" not in line and "iptables" not in line, line


def rpm(boot: Boot, machine: Machine, *words: str) -> str:
    """Run this machine's rpm on the root of *machine*; gives what it and the package's scripts say.

    By a path that holds no link: SQLite would follow /proc/PID/root back out.
    """
    enter = ["nsenter", f"--target={boot.pid}", "--mount", "--"]
    root = ["--root", str(machine.mount_point / "root"), "--dbpath", "/var/lib/rpm"]
    done = subprocess.run([*enter, "rpm", *root, "--nodeps", *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning: %" not in done.stderr, done.stderr  # a scriptlet that failed
    return done.stdout + done.stderr


def newer(dist: Dist, work: Path) -> Path:
    """The .rpm for RHEL 9, built once more as a later release."""
    run("rpmbuild", "-bb", "--nodeps", "--define", f"_topdir {work}", "--define", f"_sourcedir {dist.directory}",
        "--define", "dist .el9_1", "--define", "python3_version 3.9", str(ROOT / "packages/cloudinit-conntrack.spec"))
    (found,) = work.glob("RPMS/noarch/*.el9_1.noarch.rpm")
    return found


def test_rpm_installs_upgrades_and_erases_it(dist: Dist, bullseye: Machine, tmp_path: Path) -> None:
    hook = bullseye.root / "usr/lib/python3/dist-packages/site-packages.pth"
    hook.write_text(f"{SITE}\n")
    with bullseye.boot() as boot:
        rpm(boot, bullseye, "--install", str(dist.rpm("el9")))
        assert boot.run("cloudinit-conntrack", "--version") == f"cloudinit-conntrack {version()}\n"
        ask = "import cc_conntrack, cloudinit_conntrack.boot; print(cc_conntrack.__file__)"
        assert boot.run("python3", "-s", "-c", ask) == f"{SITE}/cc_conntrack.py\n"
        assert not [path for path in differing(bullseye, chroot_of(bullseye)) if path[1:].startswith("etc")]
        boot.run("cloudinit-conntrack", "enable")
        boot.write("/etc/cloud/cloud.cfg.d/10-mine.cfg", "cloud_config_modules: [runcmd, scripts-mine]\n")
        rpm(boot, bullseye, "--upgrade", str(newer(dist, tmp_path)))
        assert "scripts-mine" in boot.read(DROP_IN)
        boot.write("/var/lib/cloudinit-conntrack/journal", "")
        assert "cloudinit-conntrack revert" in rpm(boot, bullseye, "--erase", "cloudinit-conntrack")
        boot.run("rm", "-r", "/var/lib/rpm", "/var/lib/cloudinit-conntrack", "/etc/cloud/cloud.cfg.d/10-mine.cfg")
    hook.unlink()
    left = differing(bullseye, chroot_of(bullseye))
    # Directories of RHEL's that Debian does not have.
    assert [path for path in left if not path.startswith(("+usr/lib/python3.9/site-packages", "+usr/share/"))] == []
    assert not [path for path in left if "conntrack" in path]
