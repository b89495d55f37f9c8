"""The little internet of these tests.

::

    client ---- router ---- host ---- backend        each link has a network of its own
    .1.2    .1.1    .2.1  .2.2 .3.1   .3.2           10.77.N.x and fd77:N::x

*host* has the rules under test; it forwards between its two links.  The router can be told
to forward only small packets towards the client, whose own link says nothing of it: then
only an ICMP error tells the sender.  Packets of the scanning probes come from addresses in
``SCAN``; the client silently swallows what is sent there, so that it never answers.  The client has
the addresses .2 to .9 (and calls from .2): what the host learns of the path to one of them (its MTU) does not
help another.  The router refuses ``UNREACHABLE`` with an ICMP error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .namespace import Namespace, configure

FAMILIES = ("ipv4", "ipv6")
BACKENDS = ("legacy", "nft")
SMALL_MTU = 1300
SCAN = {"ipv4": "10.128.0.0/9", "ipv6": "fd80::/16"}
CLIENTS = {"ipv4": "10.77.1.0/28", "ipv6": "fd77:1::/124"}
UNREACHABLE = {"ipv4": "10.78.0.1", "ipv6": "fd78::1"}

SYSCTLS: dict[str, object] = {
    # no duplicate address detection: addresses work at once
    "net.ipv6.conf.all.accept_dad": 0, "net.ipv6.conf.default.accept_dad": 0,
    "net.ipv6.conf.default.router_solicitations": 0,
    # a lost ICMP answer is to mean a rule, not a rate limit (a limit of 0 instead of no mask
    # would take the credit away that ip_error() asks for)
    "net.ipv4.icmp_ratemask": 0, "net.ipv6.icmp.ratelimit": 0,
    "net.ipv4.conf.all.rp_filter": 0, "net.ipv4.conf.default.rp_filter": 0,
    # half-open connections of a scan do not send handshakes again into a later test
    "net.ipv4.tcp_synack_retries": 0, "net.ipv4.tcp_max_syn_backlog": 8192,
    "net.ipv4.ping_group_range": "0 2147483647",
}  # fmt: skip
# Not every kernel has these in every namespace, or before a module is loaded.
WHERE_THEY_EXIST: dict[str, object] = {
    "net.ipv4.icmp_msgs_per_sec": 100_000, "net.ipv4.icmp_msgs_burst": 100_000,
    # fragments whose others were refused do not fill the memory for later ones
    "net.ipv4.ipfrag_time": 2, "net.ipv4.ipfrag_high_thresh": 1 << 28,
    "net.ipv6.ip6frag_time": 2, "net.ipv6.ip6frag_high_thresh": 1 << 28,
    "net.netfilter.nf_conntrack_frag6_timeout": 2, "net.netfilter.nf_conntrack_frag6_high_thresh": 1 << 28,
}  # fmt: skip


@dataclass(frozen=True)
class Topology:
    """The four namespaces, linked and addressed."""

    client: Namespace
    router: Namespace
    host: Namespace
    backend: Namespace

    @property
    def all(self) -> list[Namespace]:
        """Every namespace, from left to right."""
        return [self.client, self.router, self.host, self.backend]

    def named(self, name: str) -> Namespace:
        """The namespace of that name."""
        return next(namespace for namespace in self.all if namespace.name == name)

    def small_link(self, family: str, small: bool = True) -> None:
        """Let the router forward only packets of ``SMALL_MTU`` bytes to the client, or all."""
        option = f" mtu lock {SMALL_MTU}" if small else ""
        configure(self.router, [f"route replace {CLIENTS[family]} dev toclient{option}"], family)

    def forget_paths(self) -> None:
        """Empty neighbour tables and learnt path MTUs: the next packet has to find its way anew."""
        for namespace in self.all:
            for family in FAMILIES:
                configure(namespace, ["neigh flush all", "route flush cache"], family)

    def clear(self, backend: str) -> None:
        """No rules and no connections on the host."""
        for family in FAMILIES:
            self.host.clear_rules(backend, family)
        self.host.forget_connections()


def address(family: str, name: str) -> str:
    """An address: ``client``, ``edge`` (the router, towards the client), ``router``, ``host`` (towards
    the client), ``inside`` (the host, towards the backend), ``backend``, ``loopback``."""
    if name == "loopback":
        return "127.0.0.1" if family == "ipv4" else "::1"
    ends = {"client": (1, 2), "edge": (1, 1), "router": (2, 1), "host": (2, 2), "inside": (3, 1), "backend": (3, 2)}
    link, last = ends[name]
    return f"10.77.{link}.{last}" if family == "ipv4" else f"fd77:{link}::{last}"


def net(family: str, link: int) -> str:
    """The network of one link."""
    return f"10.77.{link}.0/24" if family == "ipv4" else f"fd77:{link}::/64"


@contextmanager
def topology() -> Iterator[Topology]:
    """Make the namespaces, give them, and let them go."""
    made = Topology(*(Namespace(name) for name in ("client", "router", "host", "backend")))
    try:
        _prepare(made)
        _link(made)
        _route(made)
        yield made
    finally:
        for namespace in made.all:
            namespace.close()


def _prepare(made: Topology) -> None:
    for namespace in made.all:
        namespace.sysctl(SYSCTLS)
        namespace.sysctl(WHERE_THEY_EXIST, missing_ok=True)
    for namespace in (made.router, made.host):
        namespace.sysctl({"net.ipv4.ip_forward": 1, "net.ipv6.conf.all.forwarding": 1})


def _link(made: Topology) -> None:
    for left, left_name, right, right_name in (
        (made.router, "toclient", made.client, "eth0"),
        (made.router, "tohost", made.host, "eth0"),
        (made.backend, "eth0", made.host, "eth1"),
    ):
        configure(left, [f"link add {left_name} type veth peer name {right_name} netns {right.path}"])
    ends = ((made.client, "eth0", 1, 2), (made.router, "toclient", 1, 1), (made.router, "tohost", 2, 1),
            (made.host, "eth0", 2, 2), (made.host, "eth1", 3, 1), (made.backend, "eth0", 3, 2))  # fmt: skip
    # An end that comes up before its peer would learn of its carrier up to a second later,
    # and IPv6 waits for that: after a first round each end goes down and up again.
    for up in (["up"], ["down", "up"]):
        for namespace in made.all:
            own = [end for end in ends if end[0] is namespace]
            configure(namespace, [f"link set {end[1]} {state}" for state in up for end in own])
    for namespace in made.all:
        commands = ["link set lo up"]
        for _, interface, link, last in (end for end in ends if end[0] is namespace):
            commands += [f"addr add 10.77.{link}.{last}/24 dev {interface}",
                         f"addr add fd77:{link}::{last}/64 dev {interface} nodad"]  # fmt: skip
        configure(namespace, commands)
    more = [(f"10.77.1.{n}/24", f"fd77:1::{n}/64 nodad preferred_lft 0") for n in range(3, 10)]
    configure(made.client, [f"addr add {text} dev eth0" for pair in more for text in pair])


def _route(made: Topology) -> None:
    for family in FAMILIES:
        to = {name: address(family, name) for name in ("client", "edge", "router", "host", "inside")}
        configure(made.client, [f"route add default via {to['edge']}"], family)
        configure(made.router, [f"route add {SCAN[family]} via {to['client']}",
                                f"route add {net(family, 3)} via {to['host']}",
                                f"route add unreachable {UNREACHABLE[family]}"], family)  # fmt: skip
        configure(made.host, [f"route add default via {to['router']}"], family)
        configure(made.backend, [f"route add default via {to['inside']}"], family)
