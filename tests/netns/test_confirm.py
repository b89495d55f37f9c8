"""apply --confirm-within on the kernel of this machine: kept if somebody comes back in time, undone if nobody does.

The connection is what sshd leaves of it: a process of its own whose children have SSH_CONNECTION.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import reports

from .applying import without_made_tables
from .namespace import Namespace
from .standing import Standing, standing
from .topology import BACKENDS

pytestmark = pytest.mark.usefixtures("mount_points")

WITHIN = 5.0
PATIENCE = 60.0  # for an undoing on a busy machine
STATE = Path("var/lib/cloudinit-conntrack")


@pytest.fixture(params=BACKENDS)
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Standing]:
    place = Namespace("host")
    try:
        place.run("ip", "link", "set", "lo", "up")
        with standing(place, request.param, tmp_path) as made:
            yield made
    finally:
        place.close()


def until(holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def pending(machine: Standing) -> dict[str, object]:
    path = machine.files / STATE / "unconfirmed.json"
    found = json.loads(path.read_text("ascii")) if path.exists() else {}
    assert isinstance(found, dict)
    return found


def watchers(machine: Standing) -> list[int]:
    """The processes of this machine's namespace that wait for a confirmation."""
    own = os.stat(machine.place.path).st_ino
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                waits = b"\0await-confirmation\0" in (entry / "cmdline").read_bytes()
                if waits and os.stat(entry / "ns/net").st_ino == own:
                    found.append(int(entry.name))
            except OSError:  # it ended
                continue
    return found


def outcome(machine: Standing) -> str:
    return str(reports.read((machine.files / "run/cloudinit-conntrack/result.json").read_text("utf-8"))["outcome"])


@pytest.mark.alone  # it looks at the host before 5 s are over
def test_nobody_confirms_and_all_is_as_before(machine: Standing) -> None:
    rules, files = machine.rules(), machine.of_others()
    said = machine.run(0, "apply", "-c", machine.config("stateless"), "--confirm-within", "5s").stdout
    assert said.startswith("unconfirmed") and "undone in 5 seconds, unless" in said
    assert machine.rules() != rules and len(watchers(machine)) == 1
    assert until(lambda: not pending(machine) and not watchers(machine))
    assert without_made_tables(machine.rules(), rules) == rules
    assert machine.of_others() == files
    assert outcome(machine) == "reverted"
    assert not (machine.files / STATE / "journal").exists()
    assert not (machine.files / STATE / "desired.json").exists()
    assert "nothing waits to be confirmed" in machine.run(1, "confirm").stderr


@pytest.mark.alone  # it looks at the host before 5 s are over
def test_an_earlier_section_is_the_kept_one_again(machine: Standing) -> None:
    """Only the unconfirmed apply is undone, not the one before it."""
    machine.run(0, "apply", "-c", machine.config("notrack"))
    rules, files, kept = machine.rules(), machine.of_others(), (machine.files / STATE / "desired.json").read_bytes()
    machine.run(0, "apply", "-c", machine.config("stateless"), "--confirm-within", "5s")
    assert (machine.files / STATE / "desired.json").read_bytes() != kept
    assert until(lambda: not pending(machine) and not watchers(machine))
    assert without_made_tables(machine.rules(), rules) == rules and machine.of_others() == files
    assert (machine.files / STATE / "desired.json").read_bytes() == kept
    machine.run(0, "verify")


def test_a_new_connection_confirms_and_an_old_one_does_not(machine: Standing) -> None:
    before = machine.rules()
    # The old connection: a process from before the apply, under which the command runs later.
    machine.ssh = True
    pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
    old = machine.start("sh", "-c", 'read go; "$0" -m cloudinit_conntrack confirm; exit $?', sys.executable, **pipes)
    machine.run(0, "apply", "-c", machine.config("stateless"), "--confirm-within", "60s")
    rules = machine.rules()
    _, said = old.communicate("go\n", timeout=PATIENCE)
    assert old.returncode == 2 and "this ssh connection is older than the change" in said
    assert pending(machine)
    assert machine.run(0, "confirm").stdout.startswith("confirmed")
    assert until(lambda: not watchers(machine))
    assert machine.rules() == rules and outcome(machine) == "confirmed"
    machine.run(0, "revert")
    assert without_made_tables(machine.rules(), before) == before


def test_an_apply_that_is_killed_is_undone_by_the_one_that_waits(machine: Standing) -> None:
    """With its whole session, in the middle of the rules: nobody has to come and run anything."""
    rules, files = machine.rules(), machine.of_others()
    place = machine.files / "bin"
    place.mkdir()
    name = f"ip6tables-{machine.backend}-restore"
    own = os.stat(machine.place.path).st_ino
    here = f'[ "$(stat -Lc %i /proc/self/ns/net)" = {own} ]'
    act = 'kill -9 -$(ps -o sid= $PPID | tr -d " ")'
    (place / name).write_text(f'#!/bin/sh\n{here} && {act}\nexec /usr/sbin/{name} "$@"\n', encoding="ascii")
    (place / name).chmod(0o755)
    machine.path = f"{place}:{machine.path}"
    process = machine.start("setsid", sys.executable, "-m", "cloudinit_conntrack", "apply", "-c",
                            machine.config("stateless"), "--confirm-within", "60s", stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL)  # fmt: skip
    assert process.wait(timeout=PATIENCE) in (-signal.SIGKILL, 128 + signal.SIGKILL)
    assert pending(machine) and machine.of_others() != files
    (place / name).unlink()
    assert until(lambda: not pending(machine) and not watchers(machine))
    assert without_made_tables(machine.rules(), rules) == rules and machine.of_others() == files
    assert outcome(machine) == "reverted"


def test_what_waits_refuses_another_apply_and_is_reverted_by_hand(machine: Standing) -> None:
    rules = machine.rules()
    machine.run(0, "apply", "-c", machine.config("stateless"), "--confirm-within", "5m")
    assert "an apply waits to be confirmed" in machine.run(3, "apply", "-c", machine.config("notrack")).stderr
    assert "unless it is confirmed" in machine.run(0, "status").stdout
    machine.run(0, "revert")
    assert until(lambda: not watchers(machine))
    assert without_made_tables(machine.rules(), rules) == rules
    assert not pending(machine)


@pytest.mark.parametrize("earlier", [False, True])
def test_a_reboot_without_a_confirmation_undoes_it(machine: Standing, earlier: bool) -> None:
    """A locked-out administrator resets the machine: the boot service runs 'apply' without a section."""
    if earlier:
        machine.run(0, "apply", "-c", machine.config("notrack"))
    rules, files = machine.rules(), machine.of_others()
    machine.run(0, "apply", "-c", machine.config("stateless"), "--confirm-within", "5m")
    for pid in watchers(machine):
        os.kill(pid, signal.SIGKILL)
    path = machine.files / STATE / "unconfirmed.json"
    path.write_text(json.dumps({**pending(machine), "boot": "of another boot"}), "ascii")
    said = machine.run(0, "apply").stdout
    assert "an apply that nobody confirmed in time was rolled back" in said
    assert said.startswith("nothing to do" if earlier else "reverted")
    assert without_made_tables(machine.rules(), rules) == rules and machine.of_others() == files
    assert not pending(machine)


@pytest.mark.parametrize("text", ["4s", "25h", "soon", "60 s", "-5", "1e3"])
def test_a_time_that_is_none_is_refused(machine: Standing, text: str) -> None:
    rules = machine.rules()
    assert "is not a time from 5s to 24h" in machine.run(2, "apply", "-c", machine.config("stateless"),
                                                       f"--confirm-within={text}").stderr  # fmt: skip
    assert machine.rules() == rules
