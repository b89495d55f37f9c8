#!/usr/bin/env python3
"""`make demo`: a Debian guest with CentOS-style stateful rules becomes stateless, and goes back.

Boots examples/seed-centos.yaml in User-mode Linux: a real kernel with loadable modules,
real systemd, real cloud-init.  Shows the host before, after, after a reboot, and after
``revert``.  What is true is judged with the kernel's own tools and with connections from
outside, never with our own ``verify``.  Exits 0 when every check is ok, else 1.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path
from typing import Callable

from . import guest_image, layer
from .full_guest import FullGuest
from .uml import CHECKOUT, GuestError, Ran

TOOLS = (
    ("linux.uml", "user-mode-linux"),
    ("mmdebstrap", "mmdebstrap"),
    ("mkfs.ext4", "e2fsprogs"),
    ("debugfs", "e2fsprogs"),
    ("ip", "iproute2"),
    ("unshare", "util-linux"),
)

# cloud-init's config stage, in which cc_conntrack runs, waits for us: so "before" is the
# very boot in which it runs, with all services up.  /run: gone at the next boot.
HOLD = "[Service]\nExecStartPre=/bin/sh -c 'mkfifo /run/guest/go; timeout 120 cat /run/guest/go'\n"
HOLD_PATH = "/run/systemd/system/cloud-config.service.d/hold.conf"
HELD = """\
until [ -p /run/guest/go ] && systemctl --quiet is-active multi-user.target; do sleep 0.3; done
systemctl is-active iptables.service ip6tables.service haproxy.service ssh.service
"""

MODULES = "awk '$1 ~ /conntrack|^nf_nat|^xt_state$|^xt_CT$|table_nat$/ {print $1}' /proc/modules | sort"
FILES = """\
find /etc/sysconfig /etc/modprobe.d /etc/modules-load.d /etc/haproxy /etc/default /etc/systemd/system \
    \\( -type f -o -type l \\) -printf '%p mode=%m owner=%U:%G mtime=%T@ link=%l\\n' | sort
find /etc/sysconfig /etc/modprobe.d /etc/modules-load.d /etc/haproxy /etc/default /etc/systemd/system \
    -type f -exec sha256sum {} + | sort
"""
CHANGED = {
    "/etc/modprobe.d/00-cloudinit-conntrack.conf",
    "/etc/sysconfig/ip6tables",
    "/etc/sysconfig/iptables",
    "/etc/sysconfig/iptables-config",
}
RULES = "iptables-save; ip6tables-save"
# cc_conntrack's own words in cloud-init's log: one line for each thing it did.
DONE = r"sed -n 's/.*cc_conntrack.py\[INFO\]: conntrack: //p' /var/log/cloud-init.log"


class Demo:
    """Progress lines, and the checks' outcome."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.failed: list[str] = []
        self.checks = 0
        self._colour = sys.stdout.isatty()

    def say(self, text: str) -> None:
        """One progress line."""
        print(f"[{time.monotonic() - self.started:6.1f} s] {text}", flush=True)

    def check(self, what: str, ok: bool, evidence: str) -> None:
        """One check with what was seen; the last lines of *evidence* when it is long."""
        self.checks += 1
        word, colour = ("ok    ", "32") if ok else ("FAILED", "31")
        shown = f"\x1b[{colour}m{word}\x1b[0m" if self._colour else word
        lines = [line for line in evidence.strip().splitlines() if line.strip()] or ["(nothing)"]
        if not ok:
            self.failed.append(what)
        if ok or len(lines) == 1:
            self.say(f"  {shown} {what}: {lines[-1].strip()}")
        else:
            self.say(f"  {shown} {what}:")
            print("\n".join(f"             | {line}" for line in lines[-30:]), flush=True)


class Client(threading.Thread):
    """Fetches the page again and again, over IPv4 and IPv6 in turn, until told to stop."""

    def __init__(self, guest: FullGuest, pause: float = 0.1) -> None:
        super().__init__(daemon=True)
        self._guest = guest
        self._pause = pause
        self._stop_now = threading.Event()
        self.done = 0
        self.failures: list[str] = []

    def run(self) -> None:
        """Thread body."""
        while not self._stop_now.is_set():
            version = 4 + 2 * (self.done % 2)
            error = page(self._guest, version)[1]
            self.done += 1
            if error:
                self.failures.append(f"request {self.done} over IPv{version}: {error}")
            self._stop_now.wait(self._pause)

    def stop(self) -> None:
        """End it and wait for it."""
        self._stop_now.set()
        self.join(30)


def page(guest: FullGuest, version: int, port: int = 80) -> tuple[str, str]:
    """Fetch the page from outside: (answer, "") or ("", error)."""
    try:
        answer = guest.http(port, version)
    except OSError as error:
        return "", str(error)
    if not answer.startswith("HTTP/1.1 200") and not answer.startswith("HTTP/1.0 200"):
        return "", f"unexpected answer {answer[:60]!r}"
    return answer, ""


# -- what is looked at ---------------------------------------------------------------------


def reachable(demo: Demo, guest: FullGuest) -> None:
    """haproxy and ssh answer the outside, and the firewall still keeps a port shut."""
    for version in (4, 6):
        answer, error = page(guest, version)
        demo.check(f"haproxy answers over IPv{version}", not error, answer or error)
        try:
            seen = guest.banner(22, version)
        except OSError as failure:
            seen = f"no: {failure}"
        demo.check(f"ssh port reachable over IPv{version}", seen.startswith("SSH-"), seen)
        answer, error = page(guest, version, 8404)
        demo.check(f"port 8404 filtered over IPv{version}", bool(error) and "refused" not in error, error or answer)
    listening = guest.run("ss -Hltn sport = :8404").stdout
    demo.check("(something does listen on 8404)", ":8404" in listening, listening)


def before(demo: Demo, guest: FullGuest) -> None:
    """The host as CentOS has it: stateful, tracked, the module in use."""
    rules = guest.check(RULES)
    stateful = [line for line in rules.splitlines() if "--state" in line or "--ctstate" in line]
    demo.check("rules are stateful", len(stateful) == 6, f"{len(stateful)} stateful rules, e.g. {stateful[:1]}")
    reachable(demo, guest)
    modules = guest.check(MODULES).split()
    demo.check("IPTABLES_MODULES loaded", "nf_conntrack_netbios_ns" in modules, " ".join(modules))
    entries = guest.check("grep -c 'dport=80 ' /proc/net/nf_conntrack || true")
    demo.check("connections are tracked", int(entries) >= 2, f"{entries.strip()} entries for port 80")
    refusal = guest.run("modprobe -r nf_conntrack")
    demo.check("modprobe -r nf_conntrack", "in use" in refusal.stderr and not refusal.ok, refusal.output)


def after(demo: Demo, guest: FullGuest) -> None:
    """No trace of connection tracking, and everything that worked still works."""
    result = guest.check("cat /run/cloud-init/result.json")
    demo.check("cloud-init met no error", json.loads(result)["v1"]["errors"] == [], " ".join(result.split()))
    modules = guest.check(MODULES).split()
    demo.check("no conntrack module is loaded", not modules, " ".join(modules) or "none in /proc/modules")
    proc = guest.run("ls /proc/net/nf_conntrack /sys/module/nf_conntrack")
    demo.check("no /proc/net/nf_conntrack", proc.status == 2 and not proc.stdout, proc.output)
    answer = guest.run("modprobe -n -v nf_conntrack")
    demo.check("modprobe refuses it", "install /bin/false" in answer.output, answer.output)
    rule = "OUTPUT -m state --state NEW -j ACCEPT"
    added = guest.run(f"iptables -A {rule} && iptables -D {rule}")
    demo.check("a new stateful rule is refused", not added.ok, added.stderr or "the kernel took it")
    rules = guest.check(RULES).splitlines()
    stateful = [line for line in rules if "state" in line and line.startswith("-A")]
    kept = [line for line in rules if line.startswith("-A")]
    demo.check("rules are stateless", not stateful, "\n".join(stateful) or f"{len(kept)} rules, none stateful")
    for family in ("icmp-host-prohibited", "icmp6-adm-prohibited"):
        rejects = [line for line in kept if line.startswith("-A INPUT") and line.endswith(family)]
        demo.check(f"still filtering ({family})", len(rejects) == 1, "\n".join(rejects))
    failed = guest.run("systemctl --failed --plain --no-legend").stdout
    demo.check("no unit failed", not failed.strip(), failed or "none")
    reachable(demo, guest)
    again = guest.run("cloudinit-conntrack verify", 120)
    demo.check("cloudinit-conntrack verify", again.ok, headline(again))


def headline(ran: Ran) -> str:
    """What a command of ours says first; all it says when it failed."""
    return ran.stdout.split("\n")[0] if ran.ok else ran.output


def changed_files(before: str, now: str) -> list[str]:
    """Paths with another content, mode, owner or time in one of two :data:`FILES` outputs."""
    lines = set(before.splitlines()) ^ set(now.splitlines())
    return sorted({word for line in lines for word in line.split() if word.startswith("/")})


def without_counters(rules: str) -> list[str]:
    """An iptables-save text without its comments (they hold the time) and counters."""
    return [line.split(" [")[0] for line in rules.splitlines() if not line.startswith("#")]


# -- the story -------------------------------------------------------------------------------


def install_tools(demo: Demo) -> None:
    """Install what is missing, without questions."""
    missing = sorted({package for tool, package in TOOLS if shutil.which(tool) is None})
    if missing:
        demo.say(f"installing {' '.join(missing)}")
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
        for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", *missing]):
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
            if done.returncode:
                raise GuestError(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-2000:]}")
    if not Path("/dev/net/tun").exists():
        subprocess.run(["modprobe", "tun"], capture_output=True, timeout=30, check=False)


def first_boot(demo: Demo, guest: FullGuest) -> tuple[str, str]:
    """Boot, look, let cloud-init go on, look again; gives the files and rules as they were."""
    demo.say("boot 1: Debian, systemd, cloud-init with examples/seed-centos.yaml")
    guest.boot()
    demo.say("  the kernel runs; waiting for the network stage and the services")
    held = guest.run(HELD, 120)
    demo.say("BEFORE: cloud-init is held just before its config stage")
    demo.check("firewall, haproxy and ssh are up", held.ok, held.output.replace("\n", " "))
    before(demo, guest)
    files, rules = guest.check(FILES), guest.check(RULES)
    demo.say("letting cloud-init go on: cc_conntrack applies the conntrack section")
    client = Client(guest)
    client.start()
    guest.check("echo go >/run/guest/go")
    guest.run("systemctl is-system-running --wait", 180)
    client.stop()
    demo.say("AFTER")
    demo.check(
        "no request failed meanwhile", not client.failures, "\n".join(client.failures) or f"{client.done} requests"
    )
    for line in guest.check(DONE).splitlines():
        demo.say("    " + textwrap.shorten(line, 110, placeholder=" ..."))
    changed = changed_files(files, guest.check(FILES))
    demo.check("files that changed", set(changed) == CHANGED, ", ".join(changed))
    after(demo, guest)
    again = guest.run("cloudinit-conntrack apply -c /var/lib/cloud/seed/nocloud/user-data", 120)
    demo.check("a second apply", again.ok and "nothing to do" in again.stdout, headline(again))
    return files, rules


def second_boot(demo: Demo, guest: FullGuest) -> None:
    """The same disk again."""
    demo.say("shutting down")
    guest.power_off()
    demo.say("boot 2: the same disk")
    guest.boot()
    guest.run("systemctl is-system-running --wait", 180)
    demo.say("AFTER THE REBOOT")
    after(demo, guest)


def revert(demo: Demo, guest: FullGuest, files: str, rules: str) -> None:
    """Everything back, byte for byte."""
    demo.say("REVERT")
    done = guest.run("cloudinit-conntrack revert", 120)
    demo.check("cloudinit-conntrack revert", done.ok, headline(done))
    changed = changed_files(files, guest.check(FILES))
    seen = "\n".join(changed) or f"{files.count('mode=')} files: content, mode, owner, time"
    demo.check("files are as before, byte for byte", not changed, seen)
    difference = sorted(set(without_counters(rules)) ^ set(without_counters(guest.check(RULES))))
    demo.check("rules are as before", not difference, "\n".join(difference) or "both families")
    modules = guest.check(MODULES).split()
    wanted = {"nf_conntrack", "nf_conntrack_netbios_ns", "xt_conntrack"}
    demo.check("modules are loaded again", wanted <= set(modules), " ".join(modules))
    page(guest, 4)
    entries = guest.run("grep -c 'dport=80 ' /proc/net/nf_conntrack").stdout
    demo.check("connections are tracked again", int(entries or 0) >= 1, f"{entries.strip()} entries for port 80")
    for version in (4, 6):
        answer, error = page(guest, version)
        demo.check(f"haproxy answers over IPv{version}", not error, answer or error)


def run(demo: Demo) -> None:
    """The whole demo."""
    install_tools(demo)
    image = guest_image.image(demo.say)
    demo.say(f"image {image}")
    with tempfile.TemporaryDirectory(prefix="conntrack-demo-") as name:
        tree = Path(name) / "layer"
        layer.make(tree, image)
        user_data = (CHECKOUT / "examples" / "seed-centos.yaml").read_text()
        with FullGuest(image, Path(name) / "guest", user_data, tree) as guest:
            guest.put(HOLD_PATH, HOLD)
            files, rules = first_boot(demo, guest)
            second_boot(demo, guest)
            revert(demo, guest, files, rules)


def main(story: Callable[[Demo], None] = run) -> int:
    """Run, report; the exit status."""
    demo = Demo()
    try:
        if os.geteuid() != 0:
            raise GuestError("the demo makes network namespaces and an image: run it as root (sudo make demo)")
        story(demo)
    except GuestError as error:
        demo.say(f"FAILED: {error}")
        return 1
    except KeyboardInterrupt:
        demo.say("stopped")
        return 130
    if demo.failed:
        demo.say(f"FAILED: {len(demo.failed)} of {demo.checks} checks: {'; '.join(demo.failed)}")
        return 1
    demo.say(f"all {demo.checks} checks ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
