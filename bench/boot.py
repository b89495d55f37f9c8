"""A boot with nothing to do: processor and wall time of the boot service's command, planned and told at once.

Run as root (``python -m bench.boot``): the package is installed, compiled, as a package would be.  The hosts are
network namespaces of this machine with files of their own and real rules; each is brought to its mode by ``apply``,
and then the boot's command, one that plans always, and a bare Python take turns.  Children count.  Where conntrack
is built into this machine's kernel, ``unload`` means unload with ``fallback: stateless``, which plans both.  Writes
``results/boot.json`` and ``results/boot.md``.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import kept
from bench.kept import ROOT, summary, told
from tests.netns.applying import BIND, ENTER, Machine, mount_points
from tests.netns.namespace import Namespace

PYTHON = "/usr/bin/python3"  # what a unit names
BACKENDS = ("legacy", "nft")
MODES: dict[str, dict[str, object]] = {"notrack": {}, "stateless": {}, "unload": {"fallback": "stateless"}}
ROUNDS = 11

# Runs the commands once each, inside the host; tells (elapsed, processor) seconds of each.
TURN = """
import json, os, subprocess, sys, time
found = {}
for name, words in json.loads(sys.argv[1]).items():
    start = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    taken = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, (name, process.returncode)
    found[name] = taken, usage.ru_utime + usage.ru_stime
print(json.dumps(found))
"""


def installed(place: Path) -> str:
    """The package, compiled in *place*; gives its directory."""
    subprocess.run(["cp", "-r", ROOT / "cloudinit_conntrack", place], check=True)
    subprocess.run([PYTHON, "-m", "compileall", "-q", "-f", place], check=True)
    return str(place / "cloudinit_conntrack")


def in_host(machine: Machine, *words: str) -> str:
    """What *words* print in the host; they must succeed."""
    done = machine.place.run(*ENTER, "sh", "-c", BIND, "sh", str(machine.files), *words)
    return done.stdout


def measured(backend: str, mode: str, commands: dict[str, Sequence[str]], files: Path) -> dict[str, list[list[float]]]:
    """(elapsed, processor) seconds of each of *commands* on a host of its own that is as desired."""
    place = Namespace("host")
    try:
        place.run("ip", "link", "set", "lo", "up")
        machine = Machine(place, backend, files)
        machine.prepare()
        boot = commands["boot"]
        in_host(machine, *(word for word in boot if word != "-S"), "-c", machine.config(mode, **MODES[mode]))
        in_host(machine, *boot)  # it finds nothing to do, and notes it
        words = (PYTHON, "-I", "-c", TURN, json.dumps(commands))
        turns = [json.loads(in_host(machine, *words)) for _ in range(ROUNDS + 1)][1:]  # the first warms up
        return {name: [turn[name] for turn in turns] for name in commands}
    finally:
        place.close()


def machine() -> dict[str, Any]:
    """Where the figures come from, and how busy it was."""
    version = subprocess.run([PYTHON, "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    return kept.machine(version)


def table(found: dict[str, Any]) -> str:
    """The results for a reader."""
    about = found["machine"]
    lines = [
        "# A boot with nothing to do", "",
        f"The boot service's command, its children included, in milliseconds. Python {about['python']}, Linux "
        f"{about['kernel']}, {about['processors']} processors. Load {about['load']:.1f} at the start, {about['date']}; "
        f"medians of {ROUNDS} alternating rounds (least to most). *boot* is what the unit runs; *planned* is "
        "`apply -v` on the same host, which plans always; *bare* is "
        "`python3 -I -c pass`. `unload` settles for `stateless` on this kernel, which has conntrack built in.",
        "", "| mode | rules | command | processor | wall |", "|---|---|---|---:|---:|",
    ]
    for row in found["boots"]:
        figures = f"{told(row['cpu'], 0)} | {told(row['wall'], 0)}"
        lines.append(f"| {row['mode']} | {row['backend']} | {row['command']} | {figures} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write the results."""
    found: dict[str, Any] = {"machine": machine(), "boots": []}
    with tempfile.TemporaryDirectory() as place, mount_points():
        base = Path(place)
        package = installed(base)
        commands: dict[str, Sequence[str]] = {
            "bare": (PYTHON, "-I", "-c", "pass"),
            "planned": (PYTHON, "-I", package, "apply", "-v"),
            "boot": (PYTHON, "-I", "-S", package, "apply"),
        }
        for mode in MODES:
            for backend in BACKENDS:
                files = base / f"{mode}-{backend}"
                files.mkdir()
                for command, runs in measured(backend, mode, commands, files).items():
                    wall, cpu = zip(*runs)
                    found["boots"].append({"mode": mode, "backend": backend, "command": command,
                                           "cpu": summary(cpu, 1e3), "wall": summary(wall, 1e3)})
    kept.keep("boot", found, table(found))


if __name__ == "__main__":
    main()
