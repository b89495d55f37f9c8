"""The seed's own case, whole: a CentOS-style balancer, one apply by cloud-init at the first boot, a reboot, revert.

One guest for all tests of this file.  It is driven as the demo drives it, by the checks of
``seed_case.py``; here each must hold.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests import reports

from . import guest_image, layer, seed_case
from .full_guest import FullGuest
from .later import Later
from .seed_case import Before, Check, Client

# Set while conntrack runs, and no file says it: only revert can bring it back.
TUNE = """\
echo 8192 >/sys/module/nf_conntrack/parameters/hashsize
sysctl -q -w net.netfilter.nf_conntrack_max=54321 net.netfilter.nf_conntrack_tcp_timeout_established=7777
"""
NAMES = "cut -d' ' -f1 /proc/modules | sort"
# How many conntrack modules there are, again and again while the boot goes on.
POLL = "(while sleep 0.3; do grep -c -e conntrack -e nf_nat /proc/modules; done) >/run/polled 2>&1 </dev/null &"
# The whole journal: modprobe, started by whatever unit, says there which module it could not load.
LOG = "journalctl --boot --output=cat; dmesg"


@dataclass
class Told:
    """What was seen: by stage the checks, the loaded modules and conntrack's settings; and some answers of ours."""

    checks: dict[str, list[Check]] = field(default_factory=dict)
    modules: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    clients: tuple[Client, ...] = ()
    changed: frozenset[str] = frozenset()
    applied: str = ""
    again: str = ""
    polled: str = ""
    log: str = ""

    def keep(self, stage: str, guest: FullGuest, found: Iterable[Check]) -> None:
        """Look at the modules and settings, then make the checks."""
        self.modules[stage], self.settings[stage] = guest.check(NAMES), guest.run(seed_case.SETTINGS).stdout
        self.checks[stage] = list(found)


def tell() -> Told:
    """Two boots of one guest."""
    with tempfile.TemporaryDirectory(prefix="seed-case-") as name:
        tree = Path(name) / "layer"
        image = guest_image.image()
        layer.make(tree, image)
        with FullGuest(image, Path(name) / "guest", seed_case.USER_DATA.read_text(), tree) as guest:
            guest.put(seed_case.HOLD_PATH, seed_case.HOLD)
            told = Told()
            was = _first_boot(guest, told)
            _second_boot(guest, told, was)
            return told


def _first_boot(guest: FullGuest, told: Told) -> Before:
    """Held before cloud-init's config stage, then let go, while a client keeps asking."""
    guest.boot()
    guest.check(seed_case.HELD, 180)
    guest.check(TUNE)
    told.keep("before", guest, seed_case.before(guest))
    was = Before(guest.check(seed_case.FILES), guest.check(seed_case.RULES))
    told.clients = (Client(guest, 50, (4,)), Client(guest, 50, (6,)))
    with ExitStack() as asking:
        for client in told.clients:
            asking.enter_context(client)
        guest.check(seed_case.RELEASE)
        guest.run(seed_case.BOOTED, 240)
        time.sleep(2)
    told.applied = guest.check("cat /run/cloudinit-conntrack/result.json")
    told.changed = frozenset(seed_case.changed_files(was.files, guest.check(seed_case.FILES)))
    told.keep("after", guest, seed_case.after(guest))
    told.again = guest.check(f"cloudinit-conntrack apply -c {seed_case.ON_DISK}", 120)
    return was


def _second_boot(guest: FullGuest, told: Told, was: Before) -> None:
    """The same disk; looked at before our checks try to load a module; then revert."""
    guest.power_off()
    guest.boot()
    guest.check(POLL)
    guest.run(seed_case.BOOTED, 240)
    told.polled, told.log = guest.check("cat /run/polled"), guest.check(LOG)
    told.keep("second boot", guest, seed_case.after(guest))
    guest.check("cloudinit-conntrack revert", 120)
    told.keep("reverted", guest, seed_case.reverted(guest, was))


STORY = Later(tell, first=True)


@pytest.fixture
def told() -> Told:
    return STORY.result()


def assert_all(checks: list[Check], at_least: int) -> None:
    assert len(checks) >= at_least
    failed = [f"{check.what}:\n{check.seen}" for check in checks if not check.ok]
    assert not failed, "\n".join(failed)


def test_before_conntrack_is_in_use_and_modprobe_cannot_remove_it(told: Told) -> None:
    assert_all(told.checks["before"], 10)
    assert {"nf_conntrack", "nf_conntrack_netbios_ns", "xt_conntrack"} <= set(told.modules["before"].split())


def test_cloud_init_applies_it_once_and_no_trace_of_conntrack_is_left(told: Told) -> None:
    assert reports.read(told.applied)["outcome"] == "done"
    assert_all(told.checks["after"], 15)


def test_only_the_files_that_need_it_are_changed(told: Told) -> None:
    assert told.changed == seed_case.CHANGED


@pytest.mark.parametrize(("index", "family"), [(0, "IPv4"), (1, "IPv6")])
def test_a_client_sees_no_failure_during_and_after_apply(
    told: Told, measured: list[str], index: int, family: str
) -> None:
    client = told.clients[index]
    measured.append(f"client during apply over {family}: {client.done} requests, {client.rate:.0f} a second")
    assert_all([client.check()], 1)
    assert client.done > 100


def test_a_second_apply_has_nothing_to_do(told: Told) -> None:
    assert told.again.startswith("nothing to do")


def test_a_reboot_holds(told: Told) -> None:
    assert_all(told.checks["second boot"], 15)


def test_the_module_was_never_loaded_in_the_second_boot(told: Told) -> None:
    names = told.modules["second boot"].split()
    assert "iptable_filter" in names and "ip6table_filter" in names
    assert len(told.polled.split()) > 5
    assert set(told.polled.split()) == {"0"}
    assert "Linux version" in told.log and "iptables.service" in told.log
    assert "nf_conntrack" not in told.log


def test_revert_gives_back_every_byte_rule_and_module(told: Told) -> None:
    assert_all(told.checks["reverted"], 8)
    assert set(told.modules["before"].split()) <= set(told.modules["reverted"].split())


def test_revert_gives_back_module_parameters_and_sysctls(told: Told) -> None:
    values = dict(row.split(":", 1) for row in told.settings["before"].splitlines())
    assert values["/proc/sys/net/netfilter/nf_conntrack_max"] == "54321"
    assert values["/sys/module/nf_conntrack/parameters/hashsize"] == "8192"
    assert told.settings["reverted"] == told.settings["before"]
