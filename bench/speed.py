"""Before and after: an older checkout beside this one, in turns.

``python -m bench.speed OLD`` (as root), where OLD is another checkout of this repository.  Each has hosts of its own,
alike, and runs its own code on them: what the boot service runs, plan and verify on a host that is as desired, and a
first apply on a new host for each round.  Writes ``results/speed.json`` and ``results/speed.md``.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import boot, kept
from bench.boot import PYTHON, in_host
from bench.kept import ROOT, summary, told
from bench.start import applying, host, turn
from tests.netns.applying import mount_points

MODES = ("notrack", "stateless")
SIZES = (1, 64)
ROUNDS = 9
SIDES = ("before", "after")


def installed(tree: Path, place: Path) -> str:
    """The package of *tree*, compiled in *place*."""
    place.mkdir()
    subprocess.run(["cp", "-r", tree / "cloudinit_conntrack", place], check=True)
    subprocess.run([PYTHON, "-m", "compileall", "-q", "-f", place], check=True)
    return str(place / "cloudinit_conntrack")


def standing(mode: str, count: int, packages: dict[str, str], base: Path, rounds: int) -> dict[str, Any]:
    """On hosts that are as desired: by side and command its runs."""
    runs: dict[str, dict[str, list[list[float]]]] = {side: {} for side in SIDES}
    with ExitStack() as stack:
        machines = {}
        for side in SIDES:
            files = base / f"{mode}-{count}-{side}"
            files.mkdir()
            machines[side] = stack.enter_context(host(mode, count, files))
            in_host(machines[side], *applying(packages[side], files))
            in_host(machines[side], PYTHON, "-I", "-S", packages[side], "apply")
        for number in range(rounds + 1):
            for side in random.sample(SIDES, len(SIDES)):
                package = packages[side]
                commands: dict[str, Sequence[str]] = {
                    "boot": (PYTHON, "-I", "-S", package, "apply"), "plan": (PYTHON, "-I", package, "plan"),
                    "verify": (PYTHON, "-I", package, "verify")}
                for name, run in turn(machines[side], commands).items() if number else ():  # the first warms up
                    runs[side].setdefault(name, []).append(run)
    return runs


def first(mode: str, count: int, packages: dict[str, str], base: Path, rounds: int) -> dict[str, list[list[float]]]:
    """A first apply on a new host each: by side its runs."""
    runs: dict[str, list[list[float]]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side in random.sample(SIDES, len(SIDES)):
            with tempfile.TemporaryDirectory(dir=base) as name, host(mode, count, Path(name)) as machine:
                runs[side].append(turn(machine, {"apply": applying(packages[side], Path(name))})["apply"])
    return runs


def row(mode: str, count: int, command: str, before: list[list[float]], after: list[list[float]]) -> dict[str, Any]:
    """The figures of one command."""
    found: dict[str, Any] = {"mode": mode, "ports": count, "command": command}
    for number, (what, scale) in enumerate((("wall", 1e3), ("cpu", 1e3), ("mib", 1.0))):
        found[what] = {side: summary([run[number] for run in runs], scale)
                       for side, runs in (("before", before), ("after", after))}
        found[what]["ratio"] = summary([old[number] / new[number] for old, new in zip(before, after)])
    return found


def table(found: dict[str, Any]) -> str:
    """The results for a reader."""
    about = found["machine"]
    lines = [
        "# Before and after the speed work", "",
        f"{found['before']} beside {found['after']}, in turns. Python {about['python']}, Linux {about['kernel']}, "
        f"{about['processors']} processors, load {about['load']:.1f} at the start, {about['date']}; medians of paired "
        "rounds (least to most), children included. On a busy machine the processor time tells more than the wall "
        "time. *boot* is what the unit runs where nothing is to do; *apply* is a first one on a new host.", "",
        "| mode | ports | command | processor ms before | after | ratio | wall ratio | MiB before | after |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for one in found["rows"]:
        cpu = " | ".join([told(one["cpu"][side], 0) for side in SIDES] + [told(one["cpu"]["ratio"], 1)])
        mib = " | ".join(f"{one['mib'][side]['median']:.0f}" for side in SIDES)
        lines.append(f"| {one['mode']} | {one['ports']} | {one['command']} | {cpu} | {told(one['wall']['ratio'], 1)} "
                     f"| {mib} |")
    return "\n".join(lines) + "\n"


def commit(tree: Path) -> str:
    """The commit that *tree* has checked out, shortened."""
    return subprocess.run(["git", "-C", tree, "rev-parse", "--short", "HEAD"], capture_output=True, text=True,
                          check=True).stdout.strip()


def main() -> None:
    """Measure, and write the results."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("old", type=Path)
    words.add_argument("--rounds", type=int, default=ROUNDS)
    words.add_argument("--ports", type=lambda text: tuple(map(int, text.split(","))), default=SIZES)
    words.add_argument("--results", type=Path, default=kept.RESULTS)
    options = words.parse_args()
    found: dict[str, Any] = {"machine": boot.machine(), "before": commit(options.old), "after": commit(ROOT),
                             "rows": []}
    with tempfile.TemporaryDirectory() as place, mount_points():
        base = Path(place)
        packages = {side: installed(tree, base / side) for side, tree in zip(SIDES, (options.old, ROOT))}
        for mode in MODES:
            for count in options.ports:
                rounds = min(options.rounds, 3) if count > 100 else options.rounds
                applied = first(mode, count, packages, base, rounds)
                found["rows"].append(row(mode, count, "apply", applied["before"], applied["after"]))
                runs = standing(mode, count, packages, base, rounds)
                found["rows"] += [row(mode, count, name, runs["before"][name], runs["after"][name])
                                  for name in runs["after"]]
    kept.keep("speed", found, table(found), options.results)


if __name__ == "__main__":
    main()
