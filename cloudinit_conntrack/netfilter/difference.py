"""Two rule-sets compared: which packets the one accepts and the other does not.

Computed from the rule-sets alone, by walking both as the kernel does (first match, jumps,
goto, RETURN, policies; every table that a packet passes), not from what the rewrite meant.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .packets import Box, PacketSet
from .parts import TCP, icmp_parts
from .ruleset import Rule, RuleSet
from .stateful import is_notrack
from .universe import (
    DESTINATION,
    DETAIL,
    DPORT,
    FIRST_OPEN,
    IN,
    OUT,
    PROTOCOL,
    SOURCE,
    SPORT,
    STATE,
    Universe,
    make_universe,
    matched,
)

# The tables that a packet passes on its way, with the hook it meets in each.
PATHS = {
    "INPUT": (("raw", "PREROUTING"), ("mangle", "PREROUTING"), ("mangle", "INPUT"), ("filter", "INPUT"),
              ("security", "INPUT")),
    "FORWARD": (("raw", "PREROUTING"), ("mangle", "PREROUTING"), ("mangle", "FORWARD"), ("filter", "FORWARD"),
                ("security", "FORWARD"), ("mangle", "POSTROUTING")),
    "OUTPUT": (("raw", "OUTPUT"), ("mangle", "OUTPUT"), ("filter", "OUTPUT"), ("security", "OUTPUT"),
               ("mangle", "POSTROUTING")),
}
REFUSING = frozenset(("DROP", "REJECT", "TARPIT", "STEAL", "CHAOS", "DELUDE"))
ENDING = frozenset(("ACCEPT", "QUEUE", "NFQUEUE", "TPROXY"))
# The rarest things are said once, and then counted.
MOST_TOLD = 40


@dataclass(frozen=True)
class Told:
    """A set of packets in words, at one hook."""

    hook: str
    packets: str

    def __str__(self) -> str:
        return f"{self.hook}: {self.packets}"


@dataclass(frozen=True)
class Difference:
    """What two rule-sets let through otherwise.

    *widened*: packets of no connection that are accepted after and were not before;
    *handshakes* those of them that open a TCP connection (a lone SYN).  *narrowed*: packets
    of a connection that were accepted before and are not after.
    """

    widened: tuple[Told, ...] = ()
    narrowed: tuple[Told, ...] = ()
    handshakes: tuple[Told, ...] = ()


def compare(before: RuleSet, after: RuleSet) -> Difference:
    """What *after* accepts and refuses other than *before*.

    Raises ValueError for an address that cannot be read.
    """
    universe = make_universe((before, after), before.family)
    return told(universe, ((h, accepted(universe, before, h), accepted(universe, after, h)) for h in PATHS))


def told(universe: Universe, sets: Iterable[tuple[str, PacketSet, PacketSet]]) -> Difference:
    """The difference in words; *sets* are (hook, accepted before, accepted after)."""
    space = universe.space
    found: list[tuple[list[Told], list[Told], list[Told]]] = []
    for hook, old, new in sets:
        if old is new:
            continue
        old, new = _at_hook(universe, old, hook), _at_hook(universe, new, hook)
        more = space.any_of(space.both(space.without(new, old), _stray(universe)), STATE)
        running = _running(universe)
        less = space.any_of(space.both(space.without(old, new), running), STATE)
        kept = space.any_of(space.both(space.both(old, new), running), STATE)
        opening = space.both(more, _handshake(universe))
        found.append((_told(universe, hook, more), _lost(universe, hook, less, kept), _told(universe, hook, opening)))
    return Difference(*(tuple(text for one in found for text in one[kind]) for kind in range(3)))


def _at_hook(universe: Universe, found: PacketSet, hook: str) -> PacketSet:
    """*found* without the interface that packets do not have at *hook*."""
    absent = {"INPUT": OUT, "OUTPUT": IN}.get(hook)
    if absent is None:
        return found
    nameless = universe.space.box({absent: 1 << len(universe.interfaces)})
    return universe.space.any_of(universe.space.both(found, nameless), absent)


def accepted(universe: Universe, ruleset: RuleSet, hook: str) -> PacketSet:
    """The packets, each with its state, that come through every table at *hook*.

    What the raw table exempts from tracking has no other state than UNTRACKED.
    """
    space = universe.space
    found: PacketSet = True
    for table, chain in PATHS[hook]:
        found = space.both(found, _Walk(universe, ruleset, table).builtin(chain))
    raw = _Walk(universe, ruleset, "raw")
    raw.builtin(PATHS[hook][0][1])
    exempt = raw.exempt.get(PATHS[hook][0][1], False)
    if exempt is False:
        return found
    untracked = space.box({STATE: universe.state_mask("UNTRACKED")})
    whatever = space.any_of(space.both(found, untracked), STATE)
    return space.either(space.without(found, exempt), space.both(whatever, exempt))


def _handshake(universe: Universe) -> PacketSet:
    syn = sum(1 << flags for flags in TCP[0].flags)
    return universe.space.box({PROTOCOL: universe.protocol_mask(6), DETAIL: syn})


@dataclass
class _Walk:
    """One table walked for every packet at once."""

    universe: Universe
    ruleset: RuleSet
    table: str

    def __post_init__(self) -> None:
        self._known: dict[str, tuple[PacketSet, PacketSet]] = {}
        self.exempt: dict[str, PacketSet] = {}  # chain -> what of its packets goes untracked

    def builtin(self, chain: str) -> PacketSet:
        """What a built-in chain accepts, its policy included."""
        policy = self.ruleset.chains.get(self.table, {}).get(chain)
        if policy is None:
            return True
        taken, left = self.chain(chain, ())
        return taken if policy in REFUSING else self.universe.space.either(taken, left)

    def chain(self, name: str, above: tuple[str, ...]) -> tuple[PacketSet, PacketSet]:
        """(accepted, come back to the caller) of the packets that enter *name*."""
        if name in above:
            return False, True  # the kernel refuses loops
        if name not in self._known:
            self._known[name] = self._walk(name, (*above, name))
        return self._known[name]

    def _walk(self, name: str, above: tuple[str, ...]) -> tuple[PacketSet, PacketSet]:
        space = self.universe.space
        here: PacketSet = True
        taken: PacketSet = False
        returned: PacketSet = False
        exempt: PacketSet = False
        for line in self.ruleset.appended.get((self.table, name), ()):
            hit = space.both(here, matched(self.universe, line.rule))
            accepts, through, ends = self._target(line.rule, above)
            taken = space.either(taken, space.both(hit, accepts))
            spared: PacketSet = is_notrack(line.rule) or self.exempt.get(line.rule.target, False)
            exempt = space.either(exempt, space.both(hit, spared))
            if ends:
                here = space.without(here, hit)
                returned = space.either(returned, space.both(hit, through))
            elif through is not True:
                here = space.either(space.without(here, hit), space.both(hit, through))
        self.exempt[name] = exempt
        return taken, space.either(here, returned)

    def _target(self, rule: Rule, above: tuple[str, ...]) -> tuple[PacketSet, PacketSet, bool]:
        """(accepted, come through, whether the chain ends here) for a packet that *rule* matches."""
        target = rule.target
        if target in ENDING:
            return True, False, True
        if target in REFUSING:
            return False, False, True
        if target == "RETURN":
            return False, True, True
        if target in self.ruleset.chains.get(self.table, {}):
            accepts, through = self.chain(target, above)
            return accepts, through, rule.first("-g") is not None
        return False, True, False


# --- which states a packet can be in ---------------------------------------------------


def _by_part(universe: Universe, states: dict[str, tuple[str, ...]]) -> PacketSet:
    """(packet, state) for every part of traffic; *states* maps a part's name or state to states."""
    space = universe.space
    found: PacketSet = False

    def add(masks: Box, names: tuple[str, ...]) -> None:
        nonlocal found
        found = space.either(found, space.box({**masks, STATE: universe.state_mask(*names)}))

    for part in TCP:
        bits = sum(1 << flags for flags in part.flags)
        add({PROTOCOL: universe.protocol_mask(6), DETAIL: bits}, states.get(part.name, states[part.state]))
    listed = 0
    icmp = universe.protocol_mask(universe.icmp)
    for part in icmp_parts(universe.family)[:-1]:
        listed |= 1 << part.icmp_type
        add({PROTOCOL: icmp, DETAIL: 1 << part.icmp_type}, states.get(part.name, states["icmp " + part.state]))
    add({PROTOCOL: icmp, DETAIL: space.full(DETAIL) & ~listed}, ("INVALID",))
    rest = space.full(PROTOCOL) & ~(universe.protocol_mask(6) | icmp)
    add({PROTOCOL: rest}, states["datagram"])
    return found


def _stray(universe: Universe) -> PacketSet:
    """States of packets that belong to no connection; conntrack may pick up a stream midway (NEW)."""
    return _by_part(universe, {
        "NEW": ("NEW",), "ack": ("INVALID",), "rst": ("INVALID",), "INVALID": ("INVALID",), "ESTABLISHED": ("INVALID",),
        "icmp NEW": ("NEW",), "icmp ESTABLISHED": ("INVALID",), "icmp RELATED": ("INVALID",),
        "icmp UNTRACKED": ("UNTRACKED",), "datagram": ("NEW",),
    })


def _running(universe: Universe) -> PacketSet:
    """States of packets that open a connection or belong to one."""
    return _by_part(universe, {
        "NEW": ("NEW",), "ESTABLISHED": ("ESTABLISHED",), "INVALID": (),
        "icmp NEW": ("NEW",), "icmp ESTABLISHED": ("ESTABLISHED",), "icmp RELATED": ("RELATED",),
        "icmp UNTRACKED": ("UNTRACKED",), "datagram": ("NEW", "ESTABLISHED"),
    })


# --- in words --------------------------------------------------------------------------


def _told(universe: Universe, hook: str, found: PacketSet) -> list[Told]:
    texts = list(dict.fromkeys(_words(universe, box, hook) for box in universe.space.boxes(found)))
    if len(texts) > MOST_TOLD:
        texts = [*texts[:MOST_TOLD], f"and {len(texts) - MOST_TOLD} more sets of packets"]
    return [Told(hook, text) for text in texts if text]


def _lost(universe: Universe, hook: str, less: PacketSet, kept: PacketSet) -> list[Told]:
    """*less* in words; where most UDP is lost, it is shorter to say which is *kept*."""
    space = universe.space
    udp = space.box({PROTOCOL: universe.protocol_mask(17)})
    lost, left = space.both(less, udp), space.both(kept, udp)
    if sum(1 for _ in space.boxes(lost)) <= sum(1 for _ in space.boxes(left)) + 1:
        return _told(universe, hook, less)
    others = [told.packets for told in _told(universe, hook, left)]
    told = [Told(hook, "UDP datagrams, except " + ("; ".join(others) or "none"))]
    return told + _told(universe, hook, space.without(less, udp))


def _words(universe: Universe, box: Box, hook: str) -> str:
    """One box in words: ``TCP segments with ACK or RST set to port 22 from 10.0.0.0/8``."""
    words = [" or ".join(_kinds(universe, box))]
    if not words[0]:
        return ""  # only values that no packet has, such as a 65th set of TCP flags
    space = universe.space
    for dimension, text in ((SPORT, "from"), (DPORT, "to")):
        if dimension in box and box[dimension] != space.full(dimension):
            words.append(f"{text} {_ports(universe, box[dimension])}")
    for dimension, text in ((SOURCE, "from"), (DESTINATION, "to")):
        if dimension in box and box[dimension] != space.full(dimension):
            words.append(f"{text} {_addresses(universe, box[dimension])}")
        elif dimension == (DESTINATION if hook == "OUTPUT" else SOURCE):
            words.append(f"{text} anywhere")
    for dimension, text in ((IN, "in by"), (OUT, "out by")):
        if dimension in box and box[dimension] != space.full(dimension):
            words.append(f"{text} {_interfaces(universe, box[dimension])}")
    for dimension, mask in sorted(box.items()):
        if dimension >= FIRST_OPEN:
            condition = universe.open_conditions[dimension - FIRST_OPEN]
            words.append(f"{'where' if mask == 2 else 'unless'} {condition!r} holds")
    return " ".join(words)


def _kinds(universe: Universe, box: Box) -> Iterator[str]:
    """What kinds of packets *box* holds, by protocol and flags or type."""
    protocols = box.get(PROTOCOL, universe.space.full(PROTOCOL))
    detail = box.get(DETAIL, universe.space.full(DETAIL))
    if protocols & universe.protocol_mask(6):
        yield from _tcp_kinds(detail)
    if protocols & universe.protocol_mask(17):
        yield "UDP datagrams"
    if protocols & universe.protocol_mask(universe.icmp):
        yield from _icmp_kinds(universe, detail)
    others = [n for at, n in enumerate(universe.protocols) if protocols >> at & 1 and n not in (6, 17, universe.icmp)]
    if others:
        yield f"packets of protocol {', '.join(str(n) for n in others)}"
    if protocols >> len(universe.protocols) & 1:
        yield "packets of other protocols"


def _tcp_kinds(detail: int) -> Iterator[str]:
    flags = {f for f in range(64) if detail >> f & 1}
    if len(flags) == 64:
        yield "TCP segments"
        return
    whole = [part for part in TCP if part.flags <= flags]
    names = [part.name for part in whole]
    if {"ack", "rst"} <= set(names):
        yield "TCP segments with ACK or RST set"
        whole = [part for part in whole if part.name not in ("ack", "rst")]
    yield from (part.meaning for part in whole)
    partly = flags - {f for part in TCP if part.flags <= flags for f in part.flags}
    if partly:
        more = f", and {len(partly) - 8} more" if len(partly) > 8 else ""
        yield f"TCP segments with flags {', '.join(_flag_text(f) for f in sorted(partly)[:8])}{more}"


def _flag_text(flags: int) -> str:
    names = ("FIN", "SYN", "RST", "PSH", "ACK", "URG")
    return "+".join(name for at, name in enumerate(names) if flags >> at & 1) or "none"


def _icmp_kinds(universe: Universe, detail: int) -> Iterator[str]:
    if detail == universe.space.full(DETAIL):
        yield "ICMP messages"
        return
    listed = [part for part in icmp_parts(universe.family)[:-1] if detail >> part.icmp_type & 1]
    yield from (part.meaning for part in listed)
    other = detail & ~sum(1 << part.icmp_type for part in icmp_parts(universe.family)[:-1])
    if other:
        rest = universe.space.full(DETAIL) & ~sum(1 << part.icmp_type for part in icmp_parts(universe.family)[:-1])
        spans = [str(a) if b == a + 1 else f"{a}-{b - 1}" for a, b in _runs(other)]
        yield "ICMP messages of other types" if other == rest else f"ICMP messages of type {', '.join(spans)}"


def _runs(mask: int) -> Iterator[tuple[int, int]]:
    """Runs of ones in *mask* as (first, end)."""
    at = 0
    while mask >> at:
        if mask >> at & 1:
            start = at
            while mask >> at & 1:
                at += 1
            yield start, at
        else:
            at += 1


def _either_way(full: int, mask: int) -> tuple[str, int]:
    """*mask*, or what is not in it with "any but" before it, whichever has fewer runs."""
    other = full & ~mask
    return ("any but ", other) if len(list(_runs(other))) < len(list(_runs(mask))) else ("", mask)


def _ports(universe: Universe, mask: int) -> str:
    but, mask = _either_way(universe.space.full(DPORT), mask)
    word = "any port but " if but else "port "
    spans = [(universe.ports[first], universe.ports[end] - 1) for first, end in _runs(mask)]
    return word + ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def _addresses(universe: Universe, mask: int) -> str:
    make = ipaddress.IPv4Address if universe.family == "ipv4" else ipaddress.IPv6Address
    word, mask = _either_way(universe.space.full(SOURCE), mask)
    spans = [(make(universe.addresses[a]), make(universe.addresses[b] - 1)) for a, b in _runs(mask)]
    networks = [n for first, last in spans for n in ipaddress.summarize_address_range(first, last)]
    if len(networks) <= 2 * len(spans):
        return word + ", ".join(str(n) for n in networks)
    return word + ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def _interfaces(universe: Universe, mask: int) -> str:
    names = [name for at, name in enumerate(universe.interfaces) if mask >> at & 1]
    if mask >> len(universe.interfaces) & 1:
        others = [name for name in universe.interfaces if name not in names]
        return f"any interface but {', '.join(others)}" if others else "any interface"
    return ", ".join(names)
