"""examples/monitoring, read by those who would run it: cloud-init's schema, and systemd of that release."""

from __future__ import annotations

from pathlib import Path

from chroots import Suite, numbers
from machines import Boot, Machine

HERE = Path(__file__).parents[2] / "examples/monitoring"
UNITS = "/etc/systemd/system"
NAMES = ("cloudinit-conntrack-metrics.service", "cloudinit-conntrack-metrics.timer")
USER_DATA = HERE / "user-data.yaml"
PROGRAM = "/usr/bin/cloudinit-conntrack"


def faults(boot: Boot) -> str:
    """What systemd says of the two units."""
    done = boot.attempt("systemd-analyze", "verify", "--man=no", *(f"{UNITS}/{name}" for name in NAMES))
    return done.stdout + done.stderr


def test_systemd_and_cloud_init_find_no_fault(suite: Suite, bare: Machine) -> None:
    schema = ("schema",) if numbers(suite.version) >= (22, 0) else ("devel", "schema")
    with bare.boot() as boot:
        for name, key in (("good", "content:"), ("bad", "contents:")):
            boot.write(f"/run/{name}.yaml", USER_DATA.read_text().replace("content:", key))
            done = boot.attempt("cloud-init", *schema, "--config-file", f"/run/{name}.yaml")
            assert (done.returncode == 0) == (name == "good"), done.stdout + done.stderr
        for name in NAMES:
            boot.write(f"{UNITS}/{name}", (HERE / name).read_text())
        boot.run("mount", "-t", "cgroup2", "cgroup2", "/sys/fs/cgroup")  # or it says nothing at all
        assert "cloudinit-conntrack is not executable" in faults(boot)  # what is wrong is told
        boot.write(PROGRAM, "#!/bin/sh\n")
        boot.run("chmod", "755", PROGRAM)
        assert "cloudinit-conntrack" not in faults(boot)
