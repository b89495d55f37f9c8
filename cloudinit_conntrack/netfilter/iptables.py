"""Parsing iptables-save text.

Quoting follows ``add_param_to_argv`` in iptables' ``xshared.c``: only double quotes quote,
a backslash escapes inside them, and a closing quote ends the word.  Where a restore
program lets damage pass (an open quote, text outside a table), we refuse it.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from ..errors import RulesSyntaxError
from .names import COMMANDS, FREE_TEXT, split_name
from .ruleset import BLANKS, TABLES, Line, Option, Rule, RuleSet, Shape

# iptables-restore reads lines into a buffer of 10,240 bytes and takes the rest of a longer
# one for the next line (xtables-restore.c, iptables-restore.c).
LONGEST_LINE = 10_238
LARGEST_FILE = 64 * 1024 * 1024
MOST_LINES = 1_000_000

COUNTERS = re.compile(r"\[[0-9]+:[0-9]+\]")
PLAIN_COUNTERS = re.compile(r"[ \t]*(\[[0-9]+:[0-9]+\])[ \t]*")
OPTION = re.compile(r"--?[A-Za-z]|-[46]$")
WORD = re.compile("[^ \t]+")
# What differs most from rule to rule: addresses, interfaces, ports.
PLACES = re.compile(r"( -[sdio] | --[sd]ports? )([^ \t\"!-][^ \t\"]*)")
GAP = "\0"  # stands for such a value in a rule's shape; no rule-set holds one
# One option of a rule without quotes: its ``!``, its word, and every word up to the next option or ``!``.
PLAIN_OPTION = re.compile(
    r"(?:(!)[ \t]+)?([^ \t]+)((?:[ \t]+(?!--?[A-Za-z]|-[46](?:[ \t]|$)|!(?:[ \t]|$))[^ \t]+)*)"
)


class Word(NamedTuple):
    """One word of a command: its value without quotes, and where it stands."""

    value: str
    quoted: bool
    start: int
    end: int


def parse_ruleset(text: str, family: str, name: str = "<stdin>") -> RuleSet:
    """Parse *text*; *family* is ``ipv4`` or ``ipv6``; *name* is used in messages.

    Raises RulesSyntaxError with ``FILE:LINE`` for what no rule-set may hold.
    """
    if len(text) > LARGEST_FILE:
        raise RulesSyntaxError(
            f"larger than {LARGEST_FILE} bytes", f"{name}:1", "this is not a saved rule-set"
        )
    final_newline = text.endswith("\n") or not text
    texts = text.split("\n")
    if final_newline or not text:
        texts.pop()
    if len(texts) > MOST_LINES:
        raise RulesSyntaxError(
            f"more than {MOST_LINES} lines", f"{name}:{MOST_LINES + 1}", "this is not a saved rule-set"
        )
    lines: list[Line] = []
    table = ""
    for number, content in enumerate(texts, 1):
        line = _line(content, number, table, name)
        if line.kind == "table":
            table = line.table
        lines.append(line)
        if line.kind == "commit":
            table = ""
    if table:
        raise RulesSyntaxError(
            f"table {table} has no COMMIT", f"{name}:{len(texts)}", "expected a line COMMIT at the end"
        )
    return RuleSet(family, name, tuple(lines), final_newline)


def _line(text: str, number: int, table: str, name: str) -> Line:
    where = f"{name}:{number}"
    _refuse_bytes(text, where)
    if not text.strip(" \t"):
        return Line(number, text, "blank", table)
    first = text[0]
    if first == "#":
        return Line(number, text, "comment", table)
    if not table:
        return _header(text, number, where)
    if text == "COMMIT":
        return Line(number, text, "commit", table)
    if first == ":":
        return _chain(text, number, table, where)
    if first == "*":
        raise RulesSyntaxError(f"table {table} has no COMMIT", where, "expected a line COMMIT before the next table")
    return _command(text, number, table, where)


def _refuse_bytes(text: str, where: str) -> None:
    if "\0" in text:
        raise RulesSyntaxError("a NUL byte", where, "this is not text; restore the file from a good copy")
    if text.endswith("\r"):
        raise RulesSyntaxError(
            "a carriage return at the end of the line", where, "convert the file to Unix line ends (sed -i 's/\\r$//')"
        )
    if len(text.encode("utf-8", "surrogateescape")) > LONGEST_LINE:
        raise RulesSyntaxError(
            f"a line longer than {LONGEST_LINE} bytes", where, "iptables-restore would break it in two; shorten it"
        )


def _header(text: str, number: int, where: str) -> Line:
    if text[0] != "*":
        raise RulesSyntaxError(
            f"{_short(text)!r} stands outside a table", where, "expected '*' and a table's name, or a comment"
        )
    words = text[1:].split()
    table = words[0] if words else ""
    if table not in TABLES:
        raise RulesSyntaxError(f"unknown table {_short(table)!r}", where, f"expected one of {', '.join(TABLES)}")
    return Line(number, text, "table", table)


def _chain(text: str, number: int, table: str, where: str) -> Line:
    words = BLANKS.split(text[1:].strip(" \t"))
    if len(words) < 2:
        raise RulesSyntaxError(
            f"chain declaration {_short(text)!r} is not complete", where, "expected ':CHAIN POLICY [packets:bytes]'"
        )
    if len(words) > 2 and not COUNTERS.fullmatch(words[2]):
        raise RulesSyntaxError(f"bad counters {_short(words[2])!r}", where, "expected [packets:bytes]")
    return Line(number, text, "chain", table, words[0])


# The beginning of a command, for a quick answer: most lines are never looked at further.
START = re.compile(
    r"[ \t]*(?:\[[0-9]+:[0-9]+\][ \t]*)?(--?[A-Za-z][A-Za-z-]*)(?![^ \t])(?:[ \t]+(\"[^\"]*\"|[^ \t\"]+))?"
)


def _command(text: str, number: int, table: str, where: str) -> Line:
    if '"' in text and open_quote(text):
        raise RulesSyntaxError('an open quote (")', where, 'expected a closing " before the end of the line')
    command, chain = start_of(text) or _odd_command(text, where)
    if (not chain or chain[0] in "-!") and command in ("-A", "-I", "-D", "-R", "-N", "-P", "-E"):
        raise RulesSyntaxError(f"{command} names no chain", where, f"expected '{command} CHAIN ...'")
    if command == "-P" and len(parse_rule(text).options[0].args) < 2:
        raise RulesSyntaxError("-P names no policy", where, "expected '-P CHAIN ACCEPT' or '-P CHAIN DROP'")
    return Line(number, text, "rule", table, chain)


def start_of(text: str) -> tuple[str, str] | None:
    """Command and chain of *text*; ``None`` where only the parsed rule tells them."""
    found = START.match(text)
    if found is None or found.group(1) not in COMMANDS:
        return None
    return COMMANDS[found.group(1)], (found.group(2) or "").strip('"')


def chain_of(text: str) -> str:
    """The chain that the rule *text* is for."""
    start = start_of(text)
    return start[1] if start else parse_rule(text).chain


def _odd_command(text: str, where: str) -> tuple[str, str]:
    """Command and chain where they are written together, cut short, or not first (``-AINPUT``, ``-4 -A INPUT``)."""
    words = text.split() or [text]
    if words[0][0] == "[" and not COUNTERS.match(words[0]):
        raise RulesSyntaxError(f"bad counters {_short(words[0])!r}", where, "expected [packets:bytes]")
    rule = parse_rule(text)
    if rule.command in COMMANDS and words[rule.counters == words[0]][0] in '-!"':
        return rule.command, rule.chain
    raise RulesSyntaxError(
        f"unknown command {_short(words[0])!r}", where, "expected a rule such as '-A CHAIN ...', a chain, or COMMIT"
    )


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


def open_quote(text: str) -> bool:
    """Whether a double quote in *text* is still open at its end."""
    opened = escaped = False
    for letter in text:
        if opened and escaped:
            escaped = False
        elif opened and letter == "\\":
            escaped = True
        elif letter == '"':
            opened = not opened
    return opened


def words_of(text: str, start: int = 0) -> tuple[Word, ...]:
    """Split *text* from *start* on as ``add_param_to_argv`` does, keeping each word's offsets."""
    if '"' not in text:
        return tuple(Word(found.group(), False, found.start(), found.end()) for found in WORD.finditer(text, start))
    words: list[Word] = []
    at, size = start, len(text)
    while at < size:
        if text[at] in " \t":
            at += 1
            continue
        word = _word(text, at)
        words.append(word)
        at = word.end
    return tuple(words)


def _word(text: str, start: int) -> Word:
    value: list[str] = []
    at, size, opened, quoted = start, len(text), False, False
    while at < size:
        letter = text[at]
        at += 1
        if opened:
            if letter == "\\" and at < size:
                value.append(text[at])
                at += 1
            elif letter == '"':
                break
            else:
                value.append(letter)
        elif letter == '"':
            opened = quoted = True
        elif letter in " \t":
            at -= 1
            break
        else:
            value.append(letter)
    return Word("".join(value), quoted, start, at)


def parse_rule(text: str) -> Rule:
    """Parse one command line (counters allowed in front), as a Rule."""
    shape = shape_of(text)
    return parse_words(text) if shape is None else cast(text, shape)


def shape_of(text: str) -> Shape | None:
    """What the command *text* has in common with others; ``None`` where quotes stand in the way."""
    if '"' in text or GAP in text:
        return None
    counted = PLAIN_COUNTERS.match(text)
    pieces = PLACES.split(text[counted.end() :] if counted else text)
    values = pieces[2::3]
    pieces[2::3] = [GAP] * len(values)
    return Shape("".join(pieces), tuple(values), text[: counted.end()] if counted else "")


def cast(text: str, shape: Shape) -> Rule:
    """The rule *text*, whose *shape* was parsed before: twice as fast as parsing it."""
    like = like_of(shape.text)
    if not shape.values and not shape.counters:
        return like
    values = iter(shape.values)
    shift = len(shape.counters)
    options: list[Option] = []
    for name, args, negated, start, end in like.options:
        begin = start + shift
        if GAP in args:
            filled = tuple([next(values) if arg == GAP else arg for arg in args])
            shift += sum(map(len, filled)) - sum(map(len, args))
            args = filled
        options.append(Option(name, args, negated, begin, end + shift))
    return Rule(text, like.command, like.chain, shape.counters.strip(" \t"), tuple(options))


@lru_cache(maxsize=8192)
def like_of(shape: str) -> Rule:
    """The rule that *shape* is, with gaps for its addresses, interfaces and ports."""
    return parse_words(shape)


def parse_words(text: str) -> Rule:
    """Parse one command line without regard to what was parsed before."""
    plain = _plain_rule(text) if '"' not in text else None
    if plain is not None:
        return plain
    counted = PLAIN_COUNTERS.match(text)
    words = list(words_of(text, counted.end() if counted else 0))
    return _rule(text, counted.group(1) if counted else "", _options(words))


def _rule(text: str, counters: str, options: tuple[Option, ...]) -> Rule:
    if options and (options[0].name not in COMMANDS or "--proto" in text):
        options = _command_first(_named(options))
    command = COMMANDS.get(options[0].name, options[0].name) if options else ""
    chain = options[0].value if options else ""
    return Rule(text, command, chain, counters, options)


def _command_first(options: tuple[Option, ...]) -> tuple[Option, ...]:
    """The command may stand anywhere in its line: ``-4 -A INPUT``."""
    command = next((o for o in options if o.name in COMMANDS), options[0])
    return (command, *(o for o in options if o is not command))


def _named(options: tuple[Option, ...]) -> tuple[Option, ...]:
    """``--proto`` is ``--protocol`` cut short, but behind ``-m policy`` the protocol of a tunnel."""
    policy = next((at for at, o in enumerate(options) if o.name == "-m" and o.value == "policy"), len(options))
    return tuple(o._replace(name="-p") if o.name == "--proto" and at < policy else o for at, o in enumerate(options))


def _plain_rule(text: str) -> Rule | None:
    """A rule without quotes, six times as fast; ``None`` for one whose words must be looked at one by one."""
    counted = PLAIN_COUNTERS.match(text)
    options: list[Option] = []
    for found in PLAIN_OPTION.finditer(text, counted.end() if counted else 0):
        option = _plain_option(*found.groups())
        if option is None:
            return None
        options.append(Option(*option, found.start(), found.end()))
    return _rule(text, counted.group(1) if counted else "", tuple(options))


@lru_cache(maxsize=4096)
def _plain_option(inverted: str | None, word: str, rest: str) -> tuple[str, tuple[str, ...], bool] | None:
    """Name, arguments and negation of an option; most options of a rule-set are said many times."""
    name, glued = split_name(word)
    if word == "!" or (inverted and not OPTION.match(word)) or (not rest and name in FREE_TEXT):
        return None
    args = tuple(WORD.findall(rest))
    return name, args if glued is None else (glued, *args), inverted is not None


def _options(words: list[Word]) -> tuple[Option, ...]:
    """Group words into options: an option takes every word up to the next option or ``!``."""
    options: list[Option] = []
    at = 0
    while at < len(words):
        start, negated = words[at].start, False
        if _is_not(words[at]) and at + 1 < len(words):
            negated, at = True, at + 1
        name, glued = split_name(words[at].value)
        args, at = [glued] if glued is not None else [], at + 1
        if at + 1 < len(words) and not args and _is_not(words[at]) and not _is_option(words[at + 1]):
            negated, at = not negated, at + 1  # the order before iptables 1.4.3: -s ! 10.0.0.0/8
        if name in FREE_TEXT and not args and at < len(words):
            args, at = [words[at].value], at + 1
        while at < len(words) and not _is_option(words[at]) and not _is_not(words[at]):
            args.append(words[at].value)
            at += 1
        options.append(Option(name, tuple(args), negated, start, words[at - 1].end))
    return tuple(options)


def _is_not(word: Word) -> bool:
    return word.value == "!"


def _is_option(word: Word) -> bool:
    """Quotes do not matter to getopt, but what needs them is a value."""
    return OPTION.match(word.value) is not None and not (word.quoted and " " in word.value)
