"""The program that user-data carries, with real modules: unloaded, blocked, and all of it back."""

from __future__ import annotations

import pytest

from .balancer import SAVED, Story, assert_same, assert_unloaded, run_balancer
from .full_stories import CARRIED, carried_user_data
from .later import Later

SECTION: dict[str, object] = {"mode": "unload", "flows": {"frontends": [80]}}


SCRIPT = f"""
cp /etc/sysconfig/iptables /root/stateful
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
step again {CARRIED} boot
step verify {CARRIED} verify
step revert {CARRIED} revert
look end
{CARRIED} apply
mkdir -p /etc/systemd/system/basic.target.wants
ln -s /usr/lib/systemd/system/iptables.service /etc/systemd/system/basic.target.wants/
cp /root/stateful /etc/sysconfig/iptables
iptables -F # and nothing: what a boot under the block leaves of a stateful file
step refused iptables-restore /etc/sysconfig/iptables
step mended {CARRIED} boot
look mended
limit='-A INPUT -p tcp -m connlimit --connlimit-above 9 -j DROP'
sed "s/-A INPUT -j REJECT/$limit\\n&/" /root/stateful >/etc/sysconfig/iptables
iptables -F
step given-up {CARRIED} boot
look given-up
"""
FILES = {**SAVED, "/root/part-001": carried_user_data(SECTION).partition("\n")[2]}
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


def test_a_boot_without_rules_is_mended(story: Story) -> None:
    """Somebody saved stateful rules under the block: its service loads nothing, and the host is open."""
    assert not story.step("refused").ok
    assert story.step("mended").ok, story.step("mended").output
    assert_unloaded(story.seen("mended"))


def test_what_cannot_be_mended_goes_without_the_block(story: Story) -> None:
    """A firewall comes before a host without conntrack; that it is not what was asked for is an error."""
    said = story.step("given-up")
    assert said.status == 1 and "the block is taken away" in said.output and "connlimit" in said.output
    seen = story.seen("given-up")
    assert any("--connlimit-above 9" in row for row in seen.rules) and "nf_conntrack" in seen.conntrack
    assert not any("00-cloudinit-conntrack" in row for row in seen.files)
