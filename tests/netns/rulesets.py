"""Stateful rule-sets as people write them, and what must hold under each.

``{word}`` stands for what differs between the families, see ``WORDS``.  *works* and
*refused* name conversations of ``usage`` that must (not) work under the original rules:
they keep a test from passing on rules that let nothing, or everything, through.  *unanswered*
are UDP conversations that cannot work without conntrack, because no rule names their port.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple

WORDS = {
    "ipv4": {
        "icmp": "icmp", "echo": "icmp --icmp-type 8", "pong": "icmp --icmp-type 0", "reject": "icmp-host-prohibited",
        "port_unreachable": "icmp-port-unreachable", "client": "10.77.1.2", "clients": "10.77.1.0/24",
        "backend": "10.77.3.2", "discovery": "",
    },
    "ipv6": {
        "icmp": "ipv6-icmp", "echo": "ipv6-icmp --icmpv6-type 128", "pong": "ipv6-icmp --icmpv6-type 129",
        "reject": "icmp6-adm-prohibited", "port_unreachable": "icmp6-port-unreachable", "client": "fd77:1::2",
        "clients": "fd77:1::/64", "backend": "fd77:3::2",
        "discovery": "\n".join(
            f"-A {chain} -p ipv6-icmp -m icmp6 --icmpv6-type {number} -j ACCEPT"
            for chain in ("INPUT", "OUTPUT") for number in (133, 134, 135, 136, 143)
        ) + "\n",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One rule-set and what holds under it."""

    name: str
    rules: str
    works: Tuple[str, ...]
    refused: Tuple[str, ...]
    unanswered: Tuple[str, ...] = ()

    def text(self, family: str) -> str:
        """The rule-set of one family, ready for the restore program."""
        text = self.rules.strip() + "\n"
        for word, meaning in WORDS[family].items():
            text = text.replace("{" + word + "}\n" if word == "discovery" else "{" + word + "}", meaning)
        return f"*filter\n{text}COMMIT\n"


SSH_WORKS = ("tcp in 22 caller closes", "tcp in 22 called resets", "small link: download in 22")
OUT_WORKS = ("tcp out 8080 called closes", "tcp out 9 is refused", "small link: upload out 8080", "ping out")
DNS_WORKS = ("udp out 53", "udp on 53", "udp out 123")
OTHER_REFUSED = ("tcp in 23 caller closes", "udp in 9999")
# Every rule-set that lets the answers to anything in.
ASKED_FREELY = ("udp out 5000",)

CASES = (
    Case(
        "centos-default",
        """
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p {icmp} -j ACCEPT
-A INPUT -i lo -j ACCEPT
-A INPUT -p tcp -m state --state NEW -m tcp --dport 22 -j ACCEPT
-A INPUT -j REJECT --reject-with {reject}
-A FORWARD -j REJECT --reject-with {reject}
""",
        works=(*SSH_WORKS, *OUT_WORKS, *DNS_WORKS, "ping in", "tcp lo 8080 caller closes"),
        refused=(*OTHER_REFUSED, "tcp through 8080 called closes"),
        unanswered=ASKED_FREELY,
    ),
    Case(
        "default-drop-per-port",
        """
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT DROP [0:0]
-A INPUT -i lo -j ACCEPT
-A OUTPUT -o lo -j ACCEPT
{discovery}
-A INPUT -p {icmp} -m state --state ESTABLISHED,RELATED -j ACCEPT
-A OUTPUT -p {icmp} -m state --state NEW,ESTABLISHED,RELATED -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -m state --state NEW,ESTABLISHED -j ACCEPT
-A OUTPUT -p tcp -m tcp --sport 22 -m state --state ESTABLISHED -j ACCEPT
-A INPUT -p tcp --dport 80 -m state --state NEW,ESTABLISHED -j ACCEPT
-A OUTPUT -p tcp --sport 80 -m state --state ESTABLISHED -j ACCEPT
-A INPUT -p udp --dport 514 -m state --state NEW,ESTABLISHED -j ACCEPT
-A OUTPUT -p udp --sport 514 -m state --state ESTABLISHED -j ACCEPT
-A OUTPUT -p tcp --dport 8080 -m state --state NEW,ESTABLISHED -j ACCEPT
-A INPUT -p tcp --sport 8080 -m state --state ESTABLISHED -j ACCEPT
-A OUTPUT -p udp --dport 53 -m state --state NEW,ESTABLISHED -j ACCEPT
-A INPUT -p udp --sport 53 -m state --state ESTABLISHED -j ACCEPT
-A OUTPUT -p udp --dport 123 -m state --state NEW,ESTABLISHED -j ACCEPT
-A INPUT -p udp --sport 123 -m state --state ESTABLISHED -j ACCEPT
""",
        works=(*SSH_WORKS, *DNS_WORKS, "tcp out 8080 called closes", "udp in 514", "ping out", "small link: download in 80"),
        refused=(*OTHER_REFUSED, "ping in", "tcp out 80 caller closes", "tcp out 25 caller closes", "udp out 5000"),
    ),
    Case(
        "rh-firewall-1-input",
        """
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:RH-Firewall-1-INPUT - [0:0]
-A INPUT -j RH-Firewall-1-INPUT
-A FORWARD -j RH-Firewall-1-INPUT
-A RH-Firewall-1-INPUT -i lo -j ACCEPT
-A RH-Firewall-1-INPUT -p {icmp} -j ACCEPT
-A RH-Firewall-1-INPUT -p 50 -j ACCEPT
-A RH-Firewall-1-INPUT -p udp -m udp --dport 514 -j ACCEPT
-A RH-Firewall-1-INPUT -m state --state ESTABLISHED,RELATED -j ACCEPT
-A RH-Firewall-1-INPUT -m state --state NEW -m tcp -p tcp --dport 22 -j ACCEPT
-A RH-Firewall-1-INPUT -m state --state NEW -m tcp -p tcp --dport 8080 -j ACCEPT
-A RH-Firewall-1-INPUT -m state --state NEW -m udp -p udp --dport 53 -j ACCEPT
-A RH-Firewall-1-INPUT -j REJECT --reject-with {reject}
""",
        works=(*SSH_WORKS, *OUT_WORKS, *DNS_WORKS, "ping in", "udp in 514", "udp in 53", "tcp through 8080 called closes",
               "tcp back 8080 called resets", "udp through 53"),
        refused=(*OTHER_REFUSED, "tcp in 80 caller closes"),
        unanswered=ASKED_FREELY,
    ),
    Case(
        "accept-then-drop-new",
        """
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
{discovery}
-A INPUT -i lo -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
-A INPUT -p {echo} -j ACCEPT
-A INPUT -m state --state NEW -j DROP
-A FORWARD -i eth0 -m state --state NEW -j DROP
""",
        works=(*SSH_WORKS, *OUT_WORKS, *DNS_WORKS, "ping in", "tcp back 8080 called closes", "udp back 53"),
        refused=(*OTHER_REFUSED, "tcp in 80 caller closes", "tcp through 8080 called closes", "udp through 53"),
        unanswered=(*ASKED_FREELY, "udp back 53", "udp back 53 big"),
    ),
    Case(
        "ufw",
        """
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:before-input - [0:0]
:before-output - [0:0]
:logging-deny - [0:0]
:not-local - [0:0]
:user-input - [0:0]
:after-input - [0:0]
:track-output - [0:0]
-A INPUT -j before-input
-A INPUT -j after-input
-A OUTPUT -j before-output
-A OUTPUT -j track-output
-A before-input -i lo -j ACCEPT
-A before-output -o lo -j ACCEPT
-A before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A before-output -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A before-input -m conntrack --ctstate INVALID -j logging-deny
-A before-input -m conntrack --ctstate INVALID -j DROP
{discovery}
-A before-input -p {echo} -j ACCEPT
-A before-input -p udp --sport 67 --dport 68 -j ACCEPT
-A before-input -j not-local
-A not-local -m addrtype --dst-type LOCAL -j RETURN
-A not-local -m addrtype --dst-type MULTICAST -j RETURN
-A not-local -m limit --limit 3/min --limit-burst 10 -j logging-deny
-A not-local -j DROP
-A logging-deny -m conntrack --ctstate INVALID -m limit --limit 3/min --limit-burst 10 -j RETURN
-A logging-deny -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix "[UFW BLOCK] "
-A before-input -j user-input
-A user-input -p tcp --dport 22 -j ACCEPT
-A user-input -p tcp -m multiport --dports 80,443 -j ACCEPT
-A user-input -p udp --dport 443 -j ACCEPT
-A after-input -p udp --dport 137 -j DROP
-A track-output -p tcp -m conntrack --ctstate NEW -j ACCEPT
-A track-output -p udp -m conntrack --ctstate NEW -j ACCEPT
""",
        works=(*SSH_WORKS, *OUT_WORKS, *DNS_WORKS, "ping in", "tcp in 80 caller closes", "udp in 443",
               "tcp lo 8080 caller closes"),
        refused=(*OTHER_REFUSED, "tcp in 8080 caller closes", "tcp through 8080 called closes"),
        unanswered=ASKED_FREELY,
    ),
    Case(
        "router",
        """
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
{discovery}
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -i lo -j ACCEPT
-A INPUT -i eth1 -m conntrack --ctstate NEW -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -m conntrack --ctstate NEW -j ACCEPT
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i eth0 -o eth1 -p tcp -m tcp --dport 8080 -m conntrack --ctstate NEW -j ACCEPT
-A FORWARD -i eth0 -o eth1 -p udp -m udp --dport 53 -m conntrack --ctstate NEW -j ACCEPT
-A FORWARD -i eth1 -o eth0 -m conntrack --ctstate NEW -j ACCEPT
""",
        works=(*SSH_WORKS, *OUT_WORKS, "tcp through 8080 called closes", "tcp through 8080 called resets",
               "udp through 53", "udp through 53 big", "tcp back 8080 called closes", "udp back 53", "ping back",
               "small link: download through 8080", "small link: upload back 8080"),
        refused=(*OTHER_REFUSED, "ping through", "ping in", "tcp through 9 is refused"),
        unanswered=ASKED_FREELY,
    ),
    Case(
        "per-source",
        """
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
{discovery}
-A INPUT -i lo -j ACCEPT
-A INPUT -m state --state ESTABLISHED,RELATED -j ACCEPT
-A INPUT -s {client} -m state --state NEW -j ACCEPT
-A FORWARD -s {clients} -m state --state NEW,ESTABLISHED -j ACCEPT
-A FORWARD -d {clients} -m state --state ESTABLISHED,RELATED -j ACCEPT
-A INPUT -s {backend} -p tcp -m state --state NEW -m tcp --dport 80 -j ACCEPT
""",
        works=(*SSH_WORKS[:2], *OUT_WORKS, *DNS_WORKS, "tcp in 23 caller closes", "udp in 9999", "ping in", "udp in 53 big",
               "tcp through 8080 called closes", "udp through 53", "ping through"),
        refused=("tcp back 8080 called closes", "ping back", "udp back 53"),
        unanswered=("udp through 53", "udp through 53 big"),
    ),
    Case(
        "log-limit-recent",
        """
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
{discovery}
-A INPUT -i lo -j ACCEPT
-A INPUT -m state --state INVALID -j LOG --log-prefix "invalid: "
-A INPUT -m state --state INVALID -j DROP
-A INPUT -m state --state ESTABLISHED,RELATED -j ACCEPT
-A INPUT -p tcp -m state --state NEW -m limit --limit 5/min -j LOG --log-prefix "new connection: "
-A INPUT -p tcp -m tcp --dport 22 -m state --state NEW -m recent --set --name ssh --rsource
-A INPUT -p tcp -m tcp --dport 22 -m state --state NEW -m recent --update --seconds 60 --hitcount 18 --name ssh --rsource -j DROP
-A INPUT -p tcp -m tcp --dport 22 -m state --state NEW -j ACCEPT
-A INPUT -p tcp -m tcp --dport 80 -m state --state NEW -m hashlimit --hashlimit-upto 500/sec --hashlimit-burst 1000 --hashlimit-name web -j ACCEPT
-A INPUT -p udp -m udp --dport 53 -m state --state NEW -m limit --limit 500/sec --limit-burst 500 -j ACCEPT
-A INPUT -p {echo} -m state --state NEW -m limit --limit 500/sec --limit-burst 500 -j ACCEPT
""",
        works=(*SSH_WORKS, *OUT_WORKS, *DNS_WORKS, "tcp in 80 caller closes", "udp in 53", "ping in"),
        refused=(*OTHER_REFUSED, "udp in 514"),
        unanswered=ASKED_FREELY,
    ),
    Case(
        "negated-states",
        """
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
{discovery}
-A INPUT -i lo -j ACCEPT
-A INPUT -p tcp -m tcp ! --syn -m state --state NEW -j DROP
-A INPUT -m conntrack ! --ctstate NEW,INVALID -j ACCEPT
-A INPUT -p tcp -m conntrack ! --ctstate ESTABLISHED,RELATED -m tcp --dport 23 -j REJECT --reject-with tcp-reset
-A INPUT -p tcp -m tcp --dport 22:23 -m conntrack ! --ctstate INVALID -j ACCEPT
-A INPUT -p udp -m udp --dport 53 -m conntrack ! --ctstate ESTABLISHED -j ACCEPT
-A INPUT -p {echo} -j ACCEPT
-A OUTPUT -m conntrack ! --ctstate NEW,ESTABLISHED,RELATED,UNTRACKED -j DROP
""",
        works=(*SSH_WORKS, *OUT_WORKS, *DNS_WORKS, "udp in 53", "ping in"),
        refused=("tcp in 80 caller closes", "udp in 9999"),
        unanswered=ASKED_FREELY,
    ),
    Case(
        "output-restricted",
        """
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT DROP [0:0]
{discovery}
-A INPUT -i lo -j ACCEPT
-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p tcp -m state --state NEW -m tcp --dport 22 -j ACCEPT
-A INPUT -p udp -m state --state NEW -m udp --dport 514 -j ACCEPT
-A INPUT -p {echo} -m state --state NEW -j ACCEPT
-A INPUT -j REJECT --reject-with {port_unreachable}
-A OUTPUT -o lo -j ACCEPT
-A OUTPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
-A OUTPUT -p udp -m state --state NEW -m udp --dport 53 -j ACCEPT
-A OUTPUT -p tcp -m state --state NEW -m tcp --dport 8080 -j ACCEPT
-A OUTPUT -p {echo} -m state --state NEW -j ACCEPT
-A OUTPUT -p tcp -m state --state NEW -m tcp --dport 25 -j REJECT --reject-with tcp-reset
""",
        works=(*SSH_WORKS, "tcp out 8080 called closes", "ping out", "udp out 53", "udp out 53 big", "udp in 514", "ping in"),
        refused=("udp in 9999", "udp out 5000", "udp out 123", "tcp out 80 caller closes", "tcp out 25 caller closes"),
    ),
    Case(
        "multiport-and-chains",
        """
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:new - [0:0]
:trusted - [0:0]
{discovery}
-A INPUT -i lo -j ACCEPT
-A INPUT -p tcp -m multiport --dports 22,80,443,8080 -m state --state NEW,ESTABLISHED -j ACCEPT
-A INPUT -p udp -m multiport --sports 53,123 -m state --state ESTABLISHED -j ACCEPT
-A INPUT -p tcp -m multiport --sports 25,80,8080 -m state --state ESTABLISHED -j ACCEPT
-A INPUT -p {icmp} -m state --state RELATED -j ACCEPT
-A INPUT -p {pong} -m state --state ESTABLISHED -j ACCEPT
-A INPUT -m state --state NEW -j new
-A new -p tcp -m tcp --dport 8080 -j ACCEPT
-A new -s {clients} -j trusted
-A new -j RETURN
-A trusted -p udp -m multiport --dports 53,514 -j ACCEPT
-A trusted -p {echo} -j ACCEPT
-A FORWARD -m state --state NEW -j new
-A FORWARD -m state --state ESTABLISHED,RELATED -j ACCEPT
""",
        works=(*SSH_WORKS, "tcp out 8080 called closes", "tcp in 80 caller closes", "udp out 53", "udp out 123", "udp in 53",
               "udp in 514", "ping in", "ping out", "tcp through 8080 called closes", "udp through 53", "ping through"),
        refused=(*OTHER_REFUSED, "udp out 5000", "udp in 443", "tcp out 9 is refused"),
    ),
    Case(
        "by-protocol",
        """
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
{discovery}
-A INPUT -i lo -j ACCEPT
-A INPUT -p tcp -m state --state ESTABLISHED -j ACCEPT
-A INPUT -p udp -m state --state ESTABLISHED -j ACCEPT
-A INPUT -p {icmp} -m state --state ESTABLISHED,RELATED -j ACCEPT
-A INPUT -p tcp --syn -m state --state NEW -m tcp --dport 22 -j ACCEPT
-A INPUT -p tcp -m tcp --dport 80 --tcp-flags SYN,RST,ACK,FIN SYN -m state --state NEW -j ACCEPT
-A INPUT -p {icmp} -m state --state NEW -j ACCEPT
-A INPUT -p udp -m state --state NEW,ESTABLISHED -m udp --dport 53 -j ACCEPT
""",
        works=(*SSH_WORKS, *OUT_WORKS, *DNS_WORKS, "tcp in 80 caller closes", "udp in 53", "udp in 53 big", "ping in"),
        refused=(*OTHER_REFUSED, "udp in 514"),
        unanswered=ASKED_FREELY,
    ),
    Case(
        "drop-invalid-only",
        """
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -m conntrack --ctstate INVALID -j DROP
-A FORWARD -m conntrack --ctstate INVALID -j DROP
-A INPUT -p tcp -m tcp --dport 23 -m conntrack --ctstate NEW -j DROP
-A INPUT -p udp -m udp --dport 9999 -m conntrack --ctstate NEW -j DROP
-A OUTPUT -m conntrack --ctstate INVALID -j DROP
""",
        works=(*SSH_WORKS, *OUT_WORKS, *DNS_WORKS, "udp out 5000", "tcp through 8080 called closes", "udp through 53 big",
               "tcp in 80 caller closes", "udp in 53", "ping in"),
        refused=OTHER_REFUSED,
    ),
)
