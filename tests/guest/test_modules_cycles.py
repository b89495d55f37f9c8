"""There and back again, with clients all the while: nothing fails, nothing grows.  ``make soak`` does it 200 times."""

from __future__ import annotations

import os
import re

import pytest

from .balancer import Story, assert_same, run_balancer
from .later import Later

TIMES = int(os.environ.get("SOAK", "10"))
SETTLED = 5  # cycles, after which nothing is to grow any more
ROOM = 4096  # KiB that memory may still move: the allocators' pages, where the objects are as many as before

# In one process, because starting Python takes longest here; tells what it takes after each cycle.
CYCLES = f"""\
import contextlib, gc, io, os, re, sys
from cloudinit_conntrack import cli
for number in range({TIMES}):
    for command in (["apply", "-c", "/root/desired.yaml"], ["revert"]):
        with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())) as said:
            status = cli.main(command)
        print(number, command[0], status)
    gc.collect()
    own = int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1])
    kernel = int(re.search(r"SUnreclaim:\\s+(\\d+)", open("/proc/meminfo").read())[1])
    files = len(os.listdir("/proc/self/fd"))
    left = len(os.listdir("/root/tmp"))
    print(f"memory {{own}} {{kernel}} {{len(gc.get_objects())}} {{files}} {{left}}", file=sys.stderr)
"""

# New connections over both families, one after the other; says how many there were and how many failed.
CLIENTS = """\
import os, socket, time
made = failed = 0
while not os.path.exists("/root/stop"):
    for address in ("10.9.0.1", "fd09::1"):
        made += 1
        try:
            with socket.create_connection((address, 22), 10) as connection:
                failed += connection.recv(100) != b"hello"
        except OSError as error:
            failed += 1
            print(error)
        time.sleep(0.05)
print(made, "made,", failed, "failed")
"""

SCRIPT = f"""
mkdir /root/tmp; export TMPDIR=/root/tmp # /tmp is this machine's
load
outside_up
/usr/bin/python3 /root/server.py 22 >/root/listening &
server=$!
until grep -q listening /root/listening; do sleep 0.1; done
config 'mode: unload'
look start
cat >/root/cycles.py <<'END'
{CYCLES}
END
cat >/root/clients.py <<'END'
{CLIENTS}
END
out /usr/bin/python3 /root/clients.py >/root/met 2>&1 &
clients=$!
step cycles /usr/bin/python3 /root/cycles.py
touch /root/stop
wait $clients
step met cat /root/met
look end
step kept find /var/lib/cloudinit-conntrack /run/cloudinit-conntrack -type f
step apply cc apply -c $DESIRED
step journal wc -l /var/lib/cloudinit-conntrack/journal
kill $server
"""

STORY = Later(lambda: run_balancer(SCRIPT, timeout=300 + 60 * TIMES), first=True)


@pytest.fixture
def story() -> Story:
    return STORY.result()


def test_every_cycle_succeeds(story: Story) -> None:
    expected = [f"{number} {verb} 0" for number in range(TIMES) for verb in ("apply", "revert")]
    assert story.step("cycles").stdout.splitlines() == expected, story.step("cycles")


def test_no_client_is_ever_refused(story: Story, measured: list[str]) -> None:
    met = story.step("met").stdout
    counted = re.fullmatch(r"(\d+) made, 0 failed\n", met)
    assert counted and int(counted[1]) >= 4 * TIMES, met
    measured.append(f"{TIMES} times unload and revert: {met.strip()}")


def test_memory_files_and_descriptors_stay(story: Story, measured: list[str]) -> None:
    lines = [line for line in story.step("cycles").stderr.splitlines() if line.startswith("memory ")]
    rows = [[int(word) for word in line.split()[1:]] for line in lines]
    assert len(rows) == TIMES, story.step("cycles").stderr
    own, kernel, objects, descriptors, temporary = zip(*rows[SETTLED:])
    told = f"{min(objects)} to {max(objects)} objects, {min(own)} to {max(own)} KiB of its own, "
    told += f"{min(kernel)} to {max(kernel)} KiB of the kernel's"
    assert max(objects) - objects[0] < TIMES, told  # less than one a cycle
    assert max(own) - own[0] < ROOM and max(kernel) - kernel[0] < ROOM, told
    assert len(set(descriptors)) == 1 and len(set(temporary)) == 1, rows
    measured.append(f"{TIMES} times unload and revert, from the cycle {SETTLED + 1} on: {told}")


def test_modules_counts_rules_and_files_are_those_of_the_start(story: Story) -> None:
    assert_same(story.seen("end"), story.seen("start"))


def test_no_journal_is_left_and_the_next_one_is_no_longer_than_the_first(story: Story) -> None:
    kept = story.step("kept").stdout.split()
    assert not [path for path in kept if "/var/lib/" in path]
    actions = story.answer("apply", 0)["actions"]
    assert int(story.step("journal").stdout.split()[0]) == len(actions) + 2  # begin, one each, commit
