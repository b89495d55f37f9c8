"""What is tracked now, in which namespace, and why."""

from __future__ import annotations

from .holders import all_holders
from .plan import Item
from .report import Report
from .service import NAME
from .state import BootService, Kernel, State


def make_status(state: State, mode: str, last: str = "") -> Report:
    """The status of *state*.  Pure: everything was observed.

    *mode* is the kept one, *last* the outcome of the last apply in this boot; both may be empty.
    """
    kernel = state.kernel
    facts: list[tuple[str, str]] = []
    outcome = "image"
    if kernel is not None:
        outcome = "conntrack-" + kernel.conntrack
        facts += _kernel_facts(kernel)
    facts += [(f"modprobe {r.name}", f"{r.effect} ({r.evidence})") for r in state.resolutions]
    if state.boot is not None and state.boot.systemd:
        did = f"; the last apply of this boot: {last}" if last else ""
        facts.append(("every boot", _boot_fact(state.boot) + did))
    held = all_holders(state)
    findings = tuple(Item(h.id, h.where, f"{h.what}  [{h.module}]", h.remedy) for h in held)
    notes = tuple(Item(f"note:{n}", "host", note) for n, note in enumerate(state.notes, 1))
    return Report(mode, outcome, findings=findings + notes, facts=tuple(facts))


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
        facts.append(("in use", f"{module.refcount} times{by}"))
    if kernel.entries is not None:
        facts.append(("entries", f"{kernel.entries} in this network namespace"))
    return facts
