"""Start: status, plan and verify beside the commands that one looks with by hand.

Run as root (``python -m bench.start``).  The hosts are network namespaces of this machine, with a small rule-set and
with one of 512 ports, brought to their mode by ``apply``; the package is installed and compiled.  *By hand* is
``iptables-save``, ``ip6tables-save`` and ``lsmod``, one after another, in sum: they print, and judge nothing.  All
take turns in an order of chance.  Memory is the largest of the processes of a command (``ru_maxrss`` of wait4(2)
gives the process and the children that it waited for, whichever was largest).  Writes ``results/start.json`` and
``results/start.md``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import boot, kept, recipe
from bench.boot import PYTHON, in_host
from bench.kept import summary, told
from tests.netns.applying import SAVED, Machine, mount_points
from tests.netns.namespace import Namespace

SIZES = (1, 512)
MODES = ("notrack", "stateless")
ROUNDS = 11
COMMAND = {"ipv4": "iptables", "ipv6": "ip6tables"}
BY_HAND = "iptables-nft-save && ip6tables-nft-save && { lsmod || :; } 2>/dev/null"  # a kernel may know no modules

# Runs the commands once each in an order of chance; tells (wall, processor) seconds and MiB of each.
TURN = """
import json, os, random, subprocess, sys, time
found, commands = {}, json.loads(sys.argv[1])
for name in random.sample(sorted(commands), len(commands)):
    start = time.perf_counter()
    process = subprocess.Popen(commands[name], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    taken = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, (name, process.returncode)
    found[name] = taken, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
print(json.dumps(found))
"""


@contextmanager
def host(mode: str, count: int, files: Path) -> Iterator[Machine]:
    """A host with rules for *count* ports, live and saved, and a section for it in ``section.yaml``."""
    served = recipe.ports(count)
    place = Namespace("host")
    try:
        place.run("ip", "link", "set", "lo", "up")
        machine = Machine(place, "nft", files)
        machine.furnish()
        for family, command in COMMAND.items():
            text = recipe.rules(command, served)
            place.load_rules(text, "nft", family)
            machine.put(SAVED[family], text)
        section = {"mode": mode, "flows": {"frontends": served}}
        (files / "section.yaml").write_text(json.dumps({"conntrack": section}))
        yield machine
    finally:
        place.close()


def applying(package: str, files: Path) -> Sequence[str]:
    """The first apply."""
    return (PYTHON, "-I", package, "apply", "-c", str(files / "section.yaml"))


def turn(machine: Machine, commands: dict[str, Sequence[str]]) -> dict[str, list[float]]:
    """(wall, processor) seconds and MiB of each command, once."""
    found: dict[str, list[float]] = json.loads(in_host(machine, PYTHON, "-I", "-c", TURN, json.dumps(commands)))
    return found


def measured(mode: str, count: int, package: str, files: Path, rounds: int) -> dict[str, list[list[float]]]:
    """What :func:`turn` gives for each command, on a host of its own that is as desired."""
    with host(mode, count, files) as machine:
        in_host(machine, *applying(package, files))
        verbs: dict[str, Sequence[str]] = {verb: (PYTHON, "-I", package, verb) for verb in ("status", "plan", "verify")}
        commands = {**verbs, "by hand": ("sh", "-c", BY_HAND), "bare": (PYTHON, "-I", "-c", "pass")}
        turns = [turn(machine, commands) for _ in range(rounds + 1)][1:]  # the first warms up
        return {name: [one[name] for one in turns] for name in commands}


def table(found: dict[str, Any]) -> str:
    """The results for a reader."""
    about = found["machine"]
    lines = [
        "# Start: status, plan, verify beside looking by hand", "",
        f"Python {about['python']}, Linux {about['kernel']}, {about['processors']} processors. Load "
        f"{about['load']:.1f} at the start, {about['date']}; medians of {found['rounds']} rounds in an order of chance "
        "(least to most), children included. Memory: the largest single process of the command, children too "
        "(`ru_maxrss`). *By hand*: `iptables-save`, `ip6tables-save` and `lsmod`, one after another, which judge "
        "nothing. *Bare*: `python3 -I -c pass`. The hosts are as desired; the rules are iptables-nft's, of both "
        "families.",
        "", "| mode | ports | command | wall ms | processor ms | MiB |", "|---|---:|---|---:|---:|---:|",
    ]
    for row in found["rows"]:
        figures = f"{told(row['wall'], 0)} | {told(row['cpu'], 0)} | {told(row['mib'], 1)}"
        lines.append(f"| {row['mode']} | {row['ports']} | {row['command']} | {figures} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write the results."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--rounds", type=int, default=ROUNDS)
    words.add_argument("--ports", type=lambda text: tuple(map(int, text.split(","))), default=SIZES)
    words.add_argument("--modes", type=lambda text: tuple(text.split(",")), default=MODES)
    words.add_argument("--results", type=Path, default=kept.RESULTS)
    options = words.parse_args()
    found: dict[str, Any] = {"machine": boot.machine(), "rounds": options.rounds, "rows": []}
    with tempfile.TemporaryDirectory() as place, mount_points():
        base = Path(place)
        package = boot.installed(base)
        for mode in options.modes:
            for count in options.ports:
                files = base / f"{mode}-{count}"
                files.mkdir()
                for command, runs in measured(mode, count, package, files, options.rounds).items():
                    wall, cpu, mib = zip(*runs)
                    found["rows"].append({"mode": mode, "ports": count, "command": command, "wall": summary(wall, 1e3),
                                          "cpu": summary(cpu, 1e3), "mib": summary(mib)})
    kept.keep("start", found, table(found), options.results)


if __name__ == "__main__":
    main()
