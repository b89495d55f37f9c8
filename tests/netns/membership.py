"""Whether single packets lie in the computed sets: nft_difference.py judged by what really arrived."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_network

from cloudinit_conntrack.netfilter.nft_difference import Compared
from cloudinit_conntrack.netfilter.packets import Box, PacketSet
from cloudinit_conntrack.netfilter.universe import (
    DESTINATION,
    DETAIL,
    DPORT,
    IN,
    OUT,
    PROTOCOL,
    SOURCE,
    SPORT,
    STATE,
    Universe,
)

from . import wire
from .scan import Fate, Probe
from .topology import SCAN, address

HOOKS = {"in": "INPUT", "through": "FORWARD", "back": "FORWARD", "out": "OUTPUT"}
INTERFACES = {"in": ("eth0", ""), "through": ("eth0", "eth1"), "back": ("eth1", "eth0"), "out": ("", "eth0")}
DISCOVERY = (130, 131, 132, 133, 134, 135, 136, 143)
QUERIES = {"ipv4": (8, 13, 15, 17), "ipv6": (128, 139)}


def unstated(before: dict[Probe, Fate], after: dict[Probe, Fate], sets: Compared) -> Iterator[str]:
    """What the computed sets do not know: packets newly let in, and packets that fared otherwise than they say."""
    space = sets.universe.space
    for probe, fate in after.items():
        old, new = sets.accepted[HOOKS[probe.way]]
        here = point(sets.universe, probe)
        more = fate.arrived and not before[probe].arrived and _sure(sets, old, here)
        if more and not _may(sets, space.without(new, old), here):
            yield f"not in the computed difference, and let in: {probe}"
        if not probe.cut and fate.arrived != (told := _may(sets, new, here)) and _sure(sets, new, here):
            yield f"the computed set says that it {'arrives' if told else 'does not arrive'}: {probe}: is: {fate}"


def _may(sets: Compared, found: PacketSet, here: PacketSet) -> bool:
    """Whether the packet is in *found*, whatever becomes of conditions that are not modelled."""
    return sets.universe.space.both(found, here) is not False


def _sure(sets: Compared, found: PacketSet, here: PacketSet) -> bool:
    """Whether no condition that is not modelled decides about it."""
    space = sets.universe.space
    return space.without(here, found) is False or space.both(found, here) is False


def point(universe: Universe, probe: Probe) -> PacketSet:
    """The one packet, in the states that conntrack can give it where it belongs to no connection."""
    family = universe.family
    own = address(family, "backend" if probe.way in ("through", "back") else "host")
    outer = str(ip_network(SCAN[family]).network_address + 1)
    source, destination = (own, outer) if probe.outward else (outer, own)
    came, goes = INTERFACES[probe.way]
    box: Box = {
        PROTOCOL: _protocol(universe, probe), STATE: universe.state_mask(*_states(family, probe)),
        SOURCE: _atom(universe.addresses, int(ip_address(source))),
        DESTINATION: _atom(universe.addresses, int(ip_address(destination))),
        IN: _interface(universe, came), OUT: _interface(universe, goes),
    }  # fmt: skip
    if probe.kind in ("tcp", "udp"):
        box |= {SPORT: _atom(universe.ports, probe.sport), DPORT: _atom(universe.ports, probe.dport)}
    if probe.kind == "tcp":
        box[DETAIL] = 1 << (wire.flag_bits(probe.detail) & 63)
    elif probe.kind == "icmp":
        box[DETAIL] = 1 << int(probe.detail.split("/")[0])
    return universe.space.box(box)


def _protocol(universe: Universe, probe: Probe) -> int:
    number = {"tcp": 6, "udp": 17, "icmp": universe.icmp}.get(probe.kind) or int(probe.kind)
    listed = universe.protocols
    return 1 << (listed.index(number) if number in listed else len(listed))


def _atom(cuts: tuple[int, ...], value: int) -> int:
    return 1 << max(at for at, first in enumerate(cuts) if first <= value)


def _interface(universe: Universe, name: str) -> int:
    listed = universe.interfaces
    found = [at for at, other in enumerate(listed) if other == name]
    found += [at for at, other in enumerate(listed) if name and other.endswith("+") and name.startswith(other[:-1])]
    return 1 << (found[0] if found else len(listed))


def _states(family: str, probe: Probe) -> tuple[str, ...]:
    """``tcp_conntracks`` in nf_conntrack_proto_tcp.c, with connections picked up midway; icmp_error and others."""
    if probe.kind == "tcp":
        flags = set(probe.detail) & set("SARF")
        return {"S": ("NEW",), "A": ("NEW", "INVALID")}.get("".join(flags), ("INVALID",))
    if probe.kind == "icmp":
        number = int(probe.detail.split("/")[0])
        if family == "ipv6" and number in DISCOVERY:
            return ("UNTRACKED",)
        return ("NEW",) if number in QUERIES[family] else ("INVALID",)
    return ("NEW",)
