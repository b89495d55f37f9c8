"""haproxy-conntrack.conf in a Debian with systemd and cloud-init: no page before "verify" holds (``make autoscaling``).

First boot: a saved rule blocks the section.  Then it is mended by hand.  Second boot: all is well from the start.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from . import guest_image, layer, seed_case
from .full_guest import FullGuest
from .later import Later
from .uml import CHECKOUT

GATE = CHECKOUT / "examples" / "autoscaling" / "haproxy-conntrack.conf"
DROP_IN = "/etc/systemd/system/haproxy.service.d/10-conntrack.conf"
IN_POOL = "/root/in-the-pool"
# The end of a node's user-data, with a file for the group.
SAYS = f"""
runcmd:
  - |
    set -eu
    cloudinit-conntrack verify
    systemctl is-active --quiet haproxy
    touch {IN_POOL}
"""
LOOPBACK = "      -A INPUT -i lo -j ACCEPT\n"
BLOCKED = "-A INPUT -p tcp -m connlimit --connlimit-above 99 -j DROP"
MEND = "sed -i /connlimit/d /etc/sysconfig/iptables && iptables-restore </etc/sysconfig/iptables"
APPLY = f"cloudinit-conntrack apply -c {seed_case.ON_DISK}"
# The end of cloud-init's last stage; "cloud-init status --wait" ends with the first error.
DONE = "for i in $(seq 200); do [ -e /run/cloud-init/result.json ] && break; sleep 1; done"
LOOK = {
    "haproxy": "systemctl show -p SubState --value haproxy",
    "pool": f"ls {IN_POOL}",
    "log": "journalctl --boot --output=cat --unit=haproxy",
    "whole": "journalctl --boot --output=cat; dmesg",
    "cloud-init": "cloud-init status --long",
}  # fmt: skip


@dataclass
class Told:
    """What was seen, by moment."""

    seen: dict[str, dict[str, str]] = field(default_factory=dict)

    def look(self, name: str, guest: FullGuest) -> None:
        found = {key: guest.run(command).output.strip() for key, command in LOOK.items()}
        page, error = seed_case.page(guest, 4)
        self.seen[name] = {**found, "page": page, "error": error, "ssh": seed_case.banner(guest, 4)}


def user_data() -> str:
    text = seed_case.USER_DATA.read_text(encoding="utf-8")
    return text.replace(LOOPBACK, f"      {BLOCKED}\n{LOOPBACK}", 1) + SAYS


def tell() -> Told:
    told = Told()
    with tempfile.TemporaryDirectory(prefix="gate-") as name:
        tree, image = Path(name) / "layer", guest_image.image()
        layer.make(tree, image)
        with FullGuest(image, Path(name) / "guest", user_data(), tree) as guest:
            guest.put(DROP_IN, GATE.read_text(encoding="utf-8"))
            guest.boot()
            guest.run(DONE, 240)
            told.look("blocked", guest)
            guest.check(MEND, 120)
            guest.check(APPLY, 240)
            until = time.monotonic() + 120
            while guest.run(LOOK["haproxy"]).stdout.strip() != "running" and time.monotonic() < until:
                time.sleep(1)
            told.look("mended", guest)
            guest.check(f"rm -f {IN_POOL}; cloud-init single --name scripts-user --frequency always")
            told.look("told", guest)
            guest.power_off()
            guest.boot()
            guest.run(DONE, 240)
            told.look("second", guest)
    return told


STORY = Later(tell)


@pytest.fixture
def told() -> Told:
    return STORY.result()


def test_a_node_that_is_not_stateless_does_not_serve(told: Told) -> None:
    seen = told.seen["blocked"]
    assert seen["haproxy"] != "running" and not seen["page"]
    assert "No such file" in seen["pool"]
    assert seen["cloud-init"].startswith("status: error")
    assert seen["ssh"].startswith("SSH-"), "and can be looked at"


def test_mended_by_hand_it_joins_by_itself(told: Told) -> None:
    assert told.seen["mended"]["haproxy"] == "running" and told.seen["mended"]["page"]
    assert told.seen["told"]["pool"] == IN_POOL


def test_a_later_boot_serves_from_the_start(told: Told) -> None:
    seen = told.seen["second"]
    assert seen["haproxy"] == "running" and seen["page"]
    assert "verified" in seen["log"]


@pytest.mark.parametrize("when", ["blocked", "second"])
def test_no_cycle(told: Told, when: str) -> None:
    assert "ordering cycle" not in told.seen[when]["whole"]
