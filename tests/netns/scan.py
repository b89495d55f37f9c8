"""Single packets that belong to no connection, and what became of each.

Every packet of a scan has an address of its own on the outer side (in ``topology.SCAN``),
so whatever is seen of that address is about that packet.  Whether it was let in is not
guessed from answers: a raw socket gets what has passed INPUT, reassembled.
"""

from __future__ import annotations

import errno
import select
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from itertools import count

from . import wire
from .conversations import FAMILY
from .namespace import Namespace
from .topology import SCAN, Topology, address

ETHERNET = {"ipv4": 0x0800, "ipv6": 0x86DD}
PROTOCOLS = {
    "ipv4": (wire.TCP, wire.UDP, wire.ICMP4, wire.GRE, wire.ESP),
    "ipv6": (wire.TCP, wire.UDP, wire.ICMP6, wire.GRE, wire.ESP),
}
SO_RCVBUFFORCE = 33  # include/uapi/asm-generic/socket.h
BUFFER = 64 << 20
NAP = 0.02  # seconds
QUIET = 4  # naps without a packet that end a scan: while others keep the machine busy, a nap is longer
LONGEST = 60.0
WAYS = ("in", "through", "out", "back")
PIECES = {"two": 24, "swapped": 24, "tiny": 8, "atomic": 1 << 12}
_serials = count(1)


@dataclass(frozen=True)
class Probe:
    """One packet: *way* as in ``usage``; *kind* is ``tcp``, ``udp``, ``icmp`` or a protocol number.

    *detail* is the TCP flags in letters or ICMP's ``type/code``; *cut* says how the packet is
    cut: ``two`` pieces, two pieces ``swapped``, ``tiny`` ones, or one ``atomic`` fragment.
    """

    way: str
    kind: str
    detail: str = ""
    sport: int = 0
    dport: int = 0
    cut: str = ""

    def __str__(self) -> str:
        ports = f" {self.sport}->{self.dport}" if self.dport else ""
        cut = f" ({self.cut} fragments)" if self.cut else ""
        return f"{self.way}: {self.kind} {self.detail}{ports}{cut}"

    @property
    def outward(self) -> bool:
        """Whether the packet goes out to the client."""
        return self.way in ("out", "back")


@dataclass(frozen=True)
class Fate:
    """What became of a probe: whether it arrived, and what came back (``SA``, ``icmp 3/10``)."""

    arrived: bool
    answer: str

    def __str__(self) -> str:
        return f"{'arrives' if self.arrived else 'does not arrive'}, answer: {self.answer or 'none'}"


def scan(net: Topology, family: str, probes: Sequence[Probe]) -> dict[Probe, Fate]:
    """Send every probe once; probe -> fate."""
    outer = {probe: _scan_address(family) for probe in probes}
    found: dict[tuple[str, str], list[wire.Seen]] = {}
    with ExitStack() as stack:
        taps = [stack.enter_context(tap(net.client, family))]
        taps += [stack.enter_context(raw(net.host, family, p)) for p in PROTOCOLS[family]]
        taps += [stack.enter_context(raw(net.backend, family, p)) for p in PROTOCOLS[family]]
        # the first packets only make everybody look for their neighbours
        _send_all(net, family, {Probe(way, "udp", "", 1, 1): _scan_address(family) for way in WAYS})
        _collect(taps, found)
        refused = _send_all(net, family, outer)
        _collect(taps, found)
    return {probe: _fate(probe, where, found, refused.get(probe, "")) for probe, where in outer.items()}


def outer_network(family: str) -> IPv4Network | IPv6Network:
    """The network from which every probe gets an address of its own."""
    return ip_network(SCAN[family])


def _scan_address(family: str) -> str:
    return str(outer_network(family).network_address + next(_serials))


def _fate(probe: Probe, outer: str, found: dict[tuple[str, str], list[wire.Seen]], refused: str) -> Fate:
    at_client = found.get(("client", outer), [])
    if probe.outward:
        return Fate(any(seen.kind == probe.kind for seen in at_client), refused)
    arrived = bool(found.get(("host" if probe.way == "in" else "backend", outer)))
    answers = dict.fromkeys(f"{s.kind} {s.detail}".strip() for s in at_client)
    return Fate(arrived, "+".join(answers))


# --- sending -----------------------------------------------------------------------------


def _send_all(net: Topology, family: str, outer: dict[Probe, str]) -> dict[Probe, str]:
    """Send every probe; probe -> the error with which the kernel refused to send it."""
    refused: dict[Probe, str] = {}
    places = {"in": (net.client, "host"), "through": (net.client, "backend"),
              "out": (net.host, "host"), "back": (net.backend, "backend")}  # fmt: skip
    for way, (place, inner) in places.items():
        with place.inside(), socket.socket(FAMILY[family], socket.SOCK_RAW, socket.IPPROTO_RAW) as sender:
            for probe in (p for p in outer if p.way == way):
                own = address(family, inner)
                ends = (own, outer[probe]) if probe.outward else (outer[probe], own)
                for packet in packets(probe, family, *ends):
                    try:
                        sender.sendto(packet, (ends[1], 0))
                    except OSError as error:
                        refused[probe] = errno.errorcode.get(error.errno or 0, str(error))
    return refused


def packets(probe: Probe, family: str, source: str, destination: str) -> list[bytes]:
    """The packet, or its fragments, as they are sent."""
    load = b"x" * 64 if probe.cut else b""
    ports = (probe.sport, probe.dport)
    serial = int(ip_address(destination if probe.outward else source)) & 0xFFFFFFFF
    if probe.kind == "tcp":
        protocol, body = wire.TCP, wire.tcp(source, destination, ports, wire.flag_bits(probe.detail), serial, load)
    elif probe.kind == "udp":
        protocol, body = wire.UDP, wire.udp(source, destination, ports, load or b"hello")
    elif probe.kind == "icmp":
        protocol, body = wire.ICMP[family], _icmp(probe, source, destination, load)
    else:
        protocol, body = int(probe.kind), bytes(16)
    if not probe.cut:
        return [wire.ip(source, destination, protocol, body)]
    pieces = wire.fragments(source, destination, protocol, body, serial, PIECES[probe.cut])
    return pieces[::-1] if probe.cut == "swapped" else pieces


def _icmp(probe: Probe, source: str, destination: str, load: bytes) -> bytes:
    kind, code = (int(text) for text in probe.detail.split("/"))
    is_error = kind in (3, 4, 5, 11, 12) if ":" not in source else kind < 128
    if not is_error:
        return wire.icmp(source, destination, (kind, code), 0x10001, load or bytes(24))
    # about a datagram that was never sent; the MTU of 1300 is for the errors that carry one
    lost = wire.ip(destination, source, wire.UDP, wire.udp(destination, source, (40000, 53)))
    return wire.icmp(source, destination, (kind, code), 1300 if kind != 5 else 0, lost)


# --- watching ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Tap:
    """A socket that sees packets: of *place*, as whole IP packets or (*protocol*) as loads."""

    place: str
    socket: socket.socket
    protocol: int = 0


@contextmanager
def tap(place: Namespace, family: str, interface: str = "eth0") -> Iterator[Tap]:
    """What comes in by an interface, before any rule sees it."""
    with place.inside():
        made = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
    with made:
        made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        made.bind((interface, ETHERNET[family]))
        yield Tap(place.name, made)


@contextmanager
def raw(place: Namespace, family: str, protocol: int) -> Iterator[Tap]:
    """What is delivered to the namespace itself, after its rules, reassembled."""
    with place.inside():
        made = socket.socket(FAMILY[family], socket.SOCK_RAW, protocol)
    with made:
        made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        yield Tap(place.name, made, protocol)


def _collect(taps: Iterable[Tap], found: dict[tuple[str, str], list[wire.Seen]]) -> None:
    """Read until nothing comes any more; (place, outer address) -> what was seen."""
    by_socket = {t.socket: t for t in taps}
    quiet, until = 0, time.monotonic() + LONGEST
    while time.monotonic() < until:
        ready, _, _ = select.select(list(by_socket), [], [], NAP)
        quiet = 0 if ready else quiet + 1
        if quiet == QUIET:
            return
        for socket_ in ready:
            for seen in _drain(by_socket[socket_]):
                outer = seen.destination if by_socket[socket_].place == "client" else seen.source
                found.setdefault((by_socket[socket_].place, outer), []).append(seen)
    raise AssertionError(f"packets still came after {LONGEST} seconds")


def _drain(watched: Tap) -> Iterator[wire.Seen]:
    for _ in range(100_000):
        try:
            packet, sender = watched.socket.recvfrom(65535, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        if watched.protocol and watched.socket.family == socket.AF_INET6:
            # raw IPv6 sockets give the load alone
            yield wire.parse_load(sender[0], "", watched.protocol, packet)
            continue
        seen = wire.parse(packet)
        if seen is not None:
            yield seen


# --- what to send ------------------------------------------------------------------------


def everything(family: str) -> list[Probe]:
    """The whole matrix of probes."""
    found = _tcp("in", (22, 23, 80, 9, 40000), (40000, 53, 80, 443, 123, 8080))
    found += _tcp("through", (8080, 23), (40000, 53)) + _tcp("back", (40000, 23), (40001, 8080))
    found += _tcp("out", (8080, 25, 9), (40000, 22, 80))
    found += _udp("in", (22, 53, 68, 123, 443, 514, 546, 9999, 1024, 32768, 40000, 60999, 61000))
    for way in ("through", "back", "out"):
        found += _udp(way, (53, 123, 443, 9999, 1024, 40000))
    for way in ("in", "through", "back", "out"):
        found += [Probe(way, "icmp", detail) for detail in ICMP_MESSAGES[family]]
        found += [Probe(way, str(number)) for number in (wire.GRE, wire.ESP)]
    return found + _cut("in", family) + _cut("through", family)


SYN_LIKE = ("SE", "SC", "SEC", "SPE", "SUEC", "SPUEC")
ICMP_MESSAGES = {
    "ipv4": tuple(f"{kind}/0" for kind in (0, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 40))
    + tuple(f"3/{code}" for code in (0, 1, 2, 3, 4, 10, 13)),
    "ipv6": tuple(f"{kind}/0" for kind in (2, 3, 4, 5, 100, 128, 129, 130, 131, 132, 133, 134, 135, 136, 137, 143, 150))
    + tuple(f"1/{code}" for code in (0, 1, 3, 4)),
}  # fmt: skip


def _tcp(way: str, dports: Iterable[int], sports: Iterable[int]) -> list[Probe]:
    letters = [wire.flag_letters(bits).replace("-", "") for bits in range(64)] + list(SYN_LIKE)
    return [Probe(way, "tcp", flags, s, d) for d in dports for s in sports for flags in letters]


def _udp(way: str, dports: Iterable[int]) -> list[Probe]:
    return [Probe(way, "udp", "", s, d) for d in dports for s in (40000, 53, 67, 123, 443, 547, 5000)]


def _cut(way: str, family: str) -> list[Probe]:
    cuts = ("two", "swapped", "tiny") + (("atomic",) if family == "ipv6" else ())
    found = [Probe(way, "tcp", flags, s, d, cut)
             for cut in cuts for flags in ("S", "SE", "SPU", "PA", "R", "F", "")
             for d in (22, 23, 9, 8080) for s in (40000, 53, 443)]  # fmt: skip
    found += [Probe(way, "udp", "", s, d, cut) for cut in cuts for d in (53, 9999, 40000) for s in (40000, 53)]
    echo = f"{wire.ECHO_REQUEST[family]}/0"
    return found + [Probe(way, "icmp", echo, cut=cut) for cut in cuts]
