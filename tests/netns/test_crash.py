"""apply and revert killed, or their power cut, at every single boundary; from there both ways back.

Each campaign prints what it tried.  One case runs always; ``make crash`` runs all of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from . import powercut
from .crashing import Case, Host, State, Tally, cut_power_everywhere, fail_everywhere, host, kill_everywhere

ALL = bool(os.environ.get("CRASH_EVERYTHING"))
SMALLEST = Case("native", "stateless")  # the fewest commands
CASES = [SMALLEST] if not ALL else [
    Case(rules, mode, systemd=rules == "nft" and mode == "stateless")
    for rules in ("native", "nft", "legacy") for mode in ("stateless", "notrack")
]  # fmt: skip
VERBS = ("apply", "revert") if ALL else ("revert",)
Made = tuple[Host, State]


@pytest.fixture(scope="module", params=CASES, ids=str)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """A host, and what a whole apply makes of it."""
    with host(request.param, tmp_path_factory.mktemp("crash")) as one:
        yield one, one.must(*one.apply())


def start(made: Made, verb: str) -> State:
    return made[0].start if verb == "apply" else made[1]


def judge(tally: Tally, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{what}: {tally.points} points, {tally.states} different states, {tally.recoveries} ways back, "
              f"{len(tally.lost)} lost")
    assert not tally.lost, "\n".join(tally.lost)[:8000]


@pytest.mark.parametrize("verb", VERBS)
def test_killed_at_every_boundary(made: Made, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """SIGKILL before each act, and in the middle of each write."""
    tally = Tally()
    kill_everywhere(made[0], verb, start(made, verb), made[1], tally)
    assert tally.points > (100 if verb == "apply" else 25) and tally.recoveries == 2 * tally.states > 20
    judge(tally, f"{made[0].case}, {verb} killed", capsys)


@pytest.mark.parametrize("verb", ("apply", "revert"))
def test_power_cut_at_every_boundary(made: Made, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What was synced is there, what was not may be; the boot loads the saved rules, and ssh gets in."""
    tally = Tally()
    cut_power_everywhere(made[0], verb, start(made, verb), made[1], tally)
    assert tally.points > 25 and tally.states > 10
    judge(tally, f"{made[0].case}, {verb} without power", capsys)


@pytest.mark.skipif(not ALL, reason="a campaign of 'make crash'")
@pytest.mark.parametrize("error", ["MemoryError", "EIO"])
def test_every_act_fails_once(made: Made, error: str, capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally()
    fail_everywhere(made[0], error, made[1], tally)
    assert tally.points > 60
    judge(tally, f"{made[0].case}, apply fails by {error}", capsys)


# --- the model of a disk itself ----------------------------------------------------------


def act(kind: str, *places: str, **more: object) -> dict[str, object]:
    return {"at": 0, "kind": kind, "places": places, **more}


OLD = (0o100644, 0, 0, "", 1, 1, (), b"old")
NAME, BESIDE = "etc/sysconfig/iptables", "etc/sysconfig/.new"
WRITE = act("write", f"/{BESIDE}", content="bmV3IQ==")


def after(*acts: dict[str, object]) -> set[tuple[str, bytes]]:
    """(name, content) of everything that may be found after a power cut behind *acts*."""
    disk = powercut.disk({NAME: OLD})
    for one in acts:
        disk.do(one)
    return {(name, entry[-1]) for state in disk.states() for name, entry in state.items()}


def test_what_was_not_synced_may_be_lost_in_any_way() -> None:
    create, rename = act("create", f"/{BESIDE}", mode=0o600), act("os.rename", f"/{BESIDE}", f"/{NAME}")
    file, directory = act("fsync", f"/{BESIDE}"), act("fsync", "/etc/sysconfig")
    assert after() == {(NAME, b"old")}
    contents = (b"", b"ne", b"ne\0\0", b"\0\0w!", b"new!")
    assert after(create, WRITE) == {(NAME, b"old"), *((BESIDE, content) for content in contents)}
    # renamed before it was synced: the name may lead to nothing
    assert {(NAME, b""), (NAME, b"old"), (NAME, b"new!")} < after(create, WRITE, rename)
    assert after(create, WRITE, file, rename) == {(NAME, b"old"), (NAME, b"new!"), (BESIDE, b"new!")}
    assert after(create, WRITE, file, rename, directory) == {(NAME, b"new!")}
    assert after(act("os.remove", f"/{NAME}"), directory) == set()
