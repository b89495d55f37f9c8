"""Every boot: the unit that apply wrote runs before the network, and mends what somebody changed meanwhile."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from . import confirming, guest_image, layer, seed_case
from .full_guest import FullGuest
from .later import Later

UNIT = "/etc/systemd/system/cloudinit-conntrack.service"
LINK = "/etc/systemd/system/sysinit.target.wants/cloudinit-conntrack.service"
GOOD = "/var/lib/cloudinit-conntrack/good"
SERVICE = "cloudinit-conntrack.service"
# What the kernel and systemd show of a boot, by name.
LOOK = {
    "service": f"systemctl show {SERVICE} -p ActiveState,Result,ExecMainStartTimestampMonotonic,"
               "ExecMainExitTimestampMonotonic,CPUUsageNSec",
    "firewalls": "systemctl show -p ActiveEnterTimestampMonotonic --value iptables.service ip6tables.service",
    "network": "systemctl show -p ActiveEnterTimestampMonotonic --value network-pre.target systemd-networkd.service",
    "log": f"journalctl --boot --output=cat --unit={SERVICE}",
    "whole": "journalctl --boot --output=cat; dmesg",
    "failed": "systemctl --failed --plain --no-legend",
    "modules": "cut -d' ' -f1 /proc/modules",
    "rules": seed_case.RULES,
    "blame": "systemd-analyze blame",
    "status": "cloudinit-conntrack status",
    "entries": "ls /proc/net/nf_conntrack",
    "seen": "grep -o '\"key\"' /var/lib/cloudinit-conntrack/seen.json",
}  # fmt: skip
DRIFT = "sed -i 's/^-A INPUT -i lo/-A INPUT -m state --state ESTABLISHED -j ACCEPT\\n&/' /etc/sysconfig/iptables"
# A rule that needs conntrack and cannot be said without it.
BLOCKED = "sed -i 's/^-A INPUT -i lo/-A INPUT -m connlimit --connlimit-above 9 -j DROP\\n&/' /etc/sysconfig/iptables"

# The whole order of a boot, as systemd computes it; cloud-init is pulled in by a generator, which this does not run.
ORDER = "systemd-analyze verify --man=no multi-user.target cloud-init.target"
# What our unit must not do: wait for a service that starts when the system is up.
CLOSE_A_CYCLE = f"""\
cd /etc/systemd/system && mkdir {SERVICE}.d
printf '[Unit]\\nAfter=late.service\\n' >{SERVICE}.d/late.conf
printf '[Service]\\nType=oneshot\\nExecStart=true\\n' >late.service
ln -s ../late.service multi-user.target.wants/"""
# examples/monitoring: what the timer starts, with all that its unit forbids it, where an exporter is and where none is.
MONITORING = Path(__file__).parents[2] / "examples/monitoring"
METRICS = ("cloudinit-conntrack-metrics.service", "cloudinit-conntrack-metrics.timer")
MEASURE = f"""\
systemd-analyze verify /etc/systemd/system/cloudinit-conntrack-metrics.timer
systemctl start {METRICS[0]} && ls -A /var/lib/prometheus
lsmod | sort >/run/before && mkdir -p /var/lib/prometheus/node-exporter
systemctl start {METRICS[0]} && ls -lA /var/lib/prometheus/node-exporter
cat /var/lib/prometheus/node-exporter/*.prom; lsmod | sort | diff /run/before - && echo no module
systemctl show {METRICS[0]} -p Result
journalctl --boot --output=cat --unit={METRICS[0]}
rm -r /var/lib/prometheus"""
OPEN_IT = f"rm -r late.service multi-user.target.wants/late.service {SERVICE}.d"


@dataclass
class Told:
    """By boot what :data:`LOOK` gave; and what single commands said."""

    boots: dict[str, dict[str, str]] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    confirmed: dict[str, str] = field(default_factory=dict)

    def look(self, name: str, guest: FullGuest) -> None:
        guest.run(seed_case.BOOTED, 240)
        self.boots[name] = {key: guest.run(command).output for key, command in LOOK.items()}

    def numbers(self, boot: str, key: str) -> list[int]:
        return [int(word) for word in self.boots[boot][key].split()]

    def service(self, boot: str) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.boots[boot]["service"].splitlines())


def tell() -> Told:
    """Boots of one guest: applied by cloud-init; nothing to do, twice; a drift that can be mended; one that cannot."""
    told = Told()
    with tempfile.TemporaryDirectory(prefix="boot-service-") as name:
        tree, image = Path(name) / "layer", guest_image.image()
        layer.make(tree, image)
        (tree / "etc/systemd/system").mkdir(parents=True, exist_ok=True)
        for unit in METRICS:
            shutil.copy(MONITORING / unit, tree / "etc/systemd/system")
        with FullGuest(image, Path(name) / "guest", seed_case.USER_DATA.read_text(), tree) as guest:
            guest.boot()
            told.look("first", guest)
            told.said["unit"] = guest.run(f"cat {UNIT}; readlink {LINK}").output
            told.said["analyze"] = guest.run(f"systemd-analyze verify {UNIT}").output
            told.said["order"] = guest.run(ORDER).output
            told.said["cycle"] = guest.run(f"{CLOSE_A_CYCLE}\n{ORDER}\n{OPEN_IT}").output
            told.said["metrics"] = guest.run(MEASURE).output
            # cloud-init would mend it too, but later: it must not hide what the service does.
            guest.check("sed -i '/conntrack, always/d' /etc/cloud/cloud.cfg")
            for boot, change in (("second", "true"), ("third", "true"), ("drifted", DRIFT), ("blocked", BLOCKED)):
                guest.check(change)
                guest.power_off()
                guest.boot()
                told.look(boot, guest)
                told.said[boot] = guest.run("cat /etc/sysconfig/iptables").output
            told.said["banner"] = seed_case.banner(guest, 4)
            told.said["revert"] = guest.run("cloudinit-conntrack revert", 120).output
            told.said["left"] = guest.run(f"ls {UNIT} {LINK} {GOOD} /etc/modprobe.d").output
            told.confirmed = confirming.story(guest)
    return told


STORY = Later(tell, first=True)


@pytest.fixture
def told() -> Told:
    return STORY.result()


def test_apply_writes_a_unit_that_systemd_finds_no_fault_with(told: Told) -> None:
    program = "/usr/lib/python3/dist-packages/cloudinit_conntrack"
    assert f"ExecStart=/usr/bin/python3 -I -S {program} apply" in told.said["unit"]
    assert told.said["unit"].rstrip().endswith(UNIT)
    assert SERVICE not in told.said["analyze"], told.said["analyze"]


def test_the_order_of_a_boot_has_no_cycle(told: Told) -> None:
    assert "ordering cycle" in told.said["cycle"]  # systemd would drop cloud-init to break it
    assert "ordering cycle" not in told.said["order"]


@pytest.mark.parametrize("boot", ["second", "drifted", "blocked"])
def test_it_runs_behind_the_firewall_and_before_the_network(told: Told, boot: str) -> None:
    found = told.service(boot)
    started, ended = (int(found[f"ExecMain{what}TimestampMonotonic"]) for what in ("Start", "Exit"))
    assert 0 < started < ended < min(told.numbers(boot, "network"))
    assert "ordering cycle" not in told.boots[boot]["whole"]


def test_it_comes_after_both_families(told: Told) -> None:
    started = int(told.service("second")["ExecMainStartTimestampMonotonic"])
    assert 0 < max(told.numbers("second", "firewalls")) < started


def test_a_boot_with_nothing_to_do_says_so_and_nothing_was_ever_tracked(told: Told, measured: list[str]) -> None:
    seen = told.boots["second"]
    assert told.service("second")["Result"] == "success"
    assert "nothing to do  mode unload" in seen["log"]
    assert not seen["failed"].strip()
    assert "iptable_filter" in seen["modules"] and "conntrack" not in seen["modules"]
    assert "No such file" in seen["entries"]
    assert not [line for line in seen["whole"].splitlines() if "nf_conntrack" in line]
    took = next(line.strip() for line in seen["blame"].splitlines() if SERVICE in line)
    measured.append(f"boot service with nothing to do, in user-mode Linux: {took}, "
                    f"{int(told.service('second')['CPUUsageNSec']) / 1e6:.0f} ms of CPU")


def test_the_same_boot_again_is_told_without_planning(told: Told, measured: list[str]) -> None:
    """A run that plans, and finds a host that it has not seen yet, writes that down."""
    second, third = told.boots["second"], told.boots["third"]
    assert second["seen"].count("key") == told.boots["first"]["seen"].count("key") + 1
    assert third["seen"] == second["seen"], "it was planned again: a boot does not look like the one before"
    assert third["log"] == second["log"] and "nothing to do" in third["log"]
    one, two = (int(told.service(boot)["CPUUsageNSec"]) / 1e6 for boot in ("second", "third"))
    measured.append(f"boot service in user-mode Linux: {one:.0f} ms of CPU with a plan, {two:.0f} ms without")


def test_monitoring_measures_it_and_may_do_nothing_else(told: Told, measured: list[str]) -> None:
    said = told.said["metrics"]
    for line in ('info{version="0.1.0",mode="unload",conntrack="absent"} 1', "verified 1", "drift_actions 0",
                 "entries 0", "scrape_error 0", 'last_run_outcome{outcome="done"} 1', "boot_service_enabled 1",
                 "boot_service_failed 0"):
        assert f"\ncloudinit_conntrack_{line}\n" in said, said
    assert "ls: cannot access '/var/lib/prometheus'" in said  # without an exporter nothing is made for it
    assert "-rw-r--r-- 1 root root" in said and "\nno module\n" in said and "\nResult=success\n" in said
    assert "skipped because of an unmet condition check" in said and f"{METRICS[0]}: Deactivated successfully." in said
    assert "Failed" not in said and "not executable" not in said and "Unknown" not in said
    took = re.search(r"Consumed (.*) CPU time", said)
    assert took
    measured.append(f"metrics in user-mode Linux: {took[1]} of CPU")


def test_status_says_what_happens_at_every_boot(told: Told) -> None:
    line = next(line for line in told.boots["second"]["status"].splitlines() if "every boot" in line)
    assert "enabled" in line and "nothing-to-do" in line


def test_a_saved_file_that_the_block_kept_out_is_mended_and_loaded(told: Told) -> None:
    """Without that the host would be up with no IPv4 rule at all."""
    seen = told.boots["drifted"]
    assert "iptables.service" in seen["failed"]  # it ran under the block, before us
    assert told.service("drifted")["Result"] == "success", seen["log"]
    assert "--state" not in told.said["drifted"]
    rules = [line for line in seen["rules"].splitlines() if line.startswith("-A INPUT")]
    assert any(line.endswith("icmp-host-prohibited") for line in rules)
    assert not any(map(seed_case.is_stateful, rules))
    assert "conntrack" not in seen["modules"]


def test_a_rule_that_cannot_be_mended_fails_visibly_behind_the_last_good_rules(told: Told) -> None:
    """The file stays as somebody made it; the rules are those of the boot before."""
    seen, before = told.boots["blocked"], told.boots["drifted"]
    assert "iptables.service" in seen["failed"] and SERVICE in seen["failed"]
    assert told.service("blocked")["Result"] == "exit-code"
    assert "connlimit" in seen["log"] and "blocked" in seen["log"]
    assert "/etc/sysconfig/iptables: this saved file does not load at boot" in seen["log"]
    assert all("its last good rules are loaded instead" in seen[name] for name in ("log", "status"))
    assert "connlimit" in told.said["blocked"]
    one, two = ({row.split("[")[0] for row in boot["rules"].splitlines() if row.startswith(("-A", ":"))}
                for boot in (seen, before))
    assert one == two and any("-j REJECT" in row for row in one)
    assert "conntrack" not in seen["modules"]
    assert told.said["banner"].startswith("SSH-"), told.said["banner"]


def test_revert_takes_unit_link_and_block_away(told: Told) -> None:
    assert "reverted" in told.said["revert"]
    assert gone((UNIT, LINK, GOOD), told.said["left"]) and "00-cloudinit-conntrack" not in told.said["left"]


def test_an_unconfirmed_apply_is_undone_though_its_connection_died(told: Told) -> None:
    """A lock-out: the client is gone, and a unit of its own undoes everything."""
    cut_off, undone = told.confirmed["cut off"].splitlines(), told.confirmed["undone"].splitlines()
    assert cut_off[:2] == ["active", "0"], told.confirmed["cut off"]  # it waits, and the modules are gone
    assert undone[0] == "inactive" and "an apply that nobody confirmed in time was rolled back" in "".join(undone)
    assert told.confirmed["after"] == told.confirmed["before"]


def test_only_a_new_connection_confirms(told: Told) -> None:
    assert "this ssh connection is older than the change" in told.confirmed["same"]
    assert "status 2" in told.confirmed["same"]
    assert told.confirmed["new"].splitlines()[0].startswith("confirmed") and "status 0" in told.confirmed["new"]
    assert told.confirmed["kept"].startswith("inactive") and "conntrack" not in told.confirmed["kept"]
    assert told.confirmed["verify"].startswith("verified")
    assert "reverted" in told.confirmed["back"]


def gone(paths: Iterable[str], listing: str) -> bool:
    return all(f"cannot access '{path}'" in listing for path in paths)
