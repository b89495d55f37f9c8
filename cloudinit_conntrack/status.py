"""What is tracked now, in which namespace, and why."""

from __future__ import annotations

from collections.abc import Sequence

from .holders import Holder, all_holders, service_of
from .plan import Item
from .planning.frontends import MODES, FoundFrontEnd, found_front_ends
from .report import Report, Sight
from .said import Node
from .seeing import alarms_of, counter_facts, spaces_of
from .service import NAME
from .state import BootService, Kernel, State
from .tracking import Tracking
from .tree.building import make_tree, nodes_of, times_of
from .tree.uses import all_uses


def make_status(state: State, mode: str, last: str = "", tracking: Tracking | None = None) -> Report:
    """The status of *state*.  Pure: everything was observed.

    *mode* is the kept one, *last* the outcome of the last apply in this boot; both may be empty.
    *tracking* is what conntrack does now.
    """
    kernel, tracking = state.kernel, tracking or Tracking()
    facts: list[tuple[str, str]] = []
    outcome = "image"
    if kernel is not None:
        outcome = "conntrack-" + kernel.conntrack
        facts += _kernel_facts(kernel)
        told = dict(counter_facts(tracking.counters)) if tracking.counters else {}
        facts = [fact for fact in facts if fact[0] not in told] + list(told.items())
    facts += [(f"modprobe {r.name}", f"{r.effect} ({r.evidence})") for r in state.resolutions]
    if state.boot is not None and state.boot.systemd:
        did = f"; the last apply of this boot: {last}" if last else ""
        facts.append(("every boot", _boot_fact(state.boot) + did))
    facts += [(f"front end {found.name}", _front_end_fact(found, mode)) for found in found_front_ends(state)]
    uses = all_uses(state, tracking)
    tree = make_tree(state, tracking, uses)
    held = _seen_or_accounted(all_holders(state), tree)
    findings = tuple(Item(h.id, h.where, f"{h.what}  [{h.module}]", h.remedy) for h in held)
    notes = tuple(Item(f"note:{n}", "host", note) for n, note in enumerate(state.notes, 1))
    sight = Sight(tree, tracking.counters, spaces_of(tracking, uses),
                  frozenset(h.id for h in held), alarms_of(tracking.counters))
    return Report(mode, outcome, findings=findings + notes, facts=tuple(facts), sight=sight)


def _seen_or_accounted(held: Sequence[Holder], tree: Sequence[Node]) -> list[Holder]:
    """*held* without users that were called unseen, and for which the tree, which sees more, accounts."""
    told = {node.id for node in nodes_of(tree)}
    return [h for h in held if h.kind != "unseen" or h.id in told or service_of(h.module)]


def _front_end_fact(found: FoundFrontEnd, mode: str) -> str:
    """Which modes can hold with it, and whether the kept *mode* is none of them."""
    where = ", ".join(found.units)
    if len(found.modes) == len(MODES):
        return f"{where}: every mode can hold"
    if mode and mode not in found.modes:
        return f"{where}: mode {mode} cannot hold" + (f", {' and '.join(found.modes)} can" if found.modes else "")
    return f"{where}: " + (f"{' and '.join(found.modes)} can hold" if found.modes else "no mode can hold")


def _boot_fact(boot: BootService) -> str:
    if boot.taken:
        return f"{NAME} is masked"
    return f"{NAME} is {'enabled' if boot.link and (boot.unit or boot.packaged) else 'not enabled'}"


def _kernel_facts(kernel: Kernel) -> list[tuple[str, str]]:
    words = {
        "absent": "not loaded: nothing is tracked",
        "loaded": "loaded",
        "builtin": "built into the kernel: it cannot be unloaded, only left without work",
    }
    facts = [("kernel", kernel.release), ("nf_conntrack", words[kernel.conntrack])]
    module = kernel.module("nf_conntrack") or kernel.module("ip_conntrack")
    if module is not None:
        by = f", by {', '.join(module.holders)}" if module.holders else ""
        facts.append(("in use", f"{times_of(module.refcount)}{by}"))
    if kernel.entries is not None:
        facts.append(("entries", f"{kernel.entries} in this network namespace"))
    return facts
