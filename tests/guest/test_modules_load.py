"""10,000 open connections through a real haproxy while conntrack is unloaded, and brought back: none is cut."""

from __future__ import annotations

import pytest

from tests.netns.many import ECHO, configuration

from .balancer import RULES4, RULES6, Story, assert_same, assert_unloaded, run_balancer, with_web
from .later import Later

EACH = 5000  # connections of one family
ALL = 2 * EACH
FILES = {
    "/etc/sysconfig/iptables": with_web(RULES4),
    "/etc/sysconfig/ip6tables": with_web(RULES6),
    "/root/echo.py": ECHO,
    "/root/ipv4.cfg": configuration("ipv4", "10.9.0.2", EACH),
    "/root/ipv6.cfg": configuration("ipv6", "fd09::2", EACH),
}
SCRIPT = f"""
load
outside_up
ulimit -n 16384
sysctl -qw net.netfilter.nf_conntrack_max=100000 net.core.somaxconn=4096
out sysctl -qw net.core.somaxconn=4096
out /usr/bin/python3 /root/echo.py >/root/up &
until grep -q up /root/up; do sleep 0.1; done
haproxy -D -f /root/ipv4.cfg; haproxy -D -f /root/ipv6.cfg
mkfifo /root/ask
out /usr/bin/python3 -m tests.netns.many {EACH} 10.9.0.1 fd09::1 </root/ask >/root/held 2>&1 &
held=$!
exec 3>/root/ask
said() {{ # wait for the line number $1 of the client
    until [ "$(wc -l </root/held)" -ge $1 ] || ! kill -0 $held; do sleep 0.2; done
}}
said 1
look start
step entries grep -c 'ESTABLISHED.*dport=80 ' /proc/net/nf_conntrack
echo >&3; said 2
config 'mode: unload'
step apply cc apply -c $DESIRED
look unloaded
echo >&3; said 3
step revert cc revert
look end
echo >&3; said 4
step held cat /root/held
"""

STORY = Later(lambda: run_balancer(SCRIPT, FILES, memory="1536M"), first=True)


@pytest.fixture
def story() -> Story:
    return STORY.result()


def test_all_of_them_are_tracked_before(story: Story) -> None:
    assert int(story.step("entries").stdout) >= ALL, story.step("entries")


def test_none_is_cut_by_unloading_and_by_revert(story: Story, measured: list[str]) -> None:
    story.answer("apply", 0)
    story.answer("revert", 0)
    assert_unloaded(story.seen("unloaded"))
    assert_same(story.seen("end"), story.seen("start"))
    assert story.step("held").stdout.splitlines() == [f"{ALL} open", *3 * [f"{ALL} talk"]], story.step("held")
    measured.append(f"{ALL} connections through haproxy, conntrack unloaded and brought back: all talk, none cut")
