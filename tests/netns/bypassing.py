"""Stateful rule-sets of balancers (``rules/balancer-*``), and the flows that are to bypass conntrack.

The flows are those of ``FLOWS``: haproxy's frontends on TCP 80 and UDP 443 of the host, and
its servers on TCP 8080 (on any host, the loopback included).
"""

from __future__ import annotations

from cloudinit_conntrack.netfilter.notrack import Bypass, Flow

from .rulesets import OTHER_REFUSED, OUT_WORKS, SSH_WORKS, Case

FLOWS = Bypass(
    frontends=(Flow("tcp", (80, 80)), Flow("udp", (443, 443))),
    backends=(Flow("tcp", (8080, 8080)),),
)
# Conversations of the flows, as (protocol, caller, called, port), see ``usage``.
OF_FLOWS = (
    ("tcp", "client", "host", 80), ("udp", "client", "host", 443),
    ("tcp", "inside", "backend", 8080), ("tcp", "host", "client", 8080),
    ("tcp", "loopback", "loopback", 80), ("udp", "loopback", "loopback", 443), ("tcp", "loopback", "loopback", 8080),
)  # fmt: skip
FLOWS_WORK = (
    "tcp in 80 caller closes", "tcp in 80 called closes", "tcp in 80 caller resets", "tcp in 80 called resets",
    "udp in 443", "tcp on 8080 called closes", "tcp on 8080 called resets", "tcp out 8080 called closes",
    "tcp lo 80 caller closes", "tcp lo 8080 caller closes", "udp lo 443",
    "small link: download in 80", "small link: upload out 8080",
)  # fmt: skip
WORKS = tuple(dict.fromkeys((*SSH_WORKS, *FLOWS_WORK)))


def _case(name: str, works: tuple[str, ...] = (), refused: tuple[str, ...] = ()) -> Case:
    works = tuple(dict.fromkeys((*WORKS, *works)))
    return Case(f"balancer-{name}", works, (*OTHER_REFUSED, "tcp in 8080 caller closes", *refused))


CASES = (
    _case("centos", (*OUT_WORKS, "udp out 5000")),
    _case("default-drop", ("udp out 53",), ("ping in", "tcp out 80 caller closes")),
    _case("ufw-order", (*OUT_WORKS, "ping in")),
    _case(
        "router-too",
        (*OUT_WORKS, "tcp through 80 caller closes", "tcp through 8080 called closes", "tcp back 80 caller closes",
         "tcp back 8080 called closes", "small link: download through 8080", "small link: upload back 8080"),
        ("udp through 53", "ping in"),
    ),
)  # fmt: skip
# The port of the frontend is open to nobody: the bypass has to open it, and to say so.
CLOSED = Case("balancer-closed", SSH_WORKS, ("tcp in 80 caller closes", *OTHER_REFUSED))
