"""The gate before haproxy (examples/autoscaling): no cycle with the units of any cloud-init, says systemd."""

from __future__ import annotations

from chroots import Suite
from installation import PRODUCT
from machines import Boot, Machine

from cloudinit_conntrack.service import unit_text
from cloudinit_conntrack.state import Program

AUTOSCALING = PRODUCT / "examples" / "autoscaling"
GATE = (AUTOSCALING / "haproxy-conntrack.conf").read_text(encoding="utf-8")
DROP_IN = "/etc/systemd/system/haproxy.service.d/10-conntrack.conf"
UNITS = "/etc/systemd/system"
# As Debian ships haproxy's, less what is of no matter for the order.
HAPROXY = """\
[Unit]
After=network-online.target rsyslog.service
Wants=network-online.target
[Service]
Type=oneshot
ExecStart=/bin/true
[Install]
WantedBy=multi-user.target
"""


def said(boot: Boot, gate: str) -> str:
    """What systemd finds in the whole order of a boot."""
    boot.write(f"{UNITS}/haproxy.service", HAPROXY)
    boot.write(f"{UNITS}/cloudinit-conntrack.service", unit_text(Program("/usr/bin/python3", "/usr/bin/x"), ()))
    for target, unit in (("multi-user", "haproxy"), ("sysinit", "cloudinit-conntrack")):
        boot.run("mkdir", "-p", f"{UNITS}/{target}.target.wants")
        boot.run("ln", "-sf", f"../{unit}.service", f"{UNITS}/{target}.target.wants/{unit}.service")
    boot.write(DROP_IN, gate)
    boot.run("mount", "-t", "cgroup2", "cgroup2", "/sys/fs/cgroup")  # or it says nothing at all
    # cloud-init's own target is pulled in by a generator, which this does not run
    done = boot.attempt("systemd-analyze", "verify", "--man=no", "multi-user.target", "cloud-init.target",
                        "haproxy.service")
    return done.stdout + done.stderr


def test_no_cycle(suite: Suite, bare: Machine) -> None:
    """haproxy-conntrack.conf; and that a gate behind cloud-final would close one."""
    with bare.boot() as boot:
        found = said(boot, GATE)
        assert "manager" not in found and "ordering cycle" not in found, found
        assert not [line for line in found.splitlines() if "haproxy.service" in line], found
    with bare.boot() as boot:
        assert "ordering cycle" in said(boot, GATE.replace("cloud-config.service", "cloud-final.service"))


def test_a_stock_node(suite: Suite, bare: Machine) -> None:
    """stock-node.yaml is what this version's own schema takes."""
    with bare.boot() as boot:
        boot.write("/root/node.yaml", (AUTOSCALING / "stock-node.yaml").read_text(encoding="utf-8"))
        command = ("cloud-init", "devel", "schema") if suite.version == "20.4" else ("cloud-init", "schema")
        done = boot.attempt(*command, "--config-file", "/root/node.yaml")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Valid" in done.stdout
