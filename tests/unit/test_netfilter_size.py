"""Large and hostile input is answered, in bounded time and memory."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cloudinit_conntrack.netfilter.iptables import parse_ruleset
from cloudinit_conntrack.netfilter.reach import syn, verdicts
from cloudinit_conntrack.netfilter.ruleset import format_ruleset
from cloudinit_conntrack.netfilter.stateless import make_stateless

ROOT = Path(__file__).parent.parent.parent
TEN_MB = 10_000_000
SECONDS = 60

# Parses and rewrites a file in a process of its own, whose memory nothing else has a part in.
PROGRAM = """
import sys
from cloudinit_conntrack.errors import RulesSyntaxError
from cloudinit_conntrack.netfilter.iptables import parse_ruleset
from cloudinit_conntrack.netfilter.ruleset import format_ruleset
from cloudinit_conntrack.netfilter.stateless import make_stateless
text = open(sys.argv[1]).read()
try:
    done = make_stateless(parse_ruleset(text, "ipv4", "rules"))
    print(len(format_ruleset(done.ruleset)), len(done.changes), len(done.blockers))
except RulesSyntaxError as error:
    print(error)
# VmHWM, since ru_maxrss starts with what the parent had when it forked
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) // 1024)
"""


def answer(path: Path) -> tuple[str, int]:
    """What comes of the file at *path*, and the most memory that it took, in MiB."""
    command = [sys.executable, "-c", PROGRAM, str(path)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=SECONDS)
    told, memory = done.stdout.splitlines()
    return told, int(memory)


def table(*lines: str) -> str:
    return "\n".join(("*filter", ":INPUT DROP [0:0]", ":OUTPUT DROP [0:0]", *lines, "COMMIT", ""))


def rules(count: int, form: Callable[[int], str]) -> str:
    return table(*(form(number) for number in range(count)))


REFUSED = {
    "one line": (
        table('-A INPUT -m comment --comment "' + "x" * TEN_MB + '" -j ACCEPT'),
        "rules:4: a line longer than",
    ),
    "one line of quotes": (table("-A INPUT " + '"a" ' * (TEN_MB // 4)), "rules:4: a line longer than"),
    "one open quote": (table('-A INPUT "' + "\\" * TEN_MB), "rules:4: a line longer than"),
    "no table at all": ("x" * TEN_MB, "rules:1: a line longer than"),
    "line ends": ("\n" * TEN_MB, "rules:1000001: more than 1000000 lines"),
    "a word a line": ("*filter\n" + "x\n" * (TEN_MB // 2), "rules:1000001: more than 1000000 lines"),
    "NUL bytes": ("\0" * TEN_MB, "rules:1: a NUL byte"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_ten_megabytes_of_damage(name: str, tmp_path: Path) -> None:
    text, message = REFUSED[name]
    path = tmp_path / "rules"
    path.write_text(text)
    told, memory = answer(path)
    assert told.startswith(message) and len(told) < 300
    assert memory < 300, f"{memory} MiB"


def test_ten_megabytes_of_rules(tmp_path: Path) -> None:
    comments = " ".join('-m comment --comment "' + letter * 200 + '"' for letter in "abc")
    rule = f"-A INPUT -s 10.{{}}.{{}}.0/24 -p tcp -m tcp --dport 22 {comments} -m state --state NEW -j ACCEPT"
    count = TEN_MB // len(rule)
    path = tmp_path / "rules"
    path.write_text(rules(count, lambda n: rule.format(n >> 8 & 255, n & 255)))
    told, memory = answer(path)
    size, changes, blockers = map(int, told.split())
    assert changes == count and blockers == 0 and size > TEN_MB
    assert memory < 600, f"{memory} MiB"


def seconds(text: str) -> float:
    start = time.process_time()
    format_ruleset(make_stateless(parse_ruleset(text, "ipv4")).ruleset)
    return time.process_time() - start


GROWING: dict[str, Callable[[int], str]] = {
    "established": lambda n: "-A INPUT -m state --state ESTABLISHED,RELATED -i eth0 -j ACCEPT",
    "chains of our own": lambda n: "-A INPUT -i eth0 -m state --state NEW -j DROP",
    "chains of theirs": lambda n: f":C{n} - [0:0]\n-A INPUT -j C{n}\n-A C{n} -p tcp -m state --state NEW -j DROP",
    "UDP ports": lambda n: f"-A OUTPUT -p udp --dport {n + 1} -m state --state NEW -j ACCEPT",
    "exemptions": lambda n: f"-A INPUT -p tcp --dport {n + 1} -j ACCEPT",
}


@pytest.mark.parametrize("name", GROWING)
def test_time_grows_no_faster_than_the_rules(name: str) -> None:
    """Ten times the rules take about ten times as long; quadratic would be a hundred times."""
    form = GROWING[name]
    few, many = (seconds(rules(count, form)) for count in (100, 1000))
    assert many < 40 * max(few, 0.02), f"{few:.3f} s, then {many:.3f} s"


def test_chains_that_double_are_walked_once() -> None:
    """Each chain jumps to the next twice: a naive walk takes 2**200 steps."""
    chains = [f":C{n} - [0:0]" for n in range(200)]
    jumps = [f"-A C{n} -s 10.0.0.{n} -j C{n + 1}" for n in range(199) for _ in range(2)]
    text = table(*chains, "-A INPUT -j C0", *jumps, "-A C199 -p tcp --dport 22 -j ACCEPT", "-A INPUT -j DROP")
    assert verdicts(parse_ruleset(text, "ipv4"), "INPUT", syn(22)) == {"ACCEPT", "DROP"}
    assert verdicts(parse_ruleset(text, "ipv4"), "INPUT", syn(23)) == {"DROP"}
    assert seconds(text) < SECONDS
