"""Everything beside the rules and the modules: front ends, programs, scripts, settings, the kernel's own habits."""

from __future__ import annotations

from ..scripts import Command, stateful_commands
from ..state import FoundFile
from .draft import Draft, Item
from .eagerness import plan_eagerness
from .frontends import plan_front_ends
from .mending import plan_mending
from .needs import plan_needs
from .ufw import plan_ufw

_SAYS = {
    "rule": "adds a rule that needs conntrack, at every boot or run",
    "module": "loads a module of conntrack, at every boot or run",
    "asks": "asks conntrack, which is not there any more",
    "sysctl": "sets a value of conntrack, which is not there any more",
}


def plan_surroundings(draft: Draft) -> None:
    """What lives on the host beside its rules: blockers, findings, and edits where they are safe."""
    plan_front_ends(draft)
    plan_needs(draft)
    plan_eagerness(draft)
    if draft.desired.persist or draft.state.kernel is None:
        plan_ufw(draft)
        plan_mending(draft)
    for file in draft.state.surroundings.files:
        lines: set[tuple[int, str]] = set()
        for command in stateful_commands(file):
            if (command.line, command.kind) not in lines:  # a line is named once, however much it does
                _plan_command(draft, file, command)
            lines.add((command.line, command.kind))


def _plan_command(draft: Draft, file: FoundFile, command: Command) -> None:
    mode = draft.desired.mode
    if mode == "notrack" or (mode == "stateless" and command.kind != "rule"):
        return  # a module that is loaded, or asked, tracks nothing by itself
    where = f"{file.path}:{command.line}"
    item = Item(f"script:{where}:{command.kind}", where, f"{command.text}: {_SAYS[command.kind]}",
                "take the line out" if command.kind != "rule" else "take the line out; what it is for belongs into the "
                "saved rules, which are rewritten")
    (draft.blockers if command.kind == "rule" else draft.findings).append(item)
