"""Desired against found: what to do, in which order and why, or why not.

Pure: :func:`make_plan` is the one definition of "right".  ``plan`` prints it, ``apply``
performs it, and a host is verified when planning it again gives nothing to do.
"""

from __future__ import annotations

from dataclasses import replace

from .actions import Action
from .config import Desired
from .planning.boot import around_initramfs, every_boot
from .planning.draft import Draft, Plan
from .planning.flows import flows_left, rewrite_policy
from .planning.frontends import without_their_rules
from .planning.haproxy import with_haproxy
from .planning.modules import BLOCK_FILE, blocking, entries, plan_module_list, unloading
from .planning.native import plan_native
from .planning.nativefiles import plan_native_file
from .planning.rules import live_to_plan, plan_live, plan_saved
from .planning.surroundings import plan_surroundings
from .said import Item
from .state import State

__all__ = ["BLOCK_FILE", "Item", "Plan", "make_plan", "rewrite_policy"]


def make_plan(desired: Desired, state: State) -> Plan:
    """The plan for *desired* on *state*; where unloading is impossible, ``fallback``'s plan."""
    plan = _plan_mode(desired, state)
    impossible = [b for b in plan.blockers if b.id.startswith(_IMPOSSIBLE)]
    if desired.mode != "unload" or desired.fallback == "none" or not impossible:
        return plan
    if len(impossible) < len(plan.blockers):
        return plan
    settled = _plan_mode(replace(desired, mode=desired.fallback, fallback="none"), state)
    if settled.blockers:  # that mode cannot hold either: both reasons are said, and nothing is done
        more = tuple(b for b in settled.blockers if b.id not in {known.id for known in plan.blockers})
        return replace(plan, blockers=plan.blockers + more)
    why = tuple(
        Item(b.id, b.where, f"{b.reason}; settled for {desired.fallback}, as 'fallback' says", b.remedy)
        for b in impossible
    )
    return replace(settled, findings=why + settled.findings)


# Blockers for which ``fallback`` was made: the modules cannot go, or a program needs them.
_IMPOSSIBLE = ("module:", "needs:")


def _plan_mode(desired: Desired, state: State) -> Plan:
    derived = with_haproxy(desired, state)
    desired = derived.desired
    draft = Draft(desired, state, [], [], list(derived.blockers), [], list(derived.findings), derived.flows)
    _unsupported(draft)
    plan_surroundings(draft)
    if desired.persist or state.kernel is None:
        for saved in state.saved:
            (plan_saved if saved.kind == "rules" else plan_module_list)(draft, saved)
        for file in state.native_saved:
            plan_native_file(draft, file)
    plan_native(draft)  # rules that accept untracked packets come before those of iptables that stop the tracking
    for live in live_to_plan(desired, state):
        plan_live(draft, live)
    modules: list[Action] = []
    if desired.mode == "unload" and state.kernel is not None:
        modules = unloading(draft, state.kernel)
    block = around_initramfs(draft, blocking(draft))
    leftovers = entries(draft)
    actions = draft.files + draft.rules + modules + block + leftovers
    if desired.mode == "notrack":
        actions = block + draft.files + draft.rules + leftovers
    actions += every_boot(draft, bool(actions))
    draft.blockers = without_their_rules(draft.blockers)
    if draft.blockers:  # nothing is done, so nothing is widened
        return Plan(desired.mode, (), tuple(draft.blockers), (), tuple(draft.findings), flows_left(draft))
    return Plan(desired.mode, tuple(actions), (), tuple(draft.widenings), tuple(draft.findings),
                flows_left(draft))


def _unsupported(draft: Draft) -> None:
    for number, note in enumerate(draft.state.notes, 1):
        if note.startswith("native nftables"):
            draft.blockers.append(Item(f"nftables:{number}", "nft list ruleset", note,
                                       "make them readable to us, or stateless by hand"))
        else:
            draft.findings.append(Item(f"note:{number}", "host", note))
