"""Stateful rule-sets as people write them (``rules/``), and what must hold under each.

In a file, ``{word}`` stands for what differs between the families, see ``WORDS``.  *works* and
*refused* name conversations of ``usage`` that must (not) work under the original rules:
they keep a test from passing on rules that let nothing, or everything, through.  *unanswered*
are UDP conversations that cannot work without conntrack, because no rule names their port.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

RULES = Path(__file__).with_name("rules")
WORDS = {
    "ipv4": {
        "icmp": "icmp", "echo": "icmp --icmp-type 8", "pong": "icmp --icmp-type 0", "reject": "icmp-host-prohibited",
        "port_unreachable": "icmp-port-unreachable", "client": "10.77.1.2", "clients": "10.77.1.0/24",
        "backend": "10.77.3.2", "elsewhere": "10.99.0.0/16",
    },
    "ipv6": {
        "icmp": "ipv6-icmp", "echo": "ipv6-icmp --icmpv6-type 128", "pong": "ipv6-icmp --icmpv6-type 129",
        "reject": "icmp6-adm-prohibited", "port_unreachable": "icmp6-port-unreachable", "client": "fd77:1::2",
        "clients": "fd77:1::/64", "backend": "fd77:3::2", "elsewhere": "fd99::/64",
    },
}  # fmt: skip
# Without these a host that drops by default loses its IPv6 neighbours; a line ``{discovery}`` brings them.
DISCOVERY = {
    "ipv4": "",
    "ipv6": "".join(
        f"-A {chain} -p ipv6-icmp -m icmp6 --icmpv6-type {number} -j ACCEPT\n"
        for chain in ("INPUT", "OUTPUT") for number in (133, 134, 135, 136, 143)
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """The rule-set in ``rules/NAME.rules``, and what holds under it."""

    name: str
    works: tuple[str, ...]
    refused: tuple[str, ...]
    unanswered: tuple[str, ...] = ()

    def text(self, family: str) -> str:
        """The rule-set of one family, ready for the restore program."""
        return rules(self.name, family)


def rules(name: str, family: str) -> str:
    """The text of ``rules/NAME.rules`` in the words of one family."""
    text = (RULES / f"{name}.rules").read_text(encoding="utf-8").replace("{discovery}\n", DISCOVERY[family])
    return text.format(**WORDS[family])


SSH_WORKS = ("tcp in 22 caller closes", "tcp in 22 called resets", "small link: download in 22")
OUT_WORKS = ("tcp out 8080 called closes", "tcp out 9 is refused", "small link: upload out 8080", "ping out")
DNS_WORKS = ("udp out 53", "udp on 53", "udp out 123")
OTHER_REFUSED = ("tcp in 23 caller closes", "udp in 9999")
# Every rule-set that lets the answers to anything in.
ASKED_FREELY = ("udp out 5000",)

CASES = (
    Case(
        "centos-default",
        works=(*SSH_WORKS, *OUT_WORKS, *DNS_WORKS, "ping in", "tcp lo 8080 caller closes"),
        refused=(*OTHER_REFUSED, "tcp through 8080 called closes"),
        unanswered=ASKED_FREELY,
    ),
    Case(
        "default-drop-per-port",
        works=(*SSH_WORKS, *DNS_WORKS, "tcp out 8080 called closes", "udp in 514", "ping out",
               "small link: download in 80"),
        refused=(*OTHER_REFUSED, "ping in", "tcp out 80 caller closes", "tcp out 25 caller closes", "udp out 5000"),
    ),
    Case(
        "rh-firewall-1-input",
        works=(*SSH_WORKS, *OUT_WORKS, *DNS_WORKS, "ping in", "udp in 514", "udp in 53",
               "tcp through 8080 called closes", "tcp back 8080 called resets", "udp through 53"),
        refused=(*OTHER_REFUSED, "tcp in 80 caller closes"),
        unanswered=ASKED_FREELY,
    ),
    Case(
        "accept-then-drop-new",
        works=(*SSH_WORKS, *OUT_WORKS, *DNS_WORKS, "ping in", "tcp back 8080 called closes", "udp back 53"),
        refused=(*OTHER_REFUSED, "tcp in 80 caller closes", "tcp through 8080 called closes", "udp through 53"),
        unanswered=(*ASKED_FREELY, "udp back 53", "udp back 53 big"),
    ),
    Case(
        "ufw",
        works=(*SSH_WORKS, *OUT_WORKS, *DNS_WORKS, "ping in", "tcp in 80 caller closes", "udp in 443",
               "tcp lo 8080 caller closes"),
        refused=(*OTHER_REFUSED, "tcp in 8080 caller closes", "tcp through 8080 called closes"),
        unanswered=ASKED_FREELY,
    ),
    Case(
        "router",
        works=(*SSH_WORKS, *OUT_WORKS, "tcp through 8080 called closes", "tcp through 8080 called resets",
               "udp through 53", "udp through 53 big", "tcp back 8080 called closes", "udp back 53", "ping back",
               "small link: download through 8080", "small link: upload back 8080"),
        refused=(*OTHER_REFUSED, "ping through", "ping in", "tcp through 9 is refused"),
        unanswered=ASKED_FREELY,
    ),
    Case(
        "per-source",
        works=(*SSH_WORKS[:2], *OUT_WORKS, *DNS_WORKS, "tcp in 23 caller closes", "udp in 9999", "ping in",
               "udp in 53 big", "tcp through 8080 called closes", "udp through 53", "ping through"),
        refused=("tcp back 8080 called closes", "ping back", "udp back 53"),
        unanswered=("udp through 53", "udp through 53 big"),
    ),
    Case(
        "log-limit-recent",
        works=(*SSH_WORKS, *OUT_WORKS, *DNS_WORKS, "tcp in 80 caller closes", "udp in 53", "ping in"),
        refused=(*OTHER_REFUSED, "udp in 514"),
        unanswered=ASKED_FREELY,
    ),
    Case(
        "negated-states",
        works=(*SSH_WORKS, *OUT_WORKS, *DNS_WORKS, "udp in 53", "ping in"),
        refused=("tcp in 80 caller closes", "udp in 9999"),
        unanswered=ASKED_FREELY,
    ),
    Case(
        "output-restricted",
        works=(*SSH_WORKS, "tcp out 8080 called closes", "ping out", "udp out 53", "udp out 53 big", "udp in 514",
               "ping in"),
        refused=("udp in 9999", "udp out 5000", "udp out 123", "tcp out 80 caller closes", "tcp out 25 caller closes"),
    ),
    Case(
        "multiport-and-chains",
        works=(*SSH_WORKS, "tcp out 8080 called closes", "tcp in 80 caller closes", "udp out 53", "udp out 123",
               "udp in 53", "udp in 514", "ping in", "ping out", "tcp through 8080 called closes", "udp through 53",
               "ping through"),
        refused=(*OTHER_REFUSED, "udp out 5000", "udp in 443", "tcp out 9 is refused"),
    ),
    Case(
        "by-protocol",
        works=(*SSH_WORKS, *OUT_WORKS, *DNS_WORKS, "tcp in 80 caller closes", "udp in 53", "udp in 53 big", "ping in"),
        refused=(*OTHER_REFUSED, "udp in 514"),
        unanswered=ASKED_FREELY,
    ),
    Case(
        "drop-invalid-only",
        works=(*SSH_WORKS, *OUT_WORKS, *DNS_WORKS, "udp out 5000", "tcp through 8080 called closes",
               "udp through 53 big", "tcp in 80 caller closes", "udp in 53", "ping in"),
        refused=OTHER_REFUSED,
    ),
    Case(
        "csf",
        works=(*SSH_WORKS, "tcp in 80 caller closes", "tcp out 8080 called closes", "udp in 53", "udp out 53",
               "udp out 123", "ping in", "small link: download in 80"),
        refused=(*OTHER_REFUSED, "tcp out 80 caller closes", "udp out 5000", "tcp through 8080 called closes"),
    ),
    Case(
        "fwbuilder",
        works=(*SSH_WORKS, *OUT_WORKS, *DNS_WORKS, "ping in", "tcp back 8080 called closes", "udp back 53",
               "small link: upload back 8080"),
        refused=(*OTHER_REFUSED, "tcp in 80 caller closes", "tcp through 8080 called closes"),
        unanswered=(*ASKED_FREELY, "udp back 53", "udp back 53 big"),
    ),
    # conntrack had put fragments together before the rules of mangle saw them, in IPv4 too
    Case(
        "mangle-drops",
        works=(*SSH_WORKS, *OUT_WORKS, *DNS_WORKS, "tcp in 80 caller closes", "ping in"),
        refused=(*OTHER_REFUSED, "tcp through 8080 called closes"),
        unanswered=ASKED_FREELY,
    ),
    Case(
        "goto-verdict",
        works=(*SSH_WORKS, "tcp out 8080 called closes", "udp out 53", "ping in", "tcp lo 80 caller closes"),
        refused=(*OTHER_REFUSED, "tcp in 80 caller closes", "udp out 123", "tcp out 80 caller closes", "ping out"),
    ),
    Case(
        "return-from-chain",
        works=(*SSH_WORKS, *OUT_WORKS, *DNS_WORKS, "tcp in 80 caller closes", "tcp back 8080 called closes", "ping in",
               "udp in 53"),
        refused=("tcp in 23 caller closes", "udp in 9999", "tcp through 8080 called closes"),
        unanswered=(*ASKED_FREELY, "udp back 53", "udp back 53 big"),
    ),
    Case(
        "shared-chain",
        works=(*SSH_WORKS, "tcp out 8080 called closes", "tcp through 8080 called closes", "udp in 53", "udp out 53",
               "udp through 53", "udp back 53", "ping in", "ping out", "ping through"),
        refused=(*OTHER_REFUSED, "tcp out 25 caller closes", "udp out 5000", "udp in 514"),
    ),
)
