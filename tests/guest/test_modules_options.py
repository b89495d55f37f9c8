"""modules.extra, modules.block, persist; and a kernel that was told to leave its modules alone."""

from __future__ import annotations

import pytest

from .balancer import Story, assert_same, assert_unloaded, run_balancer
from .later import Later

BLOCK = "/etc/modprobe.d/00-cloudinit-conntrack.conf"
OURS = "/var/lib/cloudinit-conntrack"

SCRIPT = """
load
modprobe -a xt_recent xt_set
look start
config 'mode: unload' 'modules: {extra: [xt_recent, xt-set]}'
step extra cc apply -c $DESIRED
look extra
step extra-modprobe modprobe xt_recent
cc revert >/dev/null
look extra-end
config 'mode: unload' 'modules: {extra: [x_tables]}'
step needed cc apply -c $DESIRED
look needed
config 'mode: unload' 'modules: {extra: [xt_tcpudp]}'
step used cc apply -c $DESIRED
look used
config 'mode: unload' 'modules: {block: false}'
step open cc apply -c $DESIRED
look open
step open-verify cc verify
step open-modprobe modprobe nf_conntrack
step open-drift cc verify
rmmod nf_conntrack
cc revert >/dev/null
look open-end
config 'mode: unload' 'persist: false'
step once cc apply -c $DESIRED
look once
step once-verify cc verify -c $DESIRED
cc revert >/dev/null
look once-end
echo 1 >/proc/sys/kernel/modules_disabled
config 'mode: unload'
step locked cc apply -c $DESIRED
look locked
config 'mode: unload' 'fallback: stateless'
step settled cc apply -c $DESIRED
look settled
step settled-verify cc verify
cc revert >/dev/null
look settled-end
"""

STORY = Later(lambda: run_balancer(SCRIPT))


@pytest.fixture
def story() -> Story:
    return STORY.result()


@pytest.mark.parametrize("name", ["extra", "open", "once", "settled"])
def test_revert_undoes_it_all(story: Story, name: str) -> None:
    assert_same(story.seen(f"{name}-end"), story.seen("start"))


def test_extra_modules_are_unloaded_and_blocked(story: Story) -> None:
    start, now = story.seen("start"), story.seen("extra")
    story.answer("extra", 0)
    assert_unloaded(now)
    assert {"xt_recent", "xt_set"} <= set(start.counts)
    assert not {"xt_recent", "xt_set"} & set(now.counts)
    assert not story.step("extra-modprobe").ok


def test_an_extra_module_that_others_need_is_a_blocker(story: Story) -> None:
    (blocker,) = story.answer("needed", 3)["blockers"]
    assert blocker["where"] == "module x_tables" and "iptable_filter" in blocker["reason"]
    assert_same(story.seen("needed"), story.seen("start"))


def test_an_extra_module_that_a_rule_uses_rolls_back_and_says_so(story: Story) -> None:
    message = story.answer("used", 1)["message"]
    assert "module xt_tcpudp is in use" in message and "take it out of modules.extra" in message
    assert_same(story.seen("used"), story.seen("start"))


def test_without_block_the_modules_go_and_may_come_back(story: Story) -> None:
    story.answer("open", 0)
    now = story.seen("open")
    assert_unloaded(now)
    assert not any(BLOCK in row for row in now.files)
    assert story.answer("open-verify", 0)["outcome"] == "verified"
    assert story.step("open-modprobe").ok
    assert story.answer("open-drift", 4)["actions"][0]["where"] == "module nf_conntrack"


def test_without_persist_no_file_of_the_host_is_touched(story: Story) -> None:
    story.answer("once", 0)
    now = story.seen("once")
    assert_unloaded(now)
    assert now.without(OURS) == story.seen("start").without(OURS)
    assert not any("desired.json" in row for row in now.files)
    assert story.answer("once-verify", 0)["outcome"] == "verified"


def test_a_locked_kernel_blocks(story: Story) -> None:
    (blocker,) = story.answer("locked", 3)["blockers"]
    assert blocker["where"] == "kernel.modules_disabled = 1"
    assert_same(story.seen("locked"), story.seen("start"))


def test_on_a_locked_kernel_fallback_settles_for_stateless(story: Story) -> None:
    assert story.answer("settled", 0)["mode"] == "stateless"
    now = story.seen("settled")
    assert not now.stateful
    assert now.conntrack == story.seen("start").conntrack
    assert story.answer("settled-verify", 0)["outcome"] == "verified"
