"""What the command prints for programs, read by its schema: a test that reads JSON of ours reads it here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema

SCHEMAS = Path(__file__).resolve().parents[1] / "schema"


def validator(name: str) -> jsonschema.Draft7Validator:
    """The judge for ``schema/NAME.schema.json``."""
    schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


REPORT, REWRITE, FLEET = validator("report"), validator("rewrite"), validator("fleet")


def valid(found: Any, by: jsonschema.Draft7Validator = REPORT) -> dict[str, Any]:
    """*found*, which is as the schema has it, or the test fails and says where it is not."""
    wrong = [f"{'/'.join(map(str, error.absolute_path))}: {told.message}" for error in by.iter_errors(found)
             for told in (jsonschema.exceptions.best_match([error]),) if told]
    assert not wrong, "\n".join(wrong)
    assert isinstance(found, dict)
    return found


def read(text: str | bytes) -> dict[str, Any]:
    """The report that *text* is, of any verb that prints one or ``result.json``, or the answer of ``rewrite``."""
    found = json.loads(text)
    return valid(found, REWRITE if "ruleset" in found else REPORT)
