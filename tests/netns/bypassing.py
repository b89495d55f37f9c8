"""Stateful rule-sets of balancers, for the bypass: what is tracked under each, and what is not then.

The flows are those of ``FLOWS``: haproxy's frontends on TCP 80 and UDP 443 of the host, and
its servers on TCP 8080 (on any host, the loopback included).
"""

from __future__ import annotations

from typing import Tuple

from cloudinit_conntrack.netfilter.notrack import Bypass, Flow

from .rulesets import OTHER_REFUSED, OUT_WORKS, SSH_WORKS, Case

FLOWS = Bypass(
    frontends=(Flow("tcp", (80, 80)), Flow("udp", (443, 443))),
    backends=(Flow("tcp", (8080, 8080)),),
)
# Conversations of the flows, as (protocol, caller, called, port), see ``usage``.
OF_FLOWS = (
    ("tcp", "client", "host", 80), ("udp", "client", "host", 443), ("tcp", "inside", "backend", 8080),
    ("tcp", "host", "client", 8080), ("tcp", "loopback", "loopback", 80), ("udp", "loopback", "loopback", 443),
    ("tcp", "loopback", "loopback", 8080),
)  # fmt: skip
FLOWS_WORK = ("tcp in 80 caller closes", "tcp in 80 called closes", "tcp in 80 caller resets", "tcp in 80 called resets",
              "udp in 443", "tcp on 8080 called closes", "tcp on 8080 called resets", "tcp out 8080 called closes",
              "tcp lo 80 caller closes", "tcp lo 8080 caller closes", "udp lo 443",
              "small link: download in 80", "small link: upload out 8080")  # fmt: skip
WORKS = tuple(dict.fromkeys((*SSH_WORKS, *FLOWS_WORK)))


def _case(name: str, rules: str, works: Tuple[str, ...] = (), refused: Tuple[str, ...] = ()) -> Case:
    return Case(name, rules, tuple(dict.fromkeys((*WORKS, *works))), (*OTHER_REFUSED, *refused))


CASES = (
    _case(
        "centos",
        """
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p {icmp} -j ACCEPT
-A INPUT -i lo -j ACCEPT
-A INPUT -p tcp -m state --state NEW -m tcp --dport 22 -j ACCEPT
-A INPUT -p tcp -m state --state NEW -m tcp --dport 80 -j ACCEPT
-A INPUT -p udp -m state --state NEW -m udp --dport 443 -j ACCEPT
-A INPUT -j REJECT --reject-with {reject}
-A FORWARD -j REJECT --reject-with {reject}
""",
        (*OUT_WORKS, "udp out 5000"),
        ("tcp in 8080 caller closes",),
    ),
    _case(
        "default-drop",
        """
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT DROP [0:0]
{discovery}
-A INPUT -m state --state INVALID -j DROP
-A OUTPUT -m state --state INVALID -j DROP
-A INPUT -i lo -m state --state NEW,ESTABLISHED -j ACCEPT
-A OUTPUT -o lo -m state --state NEW,ESTABLISHED -j ACCEPT
-A INPUT -p {icmp} -m state --state ESTABLISHED,RELATED -j ACCEPT
-A OUTPUT -p {icmp} -m state --state NEW,ESTABLISHED,RELATED -j ACCEPT
-A INPUT -p tcp -m multiport --dports 22,80 -m state --state NEW,ESTABLISHED -j ACCEPT
-A OUTPUT -p tcp -m multiport --sports 22,80 -m state --state ESTABLISHED -j ACCEPT
-A INPUT -p udp --dport 443 -m state --state NEW,ESTABLISHED -j ACCEPT
-A OUTPUT -p udp --sport 443 -m state --state ESTABLISHED -j ACCEPT
-A OUTPUT -p tcp --dport 8080 -m state --state NEW,ESTABLISHED -j ACCEPT
-A INPUT -p tcp --sport 8080 -m state --state ESTABLISHED -j ACCEPT
-A OUTPUT -p udp --dport 53 -m state --state NEW,ESTABLISHED -j ACCEPT
-A INPUT -p udp --sport 53 -m state --state ESTABLISHED -j ACCEPT
""",
        ("udp out 53",),
        ("ping in", "tcp out 80 caller closes", "tcp in 8080 caller closes"),
    ),
    _case(
        "ufw-order",
        """
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:before-input - [0:0]
:user-input - [0:0]
-A INPUT -j before-input
-A INPUT -j user-input
-A before-input -i lo -j ACCEPT
-A before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A before-input -m conntrack --ctstate INVALID -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix "[BLOCK] "
-A before-input -m conntrack --ctstate INVALID -j DROP
{discovery}
-A before-input -p {icmp} -j ACCEPT
-A user-input -p tcp --dport 22 -j ACCEPT
-A user-input -p tcp --dport 80 -j ACCEPT
-A user-input -p udp --dport 443 -j ACCEPT
-A OUTPUT -m conntrack --ctstate INVALID -j DROP
""",
        (*OUT_WORKS, "ping in"),
        ("tcp in 8080 caller closes",),
    ),
    _case(
        "router-too",
        """
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
{discovery}
-A INPUT -i lo -j ACCEPT
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p tcp -m conntrack --ctstate NEW -m multiport --dports 22,80 -j ACCEPT
-A INPUT -p udp -m conntrack --ctstate NEW -m udp --dport 443 -j ACCEPT
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -m conntrack --ctstate INVALID -j DROP
-A FORWARD -i eth0 -o eth1 -p tcp -m conntrack --ctstate NEW -m multiport --dports 80,8080 -j ACCEPT
-A FORWARD -i eth1 -o eth0 -m conntrack --ctstate NEW -j ACCEPT
""",
        (*OUT_WORKS, "tcp through 80 caller closes", "tcp through 8080 called closes", "tcp back 80 caller closes",
         "tcp back 8080 called closes", "small link: download through 8080", "small link: upload back 8080"),
        ("tcp in 8080 caller closes", "udp through 53", "ping in"),
    ),
)  # fmt: skip
# The port of the frontend is open to nobody: the bypass has to open it, and to say so.
CLOSED = Case("closed-frontend", CASES[0].rules.replace("--dport 80 ", "--dport 81 "), SSH_WORKS,
              ("tcp in 80 caller closes", *OTHER_REFUSED))
NAT = """\
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A POSTROUTING -s {elsewhere} -j MASQUERADE
COMMIT
"""
ELSEWHERE = {"ipv4": "10.99.0.0/16", "ipv6": "fd99::/64"}
