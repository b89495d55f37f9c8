"""A native nftables rule-set as ``nft -j list ruleset`` prints it (libnftables-json(5)).

The array's objects are kept with their own text and the blanks around it, so that what
nobody changed is written back byte for byte: ``format_nft(parse_nft(text)) == text``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NoReturn

from ..errors import RulesSyntaxError

# A value of JSON.  What an nft expression may hold is open-ended, so its readers look before they take.
Json = Any
Place = tuple[str, str, str]

LARGEST_FILE = 64 * 1024 * 1024
# nft's own expressions nest less than twenty deep; ours walk them recursively.
DEEPEST = 64
OBJECTS = frozenset(
    ("metainfo", "table", "chain", "rule", "set", "map", "element", "flowtable", "counter", "quota", "limit",
     "ct helper", "ct timeout", "ct expectation", "synproxy", "secmark", "tunnel")
)
_HEAD = re.compile(r'[ \t\n]*\{[ \t\n]*"nftables"[ \t\n]*:[ \t\n]*\[')
_TAIL = re.compile(r"[ \t\n]*\][ \t\n]*\}[ \t\n]*")
_BLANK = re.compile(r"[ \t\n]*")
_NEEDED = {
    "table": ("family", "name"), "chain": ("family", "table", "name"), "rule": ("family", "table", "chain"),
}


@dataclass(frozen=True)
class Base:
    """What makes a chain a base chain.  *policy* is ``accept`` or ``drop``."""

    kind: str
    hook: str
    priority: int
    policy: str


@dataclass(frozen=True)
class Entry:
    """One object of the array.

    *index* counts from 1 in the input; what we make has the index of what it came from.
    *kind* is ``rule``, ``chain`` ..., *body* the object's value, *text* the JSON as it
    stands, *wrapped* whether it stands in an ``add`` command.
    """

    index: int
    kind: str
    body: Mapping[str, Json]
    text: str
    before: str = ""
    after: str = ""
    wrapped: bool = False

    @cached_property
    def family(self) -> str:
        """``inet``, ``ip``, ``ip6``, ``bridge``, ``netdev``, ``arp``; empty for metainfo."""
        return str(self.body.get("family", ""))

    @cached_property
    def table(self) -> tuple[str, str]:
        """Family and name of the table that the object is, or stands in."""
        return self.family, str(self.body.get("name" if self.kind == "table" else "table", ""))

    @cached_property
    def place(self) -> Place:
        """Family, table and chain: of a rule where it stands, of a chain its own."""
        return (*self.table, str(self.body.get("chain" if self.kind == "rule" else "name", "")))

    @cached_property
    def statements(self) -> tuple[Mapping[str, Json], ...]:
        """The statements of a rule, each an object with one key."""
        return tuple(self.body.get("expr", ()))

    @cached_property
    def base(self) -> Base | None:
        """The hook of a base chain, ``None`` for a user chain and for what is no chain."""
        if self.kind != "chain" or "hook" not in self.body:
            return None
        policy = str(self.body.get("policy", "accept"))
        return Base(str(self.body.get("type", "filter")), str(self.body["hook"]), int(self.body.get("prio", 0)), policy)


@dataclass(frozen=True)
class NftRuleSet:
    """A whole rule-set.  *name* is the file's, for messages; *head* and *tail* frame the array."""

    name: str
    entries: tuple[Entry, ...]
    head: str = '{"nftables": ['
    tail: str = "]}\n"
    # what nft_match.py has read out of statements; each is kept with it, so that its id stays its own
    memo: dict[tuple[int, tuple[str, str]], tuple[object, Any]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def of_kind(self, *kinds: str) -> Iterator[Entry]:
        """The entries of *kinds*, in order."""
        return (entry for entry in self.entries if entry.kind in kinds)

    @cached_property
    def bases(self) -> Mapping[Place, Base]:
        """The base chains."""
        return {entry.place: entry.base for entry in self.of_kind("chain") if entry.base is not None}

    @cached_property
    def rules(self) -> Mapping[Place, tuple[Entry, ...]]:
        """Chain -> its rules in the order in which packets meet them."""
        found: dict[Place, list[Entry]] = {}
        for entry in self.of_kind("rule"):
            found.setdefault(entry.place, []).append(entry)
        return {place: tuple(entries) for place, entries in found.items()}

    @cached_property
    def elements(self) -> Mapping[Place, tuple[Json, ...]]:
        """Named set or map -> its elements, as listed."""
        found: dict[Place, list[Json]] = {}
        for entry in self.of_kind("set", "map", "element"):
            listed = entry.body.get("elem", ())
            found.setdefault(entry.place, []).extend(listed if isinstance(listed, list) else [listed])
        return {place: tuple(items) for place, items in found.items()}

    @cached_property
    def hooks(self) -> Mapping[Place, tuple[Base, ...]]:
        """Chain -> the base chains from which packets come to it, itself included."""
        found: dict[Place, dict[Base, None]] = {}
        for start, base in self.bases.items():
            for place in self.reached(start):
                found.setdefault(place, {})[base] = None
        return {place: tuple(bases) for place, bases in found.items()}

    def reached(self, start: Place) -> Iterable[Place]:
        """*start* and every chain that a packet may come to from there."""
        seen: dict[Place, None] = {}
        waiting = [start]
        while waiting:
            place = waiting.pop()
            if place not in seen:
                seen[place] = None
                for entry in self.rules.get(place, ()):
                    waiting.extend((*entry.table, target) for target in self.targets(entry))
        return seen

    def targets(self, entry: Entry) -> Iterator[str]:
        """The chains that a rule jumps or goes to, its verdict maps included."""
        for statement in entry.statements:
            for key in ("jump", "goto"):
                if key in statement:
                    yield str(statement[key]["target"])
            if "vmap" in statement:
                for _, verdict in self.arms(entry, statement["vmap"]["data"]):
                    yield from (str(verdict[key]["target"]) for key in ("jump", "goto") if key in verdict)

    def arms(self, entry: Entry, mapping: Json) -> tuple[tuple[Json, Mapping[str, Json]], ...]:
        """(key, verdict) for each element of a verdict map, anonymous or named; odd ones are left out."""
        items = self.members(entry, mapping)
        pairs = (item for item in items if isinstance(item, list) and len(item) == 2 and isinstance(item[1], dict))
        return tuple((key, verdict) for key, verdict in pairs if _is_verdict(verdict))

    def members(self, entry: Entry, value: Json) -> tuple[Json, ...]:
        """The elements of a set or map as an expression has it: ``{"set": [...]}`` or ``"@name"``."""
        if isinstance(value, str) and value.startswith("@"):
            return self.elements.get((*entry.table, value[1:]), ())
        listed = value.get("set", ()) if isinstance(value, dict) else ()
        return tuple(listed) if isinstance(listed, list) else (listed,)

    def with_entries(self, entries: Iterable[Entry]) -> NftRuleSet:
        """The same rule-set with other entries."""
        return replace(self, entries=tuple(entries))


def _is_verdict(value: Mapping[str, Json]) -> bool:
    jump = next((value[key] for key in ("jump", "goto") if key in value), None)
    if jump is not None:
        return isinstance(jump, dict) and isinstance(jump.get("target"), str)
    return len(value) == 1 and next(iter(value)) in ("accept", "drop", "return", "continue", "queue")


def format_nft(ruleset: NftRuleSet) -> str:
    """The text of *ruleset*, ready for ``nft -j -f``."""
    body = ",".join(entry.before + entry.text + entry.after for entry in ruleset.entries)
    return ruleset.head + body + ruleset.tail


def made(source: Entry, kind: str, body: Mapping[str, Json]) -> Entry:
    """An entry that stands where *source* stood, written as nft writes (jansson's separators, UTF-8)."""
    value: Json = {kind: body}
    if source.wrapped:
        value = {"add": value}
    return replace(source, kind=kind, body=body, text=json.dumps(value, ensure_ascii=False))


# --- parsing ---------------------------------------------------------------------------


def parse_nft(text: str, name: str = "<stdin>") -> NftRuleSet:
    """Parse *text*; *name* is used in messages.

    Raises RulesSyntaxError with ``FILE:LINE`` for what is no JSON, or no list of nft objects.
    """
    _refuse_bytes(text, name)
    start = _HEAD.match(text)
    if not start:
        _refuse_head(text, name)
    decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
    entries: list[Entry] = []
    at = start.end()
    while not (entries and text[at : at + 1] != ",") and not _closed(text, at):
        at += bool(entries)
        entry, at = _entry(text, at, decoder, name, entries)
        entries.append(entry)
    end = _TAIL.match(text, at)
    if not end or end.end() != len(text):
        _fail("the array of objects is not closed", text, at, name, "expected ',' and an object, or ']}' and the end")
    return NftRuleSet(name, tuple(entries), start.group(), end.group())


def _closed(text: str, at: int) -> bool:
    end = _TAIL.match(text, at)
    return end is not None and end.end() == len(text)


def _refuse_bytes(text: str, name: str) -> None:
    if len(text) > LARGEST_FILE:
        raise RulesSyntaxError(f"larger than {LARGEST_FILE} bytes", f"{name}:1", "this is not a saved rule-set")
    for byte, what in (("\0", "a NUL byte"), ("\r", "a carriage return")):
        if byte in text:
            _fail(what, text, text.index(byte), name, "expected what 'nft -j list ruleset' prints")


def _refuse_head(text: str, name: str) -> NoReturn:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        _fail(f"no JSON: {error.msg}", text, error.pos, name, "expected what 'nft -j list ruleset' prints")
    except (ValueError, RecursionError):
        pass
    _fail("no rule-set of nft", text, 0, name, 'expected {"nftables": [ ... ]}, as \'nft -j list ruleset\' prints it')


def _fail(what: str, text: str, at: int, name: str, remedy: str) -> NoReturn:
    line = text.count("\n", 0, at) + 1
    column = at - (text.rfind("\n", 0, at) + 1) + 1
    raise RulesSyntaxError(f"{what} (column {column})", f"{name}:{line}", remedy)


def _entry(text: str, at: int, decoder: json.JSONDecoder, name: str, entries: list[Entry]) -> tuple[Entry, int]:
    before = _BLANK.match(text, at)
    start = before.end() if before else at
    try:
        value, end = decoder.raw_decode(text, start)
        if _needs_a_look(text[start:end]):
            _check_value(value, 0)
        kind, body, wrapped = _unwrapped(value, entries)
        _check_shape(kind, body)
    except json.JSONDecodeError as error:
        _fail(f"no JSON: {error.msg}", text, error.pos, name, "expected what 'nft -j list ruleset' prints")
    except RecursionError:
        _fail("nested too deeply", text, start, name, "this is not a saved rule-set")
    except ValueError as error:
        _fail(f"object {len(entries) + 1}: {error}", text, start, name, "expected what 'nft -j list ruleset' prints")
    after = _BLANK.match(text, end)
    finish = after.end() if after else end
    if text[finish : finish + 1] != ",":
        finish = end  # the blanks before the closing bracket belong to the tail
    return Entry(len(entries) + 1, kind, body, text[start:end], text[at:start], text[end:finish], wrapped), finish


def _needs_a_look(text: str) -> bool:
    """Whether one object's text may nest too deep, or hold letters that no UTF-8 has; nearly none does."""
    return text.count("{") + text.count("[") > DEEPEST or "\\u" in text or not text.isascii()


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:40]} is no usable number")
    return number


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _no_constant(name: str) -> Json:
    raise ValueError(f"{name} is no JSON number")


def _check_value(value: Json, depth: int) -> None:
    if depth > DEEPEST:
        raise ValueError(f"nested deeper than {DEEPEST}")
    if isinstance(value, str):
        if "\0" in value or (not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value)):
            raise ValueError("text that is no UTF-8, or has a NUL byte in it")
    elif isinstance(value, dict):
        for key, inner in value.items():
            _check_value(key, depth + 1)
            _check_value(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check_value(inner, depth + 1)


def _unwrapped(value: Json, entries: list[Entry]) -> tuple[str, dict[str, Json], bool]:
    """(kind, body, whether it stands in an ``add``) of one object."""
    kind, body = _single(value)
    wrapped = kind == "add"
    if wrapped:
        kind, body = _single(body)
    elif kind == "flush" and body == {"ruleset": None} and all(e.kind in ("metainfo", "flush") for e in entries):
        return kind, {}, False
    if kind not in OBJECTS or (wrapped and kind == "metainfo"):
        raise ValueError(f"unknown object or command {kind[:40]!r}")
    if not isinstance(body, dict):
        raise ValueError(f"{kind} is no object")
    return kind, body, wrapped


def _single(value: Json) -> tuple[str, Json]:
    if not isinstance(value, dict) or len(value) != 1:
        raise ValueError("no object with one key")
    return next(iter(value.items()))


def _check_shape(kind: str, body: dict[str, Json]) -> None:
    for key in _NEEDED.get(kind, ()):
        if not isinstance(body.get(key), str):
            raise ValueError(f"{kind} has no {key}")
    texts = all(isinstance(body.get(key, ""), str) for key in ("type", "hook", "policy"))
    if kind == "chain" and "hook" in body and not (texts and isinstance(body.get("prio", 0), int)):
        raise ValueError("a base chain without a usable type, hook, prio or policy")
    if kind == "rule":
        statements = body.get("expr", [])
        if not isinstance(statements, list):
            raise ValueError("the rule's expr is no array")
        for statement in statements:
            _check_statement(*_single(statement))


def _check_statement(kind: str, body: Json) -> None:
    needed = {"match": ("op", "left", "right"), "vmap": ("key", "data"), "jump": ("target",), "goto": ("target",)}
    for key in needed.get(kind, ()):
        if not isinstance(body, dict) or key not in body:
            raise ValueError(f"{kind} without {key}")
        if key in ("op", "target") and not isinstance(body[key], str):
            raise ValueError(f"{kind}: {key} is no text")
