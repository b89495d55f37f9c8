"""Whether single packets lie in the computed sets: nft_difference.py judged by what really arrived."""

from __future__ import annotations

from collections.abc import Iterator

from cloudinit_conntrack.netfilter.nft_difference import Compared
from cloudinit_conntrack.netfilter.packets import PacketSet
from cloudinit_conntrack.netfilter.universe import IN, OUT, STATE, Universe

from .computed import WAYS, point
from .scan import Fate, Probe

DISCOVERY = (130, 131, 132, 133, 134, 135, 136, 143)
QUERIES = {"ipv4": (8, 13, 15, 17), "ipv6": (128, 139)}


def unstated(before: dict[Probe, Fate], after: dict[Probe, Fate], sets: Compared) -> Iterator[str]:
    """What the computed sets do not know: packets newly let in, and packets that fared otherwise than they say."""
    space = sets.universe.space
    for probe, fate in after.items():
        old, new = sets.accepted[WAYS[probe.way][0]]
        here = _point(sets.universe, probe)
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


def _point(universe: Universe, probe: Probe) -> PacketSet:
    """The one packet, in the states that conntrack can give it where it belongs to no connection."""
    nameless = 1 << len(universe.interfaces)
    states = universe.state_mask(*_states(universe.family, probe))
    return universe.space.box({IN: nameless, OUT: nameless, **point(universe, probe), STATE: states})


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
