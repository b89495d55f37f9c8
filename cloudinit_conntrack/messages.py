"""Words for messages about text that somebody else wrote: short, one line, plain ASCII."""

from __future__ import annotations

import re

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]{1,40}")


def quoted(text: str, limit: int = 40) -> str:
    """As much of *text* as *limit* characters show, in quotes, all but plain ASCII escaped.

    So no control or bidi character of hostile input reaches a terminal or a log.
    """
    short = text[:limit]
    while len(ascii(short)) > limit + len("''"):
        short = short[:-1]
    return ascii(short) if short == text else ascii(short) + "..."


def shown(value: object) -> str:
    """A value of a configuration in YAML's words; what has no short form by its kind."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if abs(value) < 10**20 else "a number of more than 20 digits"
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dict):
        return "a mapping"
    return f"a {type(value).__name__}"


def joined(path: str, key: object) -> str:
    """The path of *key* below *path*: ``conntrack.flows``, an odd key as ``conntrack['a b']``."""
    if isinstance(key, str) and _PLAIN_KEY.fullmatch(key):
        return f"{path}.{key}" if path else key
    return f"{path}[{shown(key)}]"
