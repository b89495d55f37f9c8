"""An address as haproxy writes it -> what it means in the network.

haproxy 2.6, ``str2sa_range`` of ``src/tools.c``, and the prefixes that later versions added:
``[PREFIX@]HOST[:PORT]``, where the last colon behind any bracket begins the port.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from dataclasses import dataclass, replace

from ..errors import HaproxyError
from ..messages import quoted

Ports = tuple[int, int]
EVERY = {4: "0.0.0.0/0", 6: "::/0"}
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,253})")
_PORTS = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?")
_OFFSET = re.compile(r"[+-][0-9]{1,5}")
# prefix -> (family, protocol); 0 is both, an empty protocol the one that is meant without a prefix
_PREFIXES = {
    "ip@": (0, ""), "ipv4@": (4, ""), "ipv6@": (6, ""),
    "tcp@": (0, "tcp"), "tcp4@": (4, "tcp"), "tcp6@": (6, "tcp"),
    "mptcp@": (0, "tcp"), "mptcp4@": (4, "tcp"), "mptcp6@": (6, "tcp"),
    "udp@": (0, "udp"), "udp4@": (4, "udp"), "udp6@": (6, "udp"),
    "quic@": (0, "quic"), "quic4@": (4, "quic"), "quic6@": (6, "quic"),
}  # fmt: skip
_LOCAL = ("unix@", "uxdg@", "uxst@", "abns@", "abnsz@", "sockpair@", "rhttp@", "ring@", "backend@", "/")
_KINDS = {"stream+": "tcp", "dgram+": "udp"}


@dataclass(frozen=True)
class Endpoint:
    """What an address says.

    *protocol* is ``tcp``, ``udp`` or ``quic``.  *place* is ``ip``, ``local`` (no packet of it
    passes the network) or ``inherited`` (a file descriptor, of which nobody here knows anything).
    *network* is an IP network, empty where *name* is a name that only DNS knows.  Without *ports*
    the port is the client's, moved by *offset*.
    """

    place: str
    protocol: str = "tcp"
    network: str = ""
    name: str = ""
    ports: Ports | None = None
    offset: int = 0

    @property
    def transport(self) -> str:
        """The protocol on the wire: ``tcp`` or ``udp``."""
        return "tcp" if self.protocol == "tcp" else "udp"

    @property
    def everywhere(self) -> bool:
        """Whether the address is the unspecified one, ``0.0.0.0`` or ``::``."""
        return self.network in EVERY.values()


def endpoint_of(text: str, where: str, protocol: str = "tcp", ranges: bool = False) -> Endpoint:
    """The address *text*; *protocol* where it names none, *ranges* where a range of ports is right.

    HaproxyError for what haproxy refuses, and for what it reads otherwise than it looks.
    """
    try:
        return _endpoint(text, protocol, ranges)
    except HaproxyError as error:
        raise HaproxyError(error.what, where, error.remedy) from None


@functools.lru_cache(maxsize=1 << 14)
def _endpoint(whole: str, protocol: str, ranges: bool) -> Endpoint:
    text = whole
    for prefix, kind in _KINDS.items():
        if text.startswith(prefix):
            text, protocol = text[len(prefix):], kind
    if text.startswith(_LOCAL):
        return Endpoint("local", protocol)
    if text.startswith("fd@"):
        return Endpoint("inherited", protocol)
    head, at, rest = text.partition("@")
    family, named = _PREFIXES.get(head + at, (0, ""))
    if at and head + at not in _PREFIXES:
        raise HaproxyError(f"the address {quoted(whole)} begins with an unknown {quoted(head + at)}", "",
                           "name its flow in conntrack.flows, and leave this file out of haproxy_cfg")
    host, port = _halves(rest if at else text)
    found = _host(host, family, whole)
    return _with_port(replace(found, protocol=named or protocol), port, whole, ranges)


def _halves(text: str) -> tuple[str, str]:
    colon, bracket = text.rfind(":"), text.rfind("]")
    return (text[:colon], text[colon + 1:]) if colon > bracket else (text, "")


def _host(host: str, family: int, whole: str) -> Endpoint:
    if host in ("", "*"):
        return Endpoint("ip", network=EVERY[family or 4])
    plain = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    network = network_of(plain)
    if network:
        if family and (":" in network) is not (family == 6):
            raise HaproxyError(f"the address {quoted(whole)} is of the other family", "", "haproxy refuses it too")
        return Endpoint("ip", network=network)
    if not _NAME.fullmatch(host):
        raise HaproxyError(f"the address {quoted(whole)} cannot be read", "",
                           "write HOST:PORT, an IPv6 address as [2001:db8::1]:80")
    return Endpoint("ip", name=host)


def network_of(text: str) -> str:
    """The IP address *text* as a network, the unspecified one as everything; empty when it is none."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped  # what goes over the wire
    return EVERY[address.version] if int(address) == 0 else f"{address}/{address.max_prefixlen}"


def _with_port(found: Endpoint, port: str, whole: str, ranges: bool) -> Endpoint:
    if not port:
        return found
    if _OFFSET.fullmatch(port) and not ranges:
        return replace(found, offset=int(port))
    match = _PORTS.fullmatch(port)
    if match is None or (match.group(2) and not ranges):
        raise HaproxyError(f"the port in {quoted(whole)} is not one plain number", "",
                           "write digits (haproxy takes those that it finds first, and drops the rest)")
    first, last = int(match.group(1)), int(match.group(2) or match.group(1))
    if not 0 <= first <= last <= 65535:
        raise HaproxyError(f"the port in {quoted(whole)} is none", "", "write 1 to 65535, a range upwards")
    return replace(found, ports=(first, last)) if first else found
