"""Many nodes' reports side by side: which are alike, which are not as desired, and in what they differ.

Pure: the bytes of reports in, groups out.  Of a report only what counts is kept, cut to a bounded
size, so that ten thousand of them are compared in little memory; alike are those whose whole texts
are, by their digests.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass, field, replace

from .errors import ConntrackError

MOST_BYTES = 8 * 1024 * 1024  # of one report
_MOST_ITEMS, _MOST_LETTERS = 50, 500  # of one list, of one text: what is shown
_MOST_DETAILED = 256  # different reports; of further ones only the digests are kept
AS_DESIRED = ("done", "nothing-to-do", "verified", "confirmed")
_WORST_FIRST = ("failed", "blocked", "drift", "changes", "unconfirmed", "reverted")
_OF_OTHER_VERBS = ("conntrack-absent", "conntrack-loaded", "conntrack-builtin", "image", "enabled", "disabled",
                   "forgotten")
_PROCESS = re.compile(r"/proc/\d+/")  # differs from node to node and says nothing
_KINDS = {dict: "a mapping", list: "a list", str: "text", bool: "a truth value", type(None): "null"}

Said = tuple[str, str]  # where, what


@dataclass(frozen=True)
class Listing:
    """One list of a report.  *shown* is its beginning; two are equal when the whole lists were."""

    count: int = 0
    digest: str = ""
    shown: tuple[Said, ...] = field(default=(), compare=False)


LISTS = ("blockers", "evidence", "widenings", "findings", "actions")
USUAL = Listing(-1)  # in a group: what most nodes have
_Usual = dict[tuple[str, str], object]  # (kind of run, empty for any; axis) -> what most nodes have


@dataclass(frozen=True)
class Report:
    """What counts of one report.

    *lists* are those of ``LISTS``; evidence is only what does not hold, or cannot be told, and *against* counts
    the former.  *version* is empty in the reports of the reduced program that user-data carries.
    """

    mode: str
    outcome: str
    version: str
    message: str
    lists: tuple[Listing, ...]
    against: int = 0

    def listing(self, axis: str) -> Listing:
        """The list that is named so."""
        return self.lists[LISTS.index(axis)]

    @property
    def as_desired(self) -> bool:
        """Whether the node is what its section asks for."""
        return self.outcome in AS_DESIRED and self.listing("blockers").count <= 0 and not self.against


@dataclass(frozen=True)
class Group:
    """Nodes that are alike: *report* stands for all, *outcomes* counts theirs, *differs* names what is unlike most.

    A list of *report* that is as most have it is ``USUAL`` in a node as desired.
    """

    report: Report
    nodes: tuple[str, ...]
    outcomes: tuple[tuple[str, int], ...]
    differs: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """``not-as-desired``, ``differs`` (from most, though each is as desired), or ``alike``."""
        if not self.report.as_desired:
            return "not-as-desired"
        return "differs" if self.differs else "alike"


@dataclass(frozen=True)
class Fleet:
    """The groups, worst first, and what is usual."""

    groups: tuple[Group, ...]
    usual: _Usual

    @property
    def alike(self) -> bool:
        """Whether all nodes are as desired, and none differs."""
        return all(group.verdict == "alike" for group in self.groups)

    def usual_text(self, axis: str) -> str:
        """The mode or the version that most nodes have."""
        return str(self.usual.get(("", axis), ""))

    def usual_listing(self, group: Group, axis: str) -> Listing:
        """The list that most nodes have where *group* has one."""
        found = self.usual.get((_kind_of_run(group.report), axis))
        return found if isinstance(found, Listing) else Listing()

    def listing(self, group: Group, axis: str) -> Listing:
        """The list that *group* has, the usual one too."""
        own = group.report.listing(axis)
        return self.usual_listing(group, axis) if own == USUAL else own


class Gathering:
    """Reports as they come, one after another."""

    def __init__(self) -> None:
        self._nodes: dict[Report, list[str]] = {}

    def add(self, node: str, report: Report) -> None:
        """Count *report* as that of *node*."""
        if report not in self._nodes and len(self._nodes) >= _MOST_DETAILED:
            report = replace(report, lists=tuple(replace(listing, shown=()) for listing in report.lists))
        self._nodes.setdefault(report, []).append(node)

    def fleet(self) -> Fleet:
        """What they are together."""
        usual = _usual(self._nodes)
        merged: dict[Report, list[tuple[Report, list[str]]]] = {}
        for report, nodes in self._nodes.items():
            merged.setdefault(_settled(report, usual), []).append((report, nodes))
        groups = (_group(report, found, usual) for report, found in merged.items())
        return Fleet(tuple(sorted(groups, key=_badness)), usual)


def _kind_of_run(report: Report) -> str:
    """A run that changed the host tells other things than one that found nothing to do."""
    return "changed" if report.outcome == "done" else "looked"


def _usual(reports: dict[Report, list[str]]) -> _Usual:
    """The most frequent mode and version of all nodes, and the most frequent lists of those as desired."""
    votes: dict[tuple[str, str], Counter[object]] = {}
    for report, nodes in reports.items():
        kind = _kind_of_run(report)
        values: list[tuple[str, str, object]] = [("", "mode", report.mode), ("", "version", report.version)]
        values += [(kind, axis, report.listing(axis)) for axis in LISTS if report.as_desired]
        for run, axis, value in values:
            votes.setdefault((run, axis), Counter())[value] += len(nodes)
    return {key: max(found, key=lambda value: (found[value], str(value))) for key, found in votes.items()}


def _settled(report: Report, usual: _Usual) -> Report:
    """*report* in a form that is equal for nodes that are alike: what is usual for its kind of run is ``USUAL``."""
    if not report.as_desired:
        return report
    kind = _kind_of_run(report)
    lists = tuple(USUAL if report.listing(axis) == usual[kind, axis] else report.listing(axis) for axis in LISTS)
    outcome = report.outcome if any(listing != USUAL for listing in lists) else AS_DESIRED[0]
    return replace(report, outcome=outcome, message="", lists=lists)


def _group(report: Report, found: list[tuple[Report, list[str]]], usual: _Usual) -> Group:
    outcomes: Counter[str] = Counter()
    for each, nodes in found:
        outcomes[each.outcome] += len(nodes)
    unlike = ["mode"] if report.mode != usual["", "mode"] else []
    unlike += ["version"] if report.version != usual["", "version"] else []
    if report.as_desired:
        unlike += [axis for axis in LISTS if report.listing(axis) != USUAL]
    names = (name for _, nodes in found for name in nodes)
    return Group(report, tuple(sorted(names, key=natural)), tuple(sorted(outcomes.items())), tuple(unlike))


def _badness(group: Group) -> tuple[int, int, int, tuple[object, ...]]:
    word = group.report.outcome
    rank = _WORST_FIRST.index(word) if word in _WORST_FIRST else len(_WORST_FIRST)
    verdict = ("not-as-desired", "differs", "alike").index(group.verdict)
    return verdict, rank, -len(group.nodes), natural(group.nodes[0])


def natural(name: str) -> tuple[object, ...]:
    """A key that sorts ``lb-2`` before ``lb-10``."""
    return tuple((int(part), "") if part.isdecimal() and len(part) < 19 else (-1, part)
                 for part in re.split(r"(\d+)", name) if part)


# --- one report ----------------------------------------------------------------------------


def parse(content: bytes, name: str) -> tuple[Report, str]:
    """The report that the file *name* holds, and the host that it names (empty where it names none).

    ConntrackError with the place where it is no report: nothing in it is trusted.
    """
    found = _mapping(_plain(content, name), name)
    if type(found.get("schema")) is not int or found["schema"] != 1:
        raise _wrong("is no report of ours: 'schema' is not 1", name)
    outcome = _text(found, "outcome", name)
    if outcome in _OF_OTHER_VERBS:
        raise _wrong(f"is a report of another verb ({outcome})", name)
    run = _mapping(found.get("run", {}), f"{name}: run")
    evidence = [_evidence(item, f"{name}: evidence[{n}]") for n, item in enumerate(_list(found, "evidence", name))]
    lists = {axis: _items(found, axis, name) for axis in LISTS if axis != "evidence"}
    lists["evidence"] = _listing([said for said, holds in evidence if holds is not True])
    message = _PROCESS.sub("/proc/N/", _text(found, "message", name, ""))
    report = Report(_cut(_text(found, "mode", name)), _cut(outcome), _cut(_text(run, "version", f"{name}: run", "")),
                    _cut(message), tuple(lists[axis] for axis in LISTS), sum(holds is False for _, holds in evidence))
    return report, _cut(_text(run, "host", f"{name}: run", ""))


def _plain(content: bytes, name: str) -> object:
    if len(content) > MOST_BYTES:
        raise _wrong(f"is larger than {MOST_BYTES >> 20} MiB", name)
    try:
        found: object = json.loads(content.decode())
    except UnicodeDecodeError as error:
        raise _wrong(f"is no UTF-8 at byte {error.start}", name) from None
    except json.JSONDecodeError as error:
        raise _wrong(f"is no JSON: {error.msg}", f"{name}:{error.lineno}:{error.colno}") from None
    except RecursionError:
        raise _wrong("is nested too deep", name) from None
    except ValueError:  # Python refuses numbers of thousands of digits
        raise _wrong("holds a number that is too long", name) from None
    return found


def _wrong(what: str, where: str) -> ConntrackError:
    return ConntrackError(what, where, "give what 'apply' left in result.json, or 'verify --format json' printed")


def _mapping(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise _wrong(f"expected a mapping, found {_kind(value)}", where)
    return value


def _text(found: dict[str, object], key: str, where: str, default: str | None = None) -> str:
    value = found.get(key, default)
    if not isinstance(value, str):
        raise _wrong(f"{key}: expected text, found {_kind(value) if key in found else 'nothing'}", where)
    return value


def _list(found: dict[str, object], key: str, name: str) -> list[object]:
    value = found.get(key, [])
    if not isinstance(value, list):
        raise _wrong(f"{key}: expected a list, found {_kind(value)}", name)
    return value


def _kind(value: object) -> str:
    return _KINDS.get(type(value), "a number")


def _items(found: dict[str, object], key: str, name: str) -> Listing:
    told = []
    for number, value in enumerate(_list(found, key, name)):
        place = f"{name}: {key}[{number}]"
        item = _mapping(value, place)
        told.append((_text(item, "where", place), _text(item, "reason", place)))
    return _listing(told)


def _evidence(value: object, where: str) -> tuple[Said, bool | None]:
    item = _mapping(value, where)
    holds = item.get("holds")
    if holds is not None and not isinstance(holds, bool):
        raise _wrong(f"holds: expected true, false or null, found {_kind(holds)}", where)
    return (_text(item, "id", where), _text(item, "what", where)), holds


def _listing(told: list[Said]) -> Listing:
    """In any order it is the same list."""
    if not told:
        return Listing()
    steady = sorted((where, _PROCESS.sub("/proc/N/", what)) for where, what in told)
    digest = hashlib.sha256(json.dumps(steady).encode()).hexdigest()
    return Listing(len(told), digest, tuple((_cut(where), _cut(what)) for where, what in told[:_MOST_ITEMS]))


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_LETTERS else text[: _MOST_LETTERS - 1] + "…"
