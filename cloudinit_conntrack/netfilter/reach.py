"""Which verdicts a packet can meet: rules walked as the kernel walks them.

Matches that we do not know for the packet at hand (its address, an ipset, a limit) are
taken both ways, so the answer is a set: ``{"ACCEPT"}`` is certain, ``{"ACCEPT", "DROP"}``
depends on what is unknown, and a verdict that is missing cannot happen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from .parts import FLAG_BITS, flags_of, groups_of, icmp_type_of
from .replies import named_ports
from .ruleset import Line, Rule, RuleSet
from .stateful import STATE_OPTIONS, STATES

VERDICTS = frozenset(("ACCEPT", "DROP", "REJECT", "QUEUE", "NFQUEUE", "TPROXY"))


@dataclass(frozen=True)
class Packet:
    """A packet as far as it is known; ``None`` and empty mean unknown.

    *group* is ``tcp``, ``udp`` or ``icmp``; *flags* is the TCP flag byte; *interface* is
    the one it comes in by (INPUT) or goes out by (OUTPUT).
    """

    group: str
    dport: int | None = None
    sport: int | None = None
    flags: int = 0
    icmp_type: int | None = None
    state: str = ""
    interface: str = ""


def syn(port: int, state: str = "NEW") -> Packet:
    """A handshake from outside to *port*."""
    return Packet("tcp", port, None, FLAG_BITS["SYN"], None, state)


def verdicts(ruleset: RuleSet, hook: str, packet: Packet, table: str = "filter") -> frozenset[str]:
    """The verdicts that *packet* can meet at *hook* of *table*; ACCEPT where nothing is."""
    chains = ruleset.chains.get(table, {})
    if hook not in chains:
        return frozenset(("ACCEPT",))
    found, through = _walk(_Way(ruleset, table, packet), hook)
    if through:
        found |= {chains[hook] or "ACCEPT"}
    return frozenset("DROP" if verdict == "REJECT" else verdict for verdict in found)


@dataclass(frozen=True)
class _Way:
    """One packet's way through *table*; *known* keeps each chain's answer, since chains are met often."""

    ruleset: RuleSet
    table: str
    packet: Packet
    known: dict[str, tuple[frozenset[str], bool]] = field(default_factory=dict)


def _walk(way: _Way, chain: str) -> tuple[frozenset[str], bool]:
    """The verdicts to be met in *chain*, and whether the packet can come out at its end."""
    if chain not in way.known:
        way.known[chain] = (frozenset(), True)  # met again on the way: a loop, which the kernel refuses
        way.known[chain] = _walk_rules(way, chain)
    return way.known[chain]


def _walk_rules(way: _Way, chain: str) -> tuple[frozenset[str], bool]:
    found: set[str] = set()
    returns = False
    for line in _may_match(way, chain):
        answer = _matches(line.rule, way.ruleset.family, way.packet)
        if answer is False:
            continue
        verdicts_met, ends, comes_back = _target(way, line.rule)
        found |= verdicts_met
        returns = returns or comes_back
        if ends and answer is True:
            return frozenset(found), returns
    return frozenset(found), True


def _may_match(way: _Way, chain: str) -> Iterable[Line]:
    """The rules of *chain* without those that name another port than the packet's.

    A balancer has a rule or more for each of its ports, and each of its flows is looked at.
    """
    lines = way.ruleset.appended.get((way.table, chain), ())
    if len(lines) < _FEW:
        return lines
    index = way.ruleset.kept.get(("ports", way.table, chain))
    if index is None:
        index = way.ruleset.kept["ports", way.table, chain] = _PortIndex(lines)
    assert isinstance(index, _PortIndex)
    return index.of(way.packet)


_FEW = 8
_MOST_PORTS = 16  # of one rule; a range of more is looked at for every packet
_SIDES = (("--dport", "--dports"), ("--sport", "--sports"))


class _PortIndex:
    """The rules of a chain by the ports that they name, those of a destination first; and all *others*."""

    def __init__(self, lines: tuple[Line, ...]) -> None:
        self._lines = lines
        self._others: list[int] = []
        self._by_port: tuple[dict[int, list[int]], ...] = ({}, {})
        for number, line in enumerate(lines):
            side, ports = next(_decisive(line.rule), (0, None))
            if ports is None:
                self._others.append(number)
                continue
            for port in ports:
                self._by_port[side].setdefault(port, []).append(number)

    def of(self, packet: Packet) -> Iterable[Line]:
        """The rules that *packet* may match, in their order; one whose port is not known may match any."""
        found = set(self._others)
        for port, by_port in zip((packet.dport, packet.sport), self._by_port):
            found.update(*(by_port.values() if port is None else [by_port.get(port, ())]))
        return [self._lines[number] for number in sorted(found)]


def _decisive(rule: Rule) -> Iterator[tuple[int, set[int]]]:
    """(side, its few ports) for each side whose ports *rule* names, so that any other does not match."""
    for side, names in enumerate(_SIDES):
        options = rule.all(*names)
        ranges = named_ports(rule, *names) if options and not any(o.negated for o in options) else []
        if ranges and sum(b - a for a, b in ranges) < _MOST_PORTS:
            yield side, {port for first, last in ranges for port in range(first, last + 1)}


def _target(way: _Way, rule: Rule) -> tuple[frozenset[str], bool, bool]:
    """Follow *rule*'s target: verdicts, whether the chain ends here, and whether its caller goes on."""
    target = rule.target
    if target in VERDICTS:
        return frozenset((target,)), True, False
    if target == "RETURN":
        return frozenset(), True, True
    if target in way.ruleset.chains.get(way.table, {}):
        found, through = _walk(way, target)
        return (found, True, through) if rule.first("-g") else (found, not through, False)
    return frozenset(), False, False


def _matches(rule: Rule, family: str, packet: Packet) -> bool | None:
    """Whether *rule* matches: True, False, or ``None`` for "it depends"."""
    if packet.group not in groups_of(rule, family):
        return False
    answers: list[bool | None] = [
        _port(rule, packet.dport, "--dport", "--dports"),
        _port(rule, packet.sport, "--sport", "--sports"),
        _flags(rule, packet),
        _icmp(rule, family, packet),
        _state(rule, packet),
        _interface(rule, packet),
        _unmodelled(rule),
    ]
    if False in answers:
        return False
    return None if None in answers else True


def _port(rule: Rule, port: int | None, *names: str) -> bool | None:
    options = rule.all(*names)
    if not options:
        return True
    if port is None or any(o.negated for o in options):
        return None
    return any(first <= port <= last for first, last in named_ports(rule, *names))


def _flags(rule: Rule, packet: Packet) -> bool | None:
    return packet.group != "tcp" or packet.flags in flags_of(rule)


def _icmp(rule: Rule, family: str, packet: Packet) -> bool | None:
    if packet.group != "icmp":
        return True
    wanted = icmp_type_of(rule, family)
    return True if wanted is None else (None if packet.icmp_type is None else wanted == packet.icmp_type)


def _state(rule: Rule, packet: Packet) -> bool | None:
    for option in rule.all(*STATE_OPTIONS):
        names = frozenset(option.value.upper().split(","))
        if not packet.state or not names <= frozenset(STATES):
            return None
        if (packet.state in names) == option.negated:
            return False
    return True


def _interface(rule: Rule, packet: Packet) -> bool | None:
    for option in rule.all("-i", "-o"):
        if not packet.interface and option.value != "lo":
            return None
        if _named(option.value, packet.interface) == option.negated:
            return False
    return True


def _named(pattern: str, interface: str) -> bool:
    return interface.startswith(pattern[:-1]) if pattern.endswith("+") else interface == pattern


_MODELLED = frozenset(
    """
    -A -I -p -m -j -g -i -o --dport --dports --sport --sports --syn --tcp-flags --icmp-type --icmpv6-type --state
    --ctstate --comment --reject-with --notrack --log-prefix --log-level --log-ip-options --log-tcp-options
    """.split()
)


def _unmodelled(rule: Rule) -> bool | None:
    other = [o for o in rule.options if o.name not in _MODELLED]
    return None if any(not _anywhere(o.name, o.value) for o in other) else True


def _anywhere(name: str, value: str) -> bool:
    return name in ("-s", "-d") and value in ("0.0.0.0/0", "::/0")
