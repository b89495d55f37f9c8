"""docs/reference/reports.md: what the JSON of the verbs holds, from the schemas beside that of the section."""

from __future__ import annotations

from collections.abc import Iterator

from website import schemas
from website.schemas import Schema

_CHOICES = ("anyOf", "oneOf")


def page(found: dict[str, Schema]) -> str:
    """The page for these schemas, by file name."""
    parts = (_schema(name, one) for name, one in found.items())
    return schemas.filled("reports.md", {"SCHEMAS": "\n".join(parts)})


def _schema(name: str, whole: Schema) -> str:
    stem = name.split(".")[0]
    head = f"## {whole['title']}\n\n{whole['description']} Schema: [{name}](../../schema/{name}).\n\n"
    top = _table(whole, whole, stem) if "properties" in whole else ""
    parts = (_part(stem, key, one, whole) for key, one in whole.get("definitions", {}).items() if _is_told(one))
    return head + "\n".join(part for part in (top, *parts) if part)


def _is_told(schema: Schema) -> bool:
    """Whether a definition has a part of its own: a mapping, or a choice among definitions."""
    return "properties" in schema or any("$ref" in one for choice in _CHOICES for one in schema.get(choice, []))


def _part(stem: str, key: str, schema: Schema, whole: Schema) -> str:
    head = f"### {stem}: {key.replace('_', ' ')}\n\n{schema.get('description', '')}\n\n"
    if "properties" in schema:
        return head + _table(schema, whole, stem)
    names = [one["$ref"].rpartition("/")[2] for choice in _CHOICES for one in schema.get(choice, []) if "$ref" in one]
    return f"{head}One of {', '.join(_link(stem, name) for name in names)}.\n"


def _link(stem: str, name: str) -> str:
    return f"[{name.replace('_', ' ')}](#{stem}-{name.replace('_', '-')})"


def _table(schema: Schema, whole: Schema, stem: str) -> str:
    return schemas.table(("key", "type", "what"), list(_rows(schema, whole, stem, "")))


def _rows(schema: Schema, whole: Schema, stem: str, above: str) -> Iterator[tuple[str, str, str]]:
    for name, given in schema.get("properties", {}).items():
        one = schemas.target(given, whole)
        optional = "" if name in schema.get("required", ()) else ", may be missing"
        yield f"`{above}{name}`", _kind(given, whole, stem) + optional, one.get("description", "-")
        if "$ref" not in given:
            yield from _rows(one, whole, stem, f"{above}{name}.")
            items = given.get("items", {})
            yield from () if "$ref" in items else _rows(items, whole, stem, f"{above}{name}[].")


def _kind(given: Schema, whole: Schema, stem: str) -> str:
    """The type, with a link where it has a part of its own."""
    for one, many in ((given, ""), (given.get("items", {}), "list of ")):
        if "$ref" in one and _is_told(schemas.target(one, whole)):
            return many + _link(stem, one["$ref"].rpartition("/")[2])
    choices = [one for choice in _CHOICES for one in given.get(choice, [])]
    return " or ".join(_kind(one, whole, stem) for one in choices) if choices else schemas.kind(given, whole)
