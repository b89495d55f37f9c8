"""Cost at boot: our ``handle()`` inside real cloud-init beside the shell recipe, for 1 to 512 ports.

Run as root (``python -m bench.handle``).  Each run has a machine of its own (:mod:`tests.cloudinit.machines`: a chroot
with a real cloud-init, in namespaces), with the same rules, live and saved.  One run is the whole of our ``handle()``,
called by ``cloud-init single``: imports, the plan, the proofs, asking from outside, verifying.  The other is the
recipe of :mod:`bench.recipe`, which proves nothing.  After each the host is looked at: the same ports are open, live
and saved, and connections to them are not tracked.  Writes ``results/handle.json`` and ``results/handle.md``.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import kept, recipe
from bench.kept import ROOT, summary, told

sys.path.insert(0, str(ROOT / "tests" / "cloudinit"))

from chroots import SUITES, make_chroot
from installation import listed_layer, package_layer
from machines import Boot, machine
from stages import seed

SCRIPTS = {"notrack": recipe.notrack, "stateless": recipe.stateless}
COUNTS = (1, 8, 64, 512)
VERSIONS = ("20.4", "25.1")
ROUNDS = 7
FEW = 3  # rounds of what takes half a minute
SIDES = ("handle", "recipe")
RUN = (ROOT / "bench" / "handled.py").read_text()

# Of each port given: whether a connection over loopback is answered, and whether the kernel keeps an entry of it.
ASK = """
import json, socket, sys
def look(port, family, address):
    with socket.socket(family) as server, socket.socket(family) as client:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, port))
        server.listen()
        client.settimeout(2)
        client.connect((address, port))
        own = client.getsockname()[1]
        return any(f"sport={own} dport={port} " in line for line in open("/proc/net/nf_conntrack"))
print(json.dumps([look(port, family, address) for port in json.loads(sys.argv[1])
                  for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))]))
"""


class Layers:
    """The disks that machines of one version of cloud-init are made with: our package, and an instance begun."""

    def __init__(self, version: str, place: Path) -> None:
        suite = next(suite for suite in SUITES if suite.version == version)
        chroot = make_chroot(suite, lambda line: print(line, file=sys.stderr))
        names = [place / f"{version}-{name}" for name in ("package", "listed", "begun")]
        for name in names:
            name.mkdir()
        package = package_layer(chroot, names[0])
        listed = listed_layer(chroot, package, names[1])
        self.all: tuple[Path, ...] = (listed, package, chroot)
        with machine(*self.all) as made:
            with made.boot() as boot:
                seed(boot)
                boot.run("cloud-init", "init", "--local")
                boot.run("cloud-init", "init")
                boot.run("rm", "-f", "/var/log/cloud-init.log")
                self.python = boot.run("python3", "--version").split()[1]
                self.iptables = boot.run("iptables", "--version").strip()
            subprocess.run(["cp", "-a", f"{made.changed}/.", names[2]], check=True, timeout=60)
        self.all = (names[2], *self.all)

    @contextmanager
    def host(self, served: Sequence[int]) -> Iterator[Boot]:
        """A machine that has just loaded its saved rules."""
        with machine(*self.all) as made, made.boot() as boot:
            boot.run("mkdir", "-p", "/run/cloud-init")  # as the stages before leave it
            for command, path in recipe.SAVED.items():
                text = recipe.rules(command, served)
                boot.write(path, text)
                boot.run(f"{command}-restore", stdin=text)
            yield boot


def one(layers: Layers, mode: str, served: Sequence[int], side: str) -> tuple[float, float]:
    """(wall, processor) seconds of one *side*; what it leaves is looked at."""
    section = {"conntrack": {"mode": mode, "flows": {"frontends": list(served)}}}
    asked = {"handle": {"user_data": f"#cloud-config\n{json.dumps(section)}\n"},
             "recipe": {"script": SCRIPTS[mode](served)}}
    with layers.host(served) as boot:
        sample = sorted({served[0], served[len(served) // 2], served[-1]})
        assert all(_tracked(boot, sample)), "nothing was tracked before"
        done = boot.attempt("python3", "-c", RUN, stdin=json.dumps(asked[side]), timeout=600)
        assert done.returncode == 0, f"{mode} {len(served)} {side}: {done.stderr[-2000:]}"
        found = json.loads(done.stdout)
        assert found["code"] == 0, f"{mode} {len(served)} {side}: {found} {done.stderr[-2000:]}"
        judge(boot, mode, served, sample)
    return found["wall"], found["cpu"]


def _tracked(boot: Boot, served: Sequence[int]) -> list[bool]:
    answer: list[bool] = json.loads(boot.run("python3", "-c", ASK, json.dumps(served)))
    return answer


def judge(boot: Boot, mode: str, served: Sequence[int], sample: Sequence[int]) -> None:
    """The ports are open as they were, live and saved; nothing tracks them; without state where that is the mode."""
    assert not any(_tracked(boot, sample)), "it is tracked"
    for command, path in recipe.SAVED.items():
        saved = boot.read(path)
        boot.run(f"{command}-restore", "--test", stdin=saved)
        for text in (boot.run(f"{command}-save"), saved):
            accepted = {port for line in text.splitlines() if line.startswith("-A INPUT") and line.endswith("ACCEPT")
                        for port in _ports(line)}
            assert {22, *served} <= accepted, f"closed: {sorted({22, *served} - accepted)[:5]}"
            assert mode == "notrack" or not re.search("--state|--ctstate", text), "it is stateful"


def _ports(line: str) -> Iterator[int]:
    for words in re.findall(r"--dports? (\S+)", line):
        for word in words.split(","):
            first, _, last = word.partition(":")
            yield from range(int(first), int(last or first) + 1)


def measured(layers: Layers, mode: str, count: int, rounds: int) -> dict[str, Any]:
    """Rounds in which both sides have their turn, in an order of chance."""
    served, runs = recipe.ports(count), {side: [] for side in SIDES}  # type: dict[str, list[tuple[float, float]]]
    for _ in range(rounds):
        for side in random.sample(SIDES, len(SIDES)):
            runs[side].append(one(layers, mode, served, side))
    row: dict[str, Any] = {"mode": mode, "ports": count, "rounds": rounds}
    for side in SIDES:
        wall, cpu = zip(*runs[side])
        row[side] = {"wall": summary(wall, 1e3), "cpu": summary(cpu, 1e3), "runs": runs[side]}
    for number, clock in enumerate(("wall", "cpu")):
        pairs = zip(runs["recipe"], runs["handle"])
        row[f"{clock}_ratio"] = summary([theirs[number] / ours[number] for theirs, ours in pairs])
    return row


def table(found: dict[str, Any]) -> str:
    """The results for a reader."""
    about = found["machine"]
    lines = [
        "# Cost at boot: handle() beside the shell recipe", "",
        f"Milliseconds, children included. Linux {about['kernel']}, {about['processors']} processors, load "
        f"{about['load']:.1f} at the start, {about['date']}; medians of paired rounds in an order of chance (least to "
        "most). *handle()* is our module called by a real cloud-init, with its imports, plan, proofs in namespaces, "
        "connections from outside, and a second look. *Recipe* is a shell script that sets the same rules one by one "
        "(notrack: four in raw for each port and family; stateless: one deleted and one inserted for each), saves "
        "or edits the files, and proves nothing. Both ends are looked at: the same ports are open, live and saved, and "
        "connections are not tracked. *Ratio*: the recipe's wall time by ours, of each pair; above 1 ours is faster.",
        "",
        "| cloud-init | mode | ports | handle() wall | recipe wall | ratio | handle() processor | recipe processor |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in found["rows"]:
        figures = [told(row[side]["wall"], 0) for side in SIDES] + [told(row["wall_ratio"], 2)]
        figures += [told(row[side]["cpu"], 0) for side in SIDES]
        lines.append(f"| {row['version']} | {row['mode']} | {row['ports']} | " + " | ".join(figures) + " |")
    lines += ["", *(f"cloud-init {name}: Python {one['python']}, {one['iptables']}." for name, one in
                    found["versions"].items())]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write the results."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--rounds", type=int, default=ROUNDS)
    words.add_argument("--ports", type=lambda text: tuple(map(int, text.split(","))), default=COUNTS)
    words.add_argument("--versions", type=lambda text: tuple(text.split(",")), default=VERSIONS)
    words.add_argument("--modes", type=lambda text: tuple(text.split(",")), default=tuple(SCRIPTS))
    words.add_argument("--results", type=Path, default=kept.RESULTS)
    options = words.parse_args()
    found: dict[str, Any] = {"machine": kept.machine(""), "versions": {}, "rows": []}
    with tempfile.TemporaryDirectory() as place:
        for version in options.versions:
            layers = Layers(version, Path(place))
            found["versions"][version] = {"python": layers.python, "iptables": layers.iptables}
            for mode in options.modes:
                for count in options.ports:
                    rounds = min(options.rounds, FEW) if count > 100 else options.rounds
                    found["rows"].append({"version": version, **measured(layers, mode, count, rounds)})
                    print(json.dumps({k: v for k, v in found["rows"][-1].items() if k != "runs"})[:300],
                          file=sys.stderr, flush=True)
    kept.keep("handle", found, table(found), options.results)


if __name__ == "__main__":
    main()
