"""nft's own language as words: enough to see what a saved file is about, without asking the kernel.

Loading a file is the only way to know its rules, and it may load modules.  Its words can be
told apart without that: comments and quoted strings as ``scanner.l`` of nft 1.0.6 has them.
No name (of a chain, a set, a variable) is a word of the language: its grammar has none.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

NOTHING = '{"nftables": []}\n'  # a listing without a table
_WORD = re.compile(r'\\\r?\n|\#[^\n]*|"[^"\n]*"|[@$]?[A-Za-z0-9_./\\*:-]+|[^\s]')
_FAMILIES = frozenset(("ip", "ip6", "inet", "arp", "bridge", "netdev"))
_STATEFUL = frozenset(("ct", "notrack", "masquerade", "snat", "dnat", "flowtable", "synproxy"))
_VERDICTS = frozenset(("accept", "drop", "reject", "queue", "jump", "goto", "vmap"))
# What stands behind these are interfaces, which must be there when the file is loaded.
_AT_INTERFACES = frozenset(("iif", "oif", "device", "devices"))


@dataclass(frozen=True)
class Word:
    """A word, a quoted string or one mark; *line* counts from 1, *start* and *end* are places in the text."""

    text: str
    line: int
    start: int
    end: int

    @property
    def plain(self) -> str:
        """The word without its quotes."""
        return self.text[1:-1] if self.text.startswith('"') else self.text


def words_of(text: str) -> tuple[Word, ...]:
    """The words of *text*, comments left out."""
    found: list[Word] = []
    line, seen = 1, 0
    for match in _WORD.finditer(text):
        line += text.count("\n", seen, match.start())
        seen = match.start()
        if not match.group().startswith(("#", "\\\n", "\\\r")):
            found.append(Word(match.group(), line, match.start(), match.end()))
    return tuple(found)


def _in_context(words: tuple[Word, ...]) -> Iterator[tuple[Word, str, str]]:
    """(word, the one before it, the one behind it) for each word that is no string."""
    for at, word in enumerate(words):
        if word.text[0] not in '"@$':
            yield word, words[at - 1].text if at else "", words[at + 1].text if at + 1 < len(words) else ""


def stateful_words(words: tuple[Word, ...]) -> tuple[Word, ...]:
    """The words that need conntrack: ``ct``, ``notrack``, NAT, flow tables, ``synproxy``."""
    return tuple(w for w, before, behind in _in_context(words) if _is_stateful(w.text, before, behind))


def _is_stateful(word: str, before: str, behind: str) -> bool:
    if word == "redirect":
        return before not in ("{", ",", "type")  # an ICMP type has that name too
    if word == "nat":
        return before == "type"
    if word == "flow":
        return behind in ("add", "offload")
    return word in _STATEFUL


def has_rules(words: tuple[Word, ...]) -> bool:
    """Whether there is a rule with a verdict: the empty chains of a distribution have none."""
    return any(w.text in _VERDICTS and before != "policy" for w, before, _ in _in_context(words))


def interfaces(words: tuple[Word, ...]) -> tuple[str, ...]:
    """The interfaces that must be there when the text is loaded."""
    found: dict[str, None] = {}
    values = dict(_definitions(words))
    for at, word in enumerate(words):
        if word.text in _AT_INTERFACES:
            for name in _values(words, at + 1):
                found.update(dict.fromkeys(values.get(name[1:], ()) if name[:1] == "$" else (name,)))
    return tuple(name for name in found if name != "lo")


def _definitions(words: tuple[Word, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for at, word in enumerate(words[:-2]):
        if word.text in ("define", "redefine") and words[at + 2].text == "=":
            yield words[at + 1].text, tuple(_values(words, at + 3))


def _values(words: tuple[Word, ...], at: int) -> Iterator[str]:
    """The value at *at*, or those in the braces there."""
    while at < len(words) and words[at].text in ("=", "!"):
        at += 1
    if at >= len(words):
        return
    if words[at].text != "{":
        yield words[at].plain
        return
    for word in words[at + 1 :]:
        if word.text == "}":
            return
        if word.text != ",":
            yield word.plain


def flushes_all(words: tuple[Word, ...]) -> bool:
    """Whether ``flush ruleset`` is in it."""
    return any(one.text == "flush" and two.text == "ruleset" for one, two in zip(words, words[1:]))


def renewed_tables(words: tuple[Word, ...]) -> frozenset[tuple[str, str]]:
    """(family, name) of the tables that the text empties or deletes before it fills them."""
    found: set[tuple[str, str]] = set()
    for at, word in enumerate(words):
        if word.text in ("delete", "flush", "destroy") and [w.text for w in words[at + 1 : at + 2]] == ["table"]:
            rest = [w.plain for w in words[at + 2 : at + 4]]
            if rest and rest[0] not in _FAMILIES:
                found.add(("ip", rest[0]))
            elif len(rest) == 2:
                found.add((rest[0], rest[1]))
    return frozenset(found)


# --- files in files ----------------------------------------------------------------------


@dataclass(frozen=True)
class Include:
    """``include "pattern"``: where it stands, from the word to its end."""

    pattern: str
    line: int
    start: int
    end: int


def includes(text: str) -> tuple[Include, ...]:
    """The ``include`` statements of *text*, in order."""
    words = words_of(text)
    return tuple(
        Include(two.plain, one.line, one.start, two.end)
        for one, two in zip(words, words[1:]) if one.text == "include" and two.text.startswith('"')
    )


# --- what nft prints -----------------------------------------------------------------------


def tables_text(text: str) -> dict[tuple[str, str], str]:
    """(family, name) -> its part of what ``nft list ruleset`` printed."""
    found: dict[tuple[str, str], list[str]] = {}
    current: list[str] | None = None
    for line in text.splitlines(True):
        words = line.split()
        if line.startswith("table ") and len(words) >= 3:
            current = found.setdefault((words[1], words[2]), [])
        if current is not None:
            current.append(line)
        if line.rstrip() == "}":
            current = None
    return {name: "".join(lines) for name, lines in found.items()}


def restart_tables(names: Iterable[tuple[str, str]]) -> str:
    """The commands that take the tables *names* away, whether they are there or not."""
    return "".join(f"table {family} {name}\ndelete table {family} {name}\n" for family, name in names)


def header_of(text: str) -> str:
    """The first lines of *text*: comments, ``#!`` among them, and blank lines before the first word."""
    lines: list[str] = []
    for line in text.splitlines(True):
        if line.strip() and not line.lstrip().startswith("#"):
            break
        lines.append(line)
    return "".join(lines)
