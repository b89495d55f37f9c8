"""Two native rule-sets compared: which packets the one accepts and the other does not.

The same packet sets as :mod:`.difference`, walked as nf_tables walks them: every base chain
of a hook in the order of priorities; ``accept`` ends its chain and the next one goes on.
What is said is about whole packets and first fragments; rules for later fragments alone
match none of them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, islice

from .difference import Difference, told
from .nft_kinds import FAMILIES, NFPROTO
from .nft_match import FRAGMENT, OPEN, Test, alternatives, field_ranges, match_tests, tests_of
from .nft_ruleset import Entry, Json, NftRuleSet, Place
from .nft_untracked import CONNTRACK
from .nft_values import Ranges, complement
from .packets import Box, PacketSet, Space
from .stateful import STATES
from .universe import DESTINATION, DETAIL, DPORT, FIRST_OPEN, IN, ORDER, OUT, PROTOCOL, SOURCE, SPORT, STATE, Universe

# The hooks that a packet passes.
PATHS = {
    "INPUT": ("prerouting", "input"),
    "FORWARD": ("prerouting", "forward", "postrouting"),
    "OUTPUT": ("output", "postrouting"),
}
_PLACES = {"ip saddr": SOURCE, "ip6 saddr": SOURCE, "ip daddr": DESTINATION, "ip6 daddr": DESTINATION}
# Measured: 1,800 arms take twelve seconds, and it grows faster than they do; so do cuts.
MOST_ARMS = 1_500
MOST_CUTS = 8_000
# NFT_JUMP_STACK_SIZE, include/net/netfilter/nf_tables.h
DEEPEST_JUMP = 16
_MOST_NUMBERS = 128
_MOST_ELEMENTS = 64
# An arm of a rule: what it asks, and the verdict.
Arm = tuple[tuple[Test, ...], Mapping[str, Json]]


@dataclass(frozen=True)
class Compared:
    """Two rule-sets in one space: hook -> (accepted before, accepted after), each packet with its state."""

    universe: Universe
    accepted: Mapping[str, tuple[PacketSet, PacketSet]]


def compare_nft(before: NftRuleSet, after: NftRuleSet) -> Mapping[str, Difference]:
    """What *after* accepts and refuses other than *before*, for ``ipv4`` and ``ipv6``.

    Raises ValueError where there is too much to compare.
    """
    found: dict[str, Difference] = {}
    for family in NFPROTO:
        sets = packet_sets(before, after, family)
        found[family] = told(sets.universe, ((hook, *pair) for hook, pair in sets.accepted.items()))
    return found


def packet_sets(before: NftRuleSet, after: NftRuleSet, family: str) -> Compared:
    """The packets of *family* that come through all chains on each way, under both rule-sets."""
    old, new = _Rules(before, family), _Rules(after, family)
    universe = _universe(family, [*old.all_tests(), *new.all_tests()])
    return Compared(universe, {h: (old.accepted(universe, h), new.accepted(universe, h)) for h in PATHS})


def passing(
    ruleset: NftRuleSet, family: str, asked: Iterable[tuple[str, tuple[Test, ...]]]
) -> list[tuple[bool, bool]]:
    """For each (path of :data:`PATHS`, tests): whether some, and whether all packets that pass the tests come through.

    "Some" is also said where that depends on what is not modelled.
    """
    asked = tuple(asked)
    rules = _Rules(ruleset, family)
    universe = _universe(family, [*rules.all_tests(), *(tests for _, tests in asked)])
    accepted = {path: rules.accepted(universe, path) for path in dict(asked)}
    found: list[tuple[bool, bool]] = []
    for path, tests in asked:
        those = matched(universe, tests)
        some = universe.space.both(those, accepted[path]) is not False
        found.append((some, universe.space.without(those, accepted[path]) is False))
    return found


class _Rules:
    """The rules that packets of one family meet, as arms."""

    def __init__(self, ruleset: NftRuleSet, family: str) -> None:
        self.ruleset = ruleset
        self.family = family
        self.arms: dict[Place, list[list[Arm]]] = {}
        self.count = 0
        for place, entries in ruleset.rules.items():
            if family in FAMILIES.get(place[0], ()):
                self.arms[place] = [arms for entry in entries if (arms := self._counted(entry))]

    def _counted(self, entry: Entry) -> list[Arm]:
        """The arms of a rule; ValueError where the rule-set has too many to walk."""
        room = MOST_ARMS - self.count
        found = list(islice(self._arms(entry), room + 1))
        if len(found) > room:
            raise ValueError(f"more than {MOST_ARMS} rules and elements of maps")
        self.count += len(found)
        return found

    def _arms(self, entry: Entry) -> Iterator[Arm]:
        for statements in _one_by_one(entry.statements):
            yield from self._of(entry, statements)

    def _of(self, entry: Entry, statements: tuple[Mapping[str, Json], ...]) -> Iterator[Arm]:
        tests = tests_of(self.ruleset, entry, statements)
        if any(test.field == FRAGMENT for test in tests):
            return
        last = entry.statements[-1] if entry.statements else {}
        if "vmap" not in last:
            yield tests, last
            return
        for key, verdict in self.ruleset.arms(entry, last["vmap"]["data"]):
            yield (*tests, *match_tests(self.ruleset, entry, last["vmap"]["key"], key)), verdict

    def all_tests(self) -> Iterator[tuple[Test, ...]]:
        """The tests of every arm."""
        return (tests for rules in self.arms.values() for arms in rules for tests, _ in arms)

    def accepted(self, universe: Universe, hook: str) -> PacketSet:
        """The packets, each with its state, that come through every base chain on the way."""
        space = universe.space
        found: PacketSet = True
        walk = _Walk(universe, self)
        for place, base in self.ruleset.bases.items():
            if base.hook in PATHS[hook] and self.family in FAMILIES.get(place[0], ()):
                found = space.both(found, walk.base(place, base.policy))
        exempt = self._exempt(universe, PATHS[hook][0])
        if exempt is False:
            return found
        untracked = space.box({STATE: universe.state_mask("UNTRACKED")})
        whatever = space.any_of(space.both(found, untracked), STATE)
        return space.either(space.without(found, exempt), space.both(whatever, exempt))

    def _exempt(self, universe: Universe, hook: str) -> PacketSet:
        """What ``notrack`` rules match before conntrack; rules before them are taken to let it through."""
        found: list[PacketSet] = []
        for place, bases in self.ruleset.hooks.items():
            early = any(base.hook == hook and base.priority < CONNTRACK for base in bases)
            mine = early and self.family in FAMILIES.get(place[0], ())
            for entry in self.ruleset.rules.get(place, ()) if mine else ():
                if any("notrack" in statement for statement in entry.statements):
                    tests = tests_of(self.ruleset, entry, entry.statements)
                    found.append(matched(universe, tests))
        return universe.space.union(found)


def _one_by_one(statements: tuple[Mapping[str, Json], ...]) -> list[tuple[Mapping[str, Json], ...]]:
    """A rule as rules for each element of its concatenations, in place of a condition that cannot be told."""
    found: list[tuple[Mapping[str, Json], ...]] = [()]
    for statement in statements:
        elements: list[Mapping[str, Json]] = [statement]
        if "match" in statement:
            elements = [{"match": one} for one in alternatives(statement["match"])]
        few = len(elements) * len(found) <= _MOST_ELEMENTS
        found = [(*before, one) for before in found for one in (elements if few else (statement,))]
    return found


# --- the space -------------------------------------------------------------------------


def _universe(family: str, every: list[tuple[Test, ...]]) -> Universe:
    """The universe in which all tests of one family can be told apart."""
    protocols = {6: None, 17: None, 1 if family == "ipv4" else 58: None}
    ports, addresses = {0, 65536}, {0, 1 << (32 if family == "ipv4" else 128)}
    interfaces: dict[str, None] = {}
    conditions: dict[str, None] = {}
    for test in dict.fromkeys(test for tests in every for test in tests):
        if test.field == "l4proto":
            protocols.update(dict.fromkeys(_numbers(test.ranges)))
        elif test.field in ("sport", "dport"):
            ports |= _cuts(test.ranges)
        elif test.field in _PLACES and test.field.startswith("ip ") == (family == "ipv4"):
            addresses |= _cuts(test.ranges)
        elif test.field in ("in", "out"):
            interfaces.update(dict.fromkeys(_wild(name) for name in test.names))
        elif test.field == OPEN:
            conditions[test.text] = None
    if len(ports) + len(addresses) > MOST_CUTS:
        raise ValueError(f"{len(ports) + len(addresses)} ports and addresses, {MOST_CUTS} are the most")
    sizes = (len(protocols) + 1, 256, len(STATES), len(ports) - 1, len(ports) - 1, len(addresses) - 1,
             len(addresses) - 1, len(interfaces) + 1, len(interfaces) + 1, *(2 for _ in conditions))
    return Universe(family, tuple(protocols), tuple(sorted(ports)), tuple(sorted(addresses)), tuple(interfaces),
                    tuple(reversed(conditions)), Space(sizes, ORDER))


def _cuts(ranges: Ranges) -> set[int]:
    return {cut for first, last in ranges for cut in (first, last + 1)}


def _numbers(ranges: Ranges) -> list[int]:
    """The protocols that a test names, or leaves out where it names nearly all."""
    if sum(last - first + 1 for first, last in ranges) > _MOST_NUMBERS:
        ranges = complement(ranges, 255)
    return [number for first, last in ranges for number in range(first, last + 1)]


def _wild(name: str) -> str:
    return name[:-1] + "+" if name.endswith("*") else name


def matched(universe: Universe, tests: Iterable[Test]) -> PacketSet:
    """The packets that pass all *tests*."""
    space = universe.space
    tests = tuple(tests)
    family = field_ranges(tests, "nfproto")
    if family is not None and not _holds(family, NFPROTO[universe.family]):
        return False
    box: Box = {}
    for test in tests:
        for dimension, mask in _masks(universe, test):
            box[dimension] = box.get(dimension, space.full(dimension)) & mask
    return space.box(box) if all(box.values()) else False


def _holds(ranges: Ranges, number: int) -> bool:
    return any(first <= number <= last for first, last in ranges)


def _masks(universe: Universe, test: Test) -> Iterator[tuple[int, int]]:
    """*test* as (dimension, mask of atoms)."""
    full = universe.space.full
    if test.field == "l4proto":
        mask = sum(1 << at for at, number in enumerate(universe.protocols) if _holds(test.ranges, number))
        others = sum(last - first + 1 for first, last in test.ranges) > _MOST_NUMBERS
        yield PROTOCOL, mask | (1 << len(universe.protocols) if others else 0)
    elif test.field in ("flags", "icmp", "icmpv6"):
        last = 64 if test.field == "flags" else 256
        yield DETAIL, sum(1 << value for value in range(last) if _holds(test.ranges, value))
    elif test.field in ("sport", "dport"):
        yield (SPORT if test.field == "sport" else DPORT), universe.port_mask(test.ranges)
    elif test.field in _PLACES:
        dimension = _PLACES[test.field]
        yield dimension, sum(_interval(universe.addresses, first, last + 1) for first, last in test.ranges)
    elif test.field in ("in", "out"):
        dimension = IN if test.field == "in" else OUT
        mask = 0
        for name in test.names:
            mask |= universe.interface_mask(_wild(name))
        yield dimension, full(dimension) & ~mask if test.negated else mask
    elif test.field == "state":
        yield STATE, universe.state_mask(*test.names)
    elif test.field == OPEN:
        yield FIRST_OPEN + universe.open_conditions.index(test.text), 2


def _interval(cuts: tuple[int, ...], first: int, end: int) -> int:
    low, high = bisect_left(cuts, first), bisect_left(cuts, end)
    return int((1 << high) - 1) & ~int((1 << low) - 1)


# --- walking it ------------------------------------------------------------------------


@dataclass
class _Walk:
    """One rule-set walked for every packet at once."""

    universe: Universe
    rules: _Rules

    def __post_init__(self) -> None:
        self._known: dict[Place, tuple[PacketSet, PacketSet]] = {}

    def base(self, place: Place, policy: str) -> PacketSet:
        """What a base chain accepts, its policy included."""
        taken, left = self.chain(place, ())
        return taken if policy == "drop" else self.universe.space.either(taken, left)

    def chain(self, place: Place, above: tuple[Place, ...]) -> tuple[PacketSet, PacketSet]:
        """(accepted, come back to the caller) of the packets that enter *place*."""
        if place in above:
            return False, True  # the kernel refuses loops
        if len(above) > DEEPEST_JUMP:
            raise ValueError(f"jumps that nest deeper than {DEEPEST_JUMP}, as the kernel refuses them")
        if place not in self._known:
            self._known[place] = self._walk(place, (*above, place))
        return self._known[place]

    def _walk(self, place: Place, above: tuple[Place, ...]) -> tuple[PacketSet, PacketSet]:
        space = self.universe.space
        here: PacketSet = True
        taken: list[PacketSet] = []
        returned: list[PacketSet] = []
        every = (arm for arms in self.rules.arms.get(place, ()) for arm in arms)
        # Arms in a row with the same verdict are one: what each of them takes need not be cut out by itself.
        for (accepts, through, ends), alike in groupby(every, lambda arm: self._verdict(place, arm[1], above)):
            if through is True and not ends:
                continue  # it only looks
            hit = space.both(here, space.union(matched(self.universe, tests) for tests, _ in alike))
            taken.append(space.both(hit, accepts))
            if ends:
                here = space.without(here, hit)
                returned.append(space.both(hit, through))
            else:
                here = space.either(space.without(here, hit), space.both(hit, through))
        return space.union(taken), space.union([*returned, here])

    def _verdict(
        self, place: Place, verdict: Mapping[str, Json], above: tuple[Place, ...]
    ) -> tuple[PacketSet, PacketSet, bool]:
        """(accepted, come through, whether the chain ends here) for a packet with *verdict*."""
        kind = next(iter(verdict), "")
        if kind in ("accept", "queue"):
            return True, False, True
        if kind in ("drop", "reject"):
            return False, False, True
        if kind == "return":
            return False, True, True
        if kind in ("jump", "goto"):
            accepts, through = self.chain((*place[:2], str(verdict[kind]["target"])), above)
            return accepts, through, kind == "goto"
        return False, True, False
