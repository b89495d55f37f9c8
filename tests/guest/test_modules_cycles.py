"""Twenty times there and back: nothing grows."""

from __future__ import annotations

import pytest

from .balancer import Story, assert_same, run_balancer
from .later import Later

TIMES = 20

# In one process, because starting Python takes longest here.
CYCLES = f"""\
import contextlib, io, sys
from cloudinit_conntrack import cli
for number in range({TIMES}):
    for command in (["apply", "-c", "/root/desired.yaml"], ["revert"]):
        with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())) as said:
            status = cli.main(command)
        print(number, command[0], status)
"""

SCRIPT = f"""
load
config 'mode: unload'
look start
cat >/root/cycles.py <<'END'
{CYCLES}
END
step cycles /usr/bin/python3 /root/cycles.py
look end
step kept find /var/lib/cloudinit-conntrack /run/cloudinit-conntrack -type f
step apply cc apply -c $DESIRED
step journal wc -l /var/lib/cloudinit-conntrack/journal
"""

STORY = Later(lambda: run_balancer(SCRIPT))


@pytest.fixture
def story() -> Story:
    return STORY.result()


def test_every_cycle_succeeds(story: Story) -> None:
    expected = [f"{number} {verb} 0" for number in range(TIMES) for verb in ("apply", "revert")]
    assert story.step("cycles").stdout.splitlines() == expected, story.step("cycles")


def test_modules_counts_rules_and_files_are_those_of_the_start(story: Story) -> None:
    assert_same(story.seen("end"), story.seen("start"))


def test_no_journal_is_left_and_the_next_one_is_no_longer_than_the_first(story: Story) -> None:
    kept = story.step("kept").stdout.split()
    assert not [path for path in kept if "/var/lib/" in path]
    actions = story.answer("apply", 0)["actions"]
    assert int(story.step("journal").stdout.split()[0]) == len(actions) + 2  # begin, one each, commit
