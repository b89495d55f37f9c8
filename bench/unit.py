"""Our unit at boots with nothing to do, as systemd sees it: a whole Debian 12 guest, booted several times.

Run as root (``python -m bench.unit``).  The guest is user-mode Linux (:mod:`tests.guest.full_guest`), in which a
system call costs many times what it costs on hardware; so the same command is measured outside too, on this machine,
by :mod:`bench.boot`.  The first boot applies (by cloud-init), the second plans and finds nothing, and those
after it are told from what the second one wrote down: these are counted.  Writes ``results/unit.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import boot, kept
from bench.kept import seconds, summary, told
from tests.guest import guest_image, layer, seed_case
from tests.guest.full_guest import FullGuest
from tests.netns.applying import mount_points

UNIT = "cloudinit-conntrack.service"
BOOTS = 5
SHOW = f"systemctl show {UNIT} -p Result,ExecMainStartTimestampMonotonic,ExecMainExitTimestampMonotonic,CPUUsageNSec"


def looked(guest: FullGuest) -> dict[str, Any]:
    """What systemd tells of this boot."""
    guest.run(seed_case.BOOTED, 300)
    shown = dict(line.split("=", 1) for line in guest.check(SHOW).splitlines())
    assert shown["Result"] == "success", shown
    assert "nothing to do" in guest.check(f"journalctl --boot --output=cat --unit={UNIT}")
    blame = guest.check("systemd-analyze blame").splitlines()
    places = [line.split()[-1] for line in blame]
    chain = guest.check("systemd-analyze critical-chain multi-user.target")
    total = re.search(r"= (.*)", guest.check("systemd-analyze time").splitlines()[0])
    assert total is not None
    started, ended = (int(shown[f"ExecMain{what}TimestampMonotonic"]) for what in ("Start", "Exit"))
    return {
        "blame": seconds(blame[places.index(UNIT)].rpartition(" ")[0]), "place": places.index(UNIT) + 1,
        "units": len(places), "critical": UNIT in chain, "chain": chain, "whole": seconds(total.group(1)),
        "process": (ended - started) / 1e6, "cpu": int(shown["CPUUsageNSec"]) / 1e9,
    }


def boots(count: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """*count* boots with nothing to do, told without planning; and the one before, which planned."""
    with tempfile.TemporaryDirectory(prefix="bench-unit-") as name:
        tree, image = Path(name) / "layer", guest_image.image()
        layer.make(tree, image)
        with FullGuest(image, Path(name) / "guest", seed_case.USER_DATA.read_text(), tree) as guest:
            guest.boot(timeout=300)
            guest.run(seed_case.BOOTED, 300)
            guest.check("sed -i '/conntrack, always/d' /etc/cloud/cloud.cfg")  # what counts is the unit alone
            found = []
            for _ in range(count + 1):
                guest.power_off(180)
                guest.boot(timeout=300)
                found.append(looked(guest))
    return found[1:], found[0]


def outside() -> dict[str, Any]:
    """The same command on this machine."""
    with tempfile.TemporaryDirectory() as place, mount_points():
        base = Path(place)
        package = boot.installed(base)
        commands: dict[str, Sequence[str]] = {"bare": (boot.PYTHON, "-I", "-c", "pass"),
                                              "boot": (boot.PYTHON, "-I", "-S", package, "apply")}
        (base / "files").mkdir()
        runs = boot.measured("legacy", "unload", commands, base / "files")
    return {name: {"wall": summary([run[0] for run in taken], 1e3), "cpu": summary([run[1] for run in taken], 1e3)}
            for name, taken in runs.items()}


def table(found: dict[str, Any]) -> str:
    """The results for a reader."""
    about, told_boots = found["machine"], found["boots"]
    critical = sum(one["critical"] for one in told_boots)
    lines = [
        "# Our unit at a boot with nothing to do", "",
        f"A whole Debian 12 with systemd and cloud-init, booted {len(told_boots)} times in user-mode Linux on Linux "
        f"{about['kernel']}, {about['processors']} processors; load {about['load']:.1f} at the start, {about['date']}. "
        "Milliseconds, medians (least to most). There a system call costs many times what it costs on hardware: "
        "*outside* is the same command on this machine, without it.", "",
        "| what | milliseconds |", "|---|---:|",
        f"| `systemd-analyze blame` of the unit | {told(found['blame'], 0)} |",
        f"| from its process's start to its end | {told(found['process'], 0)} |",
        f"| its processor time | {told(found['cpu'], 0)} |",
        f"| the same at a boot that plans (one boot), processor time | {found['planned']['cpu'] * 1e3:.0f} |",
        f"| the whole boot (`systemd-analyze time`) | {told(found['whole'], 0)} |",
        f"| outside: wall | {told(found['outside']['boot']['wall'], 0)} |",
        f"| outside: processor | {told(found['outside']['boot']['cpu'], 0)} |",
        f"| outside: a bare `python3 -I -c pass`, processor | {told(found['outside']['bare']['cpu'], 0)} |", "",
        f"In `systemd-analyze blame` it was number {', '.join(str(one['place']) for one in told_boots)} of about "
        f"{told_boots[0]['units']} units. On the critical chain of multi-user.target it was in {critical} of "
        f"{len(told_boots)} boots. The chain of the last one:", "", "```",
        *(line.rstrip() for line in told_boots[-1]["chain"].strip().splitlines()[3:]), "```",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write the results."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--boots", type=int, default=BOOTS)
    words.add_argument("--results", type=Path, default=kept.RESULTS)
    options = words.parse_args()
    about = boot.machine()
    measured, planned = boots(options.boots)
    found: dict[str, Any] = {"machine": about, "boots": measured, "planned": planned, "outside": outside()}
    for name in ("blame", "process", "cpu", "whole"):
        found[name] = summary([one[name] for one in measured], 1e3)
    kept.keep("unit", found, table(found), options.results)


if __name__ == "__main__":
    main()
