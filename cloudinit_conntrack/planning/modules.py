"""Modules: lists that load them, holders, unloading, the block and its proofs, entries left behind."""

from __future__ import annotations

from .. import kmod
from ..actions import Action, DeleteEntries, ProveLoading, RewriteNative, UnloadModule, WriteFile
from ..holders import force_note, foreign_holders
from ..shellvars import clean_modules_line
from ..state import FileImage, Kernel, NativeFile, SavedFile
from .draft import Draft, Item, decoded, new_image, planned, write_file
from .nativefiles import loaded_at_boot

BLOCK_FILE = kmod.BLOCK_PATH


def plan_module_list(draft: Draft, saved: SavedFile) -> None:
    if draft.desired.mode == "notrack":
        return
    cleaned, removed = clean_modules_line(decoded(planned(draft, saved.path, saved.image).content))
    if not removed:
        return
    names = ", ".join(removed)
    write_file(draft, saved.path, saved.image, cleaned.encode("utf-8", "surrogateescape"),
               f"it loads {names} at every start of the firewall")
    helpers = [n for n in removed if n.startswith(("nf_conntrack_", "ip_conntrack_", "nf_nat_", "ip_nat_"))]
    if helpers:
        draft.findings.append(Item(f"helper:{saved.path}", saved.path,
                                   f"{', '.join(helpers)} helped connections that its rules called RELATED; "
                                   "without conntrack they are not recognised", "allow their ports by rules"))


def unloading(draft: Draft, kernel: Kernel) -> list[Action]:
    if kernel.conntrack == "builtin":
        draft.blockers.append(Item("module:builtin", f"kernel {kernel.release}",
                                   "nf_conntrack is built into this kernel and cannot be unloaded",
                                   "use 'mode: stateless': this kernel then tracks nothing"))
        return []
    order = kmod.unload_order(kernel.modules, draft.desired.modules.extra)
    if order and kernel.locked:
        draft.blockers.append(Item("module:locked", "kernel.modules_disabled = 1",
                                   "this kernel refuses to unload modules until the next boot",
                                   "apply before modules_disabled is set, after a reboot; or use 'mode: stateless'"))
        return []
    if order:
        _held(draft, kernel, order)
    actions: list[Action] = []
    for name in order:
        module = kernel.module(name)
        parameters = module.parameters if module else ()
        sysctls = kernel.sysctls if name == "nf_conntrack" else ()
        reason = "it is conntrack" if name == "nf_conntrack" else "it holds nf_conntrack, or stands in its way"
        if name in draft.desired.modules.extra:
            reason = "modules.extra names it"
        actions.append(UnloadModule(name, reason, parameters, sysctls, draft.desired.modules.force))
    return actions


def _held(draft: Draft, kernel: Kernel, order: tuple[str, ...]) -> None:
    """Blockers for what keeps the modules of *order* in use, and stays when all of *order* go."""
    foreign = foreign_holders(draft.state)
    for holder in foreign:
        draft.blockers.append(Item(f"module:{holder.id}", holder.where, holder.what, holder.remedy))
    for module in (m for m in kernel.modules if m.name in order):
        others = ", ".join(h for h in module.holders if h not in order)
        if others:
            draft.blockers.append(Item(f"module:extra:{module.name}", f"module {module.name}", f"{others} needs it",
                                       f"take {module.name} out of modules.extra, or name what needs it there too"))
    if draft.desired.modules.force and (foreign or kernel.forced_unload is False):
        draft.findings.append(Item("force", "conntrack.modules.force", force_note(kernel),
                                   "free the modules as the blockers say, if there are any"))


def blocking(draft: Draft) -> list[Action]:
    """Write the block (unload) or take our own away (notrack needs the module)."""
    desired, found = draft.desired, draft.state.block
    if desired.mode == "notrack" and found is not None:
        return [WriteFile(BLOCK_FILE, found, None, "NOTRACK needs nf_conntrack, which this file blocks")]
    if desired.mode != "unload" or not desired.modules.block or not desired.persist:
        return []
    content = kmod.modprobe_conf(desired.modules.extra, _dependants(draft, found)).encode()
    if found is not None and found.content == content:
        return []
    proofs: list[ProveLoading] = []
    if draft.state.kernel is not None:
        proofs = [_proof(draft, saved) for saved in draft.state.saved if saved.kind == "rules"] + draft.proofs
        proofs += [ProveLoading(file.path, "native", "", _WHY_PROVED) for file in _native_to_prove(draft)]
    image = new_image(found, content) if found else FileImage(content)
    return [*proofs, WriteFile(BLOCK_FILE, found, image, "no rule, service or program loads conntrack again")]


_WHY_PROVED = "a saved rule-set that needs conntrack would not load under the block, and the host would boot open"


def _native_to_prove(draft: Draft) -> list[NativeFile]:
    """The nft files that a boot loads, and those that are rewritten."""
    rewritten = {action.path for action in draft.files if isinstance(action, RewriteNative)}
    loaded = loaded_at_boot(draft.state)
    return [file for file in draft.state.native_saved if loaded or file.path in rewritten]


def _dependants(draft: Draft, found: FileImage | None) -> set[str]:
    """What this kernel's modules.dep names, and what an earlier kernel's did: hosts boot back and forth."""
    kernel = draft.state.kernel
    named = kmod.dependants_blocked(decoded(found.content)) if found else set()
    return named.union(kernel.dependants if kernel else draft.state.shipped)


def _proof(draft: Draft, saved: SavedFile) -> ProveLoading:
    written = {a.path: a.after for a in draft.files if isinstance(a, WriteFile)}
    image = written.get(saved.path) or saved.image
    return ProveLoading(saved.path, saved.family, decoded(image.content), _WHY_PROVED)


def entries(draft: Draft) -> list[Action]:
    """Entries that the flows had stay until their timeout, up to five days, unless deleted."""
    kernel, flows = draft.state.kernel, draft.desired.flows
    if draft.desired.mode != "notrack" or kernel is None or kernel.conntrack == "absent" or not draft.rules:
        return []
    named = tuple((f.protocol, f.ports[0], f.ports[1], f.address or "") for f in flows.frontends + flows.backends)
    return [DeleteEntries(() if flows.all else named, "new NOTRACK rules do not end entries that are there")]
