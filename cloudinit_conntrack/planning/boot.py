"""Every boot: the unit that applies the kept state before the network, and the link that enables it."""

from __future__ import annotations

from ..actions import Action, Link, ProveStarting, RefreshInitramfs, WriteFile
from ..kmod import BLOCK_PATH
from ..service import LINK, UNIT, can_be_written, is_ours, unit_text
from ..state import BootService, FileImage
from .draft import Draft, Item, decoded, new_image


def every_boot(draft: Draft, changing: bool) -> list[Action]:
    """What is left to do so that each boot applies the state that is kept; nothing with ``persist: false``.

    That there is no systemd is said with a change (*changing*), not at every run that finds nothing to do.
    """
    boot = draft.state.boot
    if boot is None or not draft.desired.persist:
        return []
    if not boot.systemd:
        if changing:
            _say(draft, "init", "no systemd runs here, so nothing applies this again at the next boot",
                 "let your init system run 'cloudinit-conntrack apply' before it starts the network")
        return []
    if boot.taken:
        _say(draft, "masked", "the boot service is masked: nothing applies this again at the next boot",
             "systemctl unmask cloudinit-conntrack.service, if that is not what you want")
        return []
    for name in boot.late:
        _say(draft, f"late:{name}", f"{name} starts after the network, so the boot service does not wait for it",
             "give it DefaultDependencies=no and Before=network-pre.target")
    actions = _unit(draft, boot)
    if actions is None:
        return []
    if not boot.link:
        actions.append(Link(LINK, "", boot.packaged or UNIT, "the boot service starts at every boot"))
    return actions


def _unit(draft: Draft, boot: BootService) -> list[Action] | None:
    """The actions that make the unit right; ``None`` where there can be none."""
    found = boot.unit
    ours = found is not None and is_ours(decoded(found.content))
    if found is not None and not ours:
        return []  # the administrator's own
    if boot.packaged:
        return [WriteFile(UNIT, found, None, f"it stands before {boot.packaged}")] if found else []
    program = boot.program
    if program is None or not can_be_written(program):
        _say(draft, "program", "this program is not where a unit could start it: there is no boot service",
             "install the package, with pip or as a .deb or .rpm, and apply again")
        return None
    content = unit_text(program, boot.after).encode()
    if found is not None and found.content == content:
        return []
    proof: list[Action] = []
    if draft.state.kernel is not None:
        proof = [ProveStarting((program.python, "-I", "-S", program.script, "--version"),
                               "a boot service that cannot start would be found at the next boot only")]
    image = new_image(found, content) if found else FileImage(content)
    return [*proof, WriteFile(UNIT, found, image, "it applies this again at every boot, before the network")]


def around_initramfs(draft: Draft, block: list[Action]) -> list[Action]:
    """*block* with the initramfs written again after it, where that would load conntrack without it."""
    found = draft.state.initramfs
    if found is None or draft.desired.mode != "unload" or not draft.desired.modules.block:
        return block
    written = any(isinstance(action, WriteFile) and action.path == BLOCK_PATH for action in block)
    if not written and not found.stale:
        return block
    names = ", ".join(f"{name} ({path})" for name, path in found.names)
    if not found.tool:
        draft.findings.append(Item("initramfs", found.image or "initramfs", f"it loads {names} before the block counts",
                                   "take these lines out and write the initramfs again"))
        return block
    reason = f"it loads {names}, and the block must be in it"
    return [RefreshInitramfs(found.tool, found.image, reason, only_back=True), *block,
            RefreshInitramfs(found.tool, found.image, reason)]


def _say(draft: Draft, key: str, reason: str, remedy: str) -> None:
    draft.findings.append(Item(f"boot:{key}", "cloudinit-conntrack.service", reason, remedy))
