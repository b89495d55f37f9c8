"""A set of packets in words that a person can read."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass

from .packets import Box, PacketSet
from .parts import TCP, icmp_parts
from .universe import DESTINATION, DETAIL, DPORT, FIRST_OPEN, IN, OUT, PROTOCOL, SOURCE, SPORT, Universe

# The rarest things are said once, and then counted.
MOST_TOLD = 40
# So many conditions are named for one set of packets; of more, these.
MOST_CONDITIONS = 3


@dataclass(frozen=True)
class Told:
    """A set of packets in words, at one hook."""

    hook: str
    packets: str

    def __str__(self) -> str:
        return f"{self.hook}: {self.packets}"


def told_of(universe: Universe, hook: str, found: PacketSet) -> list[Told]:
    """*found* in words, a set of packets at a time."""
    texts = list(dict.fromkeys(_texts(universe, hook, found)))
    if len(texts) > MOST_TOLD:
        texts = [*texts[:MOST_TOLD], f"and {len(texts) - MOST_TOLD} more sets of packets"]
    return [Told(hook, text) for text in texts if text]


def _texts(universe: Universe, hook: str, found: PacketSet) -> Iterator[str]:
    space, found = universe.in_order_of_telling(found)
    for box, rest in space.split(found, FIRST_OPEN):
        words = _words(universe, box, hook)
        if words:
            yield from (f"{words} {more}".strip() for more in _under_conditions(universe, rest))


def _under_conditions(universe: Universe, rest: PacketSet) -> Iterator[str]:
    """When *rest* holds, which asks only what we do not model: exactly where few conditions say it."""
    space = universe.space
    asked = sorted(space.asked(rest), reverse=True)  # the order of the rules
    if len(asked) <= MOST_CONDITIONS:
        for box in space.boxes(rest):
            yield " ".join(f"{'where' if box[at] == 2 else 'unless'} {_condition(universe, at)} holds"
                           for at in asked if at in box)
        return
    count, shown = len(asked) - MOST_CONDITIONS, [_condition(universe, at) for at in asked[:MOST_CONDITIONS]]
    names = f"{', '.join(shown)} and {count} more {'condition' if count == 1 else 'conditions'}"
    if rest is space.box(dict.fromkeys(asked, 1)):
        yield f"unless any of {names} holds"
    elif space.without(True, rest) is space.box(dict.fromkeys(asked, 1)):
        yield f"where any of {names} holds"
    else:
        yield f"depending on {names}"


def _condition(universe: Universe, dimension: int) -> str:
    return repr(universe.open_conditions[dimension - FIRST_OPEN])


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
