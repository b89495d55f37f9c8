"""A saved file that somebody breaks under the block: the next boot loads its last good rules, and says so.

Two hosts: iptables-legacy in user-mode Linux; iptables-nft and native nftables under a kernel of Debian's in QEMU.
The distribution's services are played by the commands that they run, before ours (as they are ordered) and after it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests import reports

from .balancer import SAVED, Story, run_balancer
from .kernels import kernel
from .later import Later
from .qemu import run_qemu
from .test_kernels import NATIVE
from .test_kernels import SAVED as DEBIAN
from .test_kernels import WORDS as QEMU_WORDS
from .uml import QuickResult

GOOD = "/var/lib/cloudinit-conntrack/good"
# What cannot be said without connection tracking, as the first rule of a file that was fine.
SPOIL = r"sed -i 's/^-A INPUT/-A INPUT -m connlimit --connlimit-above 9 -j DROP\n&/;t done;b;:done;n;b done'"
NEEDS = "-m connlimit"
# A systemd is believed to be there by its directory; `systemctl enable` makes links.
SYSTEMD = """\
mkdir -p /run/systemd/system /etc/systemd/system/multi-user.target.wants
enable() { ln -sf /lib/systemd/system/$1.service /etc/systemd/system/multi-user.target.wants/$1.service; }
"""

LEGACY_FIRST = f"""
{SYSTEMD}
enable iptables; enable ip6tables
load
config 'mode: unload'
step apply cc apply -c $DESIRED
look applied
step good ls -l {GOOD}
cp /etc/sysconfig/iptables /root/good4; cp /etc/sysconfig/ip6tables /root/good6
{SPOIL} /etc/sysconfig/iptables; {SPOIL} /etc/sysconfig/ip6tables
sha256sum /etc/sysconfig/ip*tables >/root/spoilt
step drift cc verify
"""
LEGACY_SECOND = f"""
{SYSTEMD}
load4() {{ iptables-restore </etc/sysconfig/iptables; }}
load6() {{ ip6tables-restore </etc/sysconfig/ip6tables; }}
step service4 load4
step service6 load6
look open
step boot cc apply
look boot
step late4 load4
step late6 load6
look late
step files sha256sum -c /root/spoilt
step status cc status
step verify cc verify
step again cc apply
look again
cp /root/good4 /etc/sysconfig/iptables; cp /root/good6 /etc/sysconfig/ip6tables
step mended cc apply
step verified cc verify
step revert cc revert
step gone ls {GOOD} /run/cloudinit-conntrack/refused.json
"""


def two_boots() -> tuple[Story, Story]:
    with tempfile.TemporaryDirectory() as name:
        disk = Path(name) / "disk.tar"
        return run_balancer(LEGACY_FIRST, SAVED, disk=disk), run_balancer(LEGACY_SECOND, {}, disk=disk)


LEGACY = Later(two_boots)


@pytest.fixture
def legacy() -> tuple[Story, Story]:
    return LEGACY.result()


def test_apply_keeps_what_it_saw_load(legacy: tuple[Story, Story]) -> None:
    first, _ = legacy
    first.answer("apply", 0)
    names = [line.split() for line in first.step("good").stdout.splitlines()[1:]]
    assert [(row[0], row[-1]) for row in names] == [("-rw-------", "etc_sysconfig_ip6tables"),
                                                    ("-rw-------", "etc_sysconfig_iptables")]
    assert {b["where"].partition(":")[0] for b in first.answer("drift", 4)["blockers"]} == set(SAVED)


def test_without_us_the_host_would_be_open(legacy: tuple[Story, Story]) -> None:
    _, second = legacy
    assert not second.step("service4").ok and not second.step("service6").ok
    assert not [row for row in second.seen("open").rules if row.startswith("-A INPUT")]


def test_the_boot_loads_the_last_good_rules_and_fails_loudly(legacy: tuple[Story, Story]) -> None:
    first, second = legacy
    said = second.answer("boot", 1)  # rules were loaded: this is not 'blocked, nothing changed'
    assert said["outcome"] == "failed" and len(said["blockers"]) == 2
    for path in SAVED:
        assert f"{path}: this saved file does not load at boot" in said["message"]
    assert said["message"].count("its last good rules are loaded instead") == 2
    assert rules(second, "boot") == rules(first, "applied")
    assert not second.seen("boot").conntrack
    assert second.step("files").ok, "a person's file is left as it is"


def test_a_service_that_comes_later_takes_nothing_away(legacy: tuple[Story, Story]) -> None:
    _, second = legacy
    assert not second.step("late4").ok and not second.step("late6").ok
    assert rules(second, "late") == rules(second, "boot")


def test_status_and_verify_show_it_until_it_is_mended(legacy: tuple[Story, Story]) -> None:
    _, second = legacy
    for name, status in (("status", 0), ("verify", 4)):
        found = {item["where"]: item for item in second.answer(name, status)["findings"]
                 if item["id"].startswith("unloadable:")}
        assert set(found) == set(SAVED), found
        assert all("plan" in item["remedy"] and "revert" in item["remedy"] for item in found.values())
    assert "the rules that are live stay" in second.answer("again", 3)["message"]
    assert rules(second, "again") == rules(second, "boot")
    assert second.answer("mended", 0)["outcome"] == "nothing-to-do"
    assert second.answer("verified", 0)["outcome"] == "verified"


def test_revert_takes_what_was_kept_away(legacy: tuple[Story, Story]) -> None:
    _, second = legacy
    second.answer("revert", 0)
    assert second.step("gone").stdout == ""


def rules(story: Story, name: str) -> set[str]:
    return {row for row in story.seen(name).rules if row.startswith(("-A", ":"))}


# --- iptables-nft and native nftables ------------------------------------------------------------

QEMU_FIRST = f"""
{SYSTEMD}
enable netfilter-persistent; enable nftables
nft -f /etc/nftables.conf && iptables-restore </etc/iptables/rules.v4 && ip6tables-restore </etc/iptables/rules.v6
step apply cc apply -c /root/desired.yaml
look applied
{SPOIL} /etc/iptables/rules.v4
sed -i 's/tcp dport {{ 22, 80 }}/& ct state new/' /etc/nftables.conf
sha256sum /etc/iptables/rules.v? /etc/nftables.conf >/root/spoilt
step drift cc verify
"""
QEMU_SECOND = f"""
{SYSTEMD}
load4() {{ iptables-restore </etc/iptables/rules.v4; }}
step servicenft nft -f /etc/nftables.conf
step service4 load4
step service6 ip6tables-restore /etc/iptables/rules.v6
look open
step boot cc apply
look boot
step latenft nft -f /etc/nftables.conf
step late4 load4
look late
step files sha256sum -c /root/spoilt
step verify cc verify
"""


def qemu_boots() -> tuple[QuickResult, QuickResult]:
    with tempfile.TemporaryDirectory(prefix="qemu-disk-") as name:
        disk = Path(name) / "disk.tar"
        first = run_qemu(QEMU_WORDS + QEMU_FIRST, kernel("bookworm"), files=DEBIAN, timeout=600, disk=disk)
        return first, run_qemu(QEMU_WORDS + QEMU_SECOND, kernel("bookworm"), timeout=600, disk=disk)


QEMU = Later(qemu_boots)


@pytest.fixture
def boots() -> tuple[QuickResult, QuickResult]:
    return QEMU.result()


def test_native_rules_and_those_of_iptables_nft_stand_in_too(boots: tuple[QuickResult, QuickResult]) -> None:
    first, second = boots
    assert answer(first, "apply", 0)["outcome"] == "done"
    assert not second.steps["servicenft"].ok and not second.steps["service4"].ok and second.steps["service6"].ok
    assert not second.steps["open,native"].ok and "-A INPUT" not in of_family(second, "open", "iptables nft")
    said = answer(second, "boot", 1)
    assert said["message"].count("its last good rules are loaded instead") == 2, said
    for path in ("/etc/nftables.conf", "/etc/iptables/rules.v4"):
        assert f"{path}: this saved file does not load at boot" in said["message"]
    assert second.steps["boot,native"].stdout == first.steps["applied,native"].stdout
    for family in ("iptables nft", "ip6tables nft"):
        assert of_family(second, "boot", family) == of_family(first, "applied", family)
    assert "conntrack" not in second.steps["boot,modules"].stdout
    assert second.steps["files"].ok


def test_services_that_come_later_take_no_native_rule_away(boots: tuple[QuickResult, QuickResult]) -> None:
    """Although their file begins with ``flush ruleset``."""
    assert NATIVE.splitlines()[1] == "flush ruleset"
    _, second = boots
    assert not second.steps["latenft"].ok and not second.steps["late4"].ok
    assert second.steps["late,native"].stdout == second.steps["boot,native"].stdout
    for family in ("iptables nft", "ip6tables nft"):
        assert of_family(second, "late", family) == of_family(second, "boot", family)
    assert answer(second, "verify", 4)["outcome"] == "drift"


def answer(told: QuickResult, name: str, status: int) -> Any:
    ran = told.steps[name]
    assert ran.status == status, ran.output
    return reports.read(ran.stdout)


def of_family(told: QuickResult, name: str, family: str) -> str:
    text = told.steps[f"{name},rules"].stdout.partition(f"# {family}\n")[2].partition("\n# ip")[0]
    return "\n".join(line.split("[")[0] for line in text.splitlines() if line.startswith(("-A", ":", "*")))
