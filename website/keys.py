"""docs/reference/configuration.md: every key of the ``conntrack:`` section, from its schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from website import schemas
from website.schemas import Schema

# What stands beside a key in its example, because the program asks for it.
_BESIDE = (("fallback", "unload"), ("flows.outbound", "stateless"), ("flows", "notrack"), ("", "unload"))
_UNTOLD = {"guard.keep": "what sshd listens on"}


@dataclass(frozen=True)
class Key:
    """One key: its *path* below ``conntrack``, and what the schema says of it."""

    path: str
    schema: Schema
    required: bool

    @property
    def anchor(self) -> str:
        """As GitHub and mkdocs make it of a heading."""
        return "".join(c for c in self.path if c.isalnum() or c in "_-")


def page(whole: Schema) -> str:
    """The page for the schema *whole* of a document with the section."""
    section = whole["properties"]["conntrack"]
    found = list(_keys(section, whole, ""))
    rows = [(f"[`{key.path}`](#{key.anchor})", schemas.kind(key.schema, whole), _default(key, whole)) for key in found]
    return schemas.filled("configuration.md", {
        "WHOLE": _with_defaults(section),
        "TABLE": schemas.table(("key", "type", "default"), rows),
        "KEYS": "\n".join(_section(key, whole) for key in found),
        "PORTS": _ports(whole),
    })  # fmt: skip


def _keys(schema: Schema, whole: Schema, above: str) -> Iterator[Key]:
    for name, inner in schema.get("properties", {}).items():
        path = f"{above}.{name}" if above else name
        yield Key(path, inner, name in schema.get("required", ()))
        yield from _keys(inner, whole, path)
        for choice in inner.get("items", {}).get("anyOf", []):
            yield from _keys(choice, whole, f"{path}[]")


def _default(key: Key, whole: Schema) -> str:
    schema = schemas.target(key.schema, whole)
    if key.required:
        return "required"
    if "default" not in schema:
        return _UNTOLD.get(key.path, "none")
    return f"`{json.dumps(schema['default'])}`"


def _section(key: Key, whole: Schema) -> str:
    schema = schemas.target(key.schema, whole)
    more = schemas.limits(key.schema, whole)
    facts = f"Type: {schemas.kind(key.schema, whole)}{f' ({more})' if more else ''}. Default: {_default(key, whole)}."
    examples = "".join(f"\n```yaml\n{_example(key, value)}```\n" for value in schema.get("examples", [])[:2])
    return f"### `{key.path}`\n\n{schema['description']}\n\n{facts}\n{examples}"


def _example(key: Key, value: object) -> str:
    """A whole section in which *key* has *value*."""
    if key.path == "mode":
        return _yaml({"conntrack": {"mode": value}})
    inner: Any = value
    for word in reversed(key.path.split(".")):
        name, is_list = word.rstrip("[]"), word.endswith("[]")
        entry = {"port": 443, **inner} if is_list and "port" not in inner else inner
        inner = {name: [entry] if is_list else entry}
    mode = next(mode for path, mode in _BESIDE if key.path.startswith(path))
    return _yaml({"conntrack": {"mode": mode, **inner}})


def _yaml(value: object) -> str:
    return str(yaml.safe_dump(value, sort_keys=False, default_flow_style=None, width=100))


def _with_defaults(section: Schema) -> str:
    def filled(schema: Schema) -> dict[str, Any]:
        inner = schema["properties"].items()
        return {name: filled(one) if "properties" in one else one["default"] for name, one in inner
                if "properties" in one or "default" in one}  # fmt: skip

    return _yaml({"conntrack": {"mode": "unload", **filled(section)}})


def _ports(whole: Schema) -> str:
    rows = [(f"`{name}`", one["description"], ", ".join(f"`{json.dumps(e)}`" for e in one["examples"]))
            for name, one in whole.get("definitions", {}).items()]  # fmt: skip
    return schemas.table(("kind", "what", "examples"), rows)
