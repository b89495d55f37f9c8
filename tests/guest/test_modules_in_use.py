"""A module that somebody else holds: told by name before anything is done, or rolled back whole."""

from __future__ import annotations

import pytest

from .balancer import Story, assert_same, assert_unloaded, run_balancer
from .later import Later

RULE = "INPUT -p tcp -m state --state NEW -m tcp --dport 80 -j ACCEPT"

ELSEWHERE = f"""
load
ip netns add blue
ip netns exec blue iptables -A INPUT -i lo -j ACCEPT
ip netns exec blue iptables -A {RULE}
unshare --net sh -c 'ip6tables -t raw -A OUTPUT -m conntrack --ctstate NEW -j ACCEPT; exec sleep 1000' &
until grep -q sleep /proc/$!/comm && [ $(grep -c ^xt_conntrack /proc/modules) = 1 ]; do sleep 0.1; done
echo $!
look start
config 'mode: unload'
step blocked cc apply -c $DESIRED
look blocked
config 'mode: unload' 'modules: {{force: true}}'
step forced cc apply -c $DESIRED
look forced
config 'mode: unload' 'fallback: stateless'
step settled cc apply -c $DESIRED
look settled
step again cc apply -c $DESIRED
ip netns del blue
kill $!
wait
step free cc apply -c $DESIRED
look free
step revert cc revert
look end
"""


ELSEWHERE_STORY = Later(lambda: run_balancer(ELSEWHERE))


@pytest.fixture
def elsewhere() -> Story:
    """A named namespace with a rule, and one that only a process has."""
    return ELSEWHERE_STORY.result()


def test_a_rule_in_another_namespace_blocks_and_is_named(elsewhere: Story) -> None:
    blockers = {b["where"]: b for b in elsewhere.answer("blocked", 3)["blockers"]}
    pid = elsewhere.result.stdout.split()[-1]
    named = blockers.pop(
        "network namespace of /run/netns/blue: iptables-legacy ipv4, table filter, chain INPUT, rule 2"
    )
    unnamed = blockers.pop(
        f"network namespace of pid {pid} (sleep): iptables-legacy ipv6, table raw, chain OUTPUT, rule 1"
    )
    assert not blockers
    assert named["reason"] == f"-A {RULE} keeps xt_conntrack in use"
    assert "--ctstate NEW" in unnamed["reason"]
    assert_same(elsewhere.seen("blocked"), elsewhere.seen("start"))


def test_force_says_why_it_does_not_help(elsewhere: Story) -> None:
    (found,) = (f for f in elsewhere.answer("forced", 3)["findings"] if f["id"] == "force")
    assert found["where"] == "conntrack.modules.force"
    assert "rmmod -f" in found["reason"]
    assert_same(elsewhere.seen("forced"), elsewhere.seen("start"))


def test_fallback_settles_for_a_host_without_state_and_says_so(elsewhere: Story) -> None:
    answer = elsewhere.answer("settled", 0)
    assert answer["mode"] == "stateless"
    said = [f["reason"] for f in answer["findings"] if "settled for stateless, as 'fallback' says" in f["reason"]]
    assert len(said) == 2
    now = elsewhere.seen("settled")
    assert not now.stateful
    assert now.conntrack == ("nf_conntrack", "xt_conntrack")  # for the others
    assert not any("00-cloudinit-conntrack" in row for row in now.files)
    assert elsewhere.answer("again", 0)["outcome"] == "nothing-to-do"


def test_the_next_apply_unloads_once_the_holder_is_gone(elsewhere: Story) -> None:
    assert elsewhere.answer("free", 0)["mode"] == "unload"
    assert_unloaded(elsewhere.seen("free"))
    elsewhere.answer("revert", 0)
    start, end = elsewhere.seen("start"), elsewhere.seen("end")
    assert (end.rules, end.files, end.conntrack) == (start.rules, start.files, start.conntrack)


# A plan that was right when it was made, and a host that changes before its modules are gone.
MEANWHILE = """
load
ip netns add blue
look start
config 'mode: unload'
before_rmmod xt_conntrack 'ip netns exec blue iptables -A INPUT -m state --state NEW -j DROP'
step rule cc apply -c $DESIRED
look rule
ip netns exec blue iptables -F
before_rmmod nf_conntrack 'modprobe nf_conntrack_ftp; ip link add bystander type dummy'
step module cc apply -c $DESIRED
look module
step bystander ip link show bystander
ip link del bystander
config 'mode: unload' 'modules: {force: true}'
before_rmmod xt_conntrack 'ip netns exec blue iptables -A INPUT -m state --state NEW -j DROP'
step forced cc apply -c $DESIRED
look forced
ip netns exec blue iptables -F
config 'mode: unload' 'on_failure: keep'
step keep cc apply -c $DESIRED
look keep
ip netns exec blue iptables -F
step keep-revert cc revert
look keep-reverted
config 'mode: unload'
before_rmmod nf_conntrack 'kill -9 $PPID; exit'
step killed cc apply -c $DESIRED
look killed
rm /root/bin/rmmod
step recovered cc apply
step recovered-with cc apply -c $DESIRED
look recovered
step revert cc revert
look end
"""


MEANWHILE_STORY = Later(lambda: run_balancer(MEANWHILE))


@pytest.fixture
def meanwhile() -> Story:
    return MEANWHILE_STORY.result()


@pytest.mark.parametrize(
    ("name", "holder"),
    [
        ("rule", "network namespace of /run/netns/blue: iptables-legacy ipv4, table filter, chain INPUT, rule 1"),
        ("module", "module nf_conntrack_ftp"),
        ("forced", "network namespace of /run/netns/blue: iptables-legacy ipv4, table filter, chain INPUT, rule 1"),
    ],
)
def test_a_failing_unload_rolls_back_whole_and_names_the_holder(meanwhile: Story, name: str, holder: str) -> None:
    answer = meanwhile.answer(name, 1)
    assert answer["outcome"] == "failed"
    assert holder in answer["message"] and "is in use" in answer["message"]
    start, now = meanwhile.seen("start"), meanwhile.seen(name)
    assert (now.rules, now.files, now.settings) == (start.rules, start.files, start.settings)
    assert set(now.counts) - {"dummy"} == set(start.counts)


def test_rolling_back_takes_no_module_away_that_is_not_ours(meanwhile: Story) -> None:
    """A driver's use count is 0 while its interfaces are up, and udev loads drivers at any time."""
    assert meanwhile.step("bystander").ok, meanwhile.step("bystander")


def test_force_is_tried_and_refused_by_this_kernel(meanwhile: Story) -> None:
    message = meanwhile.answer("forced", 1)["message"]
    assert "this kernel refuses rmmod -f too, without CONFIG_MODULE_FORCE_UNLOAD" in message
    assert "rmmod -f" not in meanwhile.answer("rule", 1)["message"]


def test_on_failure_keep_leaves_what_was_done_and_revert_undoes_it(meanwhile: Story) -> None:
    meanwhile.answer("keep", 1)
    now = meanwhile.seen("keep")
    assert not now.stateful
    assert now.conntrack == ("nf_conntrack", "xt_conntrack")
    meanwhile.answer("keep-revert", 0)
    start, back = meanwhile.seen("start"), meanwhile.seen("keep-reverted")
    assert (back.rules, back.files) == (start.rules, start.files)


def test_an_apply_that_is_killed_half_way_is_undone_by_the_next(meanwhile: Story) -> None:
    assert meanwhile.step("killed").status == 137
    half = meanwhile.seen("killed")
    assert half.conntrack == ("nf_conntrack",) and not half.stateful
    undone = meanwhile.answer("recovered", 0)  # no section was kept, so there is nothing more to do
    assert undone["outcome"] == "reverted" and "cut off and was rolled back" in undone["message"]
    assert meanwhile.answer("recovered-with", 0)["outcome"] == "done"
    assert_unloaded(meanwhile.seen("recovered"))
    meanwhile.answer("revert", 0)
    start, end = meanwhile.seen("start"), meanwhile.seen("end")
    assert (end.rules, end.files, end.settings) == (start.rules, start.files, start.settings)
    assert set(end.counts) - {"dummy"} == set(start.counts)
