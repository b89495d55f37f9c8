"""The program that user-data carries, on the kernel of this machine: apply, verify, revert, and what a kill leaves.

Judged by iptables-save, the files, clients and /proc/net/nf_conntrack; the whole program must find nothing to
do behind it, and be able to undo what it did.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloudinit_conntrack import userdata
from cloudinit_conntrack.config import desired_from_section
from tests import reports

from . import applying
from .applying import BIND, ENTER, SAVED, STATEFUL, Machine, without_made_tables
from .namespace import Namespace
from .topology import BACKENDS, FAMILIES, topology

pytestmark = pytest.mark.usefixtures("mount_points")

CARRIED = Path(userdata.__file__).parent / "carried"
MODES = ("stateless", "notrack")


def program(section: dict[str, Any]) -> str:
    """The program as user-data carries it, taken out of real user-data."""
    sources = {name: (CARRIED / name).read_text("utf-8") for name in userdata.FILES}
    made = userdata.make_userdata(desired_from_section(section), section, sources)
    return userdata.carried(made, "made").program


class Carrier:
    """A machine with the program of one section on it."""

    def __init__(self, machine: Machine, mode: str, **more: object) -> None:
        self.machine = machine
        self.section = {"mode": mode, "flows": {"frontends": [80, {"port": 443, "protocol": "udp"}],
                                                "backends": [8080]}, **more}
        self.path = machine.files / "carried.py"
        self.path.write_text(program(self.section), "utf-8")

    def run(self, expected: int, verb: str, kill_at: int = 0) -> str:
        """Run it, killed at its *kill_at*-th write to the journal where that is not 0; gives what it says."""
        words = [sys.executable, str(self.path), verb]
        if kill_at:
            words = [sys.executable, "-c", KILLING, str(self.path), str(kill_at), verb]
        done = self.machine.place.run(*ENTER, "sh", "-c", BIND, "sh", str(self.machine.files), *words, check=False)
        said = f"{verb}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr and done.returncode == expected, said
        return said

    def result(self) -> dict[str, Any]:
        return reports.read((self.machine.files / "run/cloudinit-conntrack/result.json").read_text())


# SIGKILL behind a synced line of the journal: before the act that the line announces.
KILLING = """
import os, signal, sys
path, at, verb = sys.argv[1:]
source = open(path).read().replace("sys.exit(main())", "")
exec(compile(source, path, "exec"))
original, lines = record, []
def record(*given, **more):
    original(*given, **more)
    lines.append(given)
    if len(lines) == int(at):
        os.kill(os.getpid(), signal.SIGKILL)
sys.argv = [path, verb]
sys.exit(main())
"""


@pytest.fixture(params=BACKENDS)
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    with applying.alone(request.param, tmp_path) as made:
        yield made


def wanted_back(machine: Machine) -> tuple[dict[str, object], applying.RuleTexts]:
    return machine.of_others(), machine.rules()


def contents(machine: Machine) -> dict[str, bytes]:
    """The files, whenever they were written."""
    return {name: (machine.files / name).read_bytes() for name in machine.of_others()}


def is_back(machine: Machine, before: tuple[dict[str, object], applying.RuleTexts]) -> None:
    files, rules = wanted_back(machine)
    assert files == before[0]
    assert without_made_tables(rules, before[1]) == before[1]
    assert not (machine.files / "var/lib/cloudinit-conntrack/journal").exists()


@pytest.mark.parametrize("mode", MODES)
def test_whole_story(machine: Machine, mode: str) -> None:
    before = wanted_back(machine)
    carrier = Carrier(machine, mode)
    assert carrier.run(4, "plan").count("live ") >= 2
    assert wanted_back(machine) == before

    carrier.run(0, "apply")
    assert carrier.result()["outcome"] == "done"
    for family in FAMILIES:
        saved = (machine.files / SAVED[family]).read_text()
        for text in (saved, machine.live(family)):
            assert bool(STATEFUL.search(text)) == (mode == "notrack")
            assert ("--notrack" in text) == (mode == "notrack")
    assert "nf_conntrack" not in (machine.files / "etc/sysconfig/iptables-config").read_text() or mode == "notrack"
    once = wanted_back(machine)
    carrier.run(0, "verify")
    carrier.run(0, "apply")
    assert carrier.result()["outcome"] == "nothing-to-do"
    assert wanted_back(machine) == once

    carrier.run(0, "revert")
    is_back(machine, before)


def test_the_whole_program_finds_nothing_left_and_undoes_it(machine: Machine) -> None:
    before = wanted_back(machine)
    carrier = Carrier(machine, "stateless")
    carrier.run(0, "apply")

    assert machine.report(0, "plan", "-c", machine.config("stateless", persist=False))["actions"] == []
    machine.run(0, "revert")
    is_back(machine, before)


def test_it_undoes_what_the_whole_program_did(machine: Machine) -> None:
    before = wanted_back(machine)
    machine.run(0, "apply", "-c", machine.config("stateless"))
    Carrier(machine, "stateless").run(0, "revert")
    is_back(machine, before)


@pytest.mark.parametrize("verb", ["apply", "revert"])
def test_killed_anywhere_either_way_is_whole(machine: Machine, verb: str) -> None:
    before = wanted_back(machine)
    carrier = Carrier(machine, "stateless")
    carrier.run(0, "apply")
    done = [(action["where"], action["reason"]) for action in carrier.result()["actions"]]
    whole = machine.rules(), contents(machine)
    carrier.run(0, "revert")
    points = len(done) + 2 if verb == "apply" else 2
    for at in range(1, points + 1):
        for way in ("apply", "revert"):
            if verb == "revert":
                carrier.run(0, "apply")
            carrier.run(137, verb, kill_at=at)
            carrier.run(0, way)
            if way == "apply":
                assert machine.rules() == whole[0]
                assert contents(machine) == whole[1]
                carrier.run(0, "revert")
            is_back(machine, before)


def test_what_fails_is_rolled_back(machine: Machine) -> None:
    before = wanted_back(machine)
    carrier = Carrier(machine, "stateless", guard={"probes": ["127.0.0.1:1"]})
    said = carrier.run(1, "apply")
    assert "127.0.0.1:1 does not answer" in said and "rolled back" in said
    assert carrier.result()["outcome"] == "failed"
    is_back(machine, before)


def test_what_it_cannot_say_blocks_and_changes_nothing(machine: Machine) -> None:
    machine.hand("ipv4", "-A", "INPUT", "-m", "connlimit", "--connlimit-above", "20", "-j", "DROP")
    before = wanted_back(machine)
    said = Carrier(machine, "stateless").run(3, "plan")
    assert "connlimit" in said and not list((machine.files / "run/cloudinit-conntrack").iterdir())
    said = Carrier(machine, "stateless").run(3, "apply")
    assert "connlimit" in said and "asks more of a connection than its state" in said
    assert wanted_back(machine) == before


@pytest.mark.parametrize("unit", ["docker.service", "firewalld.service"])
def test_programs_that_write_rules_block(machine: Machine, unit: str) -> None:
    wants = machine.files / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True)
    (wants / unit).symlink_to(f"/lib/systemd/system/{unit}")
    assert f"{unit} writes rules of its own" in Carrier(machine, "stateless").run(3, "apply")


@pytest.mark.parametrize("mode", MODES)
def test_native_rules_that_ask_for_states_block(tmp_path: Path, mode: str) -> None:
    place = Namespace("host")
    try:
        machine = Machine(place, "nft", tmp_path)
        machine.furnish()
        place.run("nft", "add table inet mine; add chain inet mine in { type filter hook input priority 0; }; "
                  "add rule inet mine in ct state established accept")
        said = Carrier(machine, mode).run(3, "apply")
        assert "nft table inet mine depends on conntrack" in said
        place.run("nft", "flush chain inet mine in; add rule inet mine in tcp dport 22 accept")
        Carrier(machine, mode).run(0, "apply")
    finally:
        place.close()


def test_unload_settles_for_what_fallback_says_on_a_kernel_with_conntrack_built_in(machine: Machine) -> None:
    assert "built into this kernel" in Carrier(machine, "unload").run(3, "apply")
    assert "settled for stateless" in Carrier(machine, "unload", fallback="stateless").run(0, "apply")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
def test_clients_notice_nothing(tmp_path: Path, backend: str, mode: str) -> None:
    with topology() as net:
        machine = Machine(net.host, backend, tmp_path)
        machine.prepare()
        carrier = Carrier(machine, mode)

        async def act() -> None:
            import asyncio

            for verb in ("apply", "verify"):
                await asyncio.get_running_loop().run_in_executor(None, carrier.run, 0, verb)
            await asyncio.sleep(1)

        count, failed = applying.failures_during(net, act)
        assert count > 40 and not failed, failed[:5]


def test_notrack_takes_the_block_away_before_it_loads_rules(machine: Machine) -> None:
    block = machine.files / "etc/modprobe.d/00-cloudinit-conntrack.conf"
    block.write_text("install nf_conntrack /bin/false\n")
    carrier = Carrier(machine, "notrack")
    carrier.run(0, "apply")
    assert carrier.result()["actions"][0]["where"] == "/etc/modprobe.d/00-cloudinit-conntrack.conf"
    assert not block.exists()
    carrier.run(0, "revert")
    assert block.read_text() == "install nf_conntrack /bin/false\n"


def test_usage_is_told(machine: Machine) -> None:
    said = Carrier(machine, "stateless").run(2, "apply --force")
    assert re.search(r"usage, as root: cloudinit-conntrack apply\|verify\|plan\|revert", said)


def test_a_damaged_journal_is_refused(machine: Machine) -> None:
    carrier = Carrier(machine, "stateless")
    carrier.run(0, "apply")
    journal = machine.files / "var/lib/cloudinit-conntrack/journal"
    journal.write_bytes(journal.read_bytes().replace(b'"kind":"begin"', b'"kind":"BEGIN"'))
    assert "is damaged or not ours" in carrier.run(1, "revert")


def test_it_runs_alone(machine: Machine) -> None:
    carrier = Carrier(machine, "stateless")
    lock = machine.files / "run/cloudinit-conntrack/lock"
    with subprocess.Popen(["flock", str(lock), "sleep", "30"]) as holder:
        while not lock.exists():
            pass
        assert "Traceback" not in carrier.run(1, "apply")
        holder.terminate()
