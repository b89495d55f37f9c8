#!/usr/bin/env python3
"""Print the manual page: ``cloudinit-conntrack.8.in`` with what the parser says put in (man(7)).

The text that no parser knows (modes, files, exit codes, examples) stands in the template alone.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from commandline import CommandLine, Option, Verb, command_line

TEMPLATE = Path(__file__).with_name("cloudinit-conntrack.8.in")


def manual(line: CommandLine, template: str, date: str) -> str:
    """The page; *date* is YYYY-MM-DD.

    Options that every verb takes are told once, under their own title.
    """
    common = tuple(o for o in line.verbs[0].options if all(o in verb.options for verb in line.verbs))
    parts = {
        "DATE": date,
        "VERSION": line.version,
        "SYNOPSIS": "".join(_synopsis(line.program, verb, common) for verb in line.verbs),
        "VERBS": "".join(_verb(verb, common) for verb in line.verbs),
        "OPTIONS": "".join(map(_option, (*common, *(o for o in line.options if o not in common)))),
    }
    for name, text in parts.items():
        template = template.replace(f"@{name}@", text.rstrip("\n"))
    return template


def _synopsis(program: str, verb: Verb, common: tuple[Option, ...]) -> str:
    own = (*(option for option in verb.options if option not in common), *verb.arguments)
    words = "".join(f"{_spelt(option)}\n" if option.many else f"[{_spelt(option)}]\n" for option in own)
    return f".SY {_escaped(program)}\n.B {_escaped(verb.name)}\n.RI [ options ]\n{words}.YS\n"


def _spelt(option: Option) -> str:
    """The longest name in bold and the value in italics, as one word."""
    name = f"\\fB{_escaped(option.names[-1])}\\fP" if option.names else ""
    value = f"\\fI{_escaped(option.value)}\\fP{' ...' if option.many else ''}" if option.value else ""
    return "\\ ".join(filter(None, (name, value)))


def _verb(verb: Verb, common: tuple[Option, ...]) -> str:
    own = "".join(_option(option) for option in (*verb.options, *verb.arguments) if option not in common)
    return f".SS {_escaped(verb.name)}\n{_sentence(verb.help)}\n{own}"


def _option(option: Option) -> str:
    names = ", ".join(f"\\fB{_escaped(name)}\\fP" for name in option.names)
    value = f"\\fI{_escaped(option.value)}\\fP" if option.value else ""
    return f".TP\n{' '.join(filter(None, (names, value)))}\n{_sentence(option.help)}\n"


def _sentence(text: str) -> str:
    """*text* as a sentence and a line of input: ``.`` begins a request (groff(7)), names keep their first letter."""
    begin = text.split()[0]
    text = _escaped(text[:1].upper() + text[1:] if begin.isalpha() else text) + "."
    return f"\\&{text}" if text.startswith(".") else text


def _escaped(text: str) -> str:
    """A minus sign is one that can be copied into a shell; quotes stay as they are typed."""
    return text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")


if __name__ == "__main__":
    moment = int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    today = time.strftime("%Y-%m-%d", time.gmtime(moment))
    sys.stdout.write(manual(command_line(), TEMPLATE.read_text(), today))
