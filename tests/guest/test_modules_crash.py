"""Killed around every command that changes rules or modules, with modules that really go: both ways back.

What is a boundary of files, netns/test_crash.py enumerates; here every start, run and end of
rmmod, modprobe and the restore programs, and the writing of the journal between them.
"""

from __future__ import annotations

import os
import re

import pytest

from .balancer import Story, run_balancer
from .later import Later

ALL = bool(os.environ.get("CRASH_EVERYTHING"))
# Without 'make crash' only around the modules, and only of apply.
CHANGING = r"(ip6?tables\S*-restore|rmmod|modprobe) " if ALL else r"(rmmod) "
VERBS = ("apply", "revert") if ALL else ("apply",)

CAMPAIGN = f"""\
import hashlib, os, pathlib, re, signal, subprocess, sys
from cloudinit_conntrack import cli, document
from tests.netns.injector import Injector
import json

APPLY, REVERT = ["apply", "-c", "/root/desired.yaml"], ["revert"]
PLACES = "/etc/sysconfig /etc/iptables /etc/modprobe.d /var/lib/cloudinit-conntrack".split()
SETTINGS = "/sys/module/nf_conntrack/parameters/hashsize", "/proc/sys/net/netfilter/nf_conntrack_max"

def run(argv, point=None):
    child = os.fork()
    if child == 0:
        code = 99
        try:
            for number, name in ((1, "/root/said"), (2, "/root/said")):
                os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC * (number == 1) | os.O_APPEND), number)
            log = os.open("/root/points", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
            Injector(log, point).install()
            code = cli.main(argv)
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        while True:
            os.wait()  # what it left behind, which is ours now
    except ChildProcessError:
        return status

def points():
    found, before = [], ""
    for line in open("/root/points"):
        point = json.loads(line)
        words = " ".join(point.get("command", ())) + " "
        changes = re.search(r"(^|/){CHANGING}", words) and not re.search(" -n | --(test|help|version) ", words)
        if changes or {ALL} and point["places"][:1] == ["/var/lib/cloudinit-conntrack/journal"]:
            found.append((point["at"], point["kind"] + " " + words))
    return found

def look():
    modules = {{l.split()[0]: l.split()[2] for l in open("/proc/modules") if l.split()[0] not in ("ipv6", "overlay")}}
    rules = ""
    for names, tool in (("ip_tables_names", "iptables-save"), ("ip6_tables_names", "ip6tables-save")):
        if os.path.exists("/proc/net/" + names):
            text = subprocess.run([tool], capture_output=True, text=True).stdout
            rules += re.sub(r"\\[\\d+:\\d+\\]", "", "".join(l for l in text.splitlines(True) if l[0] != "#"))
    files = {{}}
    for path in (p for place in PLACES for p in pathlib.Path(place).rglob("*") if p.is_file()):
        s = path.lstat()
        files[str(path)] = (s.st_mode, s.st_uid, s.st_gid, s.st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
    return modules, rules, files, [open(p).read() if os.path.exists(p) else "" for p in SETTINGS]

def settled(found):
    modules, rules, files, settings = found
    kept = {{p: (*e[:3], e[4]) for p, e in files.items() if not p.endswith(("/journal", "/seen.json"))}}
    return modules, rules, kept, settings

def must(argv, wanted, alike, what):
    status, found = run(argv), look()
    if status != 0 or alike(found) != alike(wanted):
        print("LOST", what, argv[0], status, open("/root/said").read()[-1500:], alike(found), "not", alike(wanted))
        sys.exit()

libc = __import__("ctypes").CDLL(None)
libc.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
start = look()
assert start[0]["nf_conntrack"] and "xt_conntrack" in start[0], start[0]
same = lambda found: found
tried = ways = 0
for verb in {VERBS!r}:
    assert run(APPLY) == 0, open("/root/said").read()
    done = look()
    assert "nf_conntrack" not in done[0], done[0]
    enumerated = points()
    assert run(REVERT) == 0, open("/root/said").read()
    if verb == "revert":
        enumerated = points()
    must(REVERT, start, same, "before")
    for at, what in enumerated:
        for way in (APPLY, REVERT):
            if verb == "revert":
                must(APPLY, done, settled, "again")
            status = run(APPLY if verb == "apply" else REVERT, at)
            assert status == -signal.SIGKILL, (status, open("/root/said").read())
            what = f"{{verb}} killed at {{at}}, {{what}}"
            if way is APPLY:
                must(APPLY, done, settled, what)
            must(REVERT, start, same, what)
            ways += 1
        tried += 1
print(f"{{tried}} points, {{ways}} ways back, 0 lost")
"""

SCRIPT = f"""
load
echo 12345 >/proc/sys/net/netfilter/nf_conntrack_max
config 'mode: unload'
cat >/root/campaign.py <<'END'
{CAMPAIGN}
END
step campaign /usr/bin/python3 /root/campaign.py
"""

STORY = Later(lambda: run_balancer(SCRIPT, timeout=7200), first=True)


@pytest.fixture
def story() -> Story:
    return STORY.result()


def test_killed_around_every_change(story: Story, measured: list[str]) -> None:
    said = story.step("campaign")
    assert said.ok and not said.stderr, said.output
    counted = re.fullmatch(r"(\d+) points, (\d+) ways back, 0 lost\n", said.stdout)
    assert counted, said.output
    assert int(counted.group(1)) >= (40 if ALL else 6) and int(counted.group(2)) == 2 * int(counted.group(1))
    measured.append(f"unload killed around real modules: {said.stdout.strip()}")
