"""The verb ``status``: look once, look again and again (``--watch``), or as a picture (``--picture``)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

from . import journal, lastgood, report
from .errors import ConntrackError, UsageError
from .host import inputs, journalfile, observe, pending, terminal
from .host.root import Root
from .host.tracking import observe_tracking
from .plan import Item
from .report import Report
from .run import mode_of
from .said import Node
from .status import make_status

PICTURES = (".dot", ".svg")


def status(options: argparse.Namespace, root: Root, live: bool) -> None:
    """Print the status; UsageError for options that do not go together."""
    _refuse(options, live)
    if options.watch is not None:
        from .watching import watch  # here: it is asked for seldom

        colour = inputs.wants_colour(sys.stdout)
        watch(lambda: look(root, live), options.watch, colour, options.verbose, terminal.draws_lines())
        return
    found = look(root, live)
    if options.picture is not None:
        _picture(found.sight.tree if found.sight else (), options.picture, options.verbose)
    if options.format == "json":
        sys.stdout.write(report.json_text(found))
    else:
        sys.stdout.write(report.text(found, inputs.wants_colour(sys.stdout), options.verbose, terminal.draws_lines()))


def _refuse(options: argparse.Namespace, live: bool) -> None:
    if options.watch is not None:
        if options.format == "json":
            raise UsageError("JSON is not drawn on a terminal", "--watch", "leave out --format json, or --watch")
        if not live:
            raise UsageError("nothing moves in an image tree", "--watch", "leave out --root, or --watch")
        if options.picture is not None:
            raise UsageError("a picture stands still", "--watch", "leave out --picture, or --watch")
    if options.picture is not None:
        if not options.picture.endswith(PICTURES):
            raise UsageError("a picture ends in .dot or .svg", f"--picture {options.picture}",
                             "name the file so")
        if not live:
            raise UsageError("an image tree holds no module", "--picture", "leave out --root, or --picture")


def _picture(tree: Sequence[Node], path: str, verbose: bool) -> None:
    from .picture import dot_text  # here: it is asked for seldom

    text = dot_text(tree, verbose)
    content = text.encode()
    if path.endswith(".svg"):
        from .host.graphviz import rendered

        content = rendered(text, path)
    inputs.write_output(path, content)


def look(root: Root, live: bool) -> Report:
    """The status of *root*, with what is odd about earlier runs first."""
    mode, odd = "", list(lastgood.standing(root) if live else ())
    try:
        mode = mode_of(journalfile.kept_desired(root))
        odd += _unfinished(root, live)
    except ConntrackError as error:  # status is what one asks when something is wrong
        odd.append(Item("journal", error.where, error.what, error.remedy))
    state = observe.observe(root, live)
    found = make_status(state, mode, journalfile.last_outcome(root) if live else "", observe_tracking(state, root))
    from .enable import looked_at  # here: it loads YAML, which the boot service can do without

    facts, wiring = looked_at(root)
    return replace(found, facts=found.facts + facts, findings=(*odd, *wiring, *found.findings))


def _unfinished(root: Root, live: bool) -> list[Item]:
    """A run that was cut off, or one that waits to be confirmed."""
    cut_off = journal.open_entry(journalfile.read(root))
    if cut_off is not None:
        what = "a revert was cut off, and is not finished yet" if cut_off.closed else (
            "an apply was cut off, and is not rolled back yet")
        return [Item("journal", journal.PATH, what, "run 'cloudinit-conntrack apply', or 'cloudinit-conntrack revert'")]
    if live and pending.read(root) is not None:
        return [Item("unconfirmed", pending.PATH, "the last apply is undone soon, unless it is confirmed",
                     "run 'cloudinit-conntrack confirm' over a new connection")]
    return []
