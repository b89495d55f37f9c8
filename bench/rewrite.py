"""Seconds and memory of the rewrite beside those of the loaders, alternating, and of the difference.

Run as root (``make bench``): the real loads go into a network namespace that is made for each
and goes with it.  Writes ``results/rewrite.json`` and ``results/rewrite.md``; fails only where a
program fails.
"""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench import kept
from bench.kept import ROOT, summary, told
from bench.rules import saved_rules, whitelist

SIZES = (100, 10_000, 100_000)
DIFFERENCES = {
    "ports and addresses": (saved_rules, (50, 100, 300, 1000)),
    "hardware addresses": (whitelist, (50, 100, 300)),
}
ROUNDS = 3

# The whole of our way: reading, parsing, rewriting, writing.
REWRITE = """
import sys
from cloudinit_conntrack.netfilter.iptables import parse_ruleset
from cloudinit_conntrack.netfilter.ruleset import format_ruleset
from cloudinit_conntrack.netfilter.stateless import make_stateless
done = make_stateless(parse_ruleset(sys.stdin.read(), "ipv4"))
assert done.changes and not done.blockers
sys.stdout.write(format_ruleset(done.ruleset))
"""
# The stated difference of a rewritten rule-set, without the parsing and rewriting before it.
DIFFERENCE = """
import sys, time
from cloudinit_conntrack.netfilter.difference import compare
from cloudinit_conntrack.netfilter.iptables import parse_ruleset
from cloudinit_conntrack.netfilter.stateless import make_stateless
before = parse_ruleset(sys.stdin.read(), "ipv4")
after = make_stateless(before).ruleset
start = time.perf_counter()
compare(before, after)
sys.stdout.write(str(time.perf_counter() - start))
"""
PROGRAMS: dict[str, Sequence[str]] = {
    "rewrite": (sys.executable, "-c", REWRITE),
    "legacy --test": ("iptables-legacy-restore", "--test"),
    "nft --test": ("iptables-nft-restore", "--test"),
    "legacy load": ("iptables-legacy-restore",),
    "nft load": ("iptables-nft-restore",),
}


class Run(NamedTuple):
    """One run of a program: elapsed and processor seconds, and the most memory it held, in MiB."""

    seconds: float
    cpu: float
    memory: float


def measured(command: Sequence[str], rules: Path) -> Run:
    """Run *command* in a network namespace of its own, with *rules* as its input."""
    with rules.open("rb") as given, tempfile.TemporaryFile() as taken:
        start = time.perf_counter()
        process = subprocess.Popen(["unshare", "-n", *command], cwd=ROOT, stdin=given, stdout=taken)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)[:60]} failed with {process.returncode}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def compared(rules: Path) -> Run:
    """The seconds of the difference alone."""
    with rules.open("rb") as given:
        command = [sys.executable, "-c", DIFFERENCE]
        done = subprocess.run(command, cwd=ROOT, stdin=given, capture_output=True, check=True)
    return Run(float(done.stdout), 0.0, 0.0)


def rows(name: str, size: int, runs: Sequence[Run], fields: Sequence[str]) -> dict[str, Any]:
    """One line of the results: a program at one size."""
    return {"program": name, "rules": size, "rounds": len(runs),
            **{field: summary([getattr(run, field) for run in runs]) for field in fields}}


def rewriting(directory: Path) -> list[dict[str, Any]]:
    """Every program at every size; the programs take turns within a round."""
    found: list[dict[str, Any]] = []
    for size in SIZES:
        path = _file(directory, size)
        runs: dict[str, list[Run]] = {name: [] for name in PROGRAMS}
        for _ in range(ROUNDS):
            for name, command in PROGRAMS.items():
                runs[name].append(measured(command, path))
        found += [rows(name, size, each, Run._fields) for name, each in runs.items()]
    return found


def differing(directory: Path) -> list[dict[str, Any]]:
    """The difference of every kind of rules at every size."""
    return [
        rows(name, size, [compared(_file(directory, size, made)) for _ in range(ROUNDS)], ("seconds",))
        for name, (made, sizes) in DIFFERENCES.items() for size in sizes
    ]


def _file(directory: Path, size: int, made: Callable[[int], str] = saved_rules) -> Path:
    path = directory / f"{size}.rules"
    path.write_text(made(size))
    return path


def machine() -> dict[str, Any]:
    """Where the figures come from, and how busy it was."""
    version = subprocess.run(["iptables", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return {**kept.machine(platform.python_version()), "iptables": version,
            "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def table(found: dict[str, Any]) -> str:
    """The results for a reader."""
    about = found["machine"]
    lines = [
        "# The rewrite beside the kernel's own loaders", "",
        f"Python {about['python']}, {about['iptables']}, Linux {about['kernel']}, {about['processors']} processors. "
        f"Load {about['load']:.1f} at the start, {about['date']}; medians of {ROUNDS} alternating rounds "
        "(least to most). "
        f"A peak below the benchmark's own {about['memory']:.0f} MiB cannot be seen.",
        "", "| rules | program | seconds | processor seconds | peak MiB |", "|---:|---|---:|---:|---:|",
    ]
    lines += [
        f"| {row['rules']:,} | {row['program']} | {told(row['seconds'], 2)} | {told(row['cpu'], 2)} "
        f"| {row['memory']['median']:.0f} |"
        for row in found["rewrite"]
    ]
    lines += ["", "| rules | that name | seconds for the stated difference |", "|---:|---|---:|"]
    lines += [f"| {row['rules']:,} | {row['program']} | {told(row['seconds'], 2)} |" for row in found["difference"]]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write the results."""
    found: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as directory:
        found["rewrite"] = rewriting(Path(directory))
        found["difference"] = differing(Path(directory))
    kept.keep("rewrite", found, table(found))


if __name__ == "__main__":
    main()
