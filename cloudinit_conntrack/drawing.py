"""The tree of why conntrack is in use, drawn for a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .said import Node

SHOWN = 5  # of children that are alike
MOST = 8  # up to so many are all shown: a line that says "3 more" saves nothing
FOLDED = ("rule", "namespace", "service", "process", "saved")  # the others are few, and each is another story
_WIDE = 110
_CODE = re.compile(r"\033\[[0-9;]*m")


@dataclass(frozen=True)
class Marks:
    """The characters of the lines: before a child, before the last, and beside what is below them."""

    child: str
    last: str
    beside: str
    below: str
    more: str


UNICODE = Marks("├─ ", "└─ ", "│  ", "   ", "…")
ASCII = Marks("|- ", "`- ", "|  ", "   ", "...")


@dataclass(frozen=True)
class Fold:
    """What stands for the children that are not shown."""

    count: int
    kind: str


def shown_children(node: Node, verbose: bool = False) -> tuple[tuple[Node, ...], tuple[Fold, ...]]:
    """The children to show: of many of one kind the first few, and a fold for the rest."""
    kinds = tuple(dict.fromkeys(child.kind for child in node.children))
    shown: list[Node] = []
    folds: list[Fold] = []
    for kind in kinds:
        alike = [child for child in node.children if child.kind == kind]
        keep = len(alike) if verbose or kind not in FOLDED or len(alike) <= MOST else SHOWN
        shown += alike[:keep]
        folds += [Fold(len(alike) - keep, kind)] if keep < len(alike) else []
    order = {id(child): at for at, child in enumerate(node.children)}
    return tuple(sorted(shown, key=lambda child: order[id(child)])), tuple(folds)


def tree_lines(tree: Sequence[Node], unicode: bool = True, colour: bool = False, verbose: bool = False) -> list[str]:
    """The lines of *tree*; what removes a node stands behind an arrow, beside it or below."""
    marks = UNICODE if unicode else ASCII
    return [line for node in tree for line in _lines(node, "", "", marks, colour, verbose)]


def _lines(node: Node, first: str, rest: str, marks: Marks, colour: bool, verbose: bool) -> Iterator[str]:
    """*first* stands before the node's own line, *rest* before all below it."""
    what, remedy = printable(node.what), printable(node.remedy)
    children, folds = shown_children(node, verbose)
    lines = len(children) + len(folds)
    shown = _bold(what, node, colour)
    if not remedy or node.kind == "saved":  # the line is named already
        yield first + shown
    elif len(first) + len(what) + len(remedy) + 5 <= _WIDE:
        yield f"{first}{shown}  {_dim('-> ' + remedy, colour)}"
    else:
        yield first + shown
        yield f"{rest}{marks.beside if lines else marks.below}{_dim('-> ' + remedy, colour)}"
    for at, child in enumerate(children, 1):
        last = at == lines
        yield from _lines(child, rest + (marks.last if last else marks.child),
                          rest + (marks.below if last else marks.beside), marks, colour, verbose)
    for at, fold in enumerate(folds, len(children) + 1):
        yield f"{rest}{marks.last if at == lines else marks.child}{fold_text(fold, marks.more)}"


def fold_text(fold: Fold, more: str = "...") -> str:
    """What a fold says."""
    return f"{more} {fold.count} more like these (-v shows them)"


def _bold(what: str, node: Node, colour: bool) -> str:
    return f"\033[1m{what}\033[0m" if colour and node.kind in ("conntrack", "module") else what


def _dim(words: str, colour: bool) -> str:
    return f"\033[2m{words}\033[0m" if colour else words


def printable(text: str) -> str:
    """*text* without control characters: a rule's comment must not steer a terminal."""
    return "".join(char if char.isprintable() or "\udc80" <= char <= "\udcff" else "?" for char in text)


def clipped(line: str, width: int) -> str:
    """*line* cut to *width* columns; codes for colours take none, and end with the line."""
    if len(line) <= width:
        return line
    kept: list[str] = []
    left = width
    for piece in re.split(f"({_CODE.pattern})", line):
        if _CODE.fullmatch(piece):
            kept.append(piece)
        else:
            kept.append(piece[:left])
            left -= len(piece[:left])
    return "".join(kept)
