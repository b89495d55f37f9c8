"""Rules that differ in addresses, interfaces and ports only: what one becomes, the others become too."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

from . import edit
from .iptables import GAP
from .ruleset import Line
from .selection import Selection


class Known(NamedTuple):
    """What became of one rule.  *texts* have gaps for its places; ``None`` where the rule is kept.

    *notes* are without their line.
    """

    texts: tuple[str, ...] | None
    notes: tuple[str, ...] = ()
    reason: str = ""
    widening: str | None = None


def key(line: Line, decided: frozenset[str] | None) -> Hashable:
    """What decides about *line* apart from its places; ``None`` where it names none, or stands in quotes.

    *decided* is what the rules before it in its chain have settled.
    """
    shape = line.shape
    if shape is None or not shape.values or shape.text[:3] != "-A ":
        return None
    return shape.text, line.table, decided


def texts_with_gaps(line: Line, chosen: Selection) -> tuple[str, ...] | None:
    """The rules that *line* becomes, side by side, with gaps for its places; ``None`` where one was narrowed."""
    texts = tuple(edit.rebuilt(line.like, piece.protocol, piece.matches) for piece in chosen.pieces)
    return texts if all(text.count(GAP) == line.like.text.count(GAP) for text in texts) else None


def becomes(texts: tuple[str, ...], line: Line) -> tuple[str, ...]:
    """*texts* with the places of *line* in their gaps, and its counters where one rule stands for it."""
    shape = line.shape
    assert shape is not None
    counters = shape.counters if len(texts) == 1 or not shape.counters else "[0:0] "
    return tuple([counters + _filled(text, shape.values) for text in texts])


def _filled(text: str, values: tuple[str, ...]) -> str:
    words = text.split(GAP)
    found = [word for pair in zip(words, values) for word in pair]
    return "".join([*found, words[-1]])
