"""Rule-sets of any size, as a host's administrator might have gathered them."""

from __future__ import annotations

import random

HEAD = (
    "*filter",
    ":INPUT DROP [0:0]",
    ":FORWARD DROP [0:0]",
    ":OUTPUT ACCEPT [0:0]",
    "-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT",
    "-A INPUT -i lo -j ACCEPT",
)
TAIL = ("-A INPUT -j REJECT --reject-with icmp-host-prohibited", "COMMIT")
STATE_MATCHES = ("-m state --state NEW ",) * 6 + ("-m conntrack --ctstate NEW ",) + ("",) * 3


def saved_rules(count: int, seed: int = 1) -> str:
    """iptables-save text of *count* rules: three of four TCP, six of ten with ``-m state --state NEW``."""
    chance = random.Random(seed)
    own = len([line for line in (*HEAD, *TAIL) if line.startswith("-A")])
    return "\n".join([*HEAD, *(_rule(chance) for _ in range(count - own)), *TAIL]) + "\n"


def whitelist(count: int) -> str:
    """iptables-save text of *count* rules, each with a condition that the difference does not model."""
    own = len([line for line in (*HEAD, *TAIL) if line.startswith("-A")])
    addresses = (f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}" for number in range(count - own))
    rules = (f"-A INPUT -m mac --mac-source {address} -m state --state NEW -j ACCEPT" for address in addresses)
    return "\n".join([*HEAD, *rules, *TAIL]) + "\n"


def _rule(chance: random.Random) -> str:
    source = f"-s {_network(chance)} " if chance.random() < 0.6 else ""
    protocol = chance.choice(("tcp", "tcp", "tcp", "udp"))
    state = chance.choice(STATE_MATCHES)
    port = chance.randrange(1, 65535)
    target = chance.choice(("ACCEPT", "ACCEPT", "ACCEPT", "DROP"))
    return f"-A INPUT {source}-p {protocol} {state}-m {protocol} --dport {port} -j {target}"


def _network(chance: random.Random) -> str:
    return f"{chance.randrange(1, 223)}.{chance.randrange(256)}.{chance.randrange(256)}.0/24"
