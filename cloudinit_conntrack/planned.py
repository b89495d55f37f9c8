"""What a plan says beside what any report does: what it was made for, and what changes, as diffs.

``schema/report.schema.json`` describes the plain values.  Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from . import diffs
from .actions import Action
from .config import Desired, Flow, Flows
from .diffs import Diff
from .guard import kept_ports
from .kinds import flow
from .planning.draft import Plan
from .state import State

_NO_UTF8 = re.compile("[\ud800-\udfff]")
_NO_TEXT = "it holds bytes that are no UTF-8, which JSON cannot say; 'plan' without --format json shows them"


@dataclass(frozen=True)
class Planned:
    """*desired* is what was asked for, *flows* and *kept* what came of it; *changes* are (action, its diff)."""

    desired: Desired
    flows: Flows
    kept: tuple[int, ...]
    changes: tuple[tuple[Action, Diff], ...] = ()


def of_plan(plan: Plan, desired: Desired, state: State) -> Planned:
    """What there is to say of *plan*, made for *desired* on *state*."""
    return Planned(desired, plan.flows, kept_ports(desired, state), tuple((a, diffs.of(a)) for a in plan.actions))


# --- for programs ----------------------------------------------------------------------


def to_json(planned: Planned) -> dict[str, Any]:
    """``desired``, ``flows`` and ``kept_ports``."""
    flows = planned.flows
    lists = {"frontends": flows.frontends, "backends": flows.backends, "outbound": flows.outbound}
    resolved = {name: [flow(f.protocol, f.ports, f.address) for f in found] for name, found in lists.items()}
    return {"desired": section(planned.desired), "flows": {**resolved, "all": flows.all},
            "kept_ports": list(planned.kept)}


def section(desired: Desired) -> dict[str, Any]:
    """The ``conntrack:`` section that *desired* is, with every default filled in."""
    flows, guard = desired.flows, desired.guard
    named = {name: [_named(f) for f in found] for name, found in (
        ("frontends", flows.frontends), ("backends", flows.backends), ("outbound", flows.outbound))}
    probes = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in guard.probes]
    return {
        "mode": desired.mode, "fallback": desired.fallback,
        "flows": {"haproxy_cfg": list(flows.haproxy_cfg), **named, "all": flows.all},
        "rules": {"stateful": desired.rules.stateful, "nat": desired.rules.nat},
        "modules": {"block": desired.modules.block, "extra": list(desired.modules.extra),
                    "force": desired.modules.force},
        "guard": {**({} if guard.keep is None else {"keep": list(guard.keep)}), "probes": probes},
        "on_failure": desired.on_failure, "persist": desired.persist,
    }  # fmt: skip


def _named(named: Flow) -> dict[str, Any]:
    first, last = named.ports
    port: int | str = first if first == last else f"{first}-{last}"
    return {"port": port, "protocol": named.protocol, **({"address": named.address} if named.address else {})}


def diff_json(diff: Diff) -> dict[str, Any]:
    """``diff``, and where it is null and a text changes all the same ``no_diff``."""
    if diff.text is not None and not diff.text.isascii() and _NO_UTF8.search(diff.text):
        diff = Diff(why=_NO_TEXT)
    return {"diff": diff.text, **({"no_diff": diff.why} if diff.why else {})}
