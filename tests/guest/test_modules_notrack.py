"""notrack loads what it needs and revert takes it away again; one mode after the other, and all of it back."""

from __future__ import annotations

import pytest

from .balancer import Story, assert_same, assert_unloaded, run_balancer
from .later import Later

SCRIPT = """
/usr/bin/python3 /root/server.py 22 80 >/root/listening &
until grep -q listening /root/listening; do sleep 0.1; done
talk() { # both ports over both families; then the entries that this left, by port
    step $1-talk /usr/bin/python3 /root/client.py 127.0.0.1-22 127.0.0.1-80 ::1-22 ::1-80
    step $1-entries cat /proc/net/nf_conntrack
}
forget() { conntrack -F 2>/dev/null; }
notrack() { config 'mode: notrack' 'flows: {frontends: [80]}'; }

# Nothing is loaded, and nothing is saved.
mv /etc/sysconfig/iptables /etc/sysconfig/ip6tables /root
look bare
notrack
step bare-apply cc apply -c $DESIRED
look bare-applied
step bare-verify cc verify
step bare-revert cc revert
look bare-end

mv /root/iptables /root/ip6tables /etc/sysconfig
load
modprobe nf_conntrack_netlink
look start
talk start
step apply cc apply -c $DESIRED
look applied
talk stale
forget
talk applied
step verify cc verify

config 'mode: unload'
step to-unload cc apply -c $DESIRED
look unload
talk unload
notrack
step to-notrack cc apply -c $DESIRED
look notrack
forget
talk notrack
step revert cc revert
look end
talk end
"""

STORY = Later(lambda: run_balancer(SCRIPT))


@pytest.fixture
def story() -> Story:
    return STORY.result()


def entries(story: Story, name: str, port: int) -> int:
    """How many entries the connections to *port* left in the table."""
    return story.step(f"{name}-entries").stdout.count(f"dport={port} ")


@pytest.mark.parametrize("when", ["start", "applied", "unload", "notrack", "end"])
def test_both_ports_answer_over_both_families_all_the_time(story: Story, when: str) -> None:
    said = story.step(f"{when}-talk").stdout.splitlines()
    assert said == ["127.0.0.1-22 hello", "127.0.0.1-80 hello", "::1-22 hello", "::1-80 hello"]


def test_on_a_bare_host_apply_loads_modules_and_revert_unloads_them(story: Story) -> None:
    bare, applied, end = story.seen("bare"), story.seen("bare-applied"), story.seen("bare-end")
    story.answer("bare-apply", 0)
    assert bare.conntrack == () and "xt_CT" in applied.conntrack
    assert any("--dport 80" in row and "--notrack" in row for row in applied.rules)
    assert story.answer("bare-verify", 0)["outcome"] == "verified"
    story.answer("bare-revert", 0)
    assert set(end.counts) == set(bare.counts)
    assert end.files == bare.files
    assert not [row for row in end.rules if row.startswith("-A")]


def test_the_named_flow_is_tracked_before_and_not_after(story: Story) -> None:
    assert entries(story, "start", 80) == entries(story, "start", 22) == 2  # IPv4 and IPv6
    story.answer("apply", 0)
    assert entries(story, "stale", 80) == 0  # also those from before are gone
    assert entries(story, "applied", 80) == 0
    assert entries(story, "applied", 22) == 2
    assert story.answer("verify", 0)["outcome"] == "verified"


def test_from_notrack_to_unload_nothing_of_notrack_is_left(story: Story) -> None:
    story.answer("to-unload", 0)
    now = story.seen("unload")
    assert_unloaded(now)
    assert not any("notrack" in row.lower() for row in now.rules)
    assert not story.step("unload-entries").ok  # no such file


def test_from_unload_to_notrack_the_block_is_lifted(story: Story) -> None:
    story.answer("to-notrack", 0)
    now = story.seen("notrack")
    assert "xt_CT" in now.conntrack
    assert not any("00-cloudinit-conntrack" in row for row in now.files)
    assert entries(story, "notrack", 80) == 0


def test_one_revert_goes_back_through_all_modes_to_the_very_start(story: Story) -> None:
    story.answer("revert", 0)
    assert_same(story.seen("end"), story.seen("start"))
    assert entries(story, "end", 80) == 2
