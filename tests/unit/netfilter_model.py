"""A firewall in small, to judge the rewrite by: packets walk rules as the kernel walks them.

Written from the kernel's semantics (ip_tables.c, nf_conntrack_core.c) and sharing no code with
the package: it splits rules by :mod:`shlex`, knows few matches, and refuses every other one.
"""

from __future__ import annotations

import ipaddress
import shlex
from collections.abc import Callable
from dataclasses import dataclass

from netfilter_packets import ACK, FIN, FLAGS, HERE, HERE6, RST, SYN, Packet

ICMP_NAMES = {"echo-request": 8, "echo-reply": 0, "destination-unreachable": 3, "any": -1}
PROTOCOLS = {
    "tcp": "tcp",
    "6": "tcp",
    "udp": "udp",
    "17": "udp",
    "icmp": "icmp",
    "icmpv6": "icmp",
    "ipv6-icmp": "icmp",
    "gre": "gre",
    "47": "gre",
}


Match = Callable[[Packet, str], bool]


@dataclass(frozen=True)
class Rule:
    text: str
    matches: tuple[Match, ...]
    target: str
    goto: bool
    log: str


@dataclass(frozen=True)
class Outcome:
    """What became of a packet: verdict, what was logged on the way, and the rule that decided."""

    verdict: str
    logged: tuple[str, ...]
    rule: str


class Firewall:
    """A rule-set that packets can be sent through."""

    def __init__(self, text: str, family: str = "ipv4") -> None:
        self.text = text
        self.family = family
        self.policies: dict[tuple[str, str], str] = {}
        self.chains: dict[tuple[str, str], list[Rule]] = {}
        table = ""
        for line in text.splitlines():
            if line.startswith("*"):
                table = line[1:].split()[0]
            elif line.startswith(":"):
                chain, policy = line[1:].split()[:2]
                self.policies[table, chain] = policy
                self.chains.setdefault((table, chain), [])
            elif line.strip() and not line.startswith("#") and line != "COMMIT" and table != "nat":
                self._command(table, line)

    def _command(self, table: str, line: str) -> None:
        words = shlex.split(line)
        if words[0].startswith("["):
            words.pop(0)
        command, chain = words.pop(0), words.pop(0)
        rules = self.chains.setdefault((table, chain), [])
        if command == "-N":
            self.policies[table, chain] = "-"
        elif command == "-P":
            self.policies[table, chain] = words[0]
        elif command == "-A":
            rules.append(_rule(line, words))
        elif command == "-I":
            at = int(words.pop(0)) - 1 if words and words[0].isdigit() else 0
            rules.insert(at, _rule(line, words))
        else:
            raise AssertionError(f"the model does not know {line!r}")

    def send(self, hook: str, packet: Packet, state: str = "", table: str = "filter") -> Outcome:
        """Walk *packet* through *hook*, in the *state* that conntrack gave it."""
        logged: list[str] = []
        verdict, rule = self._walk(table, hook, packet, state, logged, 0)
        if verdict in ("", "RETURN"):
            verdict, rule = self.policies.get((table, hook), "ACCEPT"), "policy"
        return Outcome("DROP" if verdict == "REJECT" else verdict, tuple(logged), rule)

    def _walk(
        self, table: str, chain: str, packet: Packet, state: str, logged: list[str], depth: int
    ) -> tuple[str, str]:
        assert depth < 20, "a loop"
        for rule in self.chains.get((table, chain), ()):
            if not all(match(packet, state) for match in rule.matches):
                continue
            if rule.log:
                logged.append(rule.log)
            if rule.target in ("ACCEPT", "DROP", "REJECT", "RETURN"):
                return rule.target, rule.text
            if (table, rule.target) in self.chains:
                verdict, decided = self._walk(table, rule.target, packet, state, logged, depth + 1)
                if verdict not in ("", "RETURN"):
                    return verdict, decided
                if rule.goto:
                    return "RETURN", rule.text
        return "", ""

    def exempt(self, hook: str, packet: Packet) -> bool:
        """Whether the raw table takes *packet*, which *hook* of filter sees, from tracking.

        NOTRACK lets the packet go on through the raw table (xt_CT.c: XT_CONTINUE).
        """
        raw = "OUTPUT" if hook == "OUTPUT" else "PREROUTING"
        rules = self.chains.get(("raw", raw), ())
        return any(r.target in ("CT", "NOTRACK") and all(match(packet, "") for match in r.matches) for r in rules)


def _rule(text: str, words: list[str]) -> Rule:
    matches: list[Match] = []
    target, goto, log, module = "", False, "", ""
    negated = False
    while words:
        word = words.pop(0)
        if word == "!":
            negated = True
            continue
        if word == "-m":
            module = words.pop(0)
            matches += [lambda p, s: p.chance] if module == "limit" else []
        elif word in ("-j", "-g"):
            target, goto = words.pop(0), word == "-g"
        elif word == "--log-prefix":
            log = words.pop(0)
        elif word in ("--comment", "--reject-with", "--limit", "--limit-burst", "--log-level"):
            words.pop(0)
        elif word != "--notrack":
            matches.append(_match(word, words, negated))
        negated = False
    return Rule(text, tuple(matches), target, goto, log)


def _match(word: str, words: list[str], negated: bool) -> Match:
    if word == "--syn":
        return _flags(SYN | ACK | RST | FIN, SYN, negated)
    value = words.pop(0)
    if word == "--tcp-flags":
        return _flags(_bits(value), _bits(words.pop(0)), negated)
    if word == "-p":
        return (
            (lambda p, s: not negated) if value in ("all", "0") else _equal("protocol", PROTOCOLS[value], negated)
        )
    if word in ("--dport", "--sport"):
        return _port(word[2:], [value], negated)
    if word in ("--dports", "--sports"):
        return _port(word[2:-1], value.split(","), negated)
    if word in ("--icmp-type", "--icmpv6-type"):
        number = ICMP_NAMES[value] if value in ICMP_NAMES else int(value)
        return lambda p, s: p.protocol == "icmp" and (number in (-1, p.icmp_type)) != negated
    if word in ("--state", "--ctstate"):
        states = value.upper().split(",")
        return lambda p, s: (s in states) != negated
    if word == "--dst-type":
        assert value == "LOCAL"
        return lambda p, s: (p.destination in (HERE, HERE6)) != negated
    if word in ("-i", "-o"):
        return _equal("interface", value, negated)
    if word in ("-s", "-d"):
        network = ipaddress.ip_network(value)
        side = "source" if word == "-s" else "destination"
        return lambda p, s: (ipaddress.ip_address(getattr(p, side)) in network) != negated
    raise AssertionError(f"the model does not know {word!r}")


def _equal(name: str, value: str, negated: bool) -> Match:
    return lambda p, s: (getattr(p, name) == value) != negated


def _port(side: str, items: list[str], negated: bool) -> Match:
    ranges = [
        (int(a or 0), int(b or 65535) if colon else int(a)) for a, colon, b in (i.partition(":") for i in items)
    ]
    return lambda p, s: (
        p.protocol in ("tcp", "udp") and any(a <= getattr(p, side) <= b for a, b in ranges) != negated
    )


def _bits(names: str) -> int:
    return 63 if names == "ALL" else sum(FLAGS[n] for n in names.split(",") if n != "NONE")


def _flags(mask: int, wanted: int, negated: bool) -> Match:
    return lambda p, s: p.protocol == "tcp" and (p.flags & mask == wanted) != negated
