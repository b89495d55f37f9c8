"""The texts of a haproxy configuration -> its sections.

haproxy 2.6, ``readcfgfile`` of ``src/cfgparse.c``: a section begins at its keyword wherever
that stands first in a line, and ends with its file; variables and unnamed ``defaults`` live
on in the next file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ..errors import HaproxyError
from ..messages import quoted
from .conditions import Conditions
from .words import Environment, Word, words_of

SECTIONS = frozenset(
    "global defaults frontend backend listen peers mailers resolvers userlist cache http-errors ring log-forward "
    "program fcgi-app namespace_list traces crt-store acme log-profile healthcheck".split()
)
LARGEST = 16 << 20  # bytes of all files together
_NEGATED = ("no", "default")


@dataclass(frozen=True)
class Line:
    """One line that counts.  *doubt* is the condition that decides whether it does, if we cannot tell."""

    file: str
    number: int
    words: tuple[Word, ...]
    doubt: str = ""
    negated: bool = False

    @property
    def where(self) -> str:
        """``FILE:LINE``."""
        return f"{self.file}:{self.number}"

    @property
    def keyword(self) -> str:
        """The first word."""
        return self.words[0].text

    def __len__(self) -> int:
        return len(self.words)

    def text(self, at: int) -> str:
        """The word *at*, empty where there is none; HaproxyError where nobody knows what it says."""
        return self.known(self.words[at]) if at < len(self.words) else ""

    def known(self, word: Word) -> str:
        """The text of *word*; HaproxyError where a variable in it is not known."""
        if word.unknown:
            raise HaproxyError(
                f"the value of the variable {quoted(word.unknown)} is not known: it comes from haproxy's environment",
                self.where, f"write the value itself, or 'setenv {word.unknown} VALUE' in a global section above, or "
                "name the flows in conntrack.flows instead of haproxy_cfg",
            )
        return word.text

    def sure(self) -> None:
        """HaproxyError where it cannot be told whether this line counts."""
        if self.doubt:
            raise HaproxyError(
                f"whether this line counts depends on haproxy itself ({self.doubt})", self.where,
                "take the condition away, or name the flows in conntrack.flows instead of haproxy_cfg",
            )


@dataclass
class Section:
    """One section: its first line, and those below it."""

    kind: str
    head: Line
    lines: list[Line] = field(default_factory=list)


def read_sections(files: Iterable[tuple[str, bytes]]) -> list[Section]:
    """The sections of *files* (name, content), in haproxy's order.  HaproxyError with ``FILE:LINE``."""
    found: list[Section] = []
    environment = Environment()
    size = 0
    for name, content in files:
        size += len(content)
        if size > LARGEST:
            raise HaproxyError(f"haproxy's configuration is larger than {LARGEST >> 20} MiB", f"{name}:1",
                               "name the flows in conntrack.flows instead of haproxy_cfg")
        _File(name, environment, found).read(content)
    return found


class _File:
    """One file, read line by line into the list of all sections."""

    def __init__(self, name: str, environment: Environment, found: list[Section]) -> None:
        self.name = name
        self.environment = environment
        self.found = found
        self.section: Section | None = None
        self.conditions = Conditions()

    def read(self, content: bytes) -> None:
        lines = content.decode("latin-1").split("\n")
        for number, text in enumerate(lines[:-1], 1):
            self._line(number, text)
        if lines[-1]:
            raise HaproxyError("the last line has no end: the file may be cut off", f"{self.name}:{len(lines)}",
                               "end it with a newline; haproxy refuses it too")
        if self.conditions.blocks:
            raise HaproxyError(".if without .endif", self.conditions.blocks[-1].begun, "add the .endif")

    def _line(self, number: int, text: str) -> None:
        if "\0" in text:
            raise HaproxyError("a NUL byte stands here", f"{self.name}:{number}", "remove it")
        if text.lstrip(" \t\v\f").startswith("["):  # a scope, which means nothing in this file
            return
        where = f"{self.name}:{number}"
        words = words_of(text, where, self.environment)
        if not words:
            return
        if words[0].text.startswith("."):
            self._directive(words, where)
        elif not self.conditions.dropped:
            self._statement(Line(self.name, number, words, self._doubt()))

    def _directive(self, words: tuple[Word, ...], where: str) -> None:
        if self.conditions.directive(words, where, self.environment) or self.conditions.dropped:
            return
        if words[0].text == ".alert" and not self.conditions.doubt:
            raise HaproxyError("the configuration refuses itself by .alert", where, "haproxy does not start with it")
        if words[0].text not in (".alert", ".notice", ".warning", ".diag"):
            raise HaproxyError(f"unknown directive {quoted(words[0].text)}", where, "haproxy refuses it too")

    def _doubt(self) -> str:
        return self.conditions.doubt or (self.section.head.doubt if self.section else "")

    def _statement(self, line: Line) -> None:
        line.text(0)
        if line.keyword in SECTIONS:
            # a section of its own accord: what was in doubt ends here
            head = Line(line.file, line.number, line.words, self.conditions.doubt)
            self.section = Section(line.keyword, head)
            self.found.append(self.section)
            return
        if line.keyword in _NEGATED and len(line) > 1:
            line = Line(line.file, line.number, line.words[1:], line.doubt, True)
            line.text(0)
        if self.section is None:
            raise HaproxyError(f"{quoted(line.keyword)} stands outside of a section", line.where,
                               "a section ends with its file: begin one above; haproxy refuses it too")
        self.section.lines.append(line)
        if self.section.kind == "global":
            self._variable(line)

    def _variable(self, line: Line) -> None:
        """``setenv`` and its kin."""
        environment, verb = self.environment, line.keyword
        if verb in ("setenv", "presetenv"):
            if len(line) != 3:
                raise HaproxyError(f"{verb} takes a name and a value", line.where, f"write '{verb} NAME VALUE'")
            if line.doubt:
                environment.doubt(line.text(1))
            else:
                environment.assign(line.text(1), line.words[2], verb == "presetenv")
        elif verb in ("unsetenv", "resetenv"):
            names = [line.text(at) for at in range(1, len(line))]
            if line.doubt:
                line.sure()
            elif verb == "resetenv":
                environment.clear(set(names))
            else:
                for name in names:
                    environment.remove(name)
