"""Graphviz, if the host has it."""

from __future__ import annotations

from ..errors import HostError
from .process import find, run

_SECONDS = 60.0


def rendered(text: str, path: str) -> bytes:
    """The SVG of the graph *text*; :class:`HostError`, which names *path*, where there is no ``dot``."""
    if find("dot") is None:
        raise HostError("a picture in SVG needs Graphviz's dot, which is not there", path,
                        "install the package graphviz, or name a file that ends in .dot")
    return run(["dot", "-Tsvg"], stdin=text.encode(), timeout=_SECONDS).stdout.encode("utf-8", "surrogateescape")
