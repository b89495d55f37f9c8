"""What a native rule holds that we know nothing about: said to be unknown, not guessed to be safe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .nft_ruleset import Entry, Json
from .nft_stateful import INDEPENDENT, INDEPENDENT_EXPRESSIONS, STATEMENTS
from .stateful import INDEPENDENT as EXTENSIONS
from .stateful import MATCHES, TARGETS


def unknown_words(entry: Entry) -> tuple[str, ...]:
    """Statements, expressions and extensions of a rule that we know nothing about."""
    found: dict[str, None] = {}
    for statement in entry.statements:
        found.update(dict.fromkeys(_unknown(statement)))
    return tuple(found)


def _unknown(statement: Json) -> Iterator[str]:
    """The unknown words of one statement, and of those within it."""
    if not isinstance(statement, dict) or len(statement) != 1:
        return
    kind, body = next(iter(statement.items()))
    if kind == "xt":
        yield from (f"xt {name}" for name in _unknown_extension(body))
    elif kind not in INDEPENDENT and kind not in STATEMENTS:
        yield kind
    elif isinstance(body, dict):
        inner = body.get("stmt", [])
        for one in inner if isinstance(inner, list) else [inner]:
            yield from _unknown(one)
        for place in _EXPRESSIONS_IN.get(kind, ()):
            yield from _unknown_expressions(body.get(place))


_ADDRESSED = ("addr", "dev", "port", "expr", "num")
# Where the statements hold expressions; the verdicts of a map and the bodies of others hold none.
_EXPRESSIONS_IN: Mapping[str, tuple[str, ...]] = {
    "match": ("left", "right"), "vmap": ("key",), "mangle": ("key", "value"), "set": ("elem",),
    "map": ("elem", "data"), "meter": ("key",),
    **dict.fromkeys(("dup", "fwd", "tproxy", "queue", "reject"), _ADDRESSED),
}


def _unknown_expressions(value: Json) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _unknown_expressions(item)
    elif isinstance(value, dict) and len(value) == 1:
        kind, body = next(iter(value.items()))
        if kind not in INDEPENDENT_EXPRESSIONS and kind != "ct":
            yield kind
        elif kind in ("concat", "set", "range", "|", "&", "^", "<<", ">>"):
            yield from _unknown_expressions(body)
        elif isinstance(body, dict):
            for place in ("val", "key", "data", "expr"):
                yield from _unknown_expressions(body.get(place))


def _unknown_extension(body: Json) -> tuple[str, ...]:
    """The name of an iptables extension that neither needs conntrack nor is known to do without."""
    name = body.get("name") if isinstance(body, dict) else None
    known = name in EXTENSIONS or name in MATCHES or name in TARGETS
    return () if known or not isinstance(name, str) else (name,)
