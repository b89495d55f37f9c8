"""The verb ``userdata``: write a file that carries the program, or say what is in one."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from . import userdata
from .config import desired_from_section
from .document import MAX_BYTES, keys_of, section_of
from .errors import ConfigError, ConntrackError, UsageError
from .host import inputs

VERB = "cloudinit-conntrack userdata"


def make(options: argparse.Namespace) -> int:
    """Do what *options* ask for; gives the exit code."""
    _refuse_contradictions(options)
    if options.check:
        return _check(options)
    content = inputs.read_input(options.config, MAX_BYTES)
    name = "<stdin>" if options.config == "-" else options.config
    section = section_of(content, name)
    desired = desired_from_section(section)
    others = [key for key in keys_of(content, name) if key != "conntrack"]
    if others:
        raise ConfigError(f"holds more than the conntrack: section ({', '.join(others[:5])})", name,
                          "move the rest into a file of its own, and give that with --merge")
    merge = inputs.read_input(options.merge, MAX_BYTES) if options.merge else b""
    if options.merge and not 0 < len(merge) <= MAX_BYTES:
        what = f"has more than {MAX_BYTES} bytes" if merge else "is empty"
        raise ConfigError(what, options.merge, "give user-data")
    sources = {file: inputs.own_text(f"carried/{file}") for file in userdata.FILES}
    made = userdata.make_userdata(desired, section, sources, merge, options.merge or "", options.compress)
    if options.output:
        inputs.write_output(options.output, made)
    elif options.compress and sys.stdout.isatty():
        raise UsageError("compressed user-data is no text for a terminal", VERB, "write it to a file with -o OUT")
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(made)
    print(f"{options.output or 'user-data'}: {len(made):,} of {userdata.MOST_BYTES:,} bytes", file=sys.stderr)
    return 0


def _refuse_contradictions(options: argparse.Namespace) -> None:
    given = [option for option in ("config", "merge", "output") if getattr(options, option)]
    if options.root != "/":
        raise UsageError("user-data is made for no file tree", VERB, "leave out --root; 'enable --root' is for images")
    if options.check and (given or options.compress):
        raise UsageError("--check only looks at a file", VERB, "give no other option with it")
    if not options.check and options.config is None:
        raise UsageError("no configuration", VERB, "give the conntrack: section with -c FILE")
    if options.config == "-" and options.merge == "-":
        raise UsageError("both the configuration and --merge are standard input", VERB, "name a file for one of them")


def _check(options: argparse.Namespace) -> int:
    name = "<stdin>" if options.check == "-" else options.check
    content = inputs.read_input(options.check, MAX_BYTES)
    found = userdata.carried(content, name)
    desired_from_section(found.section)  # the host will believe it
    if options.format == "json":
        shown = {key: value for key, value in asdict(found).items() if options.verbose or key != "program"}
        print(json.dumps({"schema": 1, **shown, "most": userdata.MOST_BYTES}, indent=2))
    else:
        sys.stdout.write(userdata.told(found) + (f"\n{found.program}" if options.verbose else ""))
    if found.size > userdata.MOST_BYTES:
        raise ConntrackError(f"is {found.size:,} bytes, and EC2 takes {userdata.MOST_BYTES:,}", name, "add --compress")
    return 0
