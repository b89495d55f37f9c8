"""Which UDP datagrams are replies: conntrack knew from the request, we know from the ports.

A reply is recognised by the port it comes from, and, where it comes in from outside, by
going to a port that this host uses for requests.  The ports are those that the rules or
``flows.outbound`` name (CONTRACT.md, G2).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from .ruleset import Line, Rule, RuleSet
from .stateful import states_of

Ports = tuple[int, int]
HIGH_PORTS: Ports = (1024, 65535)
HOOKS_WITH_REPLIES = ("INPUT", "OUTPUT", "FORWARD")


@dataclass(frozen=True)
class UdpFlow:
    """UDP that this host asks for (*ports* are remote) or answers (*ports* are local)."""

    ports: Ports
    address: str = ""
    family: str = ""


# DNS, NTP, DHCP: whose replies a host hardly lives without.
DEFAULT_OUTBOUND = (UdpFlow((53, 53)), UdpFlow((123, 123)), UdpFlow((67, 67)))


# Asked from the same port: by ntpd, and by IKE daemons (RFC 7296, section 2; RFC 3948).
SAME_PORT = frozenset((123, 500, 4500))


@dataclass(frozen=True)
class Reply:
    """UDP datagrams from *sport* to *dport*, as ranges; empty addresses mean any."""

    sport: Ports
    dport: Ports | None = None
    source: str = ""
    destination: str = ""

    @property
    def options(self) -> str:
        """The match as iptables options; the addresses are apart, see :attr:`addresses`."""
        text = f"--sport {ports_text(self.sport)}"
        return f"{text} --dport {ports_text(self.dport)}" if self.dport else text

    @property
    def addresses(self) -> str:
        """``-s`` and ``-d`` of the match, or an empty text."""
        parts = [f"-s {self.source}"] if self.source else []
        return " ".join(parts + ([f"-d {self.destination}"] if self.destination else []))

    @property
    def meaning(self) -> str:
        """The match for a person."""
        text = f"UDP datagrams from port {ports_text(self.sport)}"
        text += f" of {self.source}" if self.source else ""
        return text + (f" to local port {ports_text(self.dport)}" if self.dport else "")


def ports_text(ports: Ports | None) -> str:
    """``53`` or ``8000:8010``."""
    if ports is None:
        return ""
    return str(ports[0]) if ports[0] == ports[1] else f"{ports[0]}:{ports[1]}"


def outbound_replies(flows: Iterable[UdpFlow], family: str, local_ports: Ports) -> tuple[Reply, ...]:
    """Replies to what this host asks for: they come in, to the ports it asks from.

    A DHCP client answers on port 68 (546 for DHCPv6, from the server's 547), and who asks
    for one of SAME_PORT may ask from that port itself.
    """
    found: list[Reply] = []
    for flow in flows:
        if flow.family not in ("", family):
            continue
        if flow.ports == (67, 67) or (flow.ports == (547, 547) and family == "ipv6"):
            server, client = ((67, 67), (68, 68)) if family == "ipv4" else ((547, 547), (546, 546))
            found.append(Reply(server, client, flow.address))
            continue
        found += [Reply(flow.ports, to, flow.address) for to in _asked_from(flow.ports, local_ports)]
    return tuple(found)


def _asked_from(ports: Ports, usual: Ports) -> tuple[Ports, ...]:
    """The ports from which *ports* are asked, *usual* being those of a client that does not care."""
    same = ports[0] == ports[1] and ports[0] in SAME_PORT and overlap(ports, usual) is None
    return (usual, ports) if same else (usual,)


def replies_by_hook(
    ruleset: RuleSet,
    local_ports: Ports,
    asked: tuple[UdpFlow, ...],
    answered: tuple[UdpFlow, ...],
) -> dict[str, tuple[Reply, ...]]:
    """The replies that each filter hook sees: those configured, and those the rules name.

    *asked* are flows that this host asks for, *answered* those that it serves.
    """
    found: dict[str, dict[Reply, None]] = {hook: {} for hook in HOOKS_WITH_REPLIES}
    found["INPUT"].update(dict.fromkeys(outbound_replies(asked, ruleset.family, local_ports)))
    for flow in answered:
        if flow.family in ("", ruleset.family):
            found["OUTPUT"][Reply(flow.ports, None, "", "")] = None
    for line in ruleset.rules("filter"):
        for hook in ruleset.hooks.get(("filter", line.chain), ()):
            for other, reply in _mirrored(line, hook, local_ports):
                found[other][reply] = None
    return {hook: tuple(replies) for hook, replies in found.items()}


def replies_seen(replies: Mapping[str, tuple[Reply, ...]], hooks: Iterable[str]) -> tuple[Reply, ...]:
    """The replies that a chain sees which is reached from *hooks*."""
    seen_by = {"PREROUTING": ("INPUT", "FORWARD"), "POSTROUTING": ("OUTPUT", "FORWARD")}
    names = dict.fromkeys(name for hook in hooks for name in seen_by.get(hook, (hook,)))
    return tuple(dict.fromkeys(reply for name in names for reply in replies.get(name, ())))


def _mirrored(line: Line, hook: str, local_ports: Ports) -> list[tuple[str, Reply]]:
    """The replies to what *line* lets through as new UDP, each with the hook that sees it."""
    like = line.like
    if like.target != "ACCEPT" or not _is_udp(like) or _on_loopback(line.rule):
        return []
    rule = line.rule
    states = states_of(rule)
    if states is not None and "NEW" not in states:
        return []
    other = {"INPUT": "OUTPUT", "OUTPUT": "INPUT", "FORWARD": "FORWARD"}.get(hook)
    if other is None:
        return []
    back_to = {"INPUT": None, "OUTPUT": local_ports, "FORWARD": HIGH_PORTS}[hook]
    asked_from = named_ports(rule, "--sport", "--sports")
    return [
        (other, Reply(ports, target, _address(rule, "-d"), _address(rule, "-s")))
        for ports in named_ports(rule, "--dport", "--dports", "--ports")
        for target in asked_from or (_asked_from(ports, back_to) if back_to else (None,))
    ]


def _is_udp(rule: Rule) -> bool:
    option = rule.first("-p")
    return option is not None and not option.negated and option.value.lower() in ("udp", "17")


def _on_loopback(rule: Rule) -> bool:
    return any(o.value == "lo" and not o.negated for o in rule.all("-i", "-o"))


def _address(rule: Rule, name: str) -> str:
    option = rule.first(name)
    return "" if option is None or option.negated or "," in option.value else option.value


SERVICES = {"domain": 53, "ntp": 123, "bootps": 67, "bootpc": 68, "http": 80, "https": 443, "ssh": 22, "syslog": 514}


NUMBER = re.compile("[0-9]{1,9}")


def port_number(text: str) -> int | None:
    """A port written as a number or as one of the few names that saved rules use."""
    return int(text) if NUMBER.fullmatch(text) and int(text) < 65536 else SERVICES.get(text)


def named_ports(rule: Rule, *options: str) -> list[Ports]:
    """The port ranges that *rule* names in *options*; negated ones and unknown names are left out."""
    found: list[Ports] = []
    for option in rule.all(*options):
        if option.negated:
            continue
        found += [ports for item in option.value.split(",") if (ports := port_range(item))]
    return found


@lru_cache(maxsize=4096)
def port_range(text: str) -> Ports | None:
    """``80``, ``8000:8010``, ``:1023`` or a known name as a range."""
    first, _, last = text.partition(":")
    start = 0 if text.startswith(":") else port_number(first)
    end = port_number(last) if last else (65535 if ":" in text else start)
    return (start, end) if start is not None and end is not None and start <= end else None


def narrowed(rule: Rule, reply: Reply) -> str | None:
    """The options that make *rule* match *reply* only, in place of its own of the same names.

    ``None`` where no packet can match both.
    """
    options = [
        _narrowed_address(rule, "-s", reply.source),
        _narrowed_address(rule, "-d", reply.destination),
        _narrowed_port(rule, "--sport", reply.sport),
        _narrowed_port(rule, "--dport", reply.dport),
    ]
    found = [option for option in options if option]
    if None in options:
        return None
    own = [option for option in found if option.startswith("--")]
    return " ".join([o for o in found if o[:2] in ("-s", "-d")] + (["-m udp"] if own else []) + own
                    + [o for o in found if o[:2] == "-m"])


def _narrowed_address(rule: Rule, name: str, wanted: str) -> str | None:
    own = rule.first(name)
    if own is None or not wanted:
        return f"{name} {wanted}" if wanted else ""
    try:
        mine, theirs = ipaddress.ip_network(own.value, False), ipaddress.ip_network(wanted, False)
    except ValueError:
        return ""  # a name or a list: the rule's own address is narrow enough
    inside = theirs.prefixlen >= mine.prefixlen and theirs.overlaps(mine)
    if own.negated:
        return None if inside else ("" if theirs.overlaps(mine) else f"{name} {wanted}")
    return f"{name} {wanted}" if inside else ("" if theirs.overlaps(mine) else None)


def _narrowed_port(rule: Rule, name: str, wanted: Ports | None) -> str | None:
    if wanted is None:
        return ""
    lists = [ports for option in rule.all(f"{name}s") if not option.negated for ports in named_ports(rule, option.name)]
    if lists and not any(overlap(ports, wanted) for ports in lists):
        return None
    apart = f"-m multiport {name}s {ports_text(wanted)}"  # a second --dport would be lost by iptables-nft-save
    own = rule.all(name)
    if not own:
        return f"{name} {ports_text(wanted)}"
    mine = port_range(own[0].value)
    if mine is None or len(own) > 1:
        return apart
    common = overlap(mine, wanted)
    if own[0].negated:
        return f"{name} {ports_text(wanted)}" if common is None else (None if common == wanted else apart)
    return f"{name} {ports_text(common)}" if common else None


def overlap(one: Ports, two: Ports) -> Ports | None:
    """The ports of both ranges."""
    first, last = max(one[0], two[0]), min(one[1], two[1])
    return (first, last) if first <= last else None


MOST_PORTS = 15  # of one multiport match; a range counts twice (XT_MULTI_PORTS)


def no_reply(replies: Iterable[Reply]) -> tuple[str, ...] | None:
    """The matches, side by side, of the UDP datagrams that are none of *replies*.

    ``None`` where a reply has addresses: one rule cannot say "not from there to that port".
    """
    listed = tuple(replies)
    if any(reply.addresses for reply in listed):
        return None
    edges = sorted({edge for reply in listed for edge in (reply.sport[0], reply.sport[1] + 1)})
    found = [_none_of("--sports", joined_ranges(reply.sport for reply in listed))]
    for first, end in zip(edges, edges[1:]):
        to = [reply.dport for reply in listed if reply.sport[0] <= first and end - 1 <= reply.sport[1]]
        ranges = [ports for ports in to if ports is not None]
        if to and len(ranges) == len(to):
            own = f"-m multiport --sports {ports_text((first, end - 1))}"
            found.append(f"{own} {_none_of('--dports', joined_ranges(ranges))}")
    return tuple(found)


def joined_ranges(ranges: Iterable[Ports]) -> list[Ports]:
    """The same ports in as few ranges as possible."""
    found: list[Ports] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return found


def _none_of(option: str, ranges: list[Ports]) -> str:
    lists: list[list[Ports]] = [[]]
    for ports in ranges:
        if sum(1 + (a != b) for a, b in (*lists[-1], ports)) > MOST_PORTS:
            lists.append([])
        lists[-1].append(ports)
    return " ".join(f"-m multiport ! {option} {','.join(map(ports_text, ports))}" for ports in lists)
