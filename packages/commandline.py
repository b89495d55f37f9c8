"""What the parser of ``cloudinit-conntrack`` takes, as values: the one source of manual page and completions."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# The tree that this file lies in is described, not a package that is installed here.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


@dataclass(frozen=True)
class Option:
    """An option with its *names*, or an argument without; *value* is what it takes, empty for none.

    *many*: as often as one likes.
    """

    names: tuple[str, ...]
    value: str
    choices: tuple[str, ...]
    help: str
    many: bool = False

    @property
    def takes(self) -> str:
        """What may follow: ``file``, ``directory``, ``choice``, ``text``, or nothing."""
        if self.choices:
            return "choice"
        return {"": "", "FILE": "file", "OUT": "file", "DIR": "directory"}.get(self.value, "text")


@dataclass(frozen=True)
class Verb:
    """A verb, with its options in the parser's order and its arguments behind them."""

    name: str
    help: str
    options: tuple[Option, ...]
    arguments: tuple[Option, ...]


@dataclass(frozen=True)
class CommandLine:
    """The whole command line."""

    program: str
    version: str
    description: str
    options: tuple[Option, ...]
    verbs: tuple[Verb, ...]


def command_line() -> CommandLine:
    """What this tree's parser takes.  A verb without help is not for people, and is left out."""
    from cloudinit_conntrack import __version__
    from cloudinit_conntrack.cli import make_parser

    parser = make_parser()
    options, _ = _split(parser)
    return CommandLine(parser.prog, __version__, parser.description or "", options, tuple(_verbs(parser)))


def _verbs(parser: argparse.ArgumentParser) -> Iterator[Verb]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for listed in action._choices_actions:
                yield Verb(listed.dest, listed.help or "", *_split(action.choices[listed.dest]))


def _split(parser: argparse.ArgumentParser) -> tuple[tuple[Option, ...], tuple[Option, ...]]:
    """Options and arguments of *parser*; what it does not list in its help is in neither."""
    found = [_option(action, parser) for action in parser._actions
             if not isinstance(action, argparse._SubParsersAction) and action.help != argparse.SUPPRESS]
    return tuple(o for o in found if o.names), tuple(o for o in found if not o.names)


def _option(action: argparse.Action, parser: argparse.ArgumentParser) -> Option:
    choices = tuple(map(str, action.choices or ()))
    value = "" if action.nargs == 0 else str(action.metavar or "|".join(choices) or action.dest.upper())
    words = parser._get_formatter()._expand_help(action) if action.help else ""
    return Option(tuple(action.option_strings), value, choices, words, action.nargs in ("+", "*"))
