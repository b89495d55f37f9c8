"""A host whose command is killed at every boundary, and both ways back from what that leaves.

The host has its own network namespace, files and /run; the command runs in a child of a
fork server there.  What is compared is what iptables-save, nft and the file system show.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import applying, powercut, rulesets
from .applying import CHECKOUT, ENTER, SAVED, Machine, without_made_tables
from .namespace import Namespace
from .powercut import SEEN, Files
from .topology import BACKENDS, FAMILIES

STATE = "var/lib/cloudinit-conntrack"
# Looking leaves no trace in access times; systemd seems to run.
BIND = """from=$1; shift
for d in /etc /var/lib; do
    mount --bind "$from$d" "$d" && mount -o remount,bind,noatime "$d" || exit 99
done
mount --bind "$from/run" /run && mount --bind "$from/boot_id" /proc/sys/kernel/random/boot_id || exit 99
exec "$@"
"""
# Of this machine's /etc only what the commands need.
ETC = ("alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "passwd", "group", "nsswitch.conf", "protocols",
       "services")
PLACES = ("etc/iptables", "etc/sysconfig", "etc/modprobe.d", "etc/systemd/system", "var/lib",
          "run")
# Few rules, since a plan is made some thousand times, that need every kind of action.
SMALL_NATIVE = """\
table inet filter {
	chain input {
		type filter hook input priority filter; policy drop;
		ct state established accept
		tcp dport 22 ct state new accept
	}
}
"""
NATIVE_CONF = "etc/sysconfig/nftables.conf"
SECONDS = 120.0


@dataclass(frozen=True)
class Case:
    """Which rules a host has (``legacy``, ``nft`` or ``native``), and what is asked of it."""

    rules: str
    mode: str
    systemd: bool = False  # then there is a boot service too

    def __str__(self) -> str:
        return f"{self.rules}-{self.mode}{'-systemd' if self.systemd else ''}"


@dataclass(frozen=True)
class State:
    """What a host shows: its rules by tool, its files."""

    rules: dict[str, str]
    files: Files

    def key(self) -> str:
        """Alike for states that the command cannot tell apart: without times and names of our own making."""
        found = json.dumps([self.rules, sorted(self.files.items())], default=lambda b: b.decode("latin-1"))
        found = re.sub(r"\b1[6-9]\d{17}\b", "NOW", found)
        return re.sub(r"\\t[0-9a-f]{16}\\n", "SUM", re.sub(r"(cloudinit-conntrack-)[0-9a-f]{16}", r"\1X", found))

    def without_made(self, before: State) -> State:
        """Without directories that were not there before: they stay."""
        return State(self.rules, {name: entry for name, entry in self.files.items()
                                  if name in before.files or not stat.S_ISDIR(entry[0])})

    def settled(self) -> tuple[dict[str, str], dict[str, tuple[Any, ...]]]:
        """What of a finished apply does not depend on when and in how many tries it was done."""
        when = (f"{STATE}/journal", f"{STATE}/seen.json")
        return self.rules, {name: (*entry[:4], *entry[6:]) for name, entry in self.files.items() if name not in when}


class Host:
    """One host at a time: :meth:`lay` makes it what a :class:`State` says, in a new network namespace."""

    def __init__(self, case: Case, place: Path) -> None:
        self.case = case
        self.files = place
        self.boot()
        self.environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTHONDONTWRITEBYTECODE": "1"}
        self.net = Namespace("host")
        self._prepare()
        self.start = self.look()
        self.work = place / "work"
        self.work.mkdir()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._server = subprocess.Popen(
                [*ENTER, "sh", "-c", BIND, "sh", str(place), sys.executable, "-m", "tests.netns.crash_server",
                 str(theirs.fileno())],
                pass_fds=(theirs.fileno(),), cwd=CHECKOUT, env=self.environment,
            )  # fmt: skip
        self._calls = ours
        ours.settimeout(SECONDS)
        assert ours.recv(100) == b"ready"

    def close(self) -> None:
        """End the server and let go of the namespace."""
        self._calls.close()
        self._server.wait(SECONDS)
        self.net.close()

    @property
    def _backend(self) -> str:
        return "legacy" if self.case.rules == "legacy" else "nft"

    def _prepare(self) -> None:
        self.net.run("ip", "link", "set", "lo", "up")
        for name in PLACES:
            (self.files / name).mkdir(parents=True)
        if self.case.systemd:
            (self.files / "run/systemd/system").mkdir(parents=True)
        there = [f"/etc/{name}" for name in ETC if os.path.lexists(f"/etc/{name}")]
        subprocess.run(["cp", "-a", *there, str(self.files / "etc")], check=True, timeout=60)
        texts = {NATIVE_CONF: f"#!/usr/sbin/nft -f\n# mine\nflush ruleset\n{SMALL_NATIVE}"}
        if self.case.rules != "native":
            texts = {SAVED[family]: rulesets.rules("small", family) for family in FAMILIES}
            texts["etc/sysconfig/iptables-config"] = 'IPTABLES_MODULES="nf_conntrack_ftp"\nIPTABLES_SAVE="no"\n'
        machine = Machine(self.net, self._backend, self.files)
        for name, text in texts.items():
            machine.put(name, text)
            os.setxattr(self.files / name, "user.label", b"\0mine")
        self.config = machine.config(self.case.mode)
        self._load(None)

    def boot(self) -> None:
        """From now on it is another boot."""
        with (self.files / "boot_id").open("w") as file:  # the file stays: it is mounted
            file.write(f"{uuid.uuid4()}\n")

    # --- laying and looking --------------------------------------------------------------

    def look(self, base: Path | None = None) -> State:
        """The host as it is; *base* where something is mounted over its files."""
        rules = {f"{b} {f}": self.net.save_rules(b, f) for b in BACKENDS for f in FAMILIES}
        rules = {key: _in_order(applying.uncounted(text)) for key, text in rules.items()}
        made = {(b, f): rules[f"{b} {f}"] for b in BACKENDS for f in FAMILIES}
        rules = {f"{b} {f}": text for (b, f), text in without_made_tables(made, {k: "" for k in made}).items()}
        listed = self.net.run("nft", "-s", "list", "ruleset").stdout
        if self.case.rules == "native":
            rules["native"] = "".join(sorted(listed.replace("table ", "\0table ").split("\0")))
        return State(rules, {name: entry for top in SEEN for name, entry in _files(base or self.files, top)})

    def lay(self, files: Files, rules: dict[str, str] | None) -> None:
        """Make the host what it was; where *rules* is ``None``, what a boot makes of it: the saved rules are loaded."""
        self.net.close()
        self.net = Namespace("host")
        self.net.run("ip", "link", "set", "lo", "up")
        for top in SEEN:
            _empty(self.files / top)
        shutil.rmtree(self.files / "run/cloudinit-conntrack", ignore_errors=True)
        for name, entry in files.items():
            _put(self.files / name, entry)
        if rules is None:
            self.boot()
        self._load(rules)

    def _load(self, rules: dict[str, str] | None) -> None:
        if self.case.rules == "native":
            text = self._saved(NATIVE_CONF) if rules is None else rules["native"]
            self.net.run("nft", "-f", "-", stdin=text)
            return
        for family in FAMILIES:
            text = self._saved(SAVED[family]) if rules is None else rules[f"{self._backend} {family}"]
            self.net.load_rules(text, self._backend, family)

    def _saved(self, name: str) -> str:
        with os.fdopen(os.open(self.files / name, os.O_RDONLY | os.O_NOATIME)) as file:
            return file.read()

    def firewall(self) -> list[str]:
        """The rule-sets that decide who comes in."""
        names = ["native"] if self.case.rules == "native" else [f"{self._backend} {family}" for family in FAMILIES]
        return [self.look().rules[name] for name in names]

    # --- running -------------------------------------------------------------------------

    def run(self, *argv: str, point: int | None = None, count: bool = False, **more: Any) -> int:
        """Run the command; its exit status, negative when it was killed.  Waits for what it leaves behind.

        *more* is what ``crash_server`` knows: half, error, environment, constants, memory.
        """
        request = {"argv": argv, "work": str(self.work), "point": point, "count": count or bool(point), **more}
        socket.send_fds(self._calls, [json.dumps(request).encode()], [self.net.fd])
        answer = json.loads(self._calls.recv(1 << 16))
        assert "Traceback" not in self.said, self.said
        return int(answer["status"])

    @property
    def said(self) -> str:
        """Both streams of the last command."""
        return "".join((self.work / name).read_text(errors="replace") for name in ("stdout", "stderr"))

    def inside(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Another program on the host: its files, its processes, its network."""
        words = ("nsenter", f"--target={self.server_pid}", "--mount", "--pid", "--", *argv)
        return self.net.run(*words, check=check, env=self.environment)

    @property
    def tree(self) -> Path:
        """The root directory as the host sees it, with what is mounted there."""
        return Path(f"/proc/{self.server_pid}/root")

    @property
    def server_pid(self) -> int:
        """Process 1 of the host, as this machine counts."""
        pid = self._server.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def points(self) -> list[dict[str, Any]]:
        """The boundaries of the last counted command."""
        return [json.loads(line) for line in (self.work / "points").read_text().splitlines()]

    def apply(self) -> tuple[str, ...]:
        """The words of an apply."""
        return ("apply", "-c", self.config)

    def must(self, *argv: str) -> State:
        """Run what must succeed, and look."""
        status = self.run(*argv)
        assert status == 0, f"{argv}: {status}\n{self.said}"
        return self.look()


@contextmanager
def host(case: Case, place: Path) -> Iterator[Host]:
    """A host of *case*."""
    made = Host(case, place)
    try:
        yield made
    finally:
        made.close()


def _in_order(saved: str) -> str:
    """*saved* with its tables by name: iptables-legacy-save lists first what was first asked for last."""
    return "".join(sorted(re.findall(r"(?ms)^\*.*?^COMMIT\n", saved)))


def _empty(place: Path) -> None:
    """Remove what is in a directory, not itself: it is mounted."""
    for path in place.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _files(base: Path, top: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Everything below *top*: type and mode, owner, group, link text, times, attributes, content."""
    for path in sorted((base / top).rglob("*")):
        found = path.lstat()
        name = str(path.relative_to(base))
        if stat.S_ISREG(found.st_mode):
            opened = os.open(path, os.O_RDONLY | os.O_NOATIME)
            with os.fdopen(opened, "rb") as file:
                xattrs = tuple((n, os.getxattr(opened, n)) for n in sorted(os.listxattr(opened)))
                yield name, (found.st_mode, found.st_uid, found.st_gid, "", found.st_atime_ns, found.st_mtime_ns,
                             xattrs, file.read())  # fmt: skip
        else:
            link = os.readlink(path) if path.is_symlink() else ""
            yield name, (found.st_mode, found.st_uid, found.st_gid, link, 0, 0, (), b"")


def _put(path: Path, entry: tuple[Any, ...]) -> None:
    mode, uid, gid, link, atime, mtime, xattrs, content = entry
    if stat.S_ISLNK(mode):
        path.symlink_to(link)
        return
    if stat.S_ISDIR(mode):
        path.mkdir(exist_ok=True)
    else:
        path.write_bytes(content)
        for name, value in xattrs:
            os.setxattr(path, name, value)
    os.chown(path, uid, gid)
    path.chmod(stat.S_IMODE(mode))
    if stat.S_ISREG(mode):
        os.utime(path, ns=(atime, mtime))


# --- killing -----------------------------------------------------------------------------


@dataclass
class Tally:
    """What a campaign did and found."""

    points: int = 0
    states: int = 0
    recoveries: int = 0
    lost: list[str] = field(default_factory=list)

    def lose(self, what: str) -> None:
        """Note a state from which one way back did not lead back."""
        self.lost.append(what)


def halves(points: list[dict[str, Any]]) -> list[tuple[int, bool]]:
    """Every boundary, and the middle of each write."""
    found = []
    for point in points:
        found.append((int(point["at"]), False))
        if point["kind"] == "write" and len(point["content"]) > 4:
            found.append((int(point["at"]), True))
    return found


def kill_everywhere(host: Host, verb: str, before: State, done: State, tally: Tally) -> None:
    """Kill *verb*, begun on *before*, at every boundary; from there apply must lead to *done*, revert to the start.

    States that the command cannot tell apart are recovered from once.
    """
    words = _words(host, verb)
    host.lay(before.files, before.rules)
    assert host.run(*words, count=True) == 0, host.said
    known: set[str] = set()
    for point, half in halves(host.points()):
        for number, way in enumerate(("apply", "revert")):
            host.lay(before.files, before.rules)
            status = host.run(*words, point=point, half=half)
            assert status == -signal.SIGKILL, f"{verb} {point}: {status}\n{host.said}"
            left = host.look()
            what = f"{host.case} {verb} killed at {point}{' half' if half else ''}: {_told(host)}"
            if number == 0:
                tally.points += 1
                if left.key() in known:
                    break
                known.add(left.key())
                tally.states += 1
            tally.recoveries += 1
            recover(host, way, done, what, tally)


def _words(host: Host, verb: str) -> tuple[str, ...]:
    return host.apply() if verb == "apply" else ("revert",)


def _told(host: Host) -> str:
    last = host.points()[-1]
    return f"{last['kind']} {' '.join(last['places'])}{' '.join(last.get('command', ()))}"


def recover(host: Host, way: str, done: State, what: str, tally: Tally) -> None:
    """Go one way back from what is there, by apply and revert or by revert alone, and judge it."""
    if way == "apply":
        status = host.run(*host.apply())
        if status != 0 or host.look().settled() != done.settled():
            found = differ(host.look().settled(), done.settled())
            tally.lose(f"{what}; apply then: {status}{found}\n{host.said}")
            return
    status = host.run("revert")
    now = host.look()
    if status != 0 or now.without_made(host.start) != host.start:
        found = differ((now.rules, now.without_made(host.start).files), (host.start.rules, host.start.files))
        tally.lose(f"{what}; {'apply and ' if way == 'apply' else ''}revert then: {status}{found}\n{host.said}")


def differ(one: tuple[dict[str, Any], dict[str, Any]], two: tuple[dict[str, Any], dict[str, Any]]) -> str:
    return "".join(
        f"\n  {name}: {a.get(name, 'none')!r}\n    not {b.get(name, 'none')!r}"
        for a, b in zip(one, two) for name in sorted({*a, *b}) if a.get(name) != b.get(name)
    )


def cut_power_everywhere(host: Host, verb: str, before: State, done: State, tally: Tally) -> None:
    """The same for a power cut: from all that the disk may hold then, a boot, and each way back."""
    host.lay(before.files, before.rules)
    assert host.run(*_words(host, verb), count=True) == 0, host.said
    points = host.points()
    known: set[str] = set()
    for point, files in powercut.states_at_each_boundary(before.files, points):
        key = State({}, files).key()
        if key in known:
            continue
        known.add(key)
        tally.states += 1
        what = f"{host.case} {verb}: power cut at {point}: {points[min(point, len(points)) - 1]['kind']}"
        for way in ("apply", "revert"):
            tally.recoveries += 1
            host.lay(files, None)
            for rules in host.firewall():
                if "dport 22" not in rules:
                    tally.lose(f"{what}: it boots without ssh: {rules}")
            recover(host, way, done, what, tally)
    tally.points += len(points)


def fail_everywhere(host: Host, error: str, done: State, tally: Tally) -> None:
    """Let apply's act at each boundary fail by *error*: it is done all the same, refused, or undone whole and told."""
    host.lay(host.start.files, host.start.rules)
    assert host.run(*host.apply(), count=True) == 0, host.said
    # a command that has started cannot fail to start, and one that has ended has ended
    points = [point for point in host.points() if point["kind"] not in ("started", "ended", "send")]
    for point in points:
        host.lay(host.start.files, host.start.rules)
        status = host.run(*host.apply(), point=point["at"], error=error)
        now, said = host.look(), host.said
        tally.points += 1
        what = f"{host.case} apply: {error} at {point['at']}: {_told(host)}: {status}"
        if status == 0:
            found = differ(now.settled(), done.settled())
        else:
            kept = now.without_made(host.start)
            found = differ((kept.rules, kept.files), (host.start.rules, host.start.files))
            told = said.startswith("cloudinit-conntrack: ") and said.count("\n") == 1
            found += "" if (status == 1 and told) or status == 3 else "\n  not told in one message"
        if found:
            tally.lose(f"{what}{found}\n{said}")
