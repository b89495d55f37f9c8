"""Many flows -> few that mean the same: each of them becomes several rules of the kernel."""

from __future__ import annotations

import bisect
import ipaddress
from collections.abc import Iterable
from typing import Union

from ..config import Flow

Ports = tuple[int, int]
_Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]
BOTH = {"0.0.0.0/0", "::/0"}
MOST_NETWORKS = 32  # of one port: more of them are taken together
_COARSER = {4: (28, 24, 20, 16), 6: (112, 96, 64, 48)}


def merged(flows: Iterable[Flow]) -> tuple[tuple[Flow, ...], tuple[str, ...]]:
    """The same flows with neighbouring networks and ports joined, sorted; and what was widened for it."""
    widened: list[str] = []
    networks: dict[tuple[str, Ports], set[str | None]] = {}
    for flow in set(flows):
        networks.setdefault((flow.protocol, flow.ports), set()).add(flow.address)
    ports: dict[tuple[str, str | None], list[Ports]] = {}
    for (protocol, these), addresses in sorted(networks.items()):
        kept, note = _joined_networks(addresses)
        widened += [f"{_ports_text(these)}/{protocol} has {note}"] if note else []
        for address in kept:
            ports.setdefault((protocol, address), []).append(these)
    found = [Flow(protocol, one, address) for (protocol, address), many in ports.items() for one in joined_ports(many)]
    return without_covered(found), tuple(widened)


def without_covered(flows: list[Flow]) -> tuple[Flow, ...]:
    """*flows*, sorted, without those of an address whose ports are named for every address too."""
    wide: dict[str, list[Ports]] = {}
    for flow in flows:
        if flow.address is None:
            wide.setdefault(flow.protocol, []).append(flow.ports)
    ranges = {protocol: joined_ports(many) for protocol, many in wide.items()}
    left = [f for f in flows if f.address is None or not _inside(f.ports, ranges.get(f.protocol, []))]
    return tuple(sorted(left, key=lambda f: (f.protocol, f.ports, f.address or "")))


def _inside(ports: Ports, ranges: list[Ports]) -> bool:
    """Whether one of the sorted *ranges* holds all of *ports*."""
    at = bisect.bisect_right(ranges, (ports[0], 65536)) - 1
    return at >= 0 and ports[1] <= ranges[at][1]


def covers(wide: Flow, narrow: Flow) -> bool:
    """Whether each packet of *narrow* is one of *wide*."""
    if wide.protocol != narrow.protocol or not wide.ports[0] <= narrow.ports[0] <= narrow.ports[1] <= wide.ports[1]:
        return False
    if wide.address is None or wide.address == narrow.address:
        return True
    if narrow.address is None or wide.family != narrow.family:
        return False
    one, two = ipaddress.ip_network(wide.address), ipaddress.ip_network(narrow.address)
    return one.prefixlen <= two.prefixlen and two.network_address in one


def joined_ports(ranges: list[Ports]) -> list[Ports]:
    """*ranges* with neighbours and overlaps joined."""
    found: list[Ports] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((first, last))
    return found


def _joined_networks(addresses: set[str | None]) -> tuple[list[str | None], str]:
    """The fewest networks that hold *addresses* and nothing else, or few that hold more, and a word on it."""
    if None in addresses or addresses >= BOTH:
        return [None], ""
    found: list[str | None] = []
    note = ""
    for version in (4, 6):
        own = [n for n in map(ipaddress.ip_network, filter(None, addresses)) if n.version == version]
        joined = list(ipaddress.collapse_addresses(own))  # type: ignore[type-var]
        few = _few(joined, version)
        if len(few) < len(joined):
            note = f"{len(joined)} separate networks; taken together as {', '.join(few[:3])}"
            note += f" and {len(few) - 3} more" if len(few) > 3 else ""
        found += few
    return found, note


def _few(networks: list[_Network], version: int) -> list[str]:
    if len(networks) <= MOST_NETWORKS:
        return [str(n) for n in networks]
    coarse: list[_Network] = networks
    for prefix in _COARSER[version]:
        wide = {n if n.prefixlen <= prefix else n.supernet(new_prefix=prefix) for n in networks}
        coarse = list(ipaddress.collapse_addresses(wide))  # type: ignore[type-var]
        if len(coarse) <= MOST_NETWORKS:
            return [str(n) for n in coarse]
    return ["0.0.0.0/0" if version == 4 else "::/0"]


def _ports_text(ports: Ports) -> str:
    return str(ports[0]) if ports[0] == ports[1] else f"{ports[0]}-{ports[1]}"


def flow_text(flow: Flow) -> str:
    """``80/tcp`` or ``10.0.0.0/16:8080/tcp``, IPv6 in brackets."""
    ports = f"{_ports_text(flow.ports)}/{flow.protocol}"
    if flow.address is None:
        return ports
    return f"[{flow.address}]:{ports}" if flow.family == "ipv6" else f"{flow.address}:{ports}"
