"""docs/reference/command-line.md: every verb and option, from the command's own parser."""

from __future__ import annotations

import sys
from pathlib import Path

from website import schemas

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "packages"))

from commandline import Option, Verb, command_line


def page() -> str:
    """The page for this tree's parser."""
    line = command_line()
    common = tuple(o for o in line.verbs[0].options if all(o in verb.options for verb in line.verbs))
    return schemas.filled("command-line.md", {
        "COMMON": _options(common),
        "ALONE": ", ".join(_spelt(o) for o in line.options if o not in common),
        "TABLE": schemas.table(("verb", "what it does"), [(f"[`{v.name}`](#{v.name})", v.help) for v in line.verbs]),
        "VERBS": "\n".join(_verb(verb, common) for verb in line.verbs),
    })  # fmt: skip


def _verb(verb: Verb, common: tuple[Option, ...]) -> str:
    own = tuple(o for o in verb.options if o not in common)
    words = " ".join(("cloudinit-conntrack", verb.name, "[options]", *(f"[{o.value}]" for o in verb.arguments)))
    told = _options((*own, *verb.arguments)) if own or verb.arguments else "No options of its own.\n"
    what = verb.help[:1].upper() + verb.help[1:]
    return f"### {verb.name}\n\n```text\n{words}\n```\n\n{what}.\n\n{told}"


def _options(options: tuple[Option, ...]) -> str:
    return schemas.table(("option", "what it does"), [(_spelt(o), o.help or "-") for o in options])


def _spelt(option: Option) -> str:
    value = f" {option.value}" if option.value and option.names else option.value
    names = ", ".join(option.names)
    return f"`{names}{value}`".replace("|", "\\|")
