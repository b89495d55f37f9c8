"""The .deb in clean Debian 11, 12 and 13: installed, upgraded, removed and purged by dpkg, without a network."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.cloudinit.chroots import chroot_path
from tests.cloudinit.machines import Boot, Machine

from .building import Dist, neighbour, run
from .changes import differing
from .conftest import RELEASES

DROP_IN = "/etc/cloud/cloud.cfg.d/99-cloudinit-conntrack.cfg"
UNIT = "/etc/systemd/system/cloudinit-conntrack.service"
WANTED = "/etc/systemd/system/sysinit.target.wants/cloudinit-conntrack.service"
BLOCK = "/etc/modprobe.d/00-cloudinit-conntrack.conf"
RULES = "/etc/iptables/rules.v4"
STATEFUL = """\
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
-A INPUT -j DROP
COMMIT
"""
SECTION = "conntrack:\n  mode: stateless\n  guard: {keep: [22]}\n"
# The Python that the first line of cloud-init's program names, as a stage of it runs.
BY_CLOUD_INIT = """
import os, shlex, sys
with open("/usr/bin/cloud-init") as program:
    words = shlex.split(program.readline()[2:])
code = "import cc_conntrack, cloudinit_conntrack.boot as b; print(cc_conntrack.__file__, b.__file__)"
os.execv(words[0], [*words, "-c", code])
"""


def dpkg(boot: Boot, machine: Machine, action: str, *debs: Path) -> str:
    """Run dpkg in the machine; gives what it says."""
    for deb in debs:
        shutil.copy(deb, machine.root / "tmp")
    names = [f"/tmp/{deb.name}" for deb in debs] or ["cloudinit-conntrack"]
    done = boot.attempt("dpkg", action, *names)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def chroot_of(machine: Machine) -> Path:
    """What *machine* was made from."""
    name = next(line.partition("=")[2] for line in (machine.root / "etc/os-release").read_text().splitlines()
                if line.startswith("VERSION_CODENAME="))
    return chroot_path(RELEASES[name])


def listed(boot: Boot) -> str:
    """The entry of our module in the drop-in."""
    return boot.run("grep", "-A", "1000", "cloud_config_modules", DROP_IN)


def test_it_installs_and_enables_nothing(clean: Machine, dist: Dist) -> None:
    with clean.boot() as boot:
        said = dpkg(boot, clean, "--install", dist.deb)
        assert "cloudinit-conntrack: " not in said
        assert boot.run("cloudinit-conntrack", "--version").startswith("cloudinit-conntrack ")
        places = boot.run("python3", "-c", BY_CLOUD_INIT).split()
    assert places == [f"/usr/lib/python3/dist-packages/{name}"
                      for name in ("cc_conntrack.py", "cloudinit_conntrack/boot.py")]
    new = differing(clean, chroot_of(clean))
    assert "+usr/bin/cloudinit-conntrack" in new
    assert [path for path in new if not path.startswith("+usr/")] == []


def test_purged_it_leaves_the_tree_as_it_was(clean: Machine, dist: Dist) -> None:
    with clean.boot() as boot:
        dpkg(boot, clean, "--install", dist.deb)
        boot.run("cloudinit-conntrack", "enable")
        boot.run("python3", "-c", "import cloudinit_conntrack.cli")
        assert f"+{DROP_IN[1:]}" in differing(clean, chroot_of(clean))
        dpkg(boot, clean, "--purge")
    assert differing(clean, chroot_of(clean)) == []


def test_an_upgrade_keeps_state_and_writes_the_list_anew(clean: Machine, dist: Dist, old_deb: Path) -> None:
    with clean.boot() as boot:
        dpkg(boot, clean, "--install", old_deb)
        boot.run("cloudinit-conntrack", "enable")
        assert "scripts-mine" not in listed(boot)
        boot.write("/var/lib/cloudinit-conntrack/desired.json", "{}\n")
        boot.write("/etc/cloud/cloud.cfg.d/10-mine.cfg", "cloud_config_modules: [runcmd, scripts-mine]\n")
        dpkg(boot, clean, "--install", dist.deb)
        assert boot.read("/var/lib/cloudinit-conntrack/desired.json") == "{}\n"
        assert "scripts-mine" in listed(boot)
        assert "conntrack" in listed(boot)
        assert boot.attempt("test", "-e", "/usr/lib/python3/dist-packages/cloudinit_conntrack/gone.py").returncode == 1
        dpkg(boot, clean, "--purge")
    assert differing(clean, chroot_of(clean)) == ["+etc/cloud/cloud.cfg.d/10-mine.cfg"]


def test_an_upgrade_enables_nothing(somewhere: Machine, dist: Dist, old_deb: Path) -> None:
    with somewhere.boot() as boot:
        dpkg(boot, somewhere, "--install", old_deb)
        dpkg(boot, somewhere, "--install", dist.deb)
    assert [path for path in differing(somewhere, chroot_of(somewhere)) if not path.startswith("+usr/")] == []


def test_a_package_that_changes_cloud_init_has_the_list_written_anew(
    somewhere: Machine, dist: Dist, tmp_path: Path
) -> None:
    other = neighbour(tmp_path, "/etc/cloud/cloud.cfg.d/20-other.cfg", "cloud_config_modules: [ntp, theirs]\n")
    with somewhere.boot() as boot:
        dpkg(boot, somewhere, "--install", dist.deb)
        boot.run("cloudinit-conntrack", "enable")
        assert "theirs" not in listed(boot)
        dpkg(boot, somewhere, "--install", other)
        assert "theirs" in listed(boot)


def test_a_list_that_cannot_be_written_anew_fails_no_upgrade(somewhere: Machine, dist: Dist, old_deb: Path) -> None:
    with somewhere.boot() as boot:
        dpkg(boot, somewhere, "--install", old_deb)
        boot.run("cloudinit-conntrack", "enable")
        before = boot.read(DROP_IN)
        boot.write("/etc/cloud/cloud.cfg.d/99-later.cfg", "cloud_config_modules: [ntp]\n")
        said = dpkg(boot, somewhere, "--install", dist.deb)
        assert "run 'cloudinit-conntrack enable' again" in said
        assert "99-later.cfg" in said
        assert boot.read(DROP_IN) == before


@pytest.mark.parametrize("broken", [False, True], ids=["whole", "broken"])
def test_removed_no_boot_is_degraded(somewhere: Machine, dist: Dist, broken: bool) -> None:
    """Even if the program cannot run any more: a missing module in the list degrades each boot."""
    with somewhere.boot() as boot:
        dpkg(boot, somewhere, "--install", dist.deb)
        boot.run("cloudinit-conntrack", "enable")
        if broken:
            boot.run("rm", "/usr/lib/python3/dist-packages/cloudinit_conntrack/errors.py")
        dpkg(boot, somewhere, "--remove")
        left = differing(somewhere, chroot_of(somewhere))
    # A directory that "enable" made, and that only the program knows as its own.
    empty = ["+etc/cloud/somewhere.d"] if broken else []
    assert [path for path in left if path[1:].startswith("etc/") and path not in empty] == []
    assert not any((somewhere.root / "etc/cloud").rglob("*cloudinit-conntrack*"))


def test_removed_it_leaves_rules_alone_and_says_so(somewhere: Machine, dist: Dist) -> None:
    with somewhere.boot() as boot:
        stateless = applied(boot, somewhere, dist)
        said = dpkg(boot, somewhere, "--remove")
        assert "cloudinit-conntrack revert" in said
        assert (live(boot), boot.read(RULES)) == stateless
        assert starts(boot) == 1
        dpkg(boot, somewhere, "--install", dist.deb)
        assert starts(boot) == 0
        boot.run("cloudinit-conntrack", "revert")
        assert boot.read(RULES) == STATEFUL
        assert "--state" in boot.run("iptables-save")
        assert "revert" not in dpkg(boot, somewhere, "--purge")
        boot.run("rm", "-r", "/etc/iptables", "/etc/cloud/conntrack.yaml")
    assert differing(somewhere, chroot_of(somewhere)) == []


def test_purged_it_keeps_the_undo_log_of_what_was_not_reverted(somewhere: Machine, dist: Dist) -> None:
    with somewhere.boot() as boot:
        stateless = applied(boot, somewhere, dist)
        boot.write(BLOCK, "install nf_conntrack /bin/false\n")
        said = dpkg(boot, somewhere, "--purge")
        assert "/var/backups/cloudinit-conntrack" in said
        assert (live(boot), boot.read(RULES)) == stateless
        assert boot.run("stat", "-c", "%a %U", "/var/backups/cloudinit-conntrack") == "700 root\n"
        for gone in (UNIT, WANTED, BLOCK, "/var/lib/cloudinit-conntrack", "/run/cloudinit-conntrack"):
            assert boot.attempt("test", "-L", gone, "-o", "-e", gone).returncode == 1, gone
        dpkg(boot, somewhere, "--install", dist.deb)
        boot.run("mv", "/var/backups/cloudinit-conntrack", "/var/lib/cloudinit-conntrack")
        boot.run("cloudinit-conntrack", "revert")
        assert boot.read(RULES) == STATEFUL


def applied(boot: Boot, machine: Machine, dist: Dist) -> tuple[str, str]:
    """Install, and apply to stateful rules; gives the live rules and the saved ones."""
    dpkg(boot, machine, "--install", dist.deb)
    boot.run("mkdir", "-p", "/run/systemd/system")  # sd_booted(3)
    boot.write(RULES, STATEFUL)
    boot.run("iptables-restore", stdin=STATEFUL)
    boot.write("/etc/cloud/conntrack.yaml", SECTION)
    boot.run("cloudinit-conntrack", "apply", "-c", "/etc/cloud/conntrack.yaml")
    assert "--state" not in boot.run("iptables-save") + boot.read(RULES)
    assert starts(boot) == 0
    return live(boot), boot.read(RULES)


def live(boot: Boot) -> str:
    """The rules in the kernel, without dates and counters."""
    return re.sub(r"(?m)^#.*\n| \[\d+:\d+\]$", "", boot.run("iptables-save"))


def starts(boot: Boot) -> int:
    """0 where systemd would start the boot service, 1 where its conditions do not hold."""
    text = boot.read(UNIT)
    assert boot.attempt("test", "-L", WANTED).returncode == 0
    conditions = [line for line in text.splitlines() if line.startswith("Condition")]
    return boot.attempt("systemd-analyze", "condition", *conditions).returncode


def test_the_deb_says_what_it_needs(dist: Dist) -> None:
    said = run("dpkg-deb", "--field", str(dist.deb), "Depends", "Architecture")
    assert said == "Depends: python3-yaml, python3:any (>= 3.9~)\nArchitecture: all\n"
