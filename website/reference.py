"""Write docs/reference/: what the schemas, the parser and the sources say.  ``python -m website.reference``.

The pages are kept in the repository, so that they can be read there; a test says when one is out of date.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from website import files, keys, reports, verbs

REPOSITORY = Path(__file__).resolve().parents[1]
PLACE = REPOSITORY / "docs/reference"


def pages() -> dict[str, str]:
    """Name below docs/reference -> text."""
    schemas = {path.name: json.loads(path.read_text(encoding="utf-8"))
               for path in sorted((REPOSITORY / "schema").glob("*.schema.json"))}
    configuration = schemas.pop("conntrack.schema.json")
    return {
        "configuration.md": keys.page(configuration),
        "command-line.md": verbs.page(),
        "reports.md": reports.page(schemas),
        "files.md": files.page(),
    }


def stale() -> list[str]:
    """The pages that are not what they would be if they were written now."""
    return [name for name, text in pages().items() if not (PLACE / name).is_file() or _old(name) != text]


def _old(name: str) -> str:
    return (PLACE / name).read_text(encoding="utf-8")


def main() -> int:
    """Write what changed, and say so."""
    for name in stale():
        (PLACE / name).write_text(pages()[name], encoding="utf-8")
        print(f"written: docs/reference/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
