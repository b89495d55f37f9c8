"""Sets of packets, as diagrams: exact, canonical, and small for what firewalls say.

A packet is a point in a space of dimensions (protocol, ports, addresses ...), each cut
into at most a few hundred atoms.  A set of packets is a decision diagram (Gouda and Liu,
"Structured firewall design", 2007): a node asks one dimension, and each edge carries a bit
mask of its atoms.  Equal sets are the same object, so comparing two is one ``is``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Callable, Union

Box = dict[int, int]
# A thousand rules make 26,000 nodes; conditions that hang together badly double them with each rule.
MOST_NODES = 200_000


class Node:
    """One question.  *edges* are (mask of atoms, child); together they cover the dimension."""

    __slots__ = ("dimension", "edges")

    def __init__(self, dimension: int, edges: tuple[tuple[int, PacketSet], ...]) -> None:
        self.dimension = dimension
        self.edges = edges


# A set: a node, or simply everything (True) or nothing (False).
PacketSet = Union[Node, bool]


def _both(one: PacketSet, two: PacketSet) -> PacketSet | None:
    if one is False or two is False:
        return False
    if one is True:
        return two
    return one if two is True or one is two else None


def _either(one: PacketSet, two: PacketSet) -> PacketSet | None:
    if one is True or two is True:
        return True
    if one is False:
        return two
    return one if two is False or one is two else None


def _without(one: PacketSet, two: PacketSet) -> PacketSet | None:
    if one is False or two is True or one is two:
        return False
    return one if two is False else None


# What needs no look into the sets; ``None`` where it does.
_READY: dict[str, Callable[[PacketSet, PacketSet], PacketSet | None]] = {
    "and": _both, "or": _either, "not": _without,
}


@dataclass
class Space:
    """The dimensions, by the number of atoms that each has, and every node made so far.

    *order* are the dimensions as the diagrams ask them, those after them follow; it decides how large they grow
    (Bryant, "Graph-based algorithms for Boolean function manipulation", 1986).  ValueError from any of its methods
    when the sets grow beyond all use.
    """

    sizes: tuple[int, ...]
    order: tuple[int, ...] = ()
    _nodes: dict[tuple[int, tuple[tuple[int, int], ...]], Node] = field(default_factory=dict)
    _memo: dict[tuple[str, int, int], PacketSet] = field(default_factory=dict)

    def __post_init__(self) -> None:
        listed = {dimension: at for at, dimension in enumerate(self.order)}
        self._rank = tuple(listed.get(dimension, dimension) for dimension in range(len(self.sizes)))

    def ordered(self, *order: int) -> Space:
        """The same space asked in another order; sets of the dimensions behind *order* belong to both."""
        return Space(self.sizes, order, self._nodes)

    @property
    def nodes(self) -> int:
        """How many nodes were made."""
        return len(self._nodes)

    def full(self, dimension: int) -> int:
        """The mask of every atom of *dimension*."""
        return int((1 << self.sizes[dimension]) - 1)

    def box(self, masks: Box) -> PacketSet:
        """The packets that lie in every one of *masks* (dimension -> mask of atoms)."""
        found: PacketSet = True
        for dimension in sorted(masks, key=self._rank.__getitem__, reverse=True):
            mask = masks[dimension]
            found = self._node(dimension, [(mask, found), (self.full(dimension) & ~mask, False)])
        return found

    def both(self, one: PacketSet, two: PacketSet) -> PacketSet:
        """The intersection."""
        return self._combine("and", one, two)

    def either(self, one: PacketSet, two: PacketSet) -> PacketSet:
        """The union."""
        return self._combine("or", one, two)

    def union(self, sets: Iterable[PacketSet]) -> PacketSet:
        """The union of many, pair by pair: a large set does not meet each small one."""
        left = list(sets)
        while len(left) > 1:
            odd = left[-1:] if len(left) % 2 else []
            left = [self.either(one, two) for one, two in zip(left[::2], left[1::2])] + odd
        return left[0] if left else False

    def without(self, one: PacketSet, two: PacketSet) -> PacketSet:
        """What is in *one* and not in *two*."""
        return self._combine("not", one, two)

    def any_of(self, found: PacketSet, dimension: int) -> PacketSet:
        """*found* with *dimension* forgotten: a packet is in it if any atom of it is."""
        if isinstance(found, bool) or self._rank[found.dimension] > self._rank[dimension]:
            return found
        key = ("any", id(found), dimension)
        if key not in self._memo:
            if found.dimension == dimension:
                result: PacketSet = False
                for _, child in found.edges:
                    result = self.either(result, child)
            else:
                result = self._node(found.dimension, [(m, self.any_of(c, dimension)) for m, c in found.edges])
            self._memo[key] = result
        return self._memo[key]

    def boxes(self, found: PacketSet, done: Box | None = None) -> Iterator[Box]:
        """Boxes that together are *found*; disjoint."""
        done = done or {}
        if found is True:
            yield dict(done)
        elif isinstance(found, Node):
            for mask, child in found.edges:
                yield from self.boxes(child, {**done, found.dimension: mask})

    def split(self, found: PacketSet, dimension: int, done: Box | None = None) -> Iterator[tuple[Box, PacketSet]]:
        """Boxes of the dimensions before *dimension*, each with what is left to ask of those that follow."""
        done = done or {}
        if isinstance(found, Node) and found.dimension < dimension:
            for mask, child in found.edges:
                yield from self.split(child, dimension, {**done, found.dimension: mask})
        elif found is not False:
            yield dict(done), found

    def asked(self, found: PacketSet) -> frozenset[int]:
        """The dimensions on which *found* depends."""
        seen: dict[int, PacketSet] = {}
        waiting = [found]
        while waiting:
            node = waiting.pop()
            if isinstance(node, Node) and id(node) not in seen:
                seen[id(node)] = node
                waiting += [child for _, child in node.edges]
        return frozenset(node.dimension for node in seen.values() if isinstance(node, Node))

    def _combine(self, name: str, one: PacketSet, two: PacketSet) -> PacketSet:
        """*one* and *two* combined, edge by edge.  One frame a dimension: Python's stack bounds their number."""
        ready = _READY[name](one, two)
        if ready is not None:
            return ready
        key = (name, id(one), id(two))
        if key in self._memo:
            return self._memo[key]
        dimension = min((x.dimension for x in (one, two) if isinstance(x, Node)), key=self._rank.__getitem__)
        edges: list[tuple[int, PacketSet]] = []
        others = self._edges(two, dimension)
        for mask, child in self._edges(one, dimension):
            for other, peer in others:
                common = mask & other
                if common:
                    edges.append((common, self._combine(name, child, peer)))
                    mask ^= common  # edges are disjoint: a small one is soon met whole
                    if not mask:
                        break
        self._memo[key] = self._node(dimension, edges)
        return self._memo[key]

    def _edges(self, found: PacketSet, dimension: int) -> tuple[tuple[int, PacketSet], ...]:
        if isinstance(found, Node) and found.dimension == dimension:
            return found.edges
        return ((self.full(dimension), found),)

    def _node(self, dimension: int, edges: list[tuple[int, PacketSet]]) -> PacketSet:
        """The one node with these edges; edges to the same child are one edge."""
        masks: dict[int, int] = {}
        children: dict[int, PacketSet] = {}
        for mask, child in edges:
            if mask:
                masks[id(child)] = masks.get(id(child), 0) | mask
                children[id(child)] = child
        if len(masks) == 1:
            return next(iter(children.values()))
        key = (dimension, tuple(sorted((mask, name) for name, mask in masks.items())))
        if key not in self._nodes:
            if len(self._nodes) >= MOST_NODES:
                raise ValueError("too many combinations of conditions")
            self._nodes[key] = Node(dimension, tuple((mask, children[name]) for mask, name in key[1]))
        return self._nodes[key]
