"""The space that given rule-sets speak of: what each of their rules matches, as a packet set.

Dimensions are cut at the values that the rules name, so the answer is exact for what is
modelled: protocol, TCP flags, ICMP type, connection state, ports, addresses, interfaces.
Every other condition (an ipset, a limit, a time of day) is a dimension of its own that is
either so or not so, by its text; it means the same on both sides of a comparison.
"""

from __future__ import annotations

import ipaddress
import re
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from .packets import Box, PacketSet, Space
from .parts import SYN_ONLY, flags_matching, icmp_type_of
from .replies import Ports, joined_ranges, named_ports, port_range
from .ruleset import Option, Rule, RuleSet
from .stateful import STATE_OPTIONS, STATES

PROTOCOL, DETAIL, STATE, DPORT, SPORT, SOURCE, DESTINATION, IN, OUT, FIRST_OPEN = range(10)
# What rules name together is asked together: a port with the address on its side.  128 backends, each with a rule
# for both directions, are a hundred times smaller so than in the order of telling.
ORDER = (PROTOCOL, DETAIL, STATE, DPORT, DESTINATION, SPORT, SOURCE, IN, OUT)
_NUMBERS = {"tcp": 6, "udp": 17, "icmp": 1, "icmpv6": 58, "ipv6-icmp": 58, "gre": 47, "esp": 50, "ah": 51,
            "sctp": 132, "udplite": 136, "dccp": 33, "igmp": 2, "ipv6": 41, "ipip": 4, "ipencap": 4,
            "vrrp": 112, "ospf": 89, "pim": 103, "mobility-header": 135, "ipcomp": 108}
_MODELLED = frozenset(
    """
    -A -I -p -s -d -i -o -j -g -m --comment --syn --tcp-flags --icmp-type --icmpv6-type --sport --dport --sports
    --dports --ports --state --ctstate --reject-with --log-prefix --log-level --log-ip-options --log-tcp-options
    --log-tcp-sequence --log-uid --nflog-group --nflog-prefix --notrack --set-mark --set-xmark --set-counters -c
    --tproxy-mark --on-port --on-ip --queue-num --queue-bypass --set --rsource --rdest --name
    """.split()
)
_PLAIN_MATCHES = frozenset(("tcp", "udp", "icmp", "icmp6", "icmpv6", "multiport", "comment", "state", "conntrack"))


# Each is a dimension of its own, and a frame of Python's stack of 1,000; 300 take half a second to compare.
MOST_OPEN = 500


@dataclass(frozen=True)
class Universe:
    """Where every dimension is cut.  *cuts* are the first values of intervals."""

    family: str
    protocols: tuple[int, ...]
    ports: tuple[int, ...]
    addresses: tuple[int, ...]
    interfaces: tuple[str, ...]
    open_conditions: tuple[str, ...]
    space: Space

    def __post_init__(self) -> None:
        if len(self.open_conditions) > MOST_OPEN:
            count = len(self.open_conditions)
            raise ValueError(f"{count} different conditions are not modelled, {MOST_OPEN} are the most")

    def in_order_of_telling(self, found: PacketSet) -> tuple[Space, PacketSet]:
        """*found* with ports asked before addresses, as it is told, and the space that it is in then."""
        told = self.space.ordered(*range(FIRST_OPEN))
        pieces = self.space.split(found, FIRST_OPEN)
        return told, told.union(told.both(told.box(box), rest) for box, rest in pieces)

    def protocol_mask(self, *numbers: int) -> int:
        """The atoms of protocol *numbers*; the last atom is every protocol that is not listed."""
        return sum(1 << self.protocols.index(n) for n in numbers)

    def state_mask(self, *names: str) -> int:
        """The atoms of the states *names*."""
        return sum(1 << STATES.index(name) for name in set(names))

    def port_mask(self, ranges: Iterable[Ports]) -> int:
        """The atoms of port *ranges*."""
        return sum(_interval(self.ports, first, last + 1) for first, last in joined_ranges(ranges))

    def address_mask(self, texts: Iterable[str]) -> int:
        """The atoms of the networks *texts*."""
        mask = 0
        for first, last in (_network(self.family, text) for text in texts):
            mask |= _interval(self.addresses, first, last + 1)
        return mask

    def interface_mask(self, name: str) -> int:
        """The atoms of an interface name; ``eth+`` is every name that begins so."""
        if not name.endswith("+"):
            return 1 << self.interfaces.index(name)
        prefix = name[:-1]
        if not prefix:  # every name, the unlisted ones too
            return int((1 << len(self.interfaces) + 1) - 1)
        return sum(1 << at for at, other in enumerate(self.interfaces) if other.startswith(prefix))

    @property
    def icmp(self) -> int:
        """The family's ICMP protocol number."""
        return 1 if self.family == "ipv4" else 58


def _interval(cuts: tuple[int, ...], first: int, end: int) -> int:
    low, high = bisect_left(cuts, first), bisect_left(cuts, end)
    return ((1 << high) - 1) & ~((1 << low) - 1)


def _network(family: str, text: str) -> tuple[int, int]:
    """First and last address of *text*; an address that cannot be read raises ValueError."""
    kind = ipaddress.IPv4Network if family == "ipv4" else ipaddress.IPv6Network
    network = kind(text, strict=False)
    return int(network.network_address), int(network.broadcast_address)


def make_universe(rulesets: Iterable[RuleSet], family: str) -> Universe:
    """The universe in which all of *rulesets*, of one family, can be compared."""
    protocols = {6: None, 17: None, 1 if family == "ipv4" else 58: None}
    ports, addresses = {0, 65536}, {0, 1 << (32 if family == "ipv4" else 128)}
    interfaces: dict[str, None] = {}
    conditions: dict[str, None] = {}
    for ruleset in rulesets:
        for line in ruleset.walked():
            rule = line.rule
            protocols.update(dict.fromkeys(protocol_of(o) for o in rule.all("-p") if protocol_of(o)))
            for name in ("--dport", "--sport", "--dports", "--sports", "--ports"):
                for option in rule.all(name):
                    ports.update(x for first, last in _ranges(option) for x in (first, last + 1))
            for text in _address_texts(rule):
                first, last = _network(family, text)
                addresses |= {first, last + 1}
            interfaces.update(dict.fromkeys(o.value for o in rule.all("-i", "-o")))
            conditions.update(dict.fromkeys(open_condition(rule, family)))
    sizes = (len(protocols) + 1, 256, len(STATES), len(ports) - 1, len(ports) - 1,
             len(addresses) - 1, len(addresses) - 1, len(interfaces) + 1, len(interfaces) + 1,
             *(2 for _ in conditions))
    return Universe(family, tuple(protocols), tuple(sorted(ports)), tuple(sorted(addresses)), tuple(interfaces),
                    tuple(reversed(conditions)), Space(sizes, ORDER))


def protocol_of(option: Option) -> int:
    """The number of the protocol that ``-p`` names; 0 for any, 255 for a name that we do not know."""
    name = option.value.lower()
    if name in ("all", "0", "any"):
        return 0
    return int(name) if name.isdigit() else _NUMBERS.get(name, 255)


def _address_texts(rule: Rule) -> list[str]:
    return [text for option in rule.all("-s", "-d") for text in option.value.split(",") if _is_address(text)]


@lru_cache(maxsize=4096)
def _is_address(text: str) -> bool:
    if re.search(r"/0\.(?!0\.0\.0$)", text):
        return False  # 0.0.0.1 is a mask with holes, where ipaddress reads it as a wildcard, /31
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def _ranges(option: Option) -> list[Ports]:
    return named_ports(Rule("", "", "", "", (Option(option.name, option.args, False, 0, 0),)), option.name)


def open_condition(rule: Rule, family: str) -> tuple[str, ...]:
    """The text of the conditions of *rule* that are not modelled, all in one, or nothing."""
    other = [o for o in rule.options if o.name not in _MODELLED or (o.name in ("--set", "--name") and _recent(rule))]
    texts = [("! " if o.negated else "") + " ".join((o.name, *o.args)) for o in other]
    texts += [f"-m {o.value}" for o in rule.all("-m") if o.value not in _PLAIN_MATCHES]
    unread = [o for o in rule.all("-s", "-d") if not all(map(_is_address, o.value.split(",")))]
    unread += [o for o in rule.all("--icmp-type", "--icmpv6-type") if _narrow(o, rule, family)]
    unread += [o for o in rule.all("--dport", "--sport", "--dports", "--sports", "--ports") if not _readable(o)]
    unread += [o for o in rule.all(*STATE_OPTIONS) if not _states_only(o)]
    texts += [("! " if o.negated else "") + f"{o.name} {o.value}" for o in unread]
    return (" ".join(sorted(texts, key=lambda text: (text[:3] != "-m ", text))),) if texts else ()


def _readable(option: Option) -> bool:
    """Whether every port that *option* names is known; half a list would match too little."""
    return all(port_range(item) for item in option.value.split(","))


def _states_only(option: Option) -> bool:
    """Whether *option* asks for states alone, not for SNAT or DNAT."""
    return frozenset(name for name in option.value.upper().split(",") if name) <= frozenset(STATES)


def _recent(rule: Rule) -> bool:
    return "recent" in rule.matches


def _narrow(option: Option, rule: Rule, family: str) -> bool:
    """Whether an ICMP option asks for a code, or is negated, or names what we do not know."""
    broad = ("destination-unreachable", "time-exceeded", "ttl-exceeded", "parameter-problem", "redirect")
    return option.negated or icmp_type_of(rule, family) == -1 or "/" in option.value or (
        not option.value.isdigit() and icmp_type_of(rule, family) in (1, 3, 4, 5, 11, 12)
        and option.value not in (*broad, "packet-too-big", "source-quench")
    )


def matched(universe: Universe, rule: Rule) -> PacketSet:
    """The packets that *rule* matches."""
    space = universe.space
    box: Box = {}

    def narrow(dimension: int, mask: int, negated: bool = False) -> None:
        mask = space.full(dimension) & ~mask if negated else mask
        box[dimension] = box.get(dimension, space.full(dimension)) & mask

    for option in rule.all("-p"):
        if protocol_of(option):
            narrow(PROTOCOL, universe.protocol_mask(protocol_of(option)), option.negated)
    for option in rule.all("--syn", "--tcp-flags"):
        flags, wanted = SYN_ONLY if option.name == "--syn" else (*option.args, "", "")[:2]
        narrow(DETAIL, sum(1 << f for f in flags_matching(flags, wanted)), option.negated)
        narrow(PROTOCOL, universe.protocol_mask(6))
    wanted_type = icmp_type_of(rule, universe.family)
    if wanted_type is not None and wanted_type >= 0:
        narrow(DETAIL, 1 << wanted_type)
        narrow(PROTOCOL, universe.protocol_mask(universe.icmp))
    for option in rule.all(*STATE_OPTIONS):
        if _states_only(option):
            names = [n for n in option.value.upper().split(",") if n]
            narrow(STATE, universe.state_mask(*names), option.negated)
    _narrow_places(universe, rule, narrow)
    for text in open_condition(rule, universe.family):
        narrow(FIRST_OPEN + universe.open_conditions.index(text), 2)
    found = space.box(box)
    for option in filter(_readable, rule.all("--ports")):
        mask = universe.port_mask(_ranges(option))
        either = space.either(space.box({DPORT: mask}), space.box({SPORT: mask}))
        found = space.without(found, either) if option.negated else space.both(found, either)
    return found


def _narrow_places(universe: Universe, rule: Rule, narrow: object) -> None:
    """Ports, addresses and interfaces."""
    assert callable(narrow)
    for names, dimension in ((("--dport", "--dports"), DPORT), (("--sport", "--sports"), SPORT)):
        for option in rule.all(*names):
            if _readable(option):
                narrow(dimension, universe.port_mask(_ranges(option)), option.negated)
    for name, dimension in (("-s", SOURCE), ("-d", DESTINATION)):
        for option in rule.all(name):
            texts = option.value.split(",")
            if all(_is_address(text) for text in texts):
                narrow(dimension, universe.address_mask(texts), option.negated)
    for name, dimension in (("-i", IN), ("-o", OUT)):
        for option in rule.all(name):
            narrow(dimension, universe.interface_mask(option.value), option.negated)
