"""``.if`` and its kin: what the file itself decides, and what only haproxy can know.

Three answers: true, false, and ``None`` for what depends on haproxy's version, its build or
its environment.  Read in haproxy 2.6, ``src/cfgcond.c``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import HaproxyError
from ..messages import quoted
from .words import Environment, Word

MOST_NESTED = 16  # MAXNESTEDCONDS is 16 in haproxy
_NUMBER = re.compile(r"[+-]?(0[xX][0-9A-Fa-f]+|[0-9]+)")
_PREDICATE = re.compile(r"([a-z_]+)\(([^()\"'\\]*)\)")
_PREDICATES = ("defined", "feature", "streq", "strneq", "strstr", "version_atleast", "version_before",
               "openssl_version_atleast", "openssl_version_before", "ssllib_name_startswith", "enabled",
               "awslc_api_atleast", "awslc_api_before")  # fmt: skip
_MOST_TERMS = 100  # haproxy's own parser gives up at a depth, too


@dataclass
class _Block:
    """One ``.if`` that is open: what holds for the branch being read, and whether one was taken before."""

    now: bool | None
    taken: bool | None
    why: str
    begun: str
    has_else: bool = False


class Conditions:
    """The open blocks of one file."""

    def __init__(self) -> None:
        self.blocks: list[_Block] = []

    @property
    def dropped(self) -> bool:
        """Whether the line being read is surely left out."""
        return any(block.now is False for block in self.blocks)

    @property
    def doubt(self) -> str:
        """The condition that decides whether the line counts, where we cannot tell; or empty."""
        return next((block.why for block in self.blocks if block.now is None), "")

    def directive(self, words: tuple[Word, ...], where: str, environment: Environment) -> bool:
        """Take ``.if``, ``.elif``, ``.else`` or ``.endif``; whether it was one."""
        verb = words[0].text
        if verb not in (".if", ".elif", ".else", ".endif"):
            return False
        if verb == ".if":
            self._open(words, where, environment)
            return True
        if not self.blocks:
            raise HaproxyError(f"{verb} without .if", where, "haproxy refuses it too: add the .if")
        block = self.blocks[-1]
        if verb in (".else", ".endif") and len(words) > 1:
            raise HaproxyError(f"{verb} takes nothing behind it", where, "take it away")
        if verb == ".endif":
            self.blocks.pop()
        elif block.has_else:
            raise HaproxyError(f"{verb} behind .else", where, "haproxy refuses it too")
        else:
            self._next(block, words, where, environment)
        return True

    def _open(self, words: tuple[Word, ...], where: str, environment: Environment) -> None:
        if len(self.blocks) >= MOST_NESTED - 1:
            raise HaproxyError(f"more than {MOST_NESTED - 1} .if inside each other", where, "haproxy refuses it too")
        held = False if self.dropped else _condition(words, where, environment)
        self.blocks.append(_Block(held, held, _told(words, where), where))

    def _next(self, block: _Block, words: tuple[Word, ...], where: str, environment: Environment) -> None:
        outside = any(other.now is False for other in self.blocks[:-1])
        block.has_else = words[0].text == ".else"
        if block.taken or outside:
            block.now = False
            return
        held = True if block.has_else else _condition(words, where, environment)
        block.why = block.why if block.taken is None else _told(words, where)
        if block.taken is None:
            block.now, block.taken = (False if held is False else None), (True if held else None)
        else:
            block.now = block.taken = held


def _told(words: tuple[Word, ...], where: str) -> str:
    return f"{quoted(' '.join(w.text for w in words[1:]), 60)} at {where}"


def _condition(words: tuple[Word, ...], where: str, environment: Environment) -> bool | None:
    """Whether the condition behind the first of *words* holds; ``None`` when that cannot be told."""
    if len(words) < 2:
        raise HaproxyError("a condition is missing", where, "haproxy refuses it too: write one")
    if any(word.unknown or word.assumed for word in words):
        return None
    return _Expression(" ".join(word.text for word in words[1:]), where, environment).value()


class _Expression:
    """``a && b || !c``, where ``&&`` binds more tightly."""

    def __init__(self, text: str, where: str, environment: Environment) -> None:
        self.text = text
        self.where = where
        self.environment = environment
        self.at = 0
        self.terms = 0

    def value(self) -> bool | None:
        found = self._either()
        if self.at < len(self.text):
            raise self._unreadable()
        return found

    def _unreadable(self) -> HaproxyError:
        return HaproxyError(f"the condition {quoted(self.text)} cannot be read", self.where,
                            "write it as haproxy's manual says, or without .if")

    def _skip(self) -> None:
        while self.text[self.at:self.at + 1] in (" ", "\t"):
            self.at += 1

    def _taken(self, word: str) -> bool:
        self._skip()
        if not self.text.startswith(word, self.at):
            return False
        self.at += len(word)
        self._skip()
        return True

    def _either(self) -> bool | None:
        found = self._both()
        while self._taken("||"):
            other = self._both()
            found = True if found or other else (None if None in (found, other) else False)
        return found

    def _both(self) -> bool | None:
        found = self._term()
        while self._taken("&&"):
            other = self._term()
            found = False if False in (found, other) else (None if None in (found, other) else True)
        return found

    def _term(self) -> bool | None:
        self.terms += 1
        if self.terms > _MOST_TERMS:
            raise self._unreadable()
        negated = False
        while self._taken("!"):
            negated = not negated
        found = self._plain()
        self._skip()
        return (not found) if negated and found is not None else found

    def _plain(self) -> bool | None:
        number = _NUMBER.match(self.text, self.at)
        if number:
            self.at = number.end()
            return number.group().strip("+-0xX") != ""
        if self._taken("("):
            found = self._either()
            if not self._taken(")"):
                raise self._unreadable()
            return found
        return self._predicate()

    def _predicate(self) -> bool | None:
        match = _PREDICATE.match(self.text, self.at)
        if match is None or match.group(1) not in _PREDICATES:
            raise self._unreadable()
        self.at = match.end()
        arguments = [argument.strip(" \t") for argument in match.group(2).split(",")]
        if match.group(1) == "defined":
            name = arguments[0]
            return True if name in self.environment.values else (False if self.environment.is_unset(name) else None)
        if match.group(1) in ("streq", "strneq") and len(arguments) == 2:
            return (arguments[0] == arguments[1]) is (match.group(1) == "streq")
        return None
