"""Performing one action on the host, and undoing one.

Success is what the host shows afterwards, not what a command answered.
"""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import Callable

from . import kmod, perform_native
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
from .errors import HostError
from .holders import all_holders
from .host import entries, inside, modules, observe, process, rules
from .host.entries import Entry
from .host.root import Root
from .netfilter.iptables import parse_ruleset
from .netfilter.ruleset import Rule
from .netfilter.tables import without_tables
from .state import FileImage

KEPT = "/var/lib/cloudinit-conntrack/kept"
STARTING_SECONDS = 240.0  # a first boot on a starved machine was seen to need more than 60
_MOST = 8  # rules in one note
INITRAMFS_SECONDS = 600.0  # half a minute is usual, more on a small machine


def check(action: Action, root: Root) -> None:
    """HostError when what *action* replaces was changed since it was planned, or a tree's tool cannot run here.

    Before it is written down: undoing an act that never began would undo somebody else's change.
    """
    if isinstance(action, RefreshInitramfs) and not root.is_host:
        inside.starts_inside(root, action.argv, INITRAMFS_SECONDS)
        known = True
    elif isinstance(action, WriteFile):
        found = root.read_image(action.path)
        known = _same(found, action.before) or _same(found, action.after)
    elif isinstance(action, LoadNative):
        known = perform_native.is_as_planned(action)
    elif isinstance(action, Link):
        known = root.link_text(action.path) in (action.before, action.after)
    else:
        known = not isinstance(action, LoadRules) or _live_is(action, action.before, action.created, root)
    if not known:
        raise HostError("it was changed since the plan was made", action.where, "run apply again to plan anew")


def perform(action: Action, root: Root) -> None:
    """Do *action*.  HostError when the host will not."""
    _PERFORM[type(action)](action, root)


def undo(action: Action, root: Root) -> tuple[str, ...]:
    """Do *action*, an inverse, over whatever is there now; gives notes for the operator.

    What somebody else changed in between is kept aside, and said.  In an image tree only
    files are undone: the kernel that runs is another host's.
    """
    if isinstance(action, WriteFile):
        return _put_back(action, root)
    if isinstance(action, Link):
        return _link_back(action, root)
    if not root.is_host and not isinstance(action, RefreshInitramfs):
        return (f"{action.where}: left alone, {root.path} is not the running host",)
    if isinstance(action, LoadRules):
        return _rules_back(action, root)
    if isinstance(action, LoadNative):
        return perform_native.load_back(action)
    if isinstance(action, LoadModule):
        return _load(action, root)
    perform(action, root)
    return ()


def loaded_modules(root: Root) -> tuple[str, ...]:
    """Names of the modules that are loaded now, as ``/proc/modules`` lists them."""
    return tuple(module.name for module in modules.all_loaded(root))


# --- files -----------------------------------------------------------------------------


def _write_file(action: WriteFile, root: Root) -> None:
    put(action.path, action.after, root)


def put(path: str, image: FileImage | None, root: Root) -> None:
    """Make *path* the file *image*, with the directories above it, or remove it."""
    if image is None:
        root.remove(path)
        return
    root.make_directory(path.rpartition("/")[0] or "/")
    root.write_image(path, image)


def _put_back(action: WriteFile, root: Root) -> tuple[str, ...]:
    root.sweep(action.path)
    found = root.read_image(action.path)
    if _same(found, action.after) and (not found or not action.after or found.mtime_ns == action.after.mtime_ns):
        return ()  # it was never done; where it could not be written, it could not be undone either
    notes: tuple[str, ...] = ()
    if found is not None and not _same(found, action.before) and not _same(found, action.after):
        aside = f"{KEPT}/{action.path.strip('/').replace('/', '_')}"
        root.make_private_dir(KEPT)
        root.write_image(aside, found)
        notes = (f"{action.path} was changed since; that version is kept as {aside}",)
    put(action.path, action.after, root)
    return notes


def _link(action: Link, root: Root) -> None:
    if action.after:
        root.make_directory(action.path.rpartition("/")[0])
    root.put_link(action.path, action.after)


def _link_back(action: Link, root: Root) -> tuple[str, ...]:
    root.sweep(action.path)
    found = root.link_text(action.path)
    if found not in (action.before, action.after):  # somebody else's by now
        return (f"{action.path} was changed since, and is left as it is",)
    if found != action.after:
        _link(action, root)
    return ()


def _same(one: FileImage | None, two: FileImage | None) -> bool:
    """Whether two images are alike in what others can change; times do not count."""
    if one is None or two is None:
        return one is two
    return (one.content, one.mode, one.uid, one.gid) == (two.content, two.mode, two.uid, two.gid)


# --- rules -----------------------------------------------------------------------------


def _load_rules(action: LoadRules, root: Root) -> None:
    live = _tables(rules.saved_text(action.backend, action.family, root).text) if action.dropped else {}
    # In a later boot, one that is to be dropped need not be there: its empty text would make it, to stay without nft.
    text = without_tables(action.after, tuple(table for table in action.dropped if table not in live))
    if text:
        rules.restore(action.backend, action.family, text)
    for table in action.dropped:
        rules.drop_table(action.backend, action.family, table, root)


def _rules_back(action: LoadRules, root: Root) -> tuple[str, ...]:
    untouched = _live_is(action, action.after, action.dropped, root)  # loading it may be what failed
    known = untouched or _live_is(action, action.before, action.created, root)
    lost = () if known else _others(action, root)
    _load_rules(replace(action, after="") if untouched else action, root)
    if known:
        return ()
    more = f", and these are gone: {_few(lost)}" if lost else ""
    return (f"{action.where} are not as apply left them; the rules from before are loaded again{more}",)


def _others(action: LoadRules, root: Root) -> tuple[str, ...]:
    """The live rules that are neither from before apply nor from apply: somebody added them, or a reload did."""
    ours = {row for text in (action.before, action.after) for _, row, _ in _rules(text)}
    live = rules.saved_text(action.backend, action.family, root).text
    tables = set(_tables(action.after))
    return tuple(f"-t {table} {said}" for table, row, said in _rules(live) if table in tables and row not in ours)


def _rules(text: str) -> list[tuple[str, str, str]]:
    """(table, what it is whatever the order of its options, its words) of each rule of a save."""
    found: list[tuple[str, str, str]] = []
    for line in parse_ruleset(text, "", "live rules").lines:
        if line.kind == "rule":
            rule = line.rule
            words = rule.text.removeprefix(rule.counters).strip()
            found.append((line.table, repr((line.table, rule.chain, _options(rule))), words))
    return found


def _options(rule: Rule) -> list[tuple[str, bool, tuple[str, ...]]]:
    return sorted((o.name, o.negated, o.args) for o in rule.options)


def _few(said: tuple[str, ...]) -> str:
    more = (f"and {len(said) - _MOST} more",) if len(said) > _MOST else ()
    return "; ".join((*said[:_MOST], *more))


def _live_is(action: LoadRules, text: str, absent: tuple[str, ...], root: Root) -> bool:
    """Whether the tables of *text* are what is live, counters aside; *absent* ones may be missing."""
    found, wanted = (
        _tables(content) for content in (rules.saved_text(action.backend, action.family, root).text, text)
    )
    return all(found.get(table, chains if table in absent else None) == chains for table, chains in wanted.items())


def _tables(text: str) -> dict[str, dict[str, list[object]]]:
    """table -> chain -> its policy and rules, without counters.

    A save groups rules by chain and sorts the options of each, so neither order counts.
    """
    found: dict[str, dict[str, list[object]]] = {}
    for line in parse_ruleset(text, "", "live rules").lines:
        if line.kind == "table":
            found[line.table] = {}
        elif line.kind == "chain":
            found[line.table][line.chain] = [line.text.split()[1]]
        elif line.kind == "rule":
            found[line.table].setdefault(line.chain, []).append(_options(line.rule))
    return found


# --- modules ---------------------------------------------------------------------------


def _unload(action: UnloadModule, root: Root) -> None:
    if modules.unload(action.name, root) or (action.force and modules.force_unload(action.name, root)):
        return
    why = _why_held(action.name, root)
    if action.force:
        found = modules.loaded(action.name, root)
        reason = "while a module depends on it" if found and found.holders else "without CONFIG_MODULE_FORCE_UNLOAD"
        why = f"this kernel refuses rmmod -f too, {reason}; {why}"
    raise HostError(f"module {action.name} is in use", action.where, why)


def _why_held(name: str, root: Root) -> str:
    """The holders of *name*, each with what frees it, for the message of a failed unload."""
    holders = [h for h in all_holders(observe.observe(root, True)) if h.module == name]
    if holders:
        return "; ".join(f"{h.where} ({h.what}) holds it: {h.remedy}" for h in holders[:8])
    module = modules.loaded(name, root)
    if module and not kmod.is_conntrack_module(name):
        return f"{', '.join(module.holders) or 'a rule or a program'} uses it: take it out of modules.extra"
    return "no rule or module that can be seen holds it: look at other network namespaces, IPVS, tc and BPF"


def _load(action: LoadModule, root: Root) -> tuple[str, ...]:
    modules.load(action.name, action.parameters, root)
    return modules.set_sysctls(action.sysctls, root)


def modules_of_tables(actions: tuple[Action, ...]) -> tuple[str, ...]:
    """The modules of the legacy tables that *actions* made: an empty table goes with its module only."""
    loads = [a for a in actions if isinstance(a, LoadRules) and a.backend == "legacy"]
    return tuple(f"{'ip' if a.family == 'ipv4' else 'ip6'}table_{table}" for a in loads for table in a.created)


# --- the rest --------------------------------------------------------------------------


def _delete_entries(action: DeleteEntries, root: Root) -> None:
    def wanted(entry: Entry) -> bool:
        return not action.flows or any(_is_of(entry, *flow) for flow in action.flows)

    entries.delete_entries(wanted)


def _is_of(entry: Entry, protocol: str, first: int, last: int, address: str) -> bool:
    if entry.protocol != protocol or not first <= entry.dport <= last:
        return False
    return not address or ipaddress.ip_address(entry.dst) in ipaddress.ip_network(address)


def _load_native(action: LoadNative, root: Root) -> None:
    perform_native.load(action)


def _unworded(action: RewriteNative, root: Root) -> None:
    raise HostError("it has not been put into nft's words", action.path, "this is our defect: report it")


def _prove(action: ProveLoading, root: Root) -> None:
    if action.family == "native":
        perform_native.prove_file(action.path, root)
        problem = None
    else:
        problem = rules.load_in_private_namespace(action.text, action.family)
    if problem:
        raise HostError(f"this saved rule-set does not load: {problem}", action.path, "mend the file and apply again")
    back = [name for name in loaded_modules(root) if name in kmod.ROOTS]
    if back:
        raise HostError(f"loading this saved rule-set loads {', '.join(back)}", action.path,
                        "some rule in it still needs conntrack; find it by 'cloudinit-conntrack status'")


def _prove_starting(action: ProveStarting, root: Root) -> None:
    done = process.run(action.argv, timeout=STARTING_SECONDS, check=False)
    if done.status != 0 or "cloudinit-conntrack" not in done.stdout:
        why = process.failure(done).what
        raise HostError(f"the boot service could not start this: {why}", action.where,
                        "install the package for the system's own Python, or set 'persist: false'")


def _refresh(action: RefreshInitramfs, root: Root) -> None:
    if action.only_back:
        return
    if root.is_host:
        process.run(action.argv, timeout=INITRAMFS_SECONDS)
    else:
        inside.run_inside(root, action.argv, INITRAMFS_SECONDS)


_PERFORM: dict[type[object], Callable[..., object]] = {
    WriteFile: _write_file,
    LoadRules: _load_rules,
    LoadNative: _load_native,
    RewriteNative: _unworded,
    UnloadModule: _unload,
    LoadModule: _load,
    DeleteEntries: _delete_entries,
    ProveLoading: _prove,
    Link: _link,
    ProveStarting: _prove_starting,
    RefreshInitramfs: _refresh,
}
