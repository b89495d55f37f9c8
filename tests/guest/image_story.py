"""From packages to two running clones: the base, one bake that must do, one that must not, two hosts from the image.

Nothing of the base or the bake is a test's own: the templates, scripts and package are those that people use.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from . import baking, cloud_base, guest_image
from .baking import Bake, Disk
from .clones import Clone

# Somebody else writes a stateful rule into a saved file, between apply and verify.
MEDDLING = """\
runcmd:
  - - systemd-run
    - sh
    - -c
    - >-
      until [ -e /run/cloudinit-conntrack/result.json ]; do sleep 0.2; done;
      echo 'add rule inet filter input ct state new accept' >>/etc/nftables.conf
"""

LOOK = """\
cloud-init status --wait >/dev/null
step status cloud-init status --long
step stages cat /run/cloud-init/result.json
step name hostname
step machine cat /etc/machine-id
step key cat /etc/ssh/ssh_host_ed25519_key.pub
step modules cat /proc/modules
step kernel journalctl -k -o cat
step rules nft list ruleset
step entries cat /proc/net/nf_conntrack
step failed systemctl --failed --plain --no-legend
step service systemctl show -p ActiveState,Result --value cloudinit-conntrack.service
step modprobe modprobe nf_conntrack
step stateful nft add rule inet filter input ct state new accept
mountpoint -q /sys/kernel/tracing || mount -t tracefs tracefs /sys/kernel/tracing
step trace cat /sys/kernel/tracing/trace
step verify cloudinit-conntrack verify --format json
step revert cloudinit-conntrack revert --format json
step saved cat /etc/nftables.conf
step blocks ls /etc/modprobe.d
step after,rules nft list ruleset
step reload systemctl restart nftables.service
step after,modules cat /proc/modules
"""


@dataclass(frozen=True)
class Image:
    """What was seen: both bakes, the tree of the image, the clones."""

    good: Bake
    bad: Bake
    disk: Disk
    clones: tuple[Clone, Clone]


def say(text: str) -> None:
    """One line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def tell(kept: Path) -> Image:
    """Bake, boot, look; the image stays in the directory *kept*, which is made anew."""
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="image-") as name, ThreadPoolExecutor(2) as side_by_side:
        work = Path(name)
        say("building our package")
        package = baking.build_package(work / "packages")
        say("a Debian base from packages (two minutes unless it is cached)")
        guest_image.image(recipe=cloud_base.recipe())
        say("two bakes by Packer: one as it should be, one in which somebody meddles (five to ten minutes without KVM)")
        bad = side_by_side.submit(baking.bake, package, work / "bad", work / "meddled", MEDDLING)
        good = baking.bake(package, kept / "debian-12", work / "baked")
        say(f"baked: status {good.status}, {good.seconds:.0f} s; meddled with: status {bad.result().status}")
        assert good.status == 0, good.said[-6000:]
        disk = kept / "debian-12" / "stateless.qcow2"
        clones = (Clone("one", "the first clone", "52:54:00:00:00:01"),
                  Clone("two", "the second clone", "52:54:00:00:00:02"))  # fmt: skip
        say("two clones (three to five minutes)")
        booted = [side_by_side.submit(clone.live, disk, work / clone.name, LOOK) for clone in clones]
        for future in booted:
            future.result()
        say("looking at what was seen")
        return Image(good, bad.result(), Disk(disk), clones)
