"""What a rule-set accepts, as a z3 formula: the judge of the computed difference.

Written from the kernel's semantics (``ipt_do_table``: first match, jumps, goto, RETURN, policies;
``nf_conntrack_in``: what a template exempts is UNTRACKED) and sharing no code with the package: it
splits rules by :mod:`shlex` and knows numbers only.  What it does not know is a boolean by its text.
"""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import z3  # type: ignore[import-untyped]

STATES = ("NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED")
FLAGS = {"FIN": 1, "SYN": 2, "RST": 4, "PSH": 8, "ACK": 16, "URG": 32}
NUMBERS = {"tcp": 6, "udp": 17, "icmp": 1, "icmpv6": 58, "ipv6-icmp": 58, "gre": 47, "esp": 50}
SERVICES = {"ssh": 22, "domain": 53, "http": 80, "https": 443, "ntp": 123}
TYPES = {"echo-request": 8, "echo-reply": 0}
# What a hook knows: ip_tables compares the name of an interface that there is not with "".
INTERFACES = ("", "lo", "eth0", "eth1", "eth9", "ppp0", "zz9")
PATHS = {
    "INPUT": ("raw PREROUTING", "mangle PREROUTING", "mangle INPUT", "filter INPUT", "security INPUT"),
    "FORWARD": (
        "raw PREROUTING",
        "mangle PREROUTING",
        "mangle FORWARD",
        "filter FORWARD",
        "security FORWARD",
        "mangle POSTROUTING",
    ),
    "OUTPUT": ("raw OUTPUT", "mangle OUTPUT", "filter OUTPUT", "security OUTPUT", "mangle POSTROUTING"),
}
TAKING = ("ACCEPT", "NFQUEUE", "QUEUE")
REFUSING = ("DROP", "REJECT")
OF_TARGETS = (
    "--reject-with",
    "--log-prefix",
    "--log-level",
    "--notrack",
    "--set-mark",
    "--set-xmark",
    "--comment",
    "--nflog-prefix",
    "--nflog-group",
    "--queue-num",
    "--rsource",
    "--rdest",
    "--log-uid",
)
PLAIN = ("tcp", "udp", "icmp", "icmp6", "icmpv6", "multiport", "comment", "state", "conntrack")


def bits(name: str, size: int) -> Any:
    return z3.BitVec(name, size)


@dataclass(frozen=True)
class Packet:
    """A packet that nothing is known of.  *state* is what conntrack calls it, were it asked."""

    family: str
    protocol: Any = field(default_factory=lambda: bits("protocol", 8))
    flags: Any = field(default_factory=lambda: bits("flags", 6))
    icmp: Any = field(default_factory=lambda: bits("icmp", 8))
    sport: Any = field(default_factory=lambda: bits("sport", 16))
    dport: Any = field(default_factory=lambda: bits("dport", 16))
    incoming: Any = field(default_factory=lambda: bits("in", 3))
    outgoing: Any = field(default_factory=lambda: bits("out", 3))
    state: Any = field(default_factory=lambda: bits("state", 3))

    @property
    def source(self) -> Any:
        return bits("source", 32 if self.family == "ipv4" else 128)

    @property
    def destination(self) -> Any:
        return bits("destination", 32 if self.family == "ipv4" else 128)

    def at(self, hook: str) -> Any:
        """The packets that there can be at *hook*."""
        has = {"INPUT": (True, False), "FORWARD": (True, True), "OUTPUT": (False, True)}[hook]
        both = zip((self.incoming, self.outgoing), has)
        names = [z3.And(x >= 1, z3.ULT(x, len(INTERFACES))) if there else x == 0 for x, there in both]
        return z3.And(*names, z3.ULT(self.state, len(STATES)))


def unknown(text: str) -> Any:
    """A condition that only its text is known of."""
    return z3.Bool(f"? {text}")


def ports(port: Any, text: str) -> Any:
    """``80,1000:2000`` (or with ``-``)."""
    spans = [re.split("[:-]", item) for item in text.replace(" ", "").split(",")]
    numbers = [(_number(first[0] or "0"), _number(first[-1] or "65535")) for first in spans]
    return z3.Or(*(z3.And(z3.UGE(port, first), z3.ULE(port, last)) for first, last in numbers))


def _number(text: str) -> int:
    return int(text) if text.isdigit() else SERVICES[text]


def networks(address: Any, text: str) -> Any:
    """``10.0.0.0/8,192.0.2.1`` or a span ``10.0.0.1-10.0.0.9``."""
    found = []
    for item in text.replace(" ", "").split(","):
        first, _, last = item.partition("-")
        if not last:
            network = ipaddress.ip_network(item, strict=False)
            first, last = str(network[0]), str(network[-1])
        low, high = int(ipaddress.ip_address(first)), int(ipaddress.ip_address(last))
        found.append(z3.And(z3.UGE(address, low), z3.ULE(address, high)))
    return z3.Or(*found)


def interface(which: Any, pattern: str) -> Any:
    names = [
        at
        for at, name in enumerate(INTERFACES)
        if (name.startswith(pattern[:-1]) if pattern.endswith("+") else name == pattern)
    ]
    return z3.Or(*(which == at for at in names))


def flags(packet: Packet, mask: str, wanted: str) -> Any:
    def value(names: str) -> int:
        return 63 if names == "ALL" else sum(FLAGS[n] for n in set(names.split(",")) if n != "NONE")

    return z3.And(packet.protocol == 6, packet.flags & value(mask) == value(wanted))


def states(packet: Packet, text: str) -> Any:
    return z3.Or(*(packet.state == STATES.index(name) for name in text.split(",")))


@dataclass(frozen=True)
class Judged:
    """One rule: what it matches, and where it leads."""

    condition: Any
    target: str
    goto: bool
    notrack: bool


class Firewall:
    """A rule-set, each rule of it a formula over *packet*."""

    def __init__(self, text: str, packet: Packet) -> None:
        self.packet = packet
        self.policies: dict[str, str] = {}
        self.rules: dict[str, list[Judged]] = {}
        table = ""
        for full in text.splitlines():
            line = re.sub(r"^\[\d+:\d+\] ", "", full).replace("--append", "-A").replace("--match ", "-m ")
            if line.startswith("*"):
                table = line[1:].strip()
            elif line.startswith(":"):
                name, policy = line[1:].split()[:2]
                self.policies[f"{table} {name}"] = policy
            elif line.startswith(("-P", "-N")):
                self.policies[f"{table} {line.split()[1]}"] = [*line.split(), "-"][2]
            elif line.startswith(("-A", "-I")):
                words = shlex.split(line)
                chain = self.rules.setdefault(f"{table} {words[1]}", [])
                chain.insert(0 if words[0] == "-I" else len(chain), self._rule(words[2:]))

    def accepts(self, hook: str) -> Any:
        """The formula of what comes through every table at *hook*."""
        found, exempt = z3.BoolVal(True), z3.BoolVal(False)
        for place in PATHS[hook]:
            taken, through, untracked = self._chain(place, z3.BoolVal(True))
            if self.policies.get(place, "ACCEPT") == "ACCEPT":
                taken = z3.Or(taken, through)
            state = self.packet.state
            seen = z3.If(exempt, z3.BitVecVal(STATES.index("UNTRACKED"), 3), state)
            found = z3.And(found, z3.substitute(taken, (state, seen)))
            exempt = z3.Or(exempt, untracked)
        return found

    def _chain(self, place: str, here: Any) -> tuple[Any, Any, Any]:
        """(accepted, come back to the caller, exempt from tracking) of what enters *place*."""
        table = place.split()[0]
        taken, returned, exempt = z3.BoolVal(False), z3.BoolVal(False), z3.BoolVal(False)
        for rule in self.rules.get(place, ()):
            hit = z3.And(here, rule.condition)
            past = z3.And(here, z3.Not(rule.condition))
            if rule.target in (*TAKING, *REFUSING, "RETURN"):
                taken = z3.Or(taken, hit) if rule.target in TAKING else taken
                returned = z3.Or(returned, hit) if rule.target == "RETURN" else returned
                here = past
            elif f"{table} {rule.target}" in self.policies:
                accepted, back, untracked = self._chain(f"{table} {rule.target}", hit)
                taken, exempt = z3.Or(taken, accepted), z3.Or(exempt, untracked)
                returned = z3.Or(returned, back) if rule.goto else returned
                here = past if rule.goto else z3.Or(past, back)
            elif rule.notrack:
                exempt = z3.Or(exempt, hit)
        return taken, z3.Or(here, returned), exempt

    def _rule(self, words: list[str]) -> Judged:
        known, foreign, target, goto = [], [], "", False
        text = list(words)
        while text:
            negated = text[0] == "!"
            name = text.pop(0) if not negated else text.pop(1)
            text = text[1:] if negated else text
            name = {"--source": "-s", "--destination": "-d", "--protocol": "-p", "--jump": "-j"}.get(name, name)
            args = [text.pop(0)] if name in ("--comment", "--log-prefix") else []
            while text and text[0] != "!" and not re.match("--?[a-z]", text[0]):
                args.append(text.pop(0))
            if name in ("-j", "-g"):
                target, goto = args[0], name == "-g"
            elif name == "-m":
                foreign += [] if args[0] in PLAIN else [f"-m {args[0]}"]
            elif name not in OF_TARGETS:
                found = self._match(name, args)
                if found is None or (negated and "icmp" in name):  # the package models no "all but a type"
                    foreign.append(("! " if negated else "") + " ".join((name, *args)))
                else:
                    known.append(z3.Not(found) if negated else found)
                    # the tcp match lets nothing pass that is no TCP, and so on
        if foreign:
            known.append(unknown(" ".join(sorted(foreign, key=lambda text: (text[:3] != "-m ", text)))))
        return Judged(z3.And(*known), target, goto, target == "NOTRACK" or "--notrack" in words)

    def _match(self, name: str, args: list[str]) -> Any:
        packet, value = self.packet, args[0] if args else ""
        if name == "-p":
            return packet.protocol == (int(value) if value.isdigit() else NUMBERS[value])
        if name == "--syn":
            return flags(packet, "FIN,SYN,RST,ACK", "SYN")
        if name == "--tcp-flags":
            return flags(packet, args[0], args[1])
        if name in ("--icmp-type", "--icmpv6-type"):
            icmp = packet.protocol == (1 if packet.family == "ipv4" else 58)
            number = TYPES.get(value, value) if packet.family == "ipv4" else value
            if value == "any":
                return icmp
            return z3.And(icmp, packet.icmp == int(number)) if str(number).isdigit() else None
        if name in ("--state", "--ctstate"):
            return states(packet, value) if set(value.split(",")) <= set(STATES) else None
        if name == "--ports":
            return z3.Or(ports(packet.sport, value), ports(packet.dport, value))
        if name in ("--dport", "--dports", "--sport", "--sports"):
            return ports(packet.dport if name.startswith("--d") else packet.sport, value)
        if name in ("-s", "-d"):
            return networks(packet.source if name == "-s" else packet.destination, value)
        if name in ("-i", "-o"):
            return interface(packet.incoming if name == "-i" else packet.outgoing, value)
        return None


# --- the states that a packet can be in ------------------------------------------------------


def kind(packet: Packet) -> dict[str, Any]:
    """Kinds of packets, by what conntrack would think of them (nf_conntrack_proto_*.c)."""
    icmp = packet.protocol == (1 if packet.family == "ipv4" else 58)
    tcp = packet.protocol == 6

    def types(*numbers: int) -> Any:
        return z3.And(icmp, z3.Or(*(packet.icmp == n for n in numbers)))

    v4 = packet.family == "ipv4"
    found = {
        "syn": flags(packet, "SYN,ACK,RST,FIN", "SYN"),
        "running": z3.And(tcp, packet.flags & (FLAGS["ACK"] | FLAGS["RST"]) != 0),
        "midway": flags(packet, "SYN,ACK,RST,FIN", "ACK"),
        "asks": types(8, 13, 15, 17) if v4 else types(128, 139),
        "answers": types(0, 14, 16, 18) if v4 else types(129, 140),
        "errors": types(3, 4, 5, 11, 12) if v4 else types(1, 2, 3, 4),
        "discovery": types() if v4 else types(130, 131, 132, 133, 134, 135, 136, 143),
        "datagram": z3.And(z3.Not(tcp), z3.Not(icmp)),
    }
    found["odd types"] = z3.And(icmp, z3.Not(z3.Or(*found.values())))
    found["odd"] = z3.Not(z3.Or(*found.values()))
    return found


def in_states(packet: Packet, accepted: Any, by_kind: Mapping[str, tuple[str, ...]]) -> Any:
    """What of *accepted* is there when each kind of packet is in one of its states; no state left."""
    kinds = kind(packet)
    return z3.Or(
        *(
            z3.And(kinds[name], z3.substitute(accepted, (packet.state, z3.BitVecVal(STATES.index(state), 3))))
            for name, names in by_kind.items()
            for state in names
        )
    )


STRAY = {
    "syn": ("NEW",),
    "running": ("INVALID",),
    "midway": ("NEW",),  # too: nf_conntrack_tcp_loose
    "asks": ("NEW",),
    "answers": ("INVALID",),
    "errors": ("INVALID",),
    "discovery": ("UNTRACKED",),
    "datagram": ("NEW",),
    "odd": ("INVALID",),
    "odd types": ("INVALID",),
}
RUNNING = {
    "syn": ("NEW",),
    "running": ("ESTABLISHED",),
    "asks": ("NEW",),
    "answers": ("ESTABLISHED",),
    "errors": ("RELATED",),
    "discovery": ("UNTRACKED",),
    "datagram": ("NEW", "ESTABLISHED"),
    "odd types": ("INVALID",),
}


def counterexample(one: Any, two: Any, given: Any) -> str:
    """A packet for which the formulas *one* and *two* differ, or an empty text; proved, not sampled."""
    solver = z3.Solver()
    solver.set("timeout", 5_000)
    solver.add(given, one != two)
    answer = solver.check()
    if answer == z3.unsat:
        return ""
    return str(solver.model()) if answer == z3.sat else f"z3 does not know: {solver.reason_unknown()}"
