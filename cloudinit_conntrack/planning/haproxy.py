"""``flows.haproxy_cfg``: the flows that haproxy's configuration makes, beside those that are named."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..config import Desired, Flow
from ..errors import HaproxyError
from ..haproxy.flows import HaproxyFlows, haproxy_flows
from ..haproxy.merging import covers, flow_text
from ..state import State
from .draft import Item

_SHOWN = 12  # flows of one kind; the rest is counted
_KEY = "conntrack.flows.haproxy_cfg"
_BY_HAND = "name the flows in conntrack.flows.frontends and backends instead of haproxy_cfg"


@dataclass(frozen=True)
class Derived:
    """*desired* with haproxy's flows among its own, and what there is to say about them.

    *flows* are those of its frontends and backends that only haproxy's configuration names.
    """

    desired: Desired
    blockers: tuple[Item, ...] = ()
    findings: tuple[Item, ...] = ()
    flows: frozenset[Flow] = frozenset()


def with_haproxy(desired: Desired, state: State) -> Derived:
    """*desired* with the flows of the files of *state*; a blocker where they do not tell them."""
    if not desired.flows.haproxy_cfg:
        return Derived(desired)
    missing = [file.path for file in state.haproxy if file.content is None]
    if missing:
        what = "there is no such file, and no *.cfg in such a directory"
        return Derived(desired, tuple(Item(f"config:haproxy_cfg:{p}", p, what, f"correct {_KEY}") for p in missing))
    try:
        found = haproxy_flows([(file.path, file.content or b"") for file in state.haproxy])
    except HaproxyError as error:
        return Derived(desired, (Item("config:haproxy_cfg", error.where, error.what, error.remedy),))
    joined = _joined(desired, found)
    added = frozenset(joined.flows.frontends + joined.flows.backends)
    added -= {*desired.flows.frontends, *desired.flows.backends}
    return Derived(joined, _blockers(desired, found, state), _findings(desired, found), added)


def _joined(desired: Desired, found: HaproxyFlows) -> Desired:
    flows = desired.flows
    return replace(desired, flows=replace(
        flows, frontends=_added(flows.frontends, found.frontends), backends=_added(flows.backends, found.backends),
        outbound=_added(flows.outbound, found.outbound),
    ))  # fmt: skip


def _added(named: tuple[Flow, ...], found: tuple[Flow, ...]) -> tuple[Flow, ...]:
    return named + tuple(flow for flow in found if not any(covers(wide, flow) for wide in named))


def _blockers(desired: Desired, found: HaproxyFlows, state: State) -> tuple[Item, ...]:
    flows = desired.flows
    if desired.mode != "notrack" or flows.all:
        return ()
    if not (found.frontends or found.backends or flows.frontends or flows.backends):
        return (Item("config:haproxy_cfg", ", ".join(flows.haproxy_cfg),
                     "it makes no flow, and mode: notrack works on flows", _BY_HAND),)
    texts = [live.text.encode("utf-8", "surrogateescape") for live in state.live]
    texts += [saved.image.content for saved in state.saved]
    if found.foreign and not any(b"TPROXY" in text for text in texts):
        # untracked at OUTPUT and tracked at PREROUTING: the answer has a client's address as its destination
        return (Item("config:haproxy_cfg:usesrc", found.foreign[0],
                     "haproxy connects with its client's address (usesrc): one direction of such a flow would be "
                     "tracked and the other not", f"use 'mode: stateless' or 'unload', or {_BY_HAND}"),)
    return ()


def _findings(desired: Desired, found: HaproxyFlows) -> tuple[Item, ...]:
    where = ", ".join(desired.flows.haproxy_cfg)
    parts = [("frontends", found.frontends), ("backends", found.backends), ("UDP replies from", found.outbound),
             ("log datagrams, which nobody answers, to", found.logs)]  # fmt: skip
    told = "; ".join(f"{name} {_listed(flows)}" for name, flows in parts if flows)
    first = Item("haproxy", where, f"haproxy's flows: {told or 'none'}")
    notes = (Item(f"haproxy:{number}", note.where, note.what) for number, note in enumerate(found.notes, 1))
    return (first, *notes)


def _listed(flows: tuple[Flow, ...]) -> str:
    shown = ", ".join(flow_text(flow) for flow in flows[:_SHOWN])
    return f"{shown} and {len(flows) - _SHOWN} more" if len(flows) > _SHOWN else shown
