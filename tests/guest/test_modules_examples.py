"""The examples that unload, in a guest with real modules: a hardened host with a firewall that drops both ways."""

from __future__ import annotations

import pytest

from .balancer import Story, assert_same, run_balancer
from .later import Later
from .uml import CHECKOUT

# What the file is about: policies of DROP, and a rule for each flow that it names.
RULES = """\
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT DROP [0:0]
-A INPUT -i lo -j ACCEPT
-A OUTPUT -o lo -j ACCEPT
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A OUTPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p tcp -m multiport --dports 22,9443 -m conntrack --ctstate NEW -j ACCEPT
{own}COMMIT
"""
OWN4 = """\
-A INPUT -d 192.0.2.10/32 -p tcp -m tcp --dport 443 -m conntrack --ctstate NEW -j ACCEPT
-A INPUT -d 192.0.2.10/32 -p udp -m udp --dport 443 -m conntrack --ctstate NEW -j ACCEPT
-A OUTPUT -d 10.20.0.0/16 -p tcp -m tcp --dport 8443 -m conntrack --ctstate NEW -j ACCEPT
-A OUTPUT -d 10.0.0.2/32 -p udp -m udp --dport 53 -m conntrack --ctstate NEW -j ACCEPT
-A OUTPUT -d 10.0.0.3/32 -p udp -m udp --dport 123 -m conntrack --ctstate NEW -j ACCEPT
"""
OWN6 = """\
-A INPUT -p ipv6-icmp -j ACCEPT
-A OUTPUT -p ipv6-icmp -j ACCEPT
-A INPUT -d 2001:db8::10/128 -p tcp -m tcp --dport 443 -m conntrack --ctstate NEW -j ACCEPT
"""
EXAMPLES = CHECKOUT / "examples"
FILES = {
    "/etc/sysconfig/iptables": RULES.format(own=OWN4),
    "/etc/sysconfig/ip6tables": RULES.format(own=OWN6),
    "/root/hardened.yaml": (EXAMPLES / "unload-hardened.yaml").read_text(encoding="utf-8"),
    "/root/fleet.yaml": (EXAMPLES / "unload-with-fallback.yaml").read_text(encoding="utf-8"),
}
REACHED = "192.0.2.10-443 2001:db8::10-443 10.9.0.1-9443"
SHUT = "192.0.2.10-8080"

SCRIPT = f"""
outside_up
ip address add 192.0.2.10/32 dev inside
ip address add 2001:db8::10/128 dev inside nodad
ip -n outside address add 10.20.0.11/32 dev outside
ip route add 10.20.0.11 via 10.9.0.2
ip -n outside route add 192.0.2.10 via 10.9.0.1
ip -n outside route add 2001:db8::10 via fd09::1
python3 /root/server.py 22 443 8080 9443 >/root/up &
out python3 /root/server.py 8443 >/root/up-outside &
until grep -q listening /root/up && grep -q listening /root/up-outside; do sleep 0.2; done
talk() {{
    step "$1-in" out python3 /root/client.py {REACHED} {SHUT}
    step "$1-on" python3 /root/client.py 10.20.0.11-8443
}}
load
talk start
step start-entries cat /proc/net/nf_conntrack
look start
step hardened cc apply -c /root/hardened.yaml
look hardened
talk hardened
step forbidden modprobe -v nf_conntrack
step verify cc verify
step revert cc revert
look reverted
step fleet cc apply -c /root/fleet.yaml
look fleet
talk fleet
"""

STORY = Later(lambda: run_balancer(SCRIPT, FILES))


@pytest.fixture
def story() -> Story:
    return STORY.result()


@pytest.mark.parametrize("when", ["start", "hardened", "fleet"])
def test_who_was_served_is_served_and_nobody_else(story: Story, when: str) -> None:
    *reached, shut = story.step(f"{when}-in").stdout.splitlines()
    assert reached == [f"{name} hello" for name in REACHED.split()]
    assert shut.startswith(SHUT) and "hello" not in shut
    assert story.step(f"{when}-on").stdout.splitlines() == ["10.20.0.11-8443 hello"]


def test_hardened(story: Story) -> None:
    """unload-hardened.yaml as it stands: probes answered, modules gone, policies kept."""
    assert story.step("start-entries").stdout.count("dport=443 ") == 2, "nothing is proved by what was never tracked"
    answer = story.answer("hardened", 0)
    assert (answer["outcome"], answer["mode"]) == ("done", "unload")
    now = story.seen("hardened")
    assert now.conntrack == () and not now.stateful
    assert [row for row in now.rules if row.endswith(" DROP")].count(":INPUT DROP") == 2
    assert not story.step("forbidden").ok
    assert story.answer("verify", 0)["outcome"] == "verified"


def test_hardened_and_back(story: Story) -> None:
    story.answer("revert", 0)
    assert_same(story.seen("reverted"), story.seen("start"))


def test_the_fleets_section_unloads_where_that_can_be_done(story: Story) -> None:
    assert story.answer("fleet", 0)["mode"] == "unload"
    assert story.seen("fleet").conntrack == ()
