"""The verb ``fleet-report``: the reports of many nodes, told together, the worst first."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from . import fleet
from .errors import ConntrackError, UsageError
from .fleet import LISTS, Fleet, Gathering, Group, Said
from .host import inputs, reports
from .report import OUTCOME_COLOUR, paint

_SHOWN, _SHOWN_NODES = 5, 24  # of each list, without -v
_TITLES = {"blockers": "blocked by", "evidence": "the kernel does not agree, or cannot tell",
           "widenings": "accepted now and not before", "findings": "good to know", "actions": "actions"}
_COLOURS = {"not-as-desired": "red", "differs": "yellow", "alike": "green"}

Unreadable = tuple[tuple[str, str], ...]  # file or place, what is wrong


def compare(paths: Sequence[str], as_json: bool, verbose: bool) -> int:
    """Compare the reports that *paths* lead to; gives the exit code.

    A file that cannot be read hides no other: it is told first, and the exit code is 1.
    """
    if paths.count("-") > 1:
        raise UsageError("standard input is given twice", "cloudinit-conntrack fleet-report", "give '-' once")
    found, unreadable = _gathered(paths)
    if not found.groups and not unreadable:
        raise ConntrackError("there is no report", ", ".join(paths), "a directory holds NODE.json or NODE/result.json")
    if as_json:
        sys.stdout.write(json.dumps(to_json(found, unreadable), indent=2) + "\n")
    else:
        sys.stdout.write("\n".join(text(found, unreadable, sys.stdout.isatty(), verbose)) + "\n")
    if unreadable:
        return 1
    return 0 if found.alike else 4


def _gathered(paths: Sequence[str]) -> tuple[Fleet, Unreadable]:
    gathering, names = Gathering(), set()
    unreadable: list[tuple[str, str]] = []
    for node, path in reports.named(paths, lambda where, what: unreadable.append((where, what))):
        shown = "<stdin>" if path == "-" else path
        try:
            report, host = fleet.parse(inputs.read_input(path, fleet.MOST_BYTES), shown)
        except ConntrackError as error:
            unreadable.append((error.where, error.what))
            continue
        name = node or host or shown
        name = shown if name in names else name  # two files of one node: each is told by its path
        names.add(name)
        gathering.add(name, report)
    return gathering.fleet(), tuple(unreadable)


# --- for programs --------------------------------------------------------------------------


def to_json(found: Fleet, unreadable: Unreadable) -> dict[str, Any]:
    """What schema/fleet.schema.json describes."""
    return {
        "schema": 1,
        "nodes": sum(len(group.nodes) for group in found.groups),
        "alike": found.alike and not unreadable,
        "unreadable": [{"where": where, "what": what} for where, what in unreadable],
        "groups": [_group_json(found, group) for group in found.groups],
    }


def _group_json(found: Fleet, group: Group) -> dict[str, Any]:
    report = group.report
    return {
        "verdict": group.verdict, "nodes": list(group.nodes), "outcomes": dict(group.outcomes),
        "mode": report.mode, "version": report.version, "message": report.message, "differs": list(group.differs),
        **{axis: _listing_json(found, group, axis) for axis in LISTS},
    }  # fmt: skip


def _listing_json(found: Fleet, group: Group, axis: str) -> dict[str, Any]:
    listing = found.listing(group, axis)
    return {"count": listing.count, "items": [{"where": where, "what": what} for where, what in listing.shown]}


# --- for a person --------------------------------------------------------------------------


def text(found: Fleet, unreadable: Unreadable, colour: bool, verbose: bool) -> Iterator[str]:
    """Lines: the sum, what could not be read, then the groups, the worst first."""
    yield _sum(found, unreadable)
    if unreadable:
        yield ""
        yield paint("unreadable", "red", colour)
        yield from (f"  {plain(where)}: {plain(what)}" for where, what in _some(unreadable, verbose))
        yield from _more(len(unreadable), _SHOWN, verbose)
    for group in found.groups:
        yield ""
        yield from _group_text(found, group, colour, verbose)


def _sum(found: Fleet, unreadable: Unreadable) -> str:
    count = dict.fromkeys(_COLOURS, 0)
    for group in found.groups:
        count[group.verdict] += len(group.nodes)
    words = [f"{_nodes(sum(count.values()))}: {count['alike']} as desired and alike"]
    words += [f"{count['differs']} as desired but unlike most"] if count["differs"] else []
    words += [f"{count['not-as-desired']} not as desired"] if count["not-as-desired"] else []
    words += [f"{len(unreadable)} unreadable"] if unreadable else []
    return ", ".join(words)


def _group_text(found: Fleet, group: Group, colour: bool, verbose: bool) -> Iterator[str]:
    report = group.report
    outcomes = ", ".join(plain(word.replace("-", " ")) for word, _ in group.outcomes)
    shade = _COLOURS[group.verdict] if group.verdict != "not-as-desired" else OUTCOME_COLOUR.get(report.outcome, "red")
    yield (f"{paint(outcomes, shade, colour)}  mode {plain(report.mode) or '-'}  version {_version(report.version)}  "
           f"{_nodes(len(group.nodes))}")
    shown = group.nodes if verbose else group.nodes[:_SHOWN_NODES]
    more = f" and {len(group.nodes) - len(shown)} more (-v)" if len(shown) < len(group.nodes) else ""
    yield f"  {' '.join(map(plain, shown))}{more}"
    if report.message:
        yield f"  {plain(report.message)}"
    for axis in ("mode", "version"):
        if axis in group.differs:
            usual = found.usual_text(axis)
            yield f"  {axis}: most have {_version(usual) if axis == 'version' else plain(usual) or '-'}"
    for axis in LISTS:
        yield from _list_text(found, group, axis, verbose)


def _list_text(found: Fleet, group: Group, axis: str, verbose: bool) -> Iterator[str]:
    """The list of a node that is not as desired; of others what most do not have, and what they lack."""
    own = group.report.listing(axis)
    if group.verdict == "not-as-desired":
        yield from _items_text(_TITLES[axis], own.shown, own.count, verbose)
    elif axis in group.differs:
        usual = found.usual_listing(group, axis)
        only = [said for said in own.shown if said not in usual.shown]
        lacking = [said for said in usual.shown if said not in own.shown]
        yield from _items_text(f"only here, {_TITLES[axis]}", only, len(only), verbose)
        yield from _items_text(f"not here, {_TITLES[axis]}", lacking, len(lacking), verbose)
        if not only and not lacking:
            yield f"  {_TITLES[axis]}: {own.count}, most have {usual.count}; they differ beyond what is kept of them"


def _items_text(title: str, items: Sequence[Said], count: int, verbose: bool) -> Iterator[str]:
    if not count:
        return
    yield f"  {title}"
    yield from (f"    {plain(where)}: {plain(what)}" for where, what in _some(items, verbose))
    yield from _more(count, min(len(items), count if verbose else _SHOWN), verbose, "    ")


def _some(items: Sequence[Said], verbose: bool) -> Sequence[Said]:
    return items if verbose else items[:_SHOWN]


def _more(count: int, shown: int, verbose: bool, indent: str = "  ") -> Iterator[str]:
    left = count - shown
    if left > 0:
        yield f"{indent}and {left} more{' that are not kept here' if verbose else ' (-v)'}"


def _nodes(count: int) -> str:
    return f"{count} node{'' if count == 1 else 's'}"


def _version(version: str) -> str:
    return plain(version) or "carried by user-data, or not told"


def plain(text: str) -> str:
    """*text* for a terminal: what could move its cursor, colour it or turn its direction shows as an escape."""
    return "".join(c if c.isprintable() or unicodedata.category(c) == "Zs" else _escape(c) for c in text)


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape", "surrogatepass").decode() if letter != "\n" else " "
