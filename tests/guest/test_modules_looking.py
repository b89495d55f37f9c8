"""status, plan and verify look: they load nothing, they change nothing, in whatever state the host is."""

from __future__ import annotations

import pytest

from .balancer import SAVED, Story, assert_unloaded, run_balancer
from .later import Later

STATES = ("nothing", "stateful", "unloaded", "notrack")
VERBS = ("status", "plan", "verify")
WATCHED = ("nothing", "stateful")

# Two refreshes on a terminal of their own, then Ctrl-C.
WATCH = """\
import os, pty, sys
child, terminal = pty.fork()
if child == 0:
    os.environ["TERM"] = "xterm"
    os.execv("/usr/bin/python3", ["python3", "-m", "cloudinit_conntrack", "status", "--watch", "0.3"])
seen, asked = b"", False
while True:
    try:
        piece = os.read(terminal, 65536)
    except OSError:
        break
    seen += piece
    if not asked and seen.count(b"\x1b[J") >= 2:
        asked = os.write(terminal, b"\x03") == 1  # once: the terminal echoes it, and a second one may meet its end
os.write(1, seen)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""

SCRIPT = """
looked_at() { # a look, the three verbs, a picture, a view that is drawn again, a look
    look $1-before
    step $1-status cc status
    step $1-plan cc plan -c $DESIRED
    step $1-verify cc verify -c $DESIRED
    [ $1 != stateful ] || step $1-picture cc status --picture /root/tree.dot
    case $1 in nothing|stateful) step $1-watch /usr/bin/python3 /root/watch.py;; esac
    look $1-after
}
config 'mode: unload'
looked_at nothing
load
looked_at stateful
step apply-unload cc apply -c $DESIRED
looked_at unloaded
config 'mode: notrack' 'flows: {frontends: [22]}'
step apply-notrack cc apply -c $DESIRED
looked_at notrack
"""


STORY = Later(lambda: run_balancer(SCRIPT, {**SAVED, "/root/watch.py": WATCH}))


@pytest.fixture
def story() -> Story:
    return STORY.result()


@pytest.mark.parametrize("state", STATES)
def test_looking_leaves_the_host_as_it_is(story: Story, state: str) -> None:
    before, after = story.seen(f"{state}-before"), story.seen(f"{state}-after")
    assert after.modules == before.modules  # byte for byte: no count, no order, no address moved
    assert (after.rules, after.files, after.settings) == (before.rules, before.files, before.settings)
    for verb in VERBS:
        assert story.step(f"{state}-{verb}").stderr == ""


def test_the_states_are_what_they_are_called(story: Story) -> None:
    assert "iptable" not in story.seen("nothing-before").modules
    assert "x_tables" not in story.seen("nothing-after").modules
    assert story.seen("stateful-before").conntrack == ("nf_conntrack", "xt_conntrack")
    assert_unloaded(story.seen("unloaded-before"))
    assert "xt_CT" in story.seen("notrack-before").conntrack


@pytest.mark.parametrize(
    ("state", "outcome", "plan", "verify"),
    [
        ("nothing", "conntrack-absent", 4, 4),  # the saved rules are stateful
        ("stateful", "conntrack-loaded", 4, 4),
        ("unloaded", "conntrack-absent", 0, 0),
        ("notrack", "conntrack-loaded", 0, 0),
    ],
)
def test_the_answers(story: Story, state: str, outcome: str, plan: int, verify: int) -> None:
    assert story.answer(f"{state}-status", 0)["outcome"] == outcome
    assert story.answer(f"{state}-plan", plan)["outcome"] == ("changes" if plan else "nothing-to-do")
    assert story.answer(f"{state}-verify", verify)["outcome"] == ("drift" if verify else "verified")


def test_status_names_every_rule_that_holds_the_module(story: Story) -> None:
    findings = story.answer("stateful-status", 0)["findings"]
    found = {item["where"]: item["remedy"] for item in findings}
    for family, tool in (("ipv4", "iptables"), ("ipv6", "ip6tables")):
        for number in (1, 4):
            place = f"iptables-legacy {family}, table filter, chain INPUT, rule {number}"
            assert found[place] == f"{tool}-legacy -t filter -D INPUT {number}"
    assert found["module xt_conntrack"] == "rmmod xt_conntrack"


@pytest.mark.parametrize("state", WATCHED)
def test_watching_ends_with_a_clean_terminal(story: Story, state: str) -> None:
    ran = story.step(f"{state}-watch")
    assert ran.ok, ran.output
    assert ran.stdout.count("Ctrl-C ends") >= 2
    assert ran.stdout.endswith("\x1b[?25h\x1b[?1049l")
