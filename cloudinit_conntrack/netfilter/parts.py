"""Packets, told apart without conntrack: each part of traffic stands for one state.

The rewrite replaces the question "which state is this packet's connection in" by "which
part does this packet belong to".  The parts are disjoint, so a rule that matched a set of
states becomes the rules of the parts that stand for those states, and every order, jump
and policy around it keeps its meaning.

Sources: ``tcp_conntracks`` and ``tcp_valid_flags`` in nf_conntrack_proto_tcp.c (a segment
with neither SYN, ACK nor RST, or with SYN and FIN, is INVALID); ``icmp_error_message`` in
nf_conntrack_proto_icmp.c; ``noct_valid_new`` in nf_conntrack_proto_icmpv6.c (neighbour and
listener discovery are UNTRACKED).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache

from .replies import NUMBER, Reply
from .ruleset import Rule

FLAG_BITS = {"FIN": 1, "SYN": 2, "RST": 4, "PSH": 8, "ACK": 16, "URG": 32}
ALL_FLAGS = frozenset(range(64))
SYN_ONLY = ("FIN,SYN,RST,ACK", "SYN")
# What conntrack picks up midway (nf_conntrack_tcp_loose): NEW then, else INVALID.
MIDWAY = ("FIN,SYN,RST,ACK", "ACK")


@dataclass(frozen=True)
class Part:
    """Some packets of one protocol group.

    *group* is ``tcp``, ``udp``, ``icmp`` or ``other``.  *options* selects the part within
    its group; an empty text means "the rest of the group", which cannot be selected.
    *rare* parts carry nothing that a host misses; they are never accepted on their own.
    *reply* is what a part of UDP answers.
    """

    group: str
    name: str
    state: str
    options: str
    meaning: str
    flags: frozenset[int] = frozenset()
    icmp_type: int = -1
    rare: bool = False
    reply: Reply | None = None

    @property
    def stray(self) -> frozenset[str]:
        """The states that conntrack gives these packets where they belong to no connection.

        A plain ACK is NEW where connections are picked up midway (nf_conntrack_tcp_loose).
        """
        if self.name == "ack":
            return frozenset(("NEW", "INVALID"))
        if self.group == "udp" or self.state in ("NEW", "UNTRACKED"):
            return frozenset(("NEW" if self.group == "udp" else self.state,))
        return frozenset(("INVALID",))


@lru_cache(maxsize=1024)
def flags_matching(mask: str, wanted: str) -> frozenset[int]:
    """The flag bytes (of 64) for which ``--tcp-flags mask wanted`` holds."""
    chosen, value = flag_bits(mask), flag_bits(wanted)
    return frozenset(flags for flags in ALL_FLAGS if flags & chosen == value)


def flag_matches(flags: frozenset[int]) -> tuple[tuple[str, str], ...]:
    """*flags* as ``--tcp-flags`` masks and values, which match each of them once.

    One rule must not hold two of them: iptables-nft-save up to 1.8.9 prints the last only.
    """
    fixed = [bit for bit in FLAG_BITS.values() if len({byte & bit for byte in flags}) == 1]
    if len(flags) == 1 << (len(FLAG_BITS) - len(fixed)):
        return ((_names(sum(fixed)), _names(sum(fixed) & min(flags))),)
    split = next(bit for bit in FLAG_BITS.values() if bit not in fixed)
    with_bit = frozenset(byte for byte in flags if byte & split)
    return flag_matches(with_bit) + flag_matches(flags - with_bit)


def _names(bits: int) -> str:
    return ",".join(name for name, bit in FLAG_BITS.items() if bits & bit) or "NONE"


def flag_bits(names: str) -> int:
    """``SYN,ACK`` as bits; ``ALL`` and ``NONE`` are known."""
    if names.upper() == "ALL":
        return 63
    return sum(FLAG_BITS[n] for n in {name.strip() for name in names.upper().split(",")} if n in FLAG_BITS)


def _tcp(name: str, state: str, mask: str, wanted: str, meaning: str) -> Part:
    return Part("tcp", name, state, f"--tcp-flags {mask} {wanted}", meaning, flags_matching(mask, wanted))


TCP: tuple[Part, ...] = (
    _tcp("syn", "NEW", *SYN_ONLY, "TCP handshakes (SYN)"),
    _tcp("ack", "ESTABLISHED", "ACK", "ACK", "TCP segments with ACK set"),
    # disjoint from "ack", so that a LOG or a limit beside it counts no segment twice
    _tcp("rst", "ESTABLISHED", "RST,ACK", "RST", "TCP segments with RST set"),
    _tcp("null", "INVALID", "SYN,RST,ACK", "NONE", "TCP segments without SYN, RST and ACK"),
    _tcp("synfin", "INVALID", SYN_ONLY[0], "FIN,SYN", "TCP segments with SYN and FIN"),
)
UDP_REST = Part("udp", "udp", "NEW", "", "UDP datagrams")
OTHER = Part("other", "other", "NEW", "", "packets of other protocols")


@cache
def icmp_parts(family: str) -> tuple[Part, ...]:
    """The parts of ICMP (``ipv4``) or ICMPv6 (``ipv6``), the unlisted rest last."""
    match = "--icmp-type" if family == "ipv4" else "--icmpv6-type"

    def part(number: int, state: str, meaning: str, rare: bool = False) -> Part:
        options = f"{match} {number}"
        return Part("icmp", f"type {number}", state, options, meaning, frozenset(), number, rare)

    if family == "ipv4":
        found = [
            part(0, "ESTABLISHED", "echo replies"),
            part(8, "NEW", "echo requests"),
            part(3, "RELATED", "destination-unreachable errors"),
            part(11, "RELATED", "time-exceeded errors"),
            part(12, "RELATED", "parameter-problem errors"),
            # RFC 6633 took source quench away; a forged redirect moves routes.  So no rule accepts
            # them for being RELATED any more, and one that refuses or logs RELATED still sees them.
            part(4, "RELATED", "source quench messages", True),
            part(5, "RELATED", "redirects", True),
        ]
        found += [part(n, "NEW", f"ICMP queries of type {n}", True) for n in (13, 15, 17)]
        found += [part(n, "ESTABLISHED", f"ICMP replies of type {n}", True) for n in (14, 16, 18)]
    else:
        names = {1: "destination-unreachable", 2: "packet-too-big", 3: "time-exceeded", 4: "parameter-problem"}
        found = [part(129, "ESTABLISHED", "echo replies"), part(128, "NEW", "echo requests")]
        found += [part(n, "RELATED", f"{name} errors") for n, name in names.items()]
        found += [
            part(n, "UNTRACKED", f"neighbour and listener discovery (type {n})")
            for n in (130, 131, 132, 133, 134, 135, 136, 143)
        ]
        found += [part(139, "NEW", "ICMPv6 node queries", True), part(140, "ESTABLISHED", "ICMPv6 node answers", True)]
    found.append(Part("icmp", "rest", "INVALID", "", "ICMP messages of other types", rare=True))
    return tuple(found)


@cache
def rare_errors(family: str) -> frozenset[str]:
    """The names of the errors that nobody needs, and that no rule accepts for being RELATED."""
    return frozenset(part.name for part in icmp_parts(family) if part.rare and part.state == "RELATED")


ICMP_NAMES = {
    "ipv4": {
        "echo-reply": 0, "pong": 0, "destination-unreachable": 3, "source-quench": 4, "redirect": 5,
        "echo-request": 8, "ping": 8, "router-advertisement": 9, "router-solicitation": 10,
        "time-exceeded": 11, "ttl-exceeded": 11, "parameter-problem": 12, "timestamp-request": 13,
        "timestamp-reply": 14, "address-mask-request": 17, "address-mask-reply": 18,
        "network-unreachable": 3, "host-unreachable": 3, "protocol-unreachable": 3, "port-unreachable": 3,
        "fragmentation-needed": 3, "source-route-failed": 3, "network-unknown": 3, "host-unknown": 3,
        "network-prohibited": 3, "host-prohibited": 3, "TOS-network-unreachable": 3,
        "TOS-host-unreachable": 3, "communication-prohibited": 3, "host-precedence-violation": 3,
        "precedence-cutoff": 3, "ttl-zero-during-transit": 11, "ttl-zero-during-reassembly": 11,
        "ip-header-bad": 12, "required-option-missing": 12, "network-redirect": 5, "host-redirect": 5,
        "TOS-network-redirect": 5, "TOS-host-redirect": 5,
    },
    "ipv6": {
        "destination-unreachable": 1, "packet-too-big": 2, "time-exceeded": 3, "ttl-exceeded": 3,
        "parameter-problem": 4, "echo-request": 128, "ping": 128, "echo-reply": 129, "pong": 129,
        "router-solicitation": 133, "router-advertisement": 134, "neighbour-solicitation": 135,
        "neighbor-solicitation": 135, "neighbour-advertisement": 136, "neighbor-advertisement": 136,
        "redirect": 137, "mld-listener-query": 130, "mld-listener-report": 131, "mld-listener-done": 132,
        "mld-listener-reduction": 132, "mld2-listener-report": 143,
        "no-route": 1, "communication-prohibited": 1, "beyond-scope": 1, "address-unreachable": 1,
        "port-unreachable": 1, "failed-policy": 1, "reject-route": 1,
        "ttl-zero-during-transit": 3, "ttl-zero-during-reassembly": 3,
        "bad-header": 4, "unknown-header-type": 4, "unknown-option": 4,
    },
}


def icmp_type_of(rule: Rule, family: str) -> int | None:
    """The ICMP type that *rule* asks for, -1 for an unknown name, ``None`` for any type."""
    option = rule.first("--icmp-type", "--icmpv6-type")
    if option is None or option.negated or option.value in ("any", "255"):
        return None
    name = option.value.split("/")[0]
    return int(name) if NUMBER.fullmatch(name) else ICMP_NAMES[family].get(name, -1)


def flags_of(rule: Rule) -> frozenset[int]:
    """The TCP flag bytes (of 64) that *rule* can match."""
    allowed = ALL_FLAGS
    for option in rule.all("--syn", "--tcp-flags"):
        mask, wanted = SYN_ONLY if option.name == "--syn" else ((*option.args, "", ""))[:2]
        chosen = flags_matching(mask, wanted)
        allowed &= ALL_FLAGS - chosen if option.negated else chosen
    return allowed


PROTOCOLS = {"tcp": "tcp", "6": "tcp", "udp": "udp", "17": "udp"}


_ODD_NUMBER = re.compile("0(x[0-9a-f]+|[0-7]+)")


def _protocol(text: str) -> str:
    """What ``-p`` names, in lower case; iptables reads numbers as C does (0x6, 06)."""
    name = text.lower()
    odd = _ODD_NUMBER.fullmatch(name)
    return name if odd is None else str(int(name[2:], 16) if odd.group(1)[0] == "x" else int(name, 8))


def groups_of(rule: Rule, family: str) -> tuple[str, ...]:
    """The protocol groups that *rule* can match, by its ``-p``."""
    option = rule.first("-p")
    everything = ("tcp", "udp", "icmp", "other")
    name = "all" if option is None else _protocol(option.value)
    if option is None or name in ("all", "0", "any"):
        return everything
    own = ("icmp", "1") if family == "ipv4" else ("icmp", "icmpv6", "ipv6-icmp", "58")
    group = "icmp" if name in own else PROTOCOLS.get(name, "other")
    if not option.negated:
        return (group,)
    return tuple(g for g in everything if g != group or g == "other")
