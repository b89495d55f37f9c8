"""One line of a haproxy configuration -> its words, as haproxy's own ``parse_line`` makes them.

Measured with haproxy 2.6 and read in its ``src/tools.c``: variables are replaced between
double quotes only, single quotes take everything as it stands, ``#`` begins a comment
wherever it is not quoted, a CR ends the line, and a backslash at the end continues nothing.
Addresses are expanded once more when haproxy reads them, whatever the quotes.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field, replace

from ..errors import HaproxyError
from ..messages import quoted

_SPACES = re.compile(r"[ \t\v\f]+")  # isspace() of C, less the ends of a line
_SPECIAL = re.compile(r"[\\\"'$#\r]")
_RUNS = {  # what stands for itself: outside of quotes, between double quotes, between single quotes
    "": re.compile(r"[^ \t\v\f\r\\\"'#]+"),
    '"': re.compile(r"[^\r\\\"$]+"),
    "'": re.compile(r"[^\r']+"),
}
_ESCAPED = {" ": " ", "\\": "\\", "t": "\t", "n": "\n", "r": "\r", "#": "#", "'": "'", '"': '"'}
_HEX = re.compile(r"\\x([0-9A-Fa-f]{2})")
_VARIABLE = re.compile(r"\$(\{)?(\.?[A-Za-z_][A-Za-z0-9_]*)")
_IN_ADDRESS = re.compile(r"\$\{([A-Za-z0-9_]*)\}|\$\{?([A-Za-z0-9_]*)")
_BACKSLASH = "haproxy has no continuation lines: write it on one line"


@dataclass(frozen=True)
class Word:
    """One word.  *unknown* names a variable in it whose value cannot be told from the file.

    *assumed* says which value was taken though haproxy's environment can overrule it.
    *address* is the word as an address reads it, where that differs.
    """

    text: str
    unknown: str = ""
    assumed: str = ""
    address: Word | None = None

    def __str__(self) -> str:
        return self.text


_plain = functools.lru_cache(maxsize=1 << 14)(Word)  # configurations say the same words all over


@dataclass
class Environment:
    """The variables, as far as the file itself says what they are; changed while it is read."""

    values: dict[str, str] = field(default_factory=dict)
    presets: set[str] = field(default_factory=set)
    unset: set[str] = field(default_factory=set)
    doubtful: set[str] = field(default_factory=set)
    cleared: bool = False

    def assign(self, name: str, value: Word, preset: bool = False) -> None:
        """``setenv``, or ``presetenv``, which the environment that haproxy starts in overrules."""
        if preset and name in self.values:
            return
        sure_unset = self.is_unset(name)
        self.forget(name)
        if value.unknown:
            self.doubtful.add(name)
            return
        self.values[name] = value.text
        if value.assumed or (preset and not sure_unset):
            self.presets.add(name)

    def remove(self, name: str) -> None:
        """``unsetenv``."""
        self.forget(name)
        self.unset.add(name)

    def forget(self, name: str) -> None:
        """Nothing is known of *name* any more."""
        self.values.pop(name, None)
        for names in (self.presets, self.unset, self.doubtful):
            names.discard(name)

    def doubt(self, name: str) -> None:
        """Set or not: that cannot be told."""
        self.forget(name)
        self.doubtful.add(name)

    def clear(self, kept: set[str]) -> None:
        """``resetenv``: everything goes but what is *kept*."""
        names = {*self.values, *self.doubtful} - kept
        for name in names:
            self.forget(name)
        self.cleared = True
        self.doubtful |= {name for name in kept if name not in self.values}

    def is_unset(self, name: str) -> bool:
        """Whether *name* surely has no value."""
        return name in self.unset or (self.cleared and name not in self.values and name not in self.doubtful)


@dataclass
class _Word:
    """A word while it is read."""

    pieces: list[str] = field(default_factory=list)
    unknown: str = ""
    assumed: str = ""


def words_of(text: str, where: str, environment: Environment) -> tuple[Word, ...]:
    """The words of the line *text*, without those behind an empty one: haproxy stops there too.

    :class:`HaproxyError` for quotes, braces and escapes that haproxy itself refuses.
    """
    if not _SPECIAL.search(text):
        return tuple(_plain(word) for word in _SPACES.split(text.strip(" \t\v\f")) if word)
    found = _Splitter(text.lstrip(" \t\v\f"), where, environment).words()
    if len(found) > 1 and found[-1].text == "\\":
        raise HaproxyError("the line ends in a backslash", where, _BACKSLASH)
    end = next((n for n, word in enumerate(found) if not word.text and not word.unknown), len(found))
    return tuple(_with_address(word, environment) for word in found[:end])


def _with_address(word: Word, environment: Environment) -> Word:
    """*word*, and how an address would read it."""
    if "$" not in word.text or word.unknown:
        return word
    unknown, assumed, pieces, at = "", word.assumed, [], 0
    for match in _IN_ADDRESS.finditer(word.text):
        name = match.group(1) or match.group(2) or ""
        value = environment.values.get(name, "")
        if name not in environment.values and not environment.is_unset(name):
            unknown = unknown or name
        if name in environment.presets:
            assumed = assumed or _assumption(name, value)
        pieces += [word.text[at:match.start()], value]
        at = match.end()
    return replace(word, address=Word("".join(pieces) + word.text[at:], unknown, assumed))


def _assumption(name: str, value: str) -> str:
    return f"{name} is taken as {quoted(value)}, as the file says; haproxy's environment may say otherwise"


class _Splitter:
    """Reads one line from left to right."""

    def __init__(self, text: str, where: str, environment: Environment) -> None:
        self.text = text
        self.where = where
        self.environment = environment
        self.at = 0
        self.quote = ""
        self.found: list[_Word] = [_Word()]

    def words(self) -> list[Word]:
        """Every word; what follows a list of unknown length is unknown too."""
        while self.at < len(self.text) and self.text[self.at] != "\r":
            run = _RUNS[self.quote].match(self.text, self.at)
            if run:
                self.found[-1].pieces.append(run.group())
                self.at = run.end()
            elif self._special(self.text[self.at]):
                break
        if self.quote:
            raise HaproxyError("a quote is not closed", self.where, "close it on the same line")
        return [Word("".join(w.pieces), w.unknown, w.assumed) for w in self.found]

    def _special(self, char: str) -> bool:
        """Take one special character; whether the rest of the line is a comment."""
        if char == "#":
            return True
        if char in "\"'":
            self.quote = "" if self.quote else char
            self.at += 1
        elif char == "\\":
            self._escape()
        elif char == "$":
            self._variable()
        else:
            space = _SPACES.match(self.text, self.at)
            self.at = space.end() if space else self.at + 1
            self.found.append(_Word(unknown=self._spread))
        return False

    _spread = ""

    def _escape(self) -> None:
        hexadecimal = _HEX.match(self.text, self.at)
        char = self.text[self.at + 1:self.at + 2]
        if hexadecimal:
            self._put(chr(int(hexadecimal.group(1), 16)), 4)
        elif char == "x":
            raise HaproxyError("\\x is not followed by two hexadecimal digits", self.where, "write \\\\x for the text")
        elif char in _ESCAPED and char:
            self._put(_ESCAPED[char], 2)
        elif char == "$" and self.quote:
            self._put("$", 2)
        else:
            self._put("\\", 1)

    def _put(self, text: str, length: int) -> None:
        self.found[-1].pieces.append(text)
        self.at += length

    def _variable(self) -> None:
        match = _VARIABLE.match(self.text, self.at)
        if match is None:
            raise HaproxyError("a $ is not followed by a variable's name", self.where, "write \\$ for the character")
        braced, name = match.group(1), match.group(2)
        self.at = match.end()
        spread = bool(braced) and self.text.startswith("[*]", self.at)
        self.at += 3 if spread else 0
        default = self._closing_brace() if braced else None
        self._expand(name, default, spread)

    def _closing_brace(self) -> str | None:
        """Behind the brace; gives the default value where there is one."""
        end = self.text.find("}", self.at)
        if end < 0 or (end > self.at and self.text[self.at] != "-"):
            raise HaproxyError("a brace of a variable is not closed", self.where, "write ${NAME} or ${NAME-default}")
        default = self.text[self.at + 1:end] if end > self.at else None
        self.at = end + 1
        return default

    def _expand(self, name: str, default: str | None, spread: bool) -> None:
        word, known = self.found[-1], self.environment
        value = known.values.get(name)
        if value is None and (default is not None or known.is_unset(name)) and name not in known.doubtful:
            value = default or ""
            word.assumed = word.assumed or ("" if known.is_unset(name) else _assumption(name, value))
        if value is None:
            word.pieces.append(f"${{{name}}}")
            word.unknown = word.unknown or name
            self._spread = self._spread or (name if spread else "")
            return
        if name in known.presets:
            word.assumed = word.assumed or _assumption(name, value)
        parts = _SPACES.split(value) if spread else [value]
        word.pieces.append(parts[0])
        self.found += [_Word([part], self._spread, word.assumed) for part in parts[1:]]
