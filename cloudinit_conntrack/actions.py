"""Everything that apply can do to a host, as values.  Each action knows its inverse.

An action says what it expects to find and what it leaves behind, so undoing it is the same
action with both sides swapped: revert needs no second vocabulary.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Union

from .state import FileImage

Parameters = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class WriteFile:
    """Replace a file, create it (*before* is ``None``) or remove it (*after* is ``None``)."""

    path: str
    before: FileImage | None
    after: FileImage | None
    reason: str

    @property
    def id(self) -> str:
        return f"file:{self.path}"

    @property
    def where(self) -> str:
        return self.path

    @property
    def verb(self) -> str:
        """What a person reads."""
        if self.after is None:
            return "remove"
        return "write" if self.before is None else "rewrite"


@dataclass(frozen=True)
class LoadRules:
    """Load the tables of *after* in one restore, over those of *before*.

    Both are iptables-save text of the tables that differ.  *dropped* tables exist before and
    not after; an inverse may have *created* ones to drop.
    """

    backend: str
    family: str
    before: str
    after: str
    reason: str
    dropped: tuple[str, ...] = ()
    created: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return f"rules:{self.backend}:{self.family}"

    @property
    def where(self) -> str:
        return f"live rules, iptables-{self.backend} {self.family}"

    verb = "load"


@dataclass(frozen=True)
class NativeImage:
    """Native nftables tables, whole.

    *rules* is their JSON, as it is to be loaded; *listing* the JSON in which nft lists them
    and *text* what ``nft list ruleset`` prints of them, both empty until nft has been asked.
    """

    rules: str
    listing: str = ""
    text: str = ""


@dataclass(frozen=True)
class LoadNative:
    """Make the native tables of *after* of those of *before*, in one transaction of nf_tables.

    Both hold the tables that differ.  Only rules and chains that differ are touched: sets
    keep what they learned meanwhile, rules their counters.
    """

    before: NativeImage
    after: NativeImage
    reason: str

    id = "rules:native"
    where = "live rules, native nftables"
    verb = "load"


@dataclass(frozen=True)
class RewriteNative:
    """Rewrite a saved file of nft's language, in words that only nft itself can find.

    Before anything is done it becomes a :class:`WriteFile`: *text* is loaded in a network
    namespace of its own, changed there to *after* (JSON; ``None``: to what planning says of
    the rules then), and what nft prints is the file's new content.  *note* goes into its head.
    """

    path: str
    before: FileImage
    text: str
    after: str | None
    reason: str
    note: str = ""

    @property
    def id(self) -> str:
        return f"file:{self.path}"

    @property
    def where(self) -> str:
        return self.path

    verb = "rewrite"


@dataclass(frozen=True)
class UnloadModule:
    """Unload a module; *parameters* and *sysctls* are set again when it is loaded back."""

    name: str
    reason: str
    parameters: Parameters = ()
    sysctls: Parameters = ()
    force: bool = False

    @property
    def id(self) -> str:
        return f"module:{self.name}"

    @property
    def where(self) -> str:
        return f"module {self.name}"

    verb = "unload"


@dataclass(frozen=True)
class LoadModule:
    """Load a module: the inverse of :class:`UnloadModule`."""

    name: str
    reason: str
    parameters: Parameters = ()
    sysctls: Parameters = ()
    force: bool = False

    @property
    def id(self) -> str:
        return f"module:{self.name}"

    @property
    def where(self) -> str:
        return f"module {self.name}"

    verb = "load"


@dataclass(frozen=True)
class DeleteEntries:
    """Delete the conntrack entries that the flows had.  They cannot be put back and need not be.

    *flows* are (protocol, first port, last port, address or empty); an empty tuple means all.
    """

    flows: tuple[tuple[str, int, int, str], ...]
    reason: str

    id = "entries"
    where = "conntrack table"
    verb = "delete entries of the flows from the"


@dataclass(frozen=True)
class ProveLoading:
    """Load a saved rule-set in a network namespace of its own and see that conntrack stays away.

    With *family* ``native`` it is a file of nft's language, and *text* is empty: what lies at
    *path* by then is loaded, with all that it includes.
    """

    path: str
    family: str
    text: str
    reason: str

    @property
    def id(self) -> str:
        return f"prove:{self.path}"

    @property
    def where(self) -> str:
        return self.path

    verb = "prove the loading of"


@dataclass(frozen=True)
class Link:
    """Make the symbolic link *path* say *after*; an empty text on either side means no link."""

    path: str
    before: str
    after: str
    reason: str

    @property
    def id(self) -> str:
        return f"link:{self.path}"

    @property
    def where(self) -> str:
        return self.path

    @property
    def verb(self) -> str:
        """What a person reads."""
        return "link" if self.after else "unlink"


@dataclass(frozen=True)
class ProveStarting:
    """Start our program as the boot service will, and see that it answers."""

    argv: tuple[str, ...]
    reason: str

    id = "prove:start"
    verb = "prove that the boot service can start"

    @property
    def where(self) -> str:
        return " ".join(self.argv)


@dataclass(frozen=True)
class RefreshInitramfs:
    """Write the initramfs again, from what /etc says now.

    *only_back*: nothing now, but when it is undone.  One such stands before the file that the
    image copies and a plain one behind it, so that both ways the image is written last.
    """

    argv: tuple[str, ...]
    image: str
    reason: str
    only_back: bool = False

    @property
    def id(self) -> str:
        return f"initramfs:{self.image}{':back' if self.only_back else ''}"

    @property
    def where(self) -> str:
        return self.image

    @property
    def verb(self) -> str:
        """What a person reads."""
        return "refresh, when it is undone," if self.only_back else "refresh"


Action = Union[WriteFile, LoadRules, LoadNative, RewriteNative, UnloadModule, LoadModule, DeleteEntries, ProveLoading,
               Link, ProveStarting, RefreshInitramfs]


def inverse(action: Action) -> Action | None:
    """The action that undoes *action*; ``None`` where nothing needs to be undone."""
    reason = f"undo: {action.reason}"
    if isinstance(action, WriteFile):
        return replace(action, before=action.after, after=action.before, reason=reason)
    if isinstance(action, LoadNative):
        return replace(action, before=action.after, after=action.before, reason=reason)
    if isinstance(action, LoadRules):
        return replace(action, before=action.after, after=action.before, reason=reason,
                       dropped=action.created, created=action.dropped)
    if isinstance(action, UnloadModule):
        return LoadModule(action.name, reason, action.parameters, action.sysctls)
    if isinstance(action, LoadModule):
        return UnloadModule(action.name, reason, action.parameters, action.sysctls)
    if isinstance(action, Link):
        return replace(action, before=action.after, after=action.before, reason=reason)
    if isinstance(action, RefreshInitramfs):
        return replace(action, only_back=not action.only_back, reason=reason)
    return None


# --- the journal's form ----------------------------------------------------------------

# RewriteNative is none of them: what is written down is the WriteFile that it became.
_CLASSES = {
    c.__name__: c
    for c in (WriteFile, LoadRules, LoadNative, UnloadModule, LoadModule, DeleteEntries, ProveLoading,
              Link, ProveStarting, RefreshInitramfs)
}


def to_json(action: Action) -> dict[str, Any]:
    """*action* as plain JSON values; file contents are base64."""
    found: dict[str, Any] = {"action": type(action).__name__}
    for name in action.__dataclass_fields__:
        value = getattr(action, name)
        if isinstance(value, FileImage):
            value = _image_to_json(value)
        elif isinstance(value, NativeImage):
            value = vars(value)
        found[name] = value
    return found


def from_json(value: Mapping[str, Any]) -> Action:
    """The inverse of :func:`to_json`.  Raises KeyError, TypeError or ValueError for a foreign value."""
    fields = dict(value)
    kind = _CLASSES[fields.pop("action")]
    for name, item in fields.items():
        if name in ("before", "after") and kind is WriteFile:
            fields[name] = None if item is None else _image_from_json(item)
        elif name in ("before", "after") and kind is LoadNative:
            fields[name] = NativeImage(**{key: str(text) for key, text in item.items()})
        elif isinstance(item, list):
            fields[name] = tuple(tuple(x) if isinstance(x, list) else x for x in item)
    made: Action = kind(**fields)
    return made


def _image_to_json(image: FileImage) -> dict[str, Any]:
    found = {name: getattr(image, name) for name in image.__dataclass_fields__}
    found["content"] = base64.b64encode(image.content).decode("ascii")
    found["xattrs"] = [(name, base64.b64encode(value).decode("ascii")) for name, value in image.xattrs]
    return found


def _image_from_json(value: Mapping[str, Any]) -> FileImage:
    fields = dict(value)
    fields["content"] = base64.b64decode(fields["content"], validate=True)
    fields["xattrs"] = tuple((str(n), base64.b64decode(v, validate=True)) for n, v in fields["xattrs"])
    return FileImage(**fields)
