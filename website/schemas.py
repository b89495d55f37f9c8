"""What a JSON schema says of one value, in words (JSON Schema, draft 7)."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Schema = dict[str, Any]
MADE = "<!-- Written by `python -m website.reference`; changes here are overwritten. -->\n"
_LIMITS = (("minimum", "at least {}"), ("maximum", "at most {}"), ("minItems", "at least {} of them"),
           ("maxItems", "at most {:,} of them"), ("maxLength", "at most {:,} characters"))  # fmt: skip


def target(schema: Schema, whole: Schema) -> Schema:
    """*schema*, or what its ``$ref`` (or its only ``allOf``) leads to, with its own words over it."""
    within = schema.get("allOf", [])
    reference = schema.get("$ref") or (within[0].get("$ref") if len(within) == 1 else None)
    if reference is None:
        return schema
    found = whole
    for word in reference.lstrip("#/").split("/"):
        found = found[word]
    own = {key: value for key, value in schema.items() if key not in ("$ref", "allOf")}
    return {**target(found, whole), **own}


def kind(schema: Schema, whole: Schema) -> str:
    """The type in words: ``integer or string``, ``list of ...``, the values that are allowed."""
    schema = target(schema, whole)
    if "const" in schema:
        return f"always `{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return " \\| ".join(f"`{_word(value)}`" for value in schema["enum"])
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            return " or ".join(dict.fromkeys(kind(one, whole) for one in schema[choice]))
    types = schema.get("type", "any value")
    names = types if isinstance(types, list) else [types]
    return " or ".join(_named(name, schema, whole) for name in names)


def _named(name: str, schema: Schema, whole: Schema) -> str:
    if name != "array":
        return {"object": "mapping", "boolean": "true or false"}.get(name, name)
    items = schema.get("items")
    return f"list of {kind(items, whole)}" if items and not _is_long(items, whole) else "list"


def _is_long(items: Schema, whole: Schema) -> bool:
    return any(choice in target(items, whole) for choice in ("anyOf", "oneOf"))


def _word(value: object) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


def limits(schema: Schema, whole: Schema) -> str:
    """What else is asked of the value."""
    schema = target(schema, whole)
    found = [words.format(schema[key]) for key, words in _LIMITS if key in schema]
    return ", ".join(found)


def cell(text: str) -> str:
    """*text* as the cell of a table."""
    return re.sub(r"(?<!\\)\|", r"\\|", text.replace("\n", " "))


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [head, ("---",) * len(head), *(tuple(cell(text) for text in row) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def filled(name: str, parts: dict[str, str]) -> str:
    """The page of the template *name* with ``@NAME@`` replaced by the part NAME."""
    text = (Path(__file__).with_name("templates") / name).read_text(encoding="utf-8")
    found = re.sub("@([A-Z]+)@", lambda match: parts[match.group(1)], text)
    return f"{found.rstrip()}\n\n{MADE}"
