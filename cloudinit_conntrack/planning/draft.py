"""A plan while it is being made, and the values that it is made of."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..actions import Action, ProveLoading, WriteFile
from ..config import Desired, Flow, Flows
from ..netfilter.ruleset import RuleSet
from ..said import Item as Item
from ..state import FileImage, State


@dataclass(frozen=True)
class Plan:
    """What apply would do.  With blockers nothing is done at all.

    *mode* is the mode that the plan establishes; it differs from the desired one where
    ``fallback`` settled for less.  *flows* are those it was made for, haproxy's included.
    """

    mode: str
    actions: tuple[Action, ...] = ()
    blockers: tuple[Item, ...] = ()
    widenings: tuple[Item, ...] = ()
    findings: tuple[Item, ...] = ()
    flows: Flows = field(default_factory=Flows)

    @property
    def empty(self) -> bool:
        """Whether the host is as desired."""
        return not self.actions and not self.blockers


@dataclass
class Draft:
    """A plan while it is being made."""

    desired: Desired
    state: State
    files: list[Action]
    rules: list[Action]
    blockers: list[Item]
    widenings: list[Item]
    findings: list[Item]
    derived: frozenset[Flow] = frozenset()  # of the flows those that nobody named: they open nothing
    closed: set[Flow] = field(default_factory=set)
    proofs: list[ProveLoading] = field(default_factory=list)  # of rules that no saved file holds as they are loaded


def decoded(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")


def new_image(image: FileImage, content: bytes) -> FileImage:
    """*image* with other content, and the time of its writing: backups must see that it changed."""
    return replace(image, content=content, atime_ns=0, mtime_ns=0)


def place_of(ruleset: RuleSet, number: int) -> str:
    """``table filter, chain INPUT, rule 3`` for the line *number*."""
    line = next((x for x in ruleset.lines if x.number == number), None)
    if line is None or line.kind != "rule":
        return f"line {number}"
    same = [x.number for x in ruleset.rules(line.table) if x.chain == line.chain]
    return f"table {line.table}, chain {line.chain}, rule {same.index(number) + 1}"


def write_file(
    draft: Draft, path: str, before: FileImage | None, content: bytes, reason: str, like: FileImage | None = None
) -> None:
    """Plan that *path*, which is *before* now, becomes *content*; *like* gives a new file's mode and owner.

    Two rooms may change one file: the later one builds on :func:`planned`, and there is one action.
    """
    image = new_image(before or like or FileImage(b""), content)
    for number, action in enumerate(draft.files):
        if isinstance(action, WriteFile) and action.path == path:
            draft.files[number] = replace(action, after=image, reason=f"{action.reason}; {reason}")
            return
    draft.files.append(WriteFile(path, before, image, reason))


def planned(draft: Draft, path: str, image: FileImage) -> FileImage:
    """What *path* will be as planned so far; *image* where nothing is planned for it."""
    found = next((a.after for a in draft.files if isinstance(a, WriteFile) and a.path == path), None)
    return found or image
