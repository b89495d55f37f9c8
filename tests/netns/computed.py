"""What the computed difference (``difference.compare``) says of single packets.

The verdict about a widening is not left to the words: a packet that is let in now must lie
in the set from which those words are made.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from ipaddress import ip_address

from cloudinit_conntrack.netfilter.difference import PATHS, accepted, changed
from cloudinit_conntrack.netfilter.packets import Box, PacketSet
from cloudinit_conntrack.netfilter.ruleset import RuleSet
from cloudinit_conntrack.netfilter.universe import (
    DESTINATION,
    DETAIL,
    DPORT,
    IN,
    OUT,
    PROTOCOL,
    SOURCE,
    SPORT,
    Universe,
    make_universe,
)

from . import wire
from .scan import Probe, outer_network
from .topology import address

NUMBERS = {"tcp": wire.TCP, "udp": wire.UDP}
# way -> hook, interfaces, and which end is ours
WAYS = {
    "in": ("INPUT", "eth0", "", "host"), "out": ("OUTPUT", "", "eth0", "host"),
    "through": ("FORWARD", "eth0", "eth1", "backend"), "back": ("FORWARD", "eth1", "eth0", "backend"),
}  # fmt: skip


@dataclass(frozen=True)
class Computed:
    """The two sets of each hook: let in and was not, refused and was not."""

    universe: Universe
    sets: dict[str, tuple[PacketSet, PacketSet]]

    def let_in(self, probe: Probe) -> bool:
        """Whether the difference says that packets like *probe* are let in now."""
        return self._holds(probe, 0)

    def lost(self, probe: Probe) -> bool:
        """Whether the difference says that packets like *probe* are refused now."""
        return self._holds(probe, 1)

    def _holds(self, probe: Probe, which: int) -> bool:
        return lies_in(self.sets[WAYS[probe.way][0]][which], point(self.universe, probe))


def computed(before: RuleSet, after: RuleSet) -> Computed:
    """Compare two rule-sets as ``difference.compare`` does."""
    universe = make_universe((before, after), before.family)
    found = {}
    for hook in PATHS:
        old, new = (accepted(universe, ruleset, hook) for ruleset in (before, after))
        found[hook] = changed(universe, hook, old, new)
    return Computed(universe, found)


def lies_in(found: PacketSet, where: Box) -> bool:
    """Whether a packet lies in a set; dimensions that *where* leaves out may be anything."""
    if isinstance(found, bool):
        return found
    mask = where.get(found.dimension, -1)
    return any(lies_in(child, where) for edge, child in found.edges if edge & mask)


def point(universe: Universe, probe: Probe) -> Box:
    """A probe as one atom of each dimension that it has."""
    _, into, out_of, inner = WAYS[probe.way]
    outer = str(outer_network(universe.family).network_address + 1)
    own = address(universe.family, inner)
    source, destination = (own, outer) if probe.outward else (outer, own)
    found = {
        PROTOCOL: _protocol(universe, probe.kind),
        SOURCE: _atom(universe.addresses, int(ip_address(source))),
        DESTINATION: _atom(universe.addresses, int(ip_address(destination))),
    }
    if probe.kind in NUMBERS:
        found[SPORT], found[DPORT] = (_atom(universe.ports, port) for port in (probe.sport, probe.dport))
    if probe.kind == "tcp":
        found[DETAIL] = 1 << (wire.flag_bits(probe.detail) & 63)
    elif probe.kind == "icmp":
        found[DETAIL] = 1 << int(probe.detail.split("/")[0])
    for dimension, name in ((IN, into), (OUT, out_of)):
        if name:
            found[dimension] = 1 << _interface(universe.interfaces, name)
    return found


def _atom(cuts: tuple[int, ...], value: int) -> int:
    return 1 << bisect_right(cuts, value) - 1


def _protocol(universe: Universe, kind: str) -> int:
    number = NUMBERS.get(kind) or (universe.icmp if kind == "icmp" else int(kind))
    known = universe.protocols
    return 1 << (known.index(number) if number in known else len(known))


def _interface(names: tuple[str, ...], name: str) -> int:
    """The atom of *name*: itself, else the longest pattern (``eth+``) that it begins like, else the rest."""
    if name in names:
        return names.index(name)
    patterns = [n for n in names if n.endswith("+") and len(n) > 1 and name.startswith(n[:-1])]
    return names.index(max(patterns, key=len)) if patterns else len(names)
