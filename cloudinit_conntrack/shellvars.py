"""A lossless editor for the module lists in files that a shell reads.

``IPTABLES_MODULES`` in Red Hat's iptables-config, ``IP6TABLES_MODULES`` in its IPv6 twin and
``IPT_MODULES`` in ``/etc/default/ufw`` are plain assignments of a sourced file: quoted or
not, several times, over several lines, with comments.  Only names of conntrack modules are
taken out of the values, with the blanks beside them; every other byte stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from .kmod import is_conntrack_module

VARIABLES = ("IPTABLES_MODULES", "IP6TABLES_MODULES", "IPT_MODULES")

_BLANKS = " \t\n"
_ESCAPED_IN_QUOTES = '$`"\\\n'
_SKIPPED = re.compile(r"(?:[ \t\r\n;&|()<>]|\\\n|#[^\n]*)+")
_WORD = re.compile(r"""(?:[^ \t\r\n;&|()<>'"\\]+|'[^']*'|"(?:[^"\\]|\\.)*"|\\.)+""", re.DOTALL)
_ASSIGNMENT = re.compile(rf"(?:{'|'.join(VARIABLES)})\+?=")


class _Char(NamedTuple):
    """One character of a word's value, and the span of the text that writes it."""

    char: str
    start: int
    end: int


def clean_modules_line(text: str) -> tuple[str, tuple[str, ...]]:
    """*text* without conntrack modules in its module lists, and the names taken out, in order.

    Every assignment is cleaned, not only the last one that counts.  From a quote that never
    closes on, the text is left alone: the shell refuses such a file anyway.
    """
    kept: list[str] = []
    removed: list[str] = []
    done = 0
    for start, end in _assignments(text):
        drop, names = _conntrack_chars(_characters(text, start, end))
        removed.extend(names)
        for char in sorted(drop, key=lambda c: c.start):
            kept.append(text[done:char.start])
            done = char.end
    return "".join((*kept, text[done:])), tuple(removed)


def _assignments(text: str) -> Iterator[tuple[int, int]]:
    """Where the values of :data:`VARIABLES` start and end in the shell *text*."""
    at = 0
    while at < len(text):
        match = _SKIPPED.match(text, at) or _WORD.match(text, at)
        if match is None:
            return  # an open quote, or a backslash at the very end
        assignment = _ASSIGNMENT.match(text, at, match.end())
        at = match.end()
        if match.re is _WORD and text[at:at + 1] in ("'", '"'):
            return
        if assignment:
            yield assignment.end(), at


def _characters(text: str, start: int, end: int) -> list[_Char]:
    """The characters that the shell makes of ``text[start:end]``, a whole word or its end."""
    chars: list[_Char] = []
    quote = ""
    at = start
    while at < end:
        char = text[at]
        width = 2 if _escapes(text, at, quote) else 1
        if width == 2 and text[at + 1] == "\n":
            pass  # a continued line writes no character
        elif width == 1 and char in "'\"" and quote in ("", char):
            quote = "" if quote else char
        else:
            chars.append(_Char(text[at + width - 1], at, at + width))
        at += width
    return chars


def _escapes(text: str, at: int, quote: str) -> bool:
    """Whether a backslash at *at* takes the next character with it (sh, 2.2)."""
    if text[at] != "\\" or quote == "'":
        return False
    return not quote or text[at + 1] in _ESCAPED_IN_QUOTES


def _conntrack_chars(value: list[_Char]) -> tuple[list[_Char], list[str]]:
    """The characters to take out of *value*: conntrack names, and the blanks that parted them."""
    drop: list[_Char] = []
    names: list[str] = []
    kept = False
    pieces = _pieces(value)
    for i, piece in enumerate(pieces):
        name = "".join(c.char for c in piece)
        if name[0] in _BLANKS:
            continue
        if not is_conntrack_module(name):
            kept = True
            continue
        names.append(name)
        drop.extend(piece)
        beside = i - 1 if kept else i + 1
        if 0 <= beside < len(pieces):
            drop.extend(pieces[beside])
    return drop, names


def _pieces(value: list[_Char]) -> list[list[_Char]]:
    """*value* as runs of blanks and of other characters, in turn."""
    runs: list[list[_Char]] = []
    for char in value:
        if runs and (runs[-1][0].char in _BLANKS) == (char.char in _BLANKS):
            runs[-1].append(char)
        else:
            runs.append([char])
    return runs
