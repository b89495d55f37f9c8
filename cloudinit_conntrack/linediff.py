"""Two texts as lines, and a unified diff of them in time that grows with their length.

difflib alone takes time that grows with its square: of two rule-sets of 100,000 lines that
differ in every tenth it does not come back.  So lines that are there once on both sides are
matched first ("patience diff"), and difflib is asked about the short gaps between them.
A line ends at a newline and nowhere else, as for diff(1).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import SequenceMatcher

CONTEXT = 3
NO_NEWLINE = "\\ No newline at end of file\n"
_SMALL = 65536  # lines of one side times those of the other: what difflib does at once
Lines = Sequence[str]
Pair = tuple[int, int]
Box = tuple[int, int, int, int]


def lines_of(text: str) -> list[str]:
    """The lines of *text* with their ends; the last one may have none."""
    *whole, last = text.split("\n")
    return [f"{line}\n" for line in whole] + ([last] if last else [])


def hunks(old: Lines, new: Lines) -> str:
    """The hunks that make *new* of *old*, with their ``@@`` lines; empty where both are alike."""
    return "".join(part for group in _groups(changes(old, new)) for part in _hunk(old, new, group))


def changes(old: Lines, new: Lines) -> list[Box]:
    """(start, end, start, end) of each stretch of *old* that one of *new* replaces, in order."""
    found: list[Box] = []
    i = j = 0
    for at, to in [*_trimmed(old, new, (0, len(old), 0, len(new)), _by_anchors), (len(old), len(new))]:
        if at > i or to > j:
            found.append((i, at, j, to))
        i, j = at + 1, to + 1
    return found


# --- which lines stay ------------------------------------------------------------------


def _trimmed(old: Lines, new: Lines, box: Box, inside: Callable[[Lines, Lines, Box], list[Pair]]) -> list[Pair]:
    """Places of lines that stay within *box*: those at both ends, and what *inside* finds between."""
    i, i2, j, j2 = box
    while i < i2 and j < j2 and old[i] == new[j]:
        i, j = i + 1, j + 1
    while i < i2 and j < j2 and old[i2 - 1] == new[j2 - 1]:
        i2, j2 = i2 - 1, j2 - 1
    head = list(zip(range(box[0], i), range(box[2], j)))
    tail = zip(range(i2, box[1]), range(j2, box[3]))
    return [*head, *(inside(old, new, (i, i2, j, j2)) if i < i2 and j < j2 else ()), *tail]


def _by_anchors(old: Lines, new: Lines, box: Box) -> list[Pair]:
    found: list[Pair] = []
    i, i2, j, j2 = box
    for at, to in _rising(_once(old, new, box)):
        found += _trimmed(old, new, (i, at, j, to), _in_gap)
        found.append((at, to))
        i, j = at + 1, to + 1
    return found + _trimmed(old, new, (i, i2, j, j2), _in_gap)


def _once(old: Lines, new: Lines, box: Box) -> list[Pair]:
    """The lines that are there once on both sides."""
    i, i2, j, j2 = box
    here, there = Counter(old[i:i2]), Counter(new[j:j2])
    place = {line: to for to, line in enumerate(new[j:j2], j) if there[line] == 1}
    return [(at, place[line]) for at, line in enumerate(old[i:i2], i) if line in place and here[line] == 1]


def _in_gap(old: Lines, new: Lines, box: Box) -> list[Pair]:
    i, i2, j, j2 = box
    if set(old[i:i2]).isdisjoint(new[j:j2]):
        return []
    if (i2 - i) * (j2 - j) > _SMALL:
        return _rising(_nth_to_nth(old, new, box))
    matcher = SequenceMatcher(None, old[i:i2], new[j:j2], autojunk=False)
    return [(i + one + n, j + other + n) for one, other, size in matcher.get_matching_blocks() for n in range(size)]


def _nth_to_nth(old: Lines, new: Lines, box: Box) -> list[Pair]:
    """Lines that are there often: the n-th here is taken for the n-th there."""
    i, i2, j, j2 = box
    places: dict[str, list[int]] = defaultdict(list)
    for to in range(j2 - 1, j - 1, -1):
        places[new[to]].append(to)
    return [(at, places[old[at]].pop()) for at in range(i, i2) if places.get(old[at])]


def _rising(pairs: Iterable[Pair]) -> list[Pair]:
    """The most of *pairs*, whose first places rise, in which the second ones rise too."""
    lasts: list[int] = []  # the smallest place at which a run of this length ends
    runs: list[Pair] = []
    before: dict[Pair, Pair | None] = {}
    for pair in pairs:
        length = bisect_left(lasts, pair[1])
        before[pair] = runs[length - 1] if length else None
        lasts[length:length + 1] = [pair[1]]
        runs[length:length + 1] = [pair]
    found: list[Pair] = []
    last = runs[-1] if runs else None
    while last is not None:
        found.append(last)
        last = before[last]
    return found[::-1]


# --- as text ---------------------------------------------------------------------------


def _groups(found: Iterable[Box]) -> Iterator[list[Box]]:
    """Changes that stand so near to each other that they are one hunk."""
    group: list[Box] = []
    for change in found:
        if group and change[0] - group[-1][1] > 2 * CONTEXT:
            yield group
            group = []
        group.append(change)
    if group:
        yield group


def _hunk(old: Lines, new: Lines, group: list[Box]) -> Iterator[str]:
    before = min(CONTEXT, group[0][0], group[0][2])
    first, start = group[0][0] - before, group[0][2] - before
    behind = min(CONTEXT, len(old) - group[-1][1])
    last, end = group[-1][1] + behind, group[-1][3] + behind
    yield f"@@ -{_range(first, last)} +{_range(start, end)} @@\n"
    i = first
    for at, to, its, their in group:
        yield from _marked(" ", old[i:at])
        yield from _marked("-", old[at:to])
        yield from _marked("+", new[its:their])
        i = to
    yield from _marked(" ", old[i:last])


def _range(first: int, last: int) -> str:
    """As diff(1) says it: the first line and how many; of none the line before it."""
    many = last - first
    return f"{first + 1}" if many == 1 else f"{first + 1 if many else first},{many}"


def _marked(mark: str, lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        yield mark + line if line.endswith("\n") else f"{mark}{line}\n{NO_NEWLINE}"
