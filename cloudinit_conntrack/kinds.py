"""What each action says of itself to a program: its kind, and what goes with it.

``schema/report.schema.json`` describes all of it.  Contents of files are told by size and
digest only; what changes in them is a diff's to say.  Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from .actions import (
    Action,
    DeleteEntries,
    Link,
    LoadModule,
    LoadNative,
    LoadRules,
    ProveLoading,
    ProveStarting,
    RefreshInitramfs,
    RewriteNative,
    UnloadModule,
    WriteFile,
)
from .netfilter.nft_ruleset import parse_nft
from .netfilter.nft_tables import tables_of
from .state import FileImage

KINDS: dict[type, str] = {
    WriteFile: "file", RewriteNative: "native-file", LoadRules: "rules", LoadNative: "native-rules",
    UnloadModule: "unload-module", LoadModule: "load-module", DeleteEntries: "delete-entries",
    ProveLoading: "prove-rules", Link: "link", ProveStarting: "prove-start", RefreshInitramfs: "initramfs",
}


def to_json(action: Action) -> dict[str, Any]:
    """*action* as plain values: ``id``, ``kind``, ``verb``, ``where``, ``reason``, and its kind's own keys."""
    return {"id": action.id, "kind": KINDS[type(action)], "verb": action.verb, "where": action.where,
            "reason": action.reason, **_details(action)}


def _details(action: Action) -> dict[str, Any]:
    if isinstance(action, WriteFile):
        return {"path": action.path, "before": _image(action.before), "after": _image(action.after)}
    if isinstance(action, RewriteNative):
        return {"path": action.path, "before": _image(action.before), "rules_known": action.after is not None}
    if isinstance(action, LoadRules):
        return {"backend": action.backend, "family": action.family, "tables": tables_in(action.after),
                "dropped": list(action.dropped), "created": list(action.created)}
    if isinstance(action, LoadNative):
        return {"tables": _native_tables(action)}
    if isinstance(action, (UnloadModule, LoadModule)):
        return {"name": action.name, "parameters": dict(action.parameters), "sysctls": dict(action.sysctls),
                "force": action.force}
    if isinstance(action, DeleteEntries):
        return {"flows": [flow(protocol, (first, last), address or None)
                          for protocol, first, last, address in action.flows]}
    if isinstance(action, ProveLoading):
        return {"path": action.path, "family": action.family}
    return _of_boot(action)


def _of_boot(action: Link | ProveStarting | RefreshInitramfs) -> dict[str, Any]:
    if isinstance(action, Link):
        return {"path": action.path, "before": action.before or None, "after": action.after or None}
    if isinstance(action, ProveStarting):
        return {"command": list(action.argv)}
    return {"image": action.image, "command": list(action.argv), "only_back": action.only_back}


def _image(image: FileImage | None) -> dict[str, Any] | None:
    if image is None:
        return None
    return {"mode": f"{image.mode:04o}", "uid": image.uid, "gid": image.gid, "size": len(image.content),
            "sha256": hashlib.sha256(image.content).hexdigest()}


def tables_in(text: str) -> list[str]:
    """The tables of iptables-save *text*, in order."""
    return [line[1:].strip() for line in text.split("\n") if line.startswith("*")]


def _native_tables(action: LoadNative) -> list[dict[str, str]]:
    sides: Iterable[str] = (action.before.rules, action.after.rules)
    names = dict.fromkeys(name for side in sides for name in tables_of(parse_nft(side)))
    return [{"family": family, "name": name} for family, name in names]


def flow(protocol: str, ports: tuple[int, int], address: str | None) -> dict[str, Any]:
    """One kind of connection as plain values."""
    return {"protocol": protocol, "ports": list(ports), "address": address}
