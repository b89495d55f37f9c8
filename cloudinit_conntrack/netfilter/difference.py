"""Two rule-sets compared: which packets the one accepts and the other does not.

Computed from the rule-sets alone, by walking both as the kernel does (first match, jumps,
goto, RETURN, policies; every table that a packet passes), not from what the rewrite meant.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from .packets import Box, PacketSet
from .parts import MIDWAY, TCP, flags_matching, icmp_parts
from .ruleset import Rule, RuleSet
from .stateful import is_notrack
from .telling import Told, told_of
from .universe import DETAIL, FIRST_OPEN, IN, OUT, PROTOCOL, STATE, Universe, make_universe, matched

# The tables that a packet passes on its way, with the hook it meets in each.
PATHS = {
    "INPUT": (("raw", "PREROUTING"), ("mangle", "PREROUTING"), ("mangle", "INPUT"), ("filter", "INPUT"),
              ("security", "INPUT")),
    "FORWARD": (("raw", "PREROUTING"), ("mangle", "PREROUTING"), ("mangle", "FORWARD"), ("filter", "FORWARD"),
                ("security", "FORWARD"), ("mangle", "POSTROUTING")),
    "OUTPUT": (("raw", "OUTPUT"), ("mangle", "OUTPUT"), ("filter", "OUTPUT"), ("security", "OUTPUT"),
               ("mangle", "POSTROUTING")),
}
REFUSING = frozenset(("DROP", "REJECT", "TARPIT", "STEAL", "CHAOS", "DELUDE"))
ENDING = frozenset(("ACCEPT", "QUEUE", "NFQUEUE", "TPROXY"))


@dataclass(frozen=True)
class Difference:
    """What two rule-sets let through otherwise.

    *widened*: packets of no connection that are accepted after and were not before;
    *handshakes* those of them that open a TCP connection (a lone SYN).  *narrowed*: packets
    of a connection that were accepted before and are not after.
    """

    widened: tuple[Told, ...] = ()
    narrowed: tuple[Told, ...] = ()
    handshakes: tuple[Told, ...] = ()


def compare(before: RuleSet, after: RuleSet) -> Difference:
    """What *after* accepts and refuses other than *before*.

    Raises ValueError for an address that cannot be read.
    """
    universe = make_universe((before, after), before.family)
    old, new = Walks(universe, before), Walks(universe, after)
    return told(universe, ((h, old.accepted(h), new.accepted(h)) for h in PATHS))


def told(universe: Universe, sets: Iterable[tuple[str, PacketSet, PacketSet]]) -> Difference:
    """The difference in words; *sets* are (hook, accepted before, accepted after)."""
    space = universe.space
    found: list[tuple[list[Told], list[Told], list[Told]]] = []
    for hook, old, new in sets:
        if old is new:
            continue
        more, less = changed(universe, hook, old, new)
        both = _at_hook(universe, space.both(old, new), hook)
        kept = space.any_of(space.both(both, _running(universe)), STATE)
        opening = space.both(more, _handshake(universe))
        lost = _lost(universe, hook, less, kept)
        found.append((told_of(universe, hook, more), lost, told_of(universe, hook, opening)))
    return Difference(*(tuple(text for one in found for text in one[kind]) for kind in range(3)))


def changed(universe: Universe, hook: str, old: PacketSet, new: PacketSet) -> tuple[PacketSet, PacketSet]:
    """The packets, states forgotten, that *new* lets through at *hook* and *old* did not, where they belong
    to no connection; and the reverse, where they belong to one."""
    space = universe.space
    old, new = _at_hook(universe, old, hook), _at_hook(universe, new, hook)
    more = space.both(space.without(new, old), _stray(universe))
    less = space.both(space.without(old, new), _running(universe))
    return space.any_of(more, STATE), space.any_of(less, STATE)


def _at_hook(universe: Universe, found: PacketSet, hook: str) -> PacketSet:
    """*found* without the interface that packets do not have at *hook*."""
    absent = {"INPUT": OUT, "OUTPUT": IN}.get(hook)
    if absent is None:
        return found
    nameless = universe.space.box({absent: 1 << len(universe.interfaces)})
    return universe.space.any_of(universe.space.both(found, nameless), absent)


def accepted(universe: Universe, ruleset: RuleSet, hook: str) -> PacketSet:
    """What :meth:`Walks.accepted` gives for one hook."""
    return Walks(universe, ruleset).accepted(hook)


class Walks:
    """Every table of *ruleset*, each of its chains walked once: packets of several hooks pass some of them."""

    def __init__(self, universe: Universe, ruleset: RuleSet) -> None:
        self._universe = universe
        self._tables = {table: _Walk(universe, ruleset, table) for path in PATHS.values() for table, _ in path}

    def accepted(self, hook: str) -> PacketSet:
        """The packets, each with its state, that come through every table at *hook*.

        What the raw table exempts from tracking has no other state than UNTRACKED.
        """
        space = self._universe.space
        found: PacketSet = True
        for table, chain in PATHS[hook]:
            found = space.both(found, self._tables[table].builtin(chain))
        exempt = self._tables["raw"].exempt.get(PATHS[hook][0][1], False)
        if exempt is False:
            return found
        untracked = space.box({STATE: self._universe.state_mask("UNTRACKED")})
        whatever = space.any_of(space.both(found, untracked), STATE)
        return space.either(space.without(found, exempt), space.both(whatever, exempt))


def _handshake(universe: Universe) -> PacketSet:
    syn = sum(1 << flags for flags in TCP[0].flags)
    return universe.space.box({PROTOCOL: universe.protocol_mask(6), DETAIL: syn})


@dataclass
class _Walk:
    """One table walked for every packet at once."""

    universe: Universe
    ruleset: RuleSet
    table: str

    def __post_init__(self) -> None:
        self._known: dict[str, tuple[PacketSet, PacketSet]] = {}
        self.exempt: dict[str, PacketSet] = {}  # chain -> what of its packets goes untracked

    def builtin(self, chain: str) -> PacketSet:
        """What a built-in chain accepts, its policy included."""
        policy = self.ruleset.chains.get(self.table, {}).get(chain)
        if policy is None:
            return True
        taken, left = self.chain(chain, ())
        return taken if policy in REFUSING else self.universe.space.either(taken, left)

    def chain(self, name: str, above: tuple[str, ...]) -> tuple[PacketSet, PacketSet]:
        """(accepted, come back to the caller) of the packets that enter *name*."""
        if name in above:
            return False, True  # the kernel refuses loops
        if name not in self._known:
            self._known[name] = self._walk(name, (*above, name))
        return self._known[name]

    def _walk(self, name: str, above: tuple[str, ...]) -> tuple[PacketSet, PacketSet]:
        space = self.universe.space
        here: PacketSet = True
        taken: list[PacketSet] = []
        returned: list[PacketSet] = []
        exempt: list[PacketSet] = []
        lines = self.ruleset.appended.get((self.table, name), ())
        # Rules in a row that do the same are one: what each of them takes need not be cut out by itself.
        for (accepts, through, ends, spared), alike in groupby(lines, lambda line: self._does(line.rule, above)):
            hit = space.both(here, space.union(matched(self.universe, line.rule) for line in alike))
            taken.append(space.both(hit, accepts))
            exempt.append(space.both(hit, spared))
            if ends:
                here = space.without(here, hit)
                returned.append(space.both(hit, through))
            elif through is not True:
                here = space.either(space.without(here, hit), space.both(hit, through))
        self.exempt[name] = space.union(exempt)
        return space.union(taken), space.union([*returned, here])

    def _does(self, rule: Rule, above: tuple[str, ...]) -> tuple[PacketSet, PacketSet, bool, PacketSet]:
        """(accepted, come through, whether the chain ends here, untracked) for a packet that *rule* matches."""
        return (*self._target(rule, above), is_notrack(rule) or self.exempt.get(rule.target, False))

    def _target(self, rule: Rule, above: tuple[str, ...]) -> tuple[PacketSet, PacketSet, bool]:
        """(accepted, come through, whether the chain ends here) for a packet that *rule* matches."""
        target = rule.target
        if target in ENDING:
            return True, False, True
        if target in REFUSING:
            return False, False, True
        if target == "RETURN":
            return False, True, True
        if target in self.ruleset.chains.get(self.table, {}):
            accepts, through = self.chain(target, above)
            return accepts, through, rule.first("-g") is not None
        return False, True, False


# --- which states a packet can be in ---------------------------------------------------


def _by_part(universe: Universe, states: dict[str, tuple[str, ...]]) -> PacketSet:
    """(packet, state) for every part of traffic; *states* maps a part's state to states, and what they are midway."""
    space = universe.space
    found: PacketSet = False

    def add(masks: Box, names: tuple[str, ...]) -> None:
        nonlocal found
        found = space.either(found, space.box({**masks, STATE: universe.state_mask(*names)}))

    for part in TCP:
        bits = sum(1 << flags for flags in part.flags)
        add({PROTOCOL: universe.protocol_mask(6), DETAIL: bits}, states[part.state])
    midway = sum(1 << flags for flags in flags_matching(*MIDWAY))
    add({PROTOCOL: universe.protocol_mask(6), DETAIL: midway}, states.get("midway", ()))
    listed = 0
    icmp = universe.protocol_mask(universe.icmp)
    for part in icmp_parts(universe.family)[:-1]:
        listed |= 1 << part.icmp_type
        add({PROTOCOL: icmp, DETAIL: 1 << part.icmp_type}, states["icmp " + part.state])
    add({PROTOCOL: icmp, DETAIL: space.full(DETAIL) & ~listed}, ("INVALID",))
    rest = space.full(PROTOCOL) & ~(universe.protocol_mask(6) | icmp)
    add({PROTOCOL: rest}, states["datagram"])
    return found


def _stray(universe: Universe) -> PacketSet:
    """States of packets that belong to no connection; a stream that is picked up midway is NEW, or INVALID."""
    return _by_part(universe, {
        "NEW": ("NEW",), "midway": ("NEW",), "INVALID": ("INVALID",), "ESTABLISHED": ("INVALID",),
        "icmp NEW": ("NEW",), "icmp ESTABLISHED": ("INVALID",), "icmp RELATED": ("INVALID",),
        "icmp UNTRACKED": ("UNTRACKED",), "datagram": ("NEW",),
    })


def _running(universe: Universe) -> PacketSet:
    """States of packets that open a connection or belong to one."""
    return _by_part(universe, {
        "NEW": ("NEW",), "ESTABLISHED": ("ESTABLISHED",), "INVALID": (),
        "icmp NEW": ("NEW",), "icmp ESTABLISHED": ("ESTABLISHED",), "icmp RELATED": ("RELATED",),
        "icmp UNTRACKED": ("UNTRACKED",), "datagram": ("NEW", "ESTABLISHED"),
    })


def _lost(universe: Universe, hook: str, less: PacketSet, kept: PacketSet) -> list[Told]:
    """*less* in words; where most UDP is lost, it is shorter to say which is *kept*."""
    space = universe.space
    udp = space.box({PROTOCOL: universe.protocol_mask(17)})
    lost, left = space.both(less, udp), space.both(kept, udp)
    if _count(universe, lost) <= _count(universe, left) + 1:
        return told_of(universe, hook, less)
    others = [told.packets for told in told_of(universe, hook, left)]
    told = [Told(hook, "UDP datagrams, except " + ("; ".join(others) or "none"))]
    return told + told_of(universe, hook, space.without(less, udp))


def _count(universe: Universe, found: PacketSet) -> int:
    space, found = universe.in_order_of_telling(found)
    return sum(1 for _ in space.split(found, FIRST_OPEN))
