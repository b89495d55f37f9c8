"""The tree as a picture: text for Graphviz's ``dot`` (https://graphviz.org/doc/info/lang.html).

Pure; :mod:`cloudinit_conntrack.host.graphviz` renders it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from .drawing import fold_text, printable, shown_children
from .said import Node

_WIDTH = 58
_HEAD = """\
digraph "why conntrack is in use" {
  graph [rankdir=LR, nodesep=0.12, ranksep=0.35, bgcolor="white", pad=0.3];
  node [shape=box, style="rounded,filled", fontname="DejaVu Sans", fontsize=10, margin="0.12,0.06", color="#64748b"];
  edge [color="#64748b", arrowsize=0.6, dir=back];
"""
# What is conntrack itself, what is configuration, what comes back at boot, what is not known.
_FILLS = {
    "conntrack": "#fecaca", "module": "#fde68a", "table": "#e2e8f0", "rule": "#dbeafe", "writer": "#ddd6fe",
    "namespace": "#bbf7d0", "owner": "#bbf7d0", "service": "#dbeafe", "unit": "#ddd6fe", "process": "#ddd6fe",
    "saved": "#f1f5f9", "unseen": "#fee2e2", "also": "#ffffff",
}
_NOTHING = Node("conntrack", "also", "nf_conntrack is not loaded: nothing is tracked")


def dot_text(tree: Sequence[Node], verbose: bool = False) -> str:
    """The graph of *tree*, left to right; an arrow points at what is held.  Many like children are folded."""
    lines: list[str] = []
    for number, node in enumerate(tree or (_NOTHING,)):
        lines += _drawn(node, f"n{number}", verbose)
    return _HEAD + "".join(f"  {line}\n" for line in lines) + "}\n"


def _drawn(node: Node, name: str, verbose: bool) -> Iterator[str]:
    yield f"{name} [label={_label(node)}, fillcolor=\"{_FILLS.get(node.kind, '#ffffff')}\"];"
    children, folds = shown_children(node, verbose)
    for number, child in enumerate(children):
        yield f"{name} -> {name}_{number};"
        yield from _drawn(child, f"{name}_{number}", verbose)
    for number, fold in enumerate(folds):
        yield f"{name}_f{number} [label={quoted(fold_text(fold))}, shape=plaintext, fillcolor=\"white\"];"
        yield f"{name} -> {name}_f{number};"


def _label(node: Node) -> str:
    """What it is, and below an arrow what removes it; every line begins at the left."""
    remedy = [] if node.kind == "saved" or not node.remedy else _wrapped(f"→ {node.remedy}")
    lines = (*_wrapped(node.what), *remedy)
    return quoted(*lines, end="\\l") if len(lines) > 1 else quoted(*lines)


def _wrapped(text: str) -> list[str]:
    """*text* in lines; a word that is longer than a line stays whole, for it may be copied."""
    return textwrap.wrap(printable(text), _WIDTH, break_long_words=False, break_on_hyphens=False) or [""]


def quoted(*lines: str, end: str = "") -> str:
    """A label of *lines*, each closed by *end*: what a backslash, a quote or ``&`` would mean to dot is taken away.

    In a label ``\\n``, ``\\l`` and ``\\N`` are escapes and ``&lt;`` an entity.  Bytes that are no
    text show as replacement characters, since dot reads UTF-8.
    """
    body = end.join(_escaped(line) for line in lines) + (end if end else "")
    return f'"{body}"'


def _escaped(text: str) -> str:
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return printable(text).replace("\\", "\\\\").replace('"', '\\"').replace("&", "&amp;")
