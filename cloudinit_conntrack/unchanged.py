"""A host where nothing is left to do, told without planning: most boots, and most runs of ``verify``.

:func:`.plan.make_plan` is pure: the section and the observed :class:`.state.State` decide what it
gives.  So where both are what they were when a plan came out empty, and the program is the
same, the plan is empty again.  The host is observed afresh each time, as for planning, and the
kernel is asked for its evidence; only planning, and the language of rules, are left out.

Nothing can be missed by being forgotten here, because the key is made of the whole State.  What
is taken out of it, and why that is safe:

- counters of rules, and the times in the comments of a save: no plan looks at them;
- access times of files: what is put back has them, and an empty plan puts nothing back;
- ``kernel.entries`` and ``resolutions``: ``status`` alone shows them, and no plan looks at a
  note that there are none;
- modules that have nothing to do with conntrack, since ``kmod`` picks these out of the list
  before anything is decided, and ``ipv6`` counts every socket;
- of the units those that planning did not ask for: what it asked for is written down, and with
  the same answers it asks the same questions;
- ``native.text``: what nft prints of ``native.listing``, to undo changes by;
- the order of what has none: elements of sets, which the kernel lists by its hash table.

Beside the State count (:func:`.host.seenfile.ground`): the section, the program's own files and
Python, the journal (an apply that was cut off must be undone) and the kept last good rules.
What is written is worth time only: a run that finds no match plans as ever.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from . import evidence, kmod
from .errors import ConntrackError
from .host import journalfile, observe, seenfile
from .host.root import Root
from .host.stamp import clock, run_since
from .report import Report, json_text, to_json
from .said import Item
from .state import FileImage, Kernel, LiveRules, NativeRules, State, Units

TYPE_CHECKING = False
if TYPE_CHECKING:  # a boot does without typing
    from typing import Any

_MOST = 8  # boots of several kernels, and the runs of cloud-init's module behind each
_COUNTS = re.compile(r"^\[\d+:\d+\] |^(:\S+ \S+) \[\d+:\d+\]$|^# (?:Generated|Completed) .*\n", re.MULTILINE)


@dataclass(frozen=True)
class Asked(Units):
    """Units that write down which of them are asked for."""

    names: set[str] = field(default_factory=set, compare=False)

    def starts(self, *names: str) -> bool:
        """As :meth:`.state.Units.starts`."""
        self.names.update(names)
        return super().starts(*names)


def seen(root: Root, extra: Iterable[str], haproxy: Iterable[str]) -> State:
    """The host as planning sees it."""
    return observe.observe(root, True, extra, haproxy, looking=False, resolving=0)


def nothing_to_do(root: Root) -> Report | None:
    """The report of an apply of the kept section that has nothing to do; ``None`` where only planning can tell."""
    began = clock()
    with journalfile.alone(root):
        report = _told("nothing-to-do", began, root)
        if report is not None:
            root.write_image(journalfile.RESULT, FileImage(json_text(report).encode(), 0o644))
        return report


def verified(root: Root) -> Report | None:
    """What ``verify`` says of the kept section; ``None`` where only planning can tell.  Changes nothing."""
    return _told("verified", clock(), root)


def _told(outcome: str, began: float, root: Root) -> Report | None:
    run = _run_before(root)
    if run is None:
        return None
    flows = [(str(family), str(protocol), int(port)) for family, protocol, port in run["flows"]]
    found = evidence.gathered(run["mode"], run["block"], flows, root, True)
    try:
        evidence.demand(found)
    except ConntrackError:
        return None  # planning says it too, and what it means
    items = tuple(Item(**item) for item in run["findings"])
    return Report(run["mode"], outcome, findings=items, evidence=found, run=run_since(began, root))


def _run_before(root: Root) -> dict[str, Any] | None:
    """What is known of the run that saw this host as it is, and had nothing to do."""
    known = seenfile.read(root)
    if not known or known.get("ground") != seenfile.ground(root):
        return None
    state = seen(root, known["extra"], known["haproxy"])
    for run in known["runs"]:
        if run["key"] == key_of(state, known["extra"], run["asked"]):
            found: dict[str, Any] = run
            return found
    return None


def remember(
    state: State, report: Report, run: dict[str, Any], extra: Sequence[str], haproxy: Sequence[str], root: Root,
) -> None:
    """Write down that the plan for *state* was empty: *report* is what it said, *run* what its evidence needs."""
    ground, units = seenfile.ground(root), state.surroundings.units
    names = sorted(units.names if isinstance(units, Asked) else ())
    if not ground:
        return
    known = seenfile.read(root)
    runs = known["runs"] if known.get("ground") == ground else []
    key = key_of(state, extra, names)
    if any(old["key"] == key for old in runs):
        return
    runs = [*runs, {**run, "key": key, "asked": names, "findings": to_json(report)["findings"]}]
    seenfile.write({"ground": ground, "extra": list(extra), "haproxy": list(haproxy), "runs": runs[-_MOST:]}, root)


# --- the key -------------------------------------------------------------------------------


def key_of(state: State, extra: Iterable[str], asked: Iterable[str]) -> str:
    """A digest of everything in *state* that a plan may depend on, which asked for the units *asked*.

    *extra* is ``conntrack.modules.extra``.
    """
    units = state.surroundings.units
    answers = [(name, name in units.enabled, name in units.active) for name in asked]
    files = tuple(replace(file, image=_still(file.image)) for file in state.surroundings.files)
    boot = state.boot and replace(state.boot, unit=state.boot.unit and _still(state.boot.unit))
    lasting = replace(
        state, kernel=state.kernel and _lasting(state.kernel, extra), live=tuple(map(_uncounted, state.live)),
        saved=tuple(replace(file, image=_still(file.image)) for file in state.saved),
        native_saved=tuple(replace(file, image=_still(file.image)) for file in state.native_saved),
        block=state.block and _still(state.block), resolutions=(), boot=boot,
        notes=tuple(note for note in state.notes if not note.startswith(observe.UNANSWERED)),
        native=state.native and NativeRules(_settled_text(state.native.listing)),
        surroundings=replace(state.surroundings, units=Units(), files=files),
    )  # fmt: skip
    return hashlib.sha256(repr((lasting, answers)).encode("utf-8", "surrogateescape")).hexdigest()


def _still(image: FileImage) -> FileImage:
    return replace(image, atime_ns=0)


def _uncounted(live: LiveRules) -> LiveRules:
    return replace(live, text=_COUNTS.sub(lambda found: found.group(1) or "", live.text))


def _lasting(kernel: Kernel, extra: Iterable[str]) -> Kernel:
    names = {*kmod.loaded_dependants(kernel.modules), *map(kmod.normal, extra)}
    modules = (m for m in kernel.modules if m.name in names or kmod.is_conntrack_module(m.name))
    return replace(kernel, entries=None, modules=tuple(modules))


def _settled_text(listing: str) -> str:
    return json.dumps(_settled(json.loads(listing)), sort_keys=True)


def _settled(value: Any) -> Any:
    """nft's JSON without what rules count, and with the elements of sets in one order."""
    if isinstance(value, list):
        return [_settled(item) for item in value]
    if not isinstance(value, dict):
        return value
    found = {key: _settled(inner) for key, inner in value.items()}
    for key in ("set", "elem"):
        if isinstance(found.get(key), list):
            found[key] = sorted(found[key], key=lambda item: json.dumps(item, sort_keys=True))
    if isinstance(found.get("counter"), dict) and set(found["counter"]) == {"packets", "bytes"}:
        found["counter"] = {}
    return found
