"""`make demo`: a Debian guest with CentOS-style stateful rules becomes stateless, and goes back.

Boots examples/seed-centos.yaml in User-mode Linux: a real kernel with loadable modules,
real systemd, real cloud-init.  Shows the host before, after, after a reboot, and after
``revert``.  Exits 0 when every check is ok, else 1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterable
from pathlib import Path

from . import guest_image, layer, seed_case
from .full_guest import FullGuest
from .seed_case import Before, Check
from .uml import GuestError

TOOLS = (
    ("linux.uml", "user-mode-linux"),
    ("mmdebstrap", "mmdebstrap"),
    ("mkfs.ext4", "e2fsprogs"),
    ("debugfs", "e2fsprogs"),
    ("ip", "iproute2"),
    ("unshare", "util-linux"),
)
# cc_conntrack's own words in cloud-init's log: one line for each thing it did.
LOG = r"sed -n 's/.*cc_conntrack.py\[INFO\]: conntrack: //p' /var/log/cloud-init.log"


class Demo:
    """Progress lines with seconds, and the outcome of all checks."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._colour = sys.stdout.isatty()
        self._failed: list[str] = []
        self._checks = 0

    def say(self, text: str) -> None:
        """One progress line."""
        print(f"[{time.monotonic() - self._started:6.1f} s] {text}", flush=True)

    def show(self, checks: Iterable[Check]) -> None:
        """Each check as it comes: in one line, or with all that was seen when it failed."""
        for check in checks:
            self._checks += 1
            lines = [line.strip() for line in check.seen.splitlines() if line.strip()] or ["(nothing)"]
            self.say(f"  {self._word(check.ok)} {check.what}: {lines[-1] if check.ok else lines[0]}")
            if not check.ok:
                self._failed.append(check.what)
                for line in lines[1:30]:
                    print(f"{'':20}{line}", flush=True)

    def _word(self, ok: bool) -> str:
        word = "ok    " if ok else "FAILED"
        return f"\x1b[{32 if ok else 31}m{word}\x1b[0m" if self._colour else word

    def finish(self) -> int:
        """Say how it went; the exit status."""
        if not self._failed:
            self.say(f"all {self._checks} checks ok")
            return 0
        self.say(f"FAILED: {len(self._failed)} of {self._checks} checks: {'; '.join(self._failed)}")
        return 1


def install_tools(demo: Demo) -> None:
    """Install what is missing, without questions."""
    missing = sorted({package for tool, package in TOOLS if shutil.which(tool) is None})
    if missing:
        demo.say(f"installing {' '.join(missing)}")
        _apt_get("update")
        _apt_get("install", "-y", "--no-install-recommends", *missing)
    if not Path("/dev/net/tun").exists():
        subprocess.run(["modprobe", "tun"], capture_output=True, timeout=30, check=False)


def _apt_get(*arguments: str) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    command = ["apt-get", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise GuestError(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-2000:]}")


def first_boot(demo: Demo, guest: FullGuest) -> Before:
    """Boot, look, let cloud-init go on, look again; gives the files and rules as they were."""
    demo.say("boot 1: Debian, systemd, cloud-init with examples/seed-centos.yaml")
    guest.boot()
    demo.say("  the kernel runs; waiting for the network stage and the services")
    held = guest.run(seed_case.HELD, 120)
    demo.say("BEFORE: cloud-init is held just before its config stage")
    demo.show([Check("firewall, haproxy and ssh are up", held.ok, held.output.replace("\n", " "))])
    demo.show(seed_case.before(guest))
    was = Before(guest.check(seed_case.FILES), guest.check(seed_case.RULES))
    demo.say("cloud-init may go on: cc_conntrack applies the conntrack section, a client keeps asking")
    with seed_case.Client(guest) as client:
        guest.check(seed_case.RELEASE)
        guest.run(seed_case.BOOTED, 180)
    for line in guest.check(LOG).splitlines():
        demo.say("    " + textwrap.shorten(line, 110, placeholder=" ..."))
    demo.say("AFTER")
    demo.show([client.check()])
    changed = seed_case.changed_files(was.files, guest.check(seed_case.FILES))
    demo.show([Check("files that changed", changed == seed_case.CHANGED, ", ".join(sorted(changed)))])
    demo.show(seed_case.after(guest))
    again = guest.run(f"cloudinit-conntrack apply -c {seed_case.ON_DISK}", 120)
    demo.show([Check("a second apply", "nothing to do" in again.stdout, seed_case.headline(again))])
    return was


def second_boot(demo: Demo, guest: FullGuest) -> None:
    """The same disk again."""
    demo.say("shutting down")
    guest.power_off()
    demo.say("boot 2: the same disk")
    guest.boot()
    guest.run(seed_case.BOOTED, 180)
    demo.say("AFTER THE REBOOT")
    demo.show(seed_case.after(guest))


def revert(demo: Demo, guest: FullGuest, was: Before) -> None:
    """Everything back."""
    demo.say("REVERT")
    done = guest.run("cloudinit-conntrack revert", 120)
    demo.show([Check("cloudinit-conntrack revert", done.ok, seed_case.headline(done))])
    demo.show(seed_case.reverted(guest, was))


def story(demo: Demo) -> None:
    """The whole demo."""
    if os.geteuid() != 0:
        raise GuestError("the demo makes namespaces and a disk image: run it as root (sudo make demo)")
    install_tools(demo)
    image = guest_image.image(demo.say)
    with tempfile.TemporaryDirectory(prefix="conntrack-demo-") as name:
        tree = Path(name) / "layer"
        layer.make(tree, image)
        with FullGuest(image, Path(name) / "guest", seed_case.USER_DATA.read_text(), tree) as guest:
            guest.put(seed_case.HOLD_PATH, seed_case.HOLD)
            was = first_boot(demo, guest)
            second_boot(demo, guest)
            revert(demo, guest, was)


def main() -> int:
    """Run and report; the exit status."""
    demo = Demo()
    try:
        story(demo)
    except GuestError as error:
        demo.say(f"FAILED: {error}")
        return 1
    except KeyboardInterrupt:
        demo.say("stopped")
        return 130
    return demo.finish()


if __name__ == "__main__":
    sys.exit(main())
