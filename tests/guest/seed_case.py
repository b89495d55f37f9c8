"""What is true of the seed's host before, after and after ``revert``: looked at, not believed.

The judges are the kernel's own tools in the guest and connections from outside; our own
``verify`` is heard last.  The demo prints these checks, the tests assert them.
"""

from __future__ import annotations

import difflib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from .full_guest import FullGuest
from .uml import CHECKOUT, Ran

USER_DATA = CHECKOUT / "examples" / "seed-centos.yaml"
ON_DISK = "/var/lib/cloud/seed/nocloud/user-data"  # the same, in the guest

# cloud-init's config stage, in which cc_conntrack runs, waits for us: so "before" is the
# very boot in which it runs, with all services up.  /run: gone at the next boot.
HOLD = "[Service]\nExecStartPre=/bin/sh -c 'mkfifo /run/guest/go; timeout 120 cat /run/guest/go'\n"
HOLD_PATH = "/run/systemd/system/cloud-config.service.d/hold.conf"
HELD = """\
until [ -p /run/guest/go ] && systemctl --quiet is-active multi-user.target; do sleep 0.3; done
systemctl is-active iptables.service ip6tables.service haproxy.service ssh.service
"""
RELEASE = "echo go >/run/guest/go"
BOOTED = "systemctl is-system-running --wait"

RULES = "iptables-save; ip6tables-save"
MODULES = "awk '$1 ~ /conntrack|^nf_nat|^xt_state$|^xt_CT$|table_nat$/ {print $1}' /proc/modules | sort"
SETTINGS = """\
grep -rs . /sys/module/*conntrack*/parameters /proc/sys/net/nf_conntrack_max /proc/sys/net/netfilter |
    grep -v -e nf_conntrack_count -e nf_log | sort
"""
ENTRIES = "grep -c 'dport=80 ' /proc/net/nf_conntrack"
FILES = """\
set -- /etc/sysconfig /etc/modprobe.d /etc/modules-load.d /etc/haproxy /etc/default /etc/systemd/system
find "$@" \\( -type f -o -type l \\) -printf '%p mode=%m owner=%U:%G mtime=%T@ link=%l\\n' | sort
find "$@" -type f -exec sha256sum {} + | sort
"""
CHANGED = {
    "/etc/modprobe.d/00-cloudinit-conntrack.conf",
    "/etc/systemd/system/cloudinit-conntrack.service",
    "/etc/systemd/system/sysinit.target.wants/cloudinit-conntrack.service",
    "/etc/sysconfig/ip6tables",
    "/etc/sysconfig/iptables",
    "/etc/sysconfig/iptables-config",
}


@dataclass(frozen=True)
class Check:
    """One thing that must hold, whether it did, and what was seen."""

    what: str
    ok: bool
    seen: str


@dataclass(frozen=True)
class Before:
    """The host's files (:data:`FILES`) and rules (:data:`RULES`) before anything was changed."""

    files: str
    rules: str


class Client(threading.Thread):
    """Fetches the page *rate* times a second, over each of *versions* in turn; use it in ``with``."""

    def __init__(self, guest: FullGuest, rate: float = 50, versions: tuple[int, ...] = (4, 6)) -> None:
        super().__init__(daemon=True)
        self._guest = guest
        self._pause = 1 / rate
        self._versions = versions
        self._over = threading.Event()
        self._began = self._finished = 0.0
        self.done = 0
        self.failures: list[str] = []

    @property
    def rate(self) -> float:
        """Requests a second, as reached."""
        return self.done / max(0.001, self._finished - self._began)

    def run(self) -> None:
        """Thread body."""
        self._began = time.monotonic()
        while not self._over.wait(max(0.001, self._began + self.done * self._pause - time.monotonic())):
            version = self._versions[self.done % len(self._versions)]
            self.done += 1
            error = page(self._guest, version)[1]
            if error:
                self.failures.append(f"request {self.done}, IPv{version}: {error}")
        self._finished = time.monotonic()

    def __enter__(self) -> Client:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self.join(30)

    def check(self) -> Check:
        """Every request was answered."""
        families = " and ".join(f"IPv{version}" for version in self._versions)
        told = f"{self.done} requests over {families}, {self.rate:.0f} a second, all answered"
        seen = "\n".join(self.failures) or told
        return Check("no request failed meanwhile", bool(self.done) and not self.failures, seen)


def page(guest: FullGuest, version: int, port: int = 80) -> tuple[str, str]:
    """Fetch a page from outside: (its text, "") or ("", error)."""
    try:
        head, _, body = guest.http(port, version).partition("\r\n\r\n")
    except OSError as error:
        return "", str(error)
    if " 200 " not in head.split("\r\n")[0]:
        return "", f"unexpected answer {head[:60]!r}"
    return body.strip(), ""


def banner(guest: FullGuest, version: int) -> str:
    """What sshd says, or why it does not."""
    try:
        return guest.banner(22, version)
    except OSError as error:
        return f"no answer: {error}"


def changed_files(before: str, now: str) -> set[str]:
    """Paths with another content, mode, owner or time in one of two :data:`FILES` outputs."""
    lines = set(before.splitlines()) ^ set(now.splitlines())
    return {word for line in lines for word in line.split() if word.startswith("/")}


def without_counters(rules: str) -> list[str]:
    """An iptables-save text without its comments (they hold the time) and counters."""
    return [line.split(" [")[0] for line in rules.splitlines() if not line.startswith("#")]


def is_stateful(rule: str) -> bool:
    """Whether a rule of the seed's kind asks for a connection's state."""
    return " -m state " in rule or " -m conntrack " in rule


def headline(ran: Ran) -> str:
    """What a command of ours says first; all it says when it failed."""
    return ran.stdout.split("\n")[0] if ran.ok else ran.output


def serving(guest: FullGuest) -> Iterator[Check]:
    """haproxy and sshd answer the outside."""
    for version in (4, 6):
        text, error = page(guest, version)
        yield Check(f"haproxy answers over IPv{version}", not error, text or error)
        seen = banner(guest, version)
        yield Check(f"ssh port reachable over IPv{version}", seen.startswith("SSH-"), seen)


def filtering(guest: FullGuest) -> Iterator[Check]:
    """A port on which something listens stays shut for the outside."""
    listening = guest.run("ss -Hltn sport = :8404").stdout
    yield Check("something listens on port 8404", ":8404" in listening, listening)
    for version in (4, 6):
        text, error = page(guest, version, 8404)
        shut = bool(error) and "refused" not in error
        yield Check(f"but the outside is kept out, IPv{version}", shut, error or text)


def before(guest: FullGuest) -> Iterator[Check]:
    """The host as CentOS has it: stateful, tracked, the module in use."""
    stateful = [line for line in guest.check(RULES).splitlines() if is_stateful(line)]
    yield Check("rules are stateful", len(stateful) == 6, f"{len(stateful)} with -m state, e.g. {stateful[:1]}")
    yield from serving(guest)
    yield from filtering(guest)
    modules = guest.check(MODULES).split()
    yield Check("IPTABLES_MODULES is loaded", "nf_conntrack_netbios_ns" in modules, " ".join(modules))
    entries = guest.run(ENTRIES).stdout.strip()
    yield Check("connections are tracked", int(entries or 0) >= 2, f"{entries} entries for port 80")
    refusal = guest.run("modprobe -r nf_conntrack")
    yield Check("modprobe -r nf_conntrack fails", "in use" in refusal.stderr and not refusal.ok, refusal.output)


def after(guest: FullGuest) -> Iterator[Check]:
    """No trace of connection tracking, and everything that worked still works."""
    errors = json.loads(guest.check("cat /run/cloud-init/result.json"))["v1"]["errors"]
    yield Check("cloud-init met no error", errors == [], str(errors))
    failed = guest.run("systemctl --failed --plain --no-legend").stdout
    yield Check("no unit failed", not failed.strip(), failed or "none")
    yield from gone(guest)
    rules = [line for line in guest.check(RULES).splitlines() if line.startswith("-A")]
    stateful = [line for line in rules if is_stateful(line)]
    seen = "\n".join(stateful) or f"{len(rules)} rules, none stateful"
    yield Check("rules are stateless", bool(rules) and not stateful, seen)
    for kind in ("icmp-host-prohibited", "icmp6-adm-prohibited"):
        last = [line for line in rules if line.startswith("-A INPUT") and line.endswith(kind)]
        yield Check(f"INPUT still ends in {kind}", len(last) == 1, "\n".join(last))
    yield from serving(guest)
    yield from filtering(guest)
    verified = guest.run("cloudinit-conntrack verify", 120)
    yield Check("cloudinit-conntrack verify", verified.ok, headline(verified))


def gone(guest: FullGuest) -> Iterator[Check]:
    """The modules are not there and do not come back."""
    modules = guest.check(MODULES).split()
    yield Check("no conntrack module is loaded", not modules, " ".join(modules) or "none in /proc/modules")
    for path in ("/proc/net/nf_conntrack", "/sys/module/nf_conntrack"):
        yield Check(f"no {path}", not guest.run(f"test -e {path}").ok, f"test -e {path}")
    answer = guest.run("modprobe -n -v nf_conntrack")
    yield Check("modprobe -n -v nf_conntrack", "install /bin/false" in answer.output, answer.output)
    rule = "OUTPUT -m state --state NEW -j ACCEPT"
    added = guest.run(f"iptables -A {rule} && iptables -D {rule}")
    yield Check("a new stateful rule is refused", not added.ok, added.stderr or "the kernel took it")


def reverted(guest: FullGuest, was: Before) -> Iterator[Check]:
    """Everything as it was, byte for byte."""
    changed = changed_files(was.files, guest.check(FILES))
    seen = "\n".join(sorted(changed)) or f"{was.files.count('mode=')} files: content, mode, owner, time"
    yield Check("files are as before, byte for byte", not changed, seen)
    then, now = without_counters(was.rules), without_counters(guest.check(RULES))
    difference = list(difflib.unified_diff(then, now, "before", "now", lineterm=""))
    yield Check("rules are as before", not difference, "\n".join(difference) or "both families")
    modules = guest.check(MODULES).split()
    wanted = {"nf_conntrack", "nf_conntrack_netbios_ns", "xt_conntrack"}
    yield Check("modules are loaded again", wanted <= set(modules), " ".join(modules))
    yield from serving(guest)
    entries = guest.run(ENTRIES).stdout.strip()
    yield Check("connections are tracked again", int(entries or 0) >= 1, f"{entries} entries for port 80")
