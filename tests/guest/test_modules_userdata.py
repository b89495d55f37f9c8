"""The program that user-data carries, with real modules: unloaded, blocked, and all of it back."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudinit_conntrack import userdata
from cloudinit_conntrack.config import desired_from_section

from .balancer import SAVED, Story, assert_same, assert_unloaded, run_balancer
from .later import Later

SECTION = {"mode": "unload", "flows": {"frontends": [80]}}
COMMAND = "/usr/local/sbin/cloudinit-conntrack"


def program(section: dict[str, object]) -> str:
    """The file that cloud-init makes of the user-data and runs."""
    carried = Path(userdata.__file__).parent / "carried"
    sources = {name: (carried / name).read_text("utf-8") for name in userdata.FILES}
    made = userdata.make_userdata(desired_from_section(section), section, sources).decode("ascii")
    return made.partition("\n")[2]


SCRIPT = f"""
load
modprobe nf_conntrack_ftp ports=21,2121; modprobe iptable_nat
sysctl -qw net.netfilter.nf_conntrack_max=54321
look start
chmod 755 /root/part-001
mkdir -p /var/lib/cloud/scripts/per-boot
unshare --net cat </dev/zero >/dev/null & other=$!
sleep 0.5
step held nsenter --net=/proc/$other/ns/net iptables -A INPUT -m state --state NEW -j ACCEPT
step in-use /root/part-001
look unchanged
nsenter --net=/proc/$other/ns/net iptables -F
kill $other
sleep 0.5
step apply /root/part-001
look unloaded
step state-rule iptables -A INPUT -m state --state NEW -j ACCEPT
step modprobe modprobe nf_conntrack
step again {COMMAND} boot
step verify {COMMAND} verify
step revert {COMMAND} revert
look end
"""
FILES = {**SAVED, "/root/part-001": program(SECTION)}
STORY = Later(lambda: run_balancer(SCRIPT, FILES))


@pytest.fixture
def story() -> Story:
    return STORY.result()


def test_a_module_that_is_in_use_fails_and_all_is_as_before(story: Story) -> None:
    assert story.step("held").ok, story.step("held").output
    said = story.step("in-use")
    assert said.status == 1 and "is in use" in said.output and "rolled back" in said.output
    now, before = story.seen("unchanged"), story.seen("start")
    assert (now.rules, now.files, now.settings) == (before.rules, before.files, before.settings)
    assert set(now.counts) == set(before.counts)


def test_it_unloads_and_blocks(story: Story) -> None:
    assert story.step("apply").ok, story.step("apply").output
    assert_unloaded(story.seen("unloaded"))
    for way in ("state-rule", "modprobe"):
        assert not story.step(way).ok


def test_again_there_is_nothing_to_do(story: Story) -> None:
    assert "nothing-to-do" in story.step("again").stdout
    assert story.step("verify").ok, story.step("verify").output


def test_revert_brings_all_of_it_back(story: Story) -> None:
    assert story.step("revert").ok, story.step("revert").output
    assert_same(story.seen("end"), story.seen("start"))
