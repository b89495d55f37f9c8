"""The tree itself: ``nf_conntrack``, the modules that use it, and what in turn uses those."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ..holders import service_of, service_users
from ..kmod import ROOTS, loaded_dependants
from ..said import Node
from ..state import Kernel, Module, OtherNamespace, State
from ..tracking import Tracking
from .owners import namespace_node
from .saved import SavedLines, module_comes_back, rule_comes_back, saved_lines
from .uses import Use
from .writers import Writer, unit_nodes, writer_node, writer_of

UNSEEN = "look for nft rules, BPF programs, tc filters and namespaces that only a process holds open"


class Builder:
    """What all parts of one tree share: the host, every use, the saved lines that are not placed yet."""

    def __init__(self, state: State, kernel: Kernel, tracking: Tracking, uses: tuple[Use, ...]) -> None:
        self.state, self.kernel, self.tracking, self.uses = state, kernel, tracking, uses
        self.lines: SavedLines = saved_lines(state) if self.uses else SavedLines()
        self.counts = Counter(name for use in self.uses for name in use.counted)
        self.parents = _parents(kernel)
        self.units: set[str] = set()


def make_tree(state: State, tracking: Tracking, uses: tuple[Use, ...]) -> tuple[Node, ...]:
    """The tree of *state* and its *uses*: one root, or nothing where conntrack is absent, and for an image tree.  Pure.

    Following it is simple: do what the leaves say, look again, until only the root is left.
    """
    kernel = state.kernel
    if kernel is None or kernel.conntrack == "absent":
        return ()
    build = Builder(state, kernel, tracking, uses)
    root = next((m for m in kernel.modules if m.name in ROOTS), None)
    if root is not None:
        return (_module(build, root),)
    children = (*_filters(build, "", build.uses), *_beside(build), *module_comes_back("nf_conntrack", state))
    return (Node("conntrack", "conntrack", "nf_conntrack is built into the kernel", f"kernel {kernel.release}", "",
                 children),)


def nodes_of(tree: Iterable[Node]) -> Iterable[Node]:
    """Every node of *tree*, each above its children."""
    for node in tree:
        yield node
        yield from nodes_of(node.children)


# --- modules ---------------------------------------------------------------------------


def _parents(kernel: Kernel) -> dict[str, str]:
    """The one module below which each is shown: of those that it uses, the one furthest from conntrack."""
    names = loaded_dependants(kernel.modules)
    holders = {m.name: m.holders for m in kernel.modules if m.name in names}
    depth = {name: 0 for name in names if name in ROOTS}
    for _ in names:  # each round settles one more floor, and there are no more floors than modules
        for name, deep in list(depth.items()):
            for holder in holders.get(name, ()):
                depth[holder] = max(depth.get(holder, 0), deep + 1) if deep < len(names) else depth[holder]
    used = {name: [m for m in names if name in holders[m]] for name in names}
    return {name: max(below, key=lambda m: depth.get(m, 0)) for name, below in used.items() if below}


def _module(build: Builder, module: Module) -> Node:
    name = module.name
    children = (*_filters(build, name, [u for u in build.uses if _stands_under(build, u) == name]),
                *_also(build, name), *_services(build, module), *_unseen(build, module),
                *(_module(build, m) for m in build.kernel.modules if build.parents.get(m.name) == name),
                *(_beside(build) if name in ROOTS else ()), *module_comes_back(name, build.state))
    times = "and nothing uses it" if not module.refcount else f"in use {times_of(module.refcount)}"
    if name in ROOTS:
        return Node("conntrack", "conntrack", f"{name}: loaded, {times}", f"module {name}", f"modprobe -r {name}",
                    children)
    others = sorted(m.name for m in build.kernel.modules if name in m.holders and m.name in build.parents
                    and m.name != build.parents[name])
    besides = f" (uses {', '.join(others)} too)" if others else ""
    return Node(f"module:{name}:{build.parents[name]}", "module", f"module {name}, {times}{besides}", f"module {name}",
                f"rmmod {name}", children)


def times_of(count: int) -> str:
    """``once``, ``3 times``."""
    return "once" if count == 1 else f"{count} times"


def _stands_under(build: Builder, use: Use) -> str:
    """The module below which *use* is told; the root where none of its own is loaded."""
    root = next((m.name for m in build.kernel.modules if m.name in ROOTS), "")
    return use.modules[0] if use.modules else root


def _also(build: Builder, name: str) -> Iterable[Node]:
    """One line for the rules that use the module *name* too, and stand under another."""
    found = Counter((u.table, _stands_under(build, u)) for u in build.uses if name in u.modules)
    for (table, other), count in found.items():
        if other != name:
            rules = "1 rule" if count == 1 else f"{count} rules"
            yield Node(f"also:{name}:{other}:{table}", "also", f"{rules} of {table}, told under {other}", table)


def _unseen(build: Builder, module: Module) -> Iterable[Node]:
    """Users that nothing here accounts for: said, not guessed."""
    left = module.other_users - build.counts[module.name]
    if left > 0 and not service_of(module.name):
        users = "1 user" if left == 1 else f"{left} users"
        yield Node(f"unseen:{module.name}", "unseen", f"{users} more than what can be seen", f"module {module.name}",
                   UNSEEN)


def _services(build: Builder, module: Module) -> Iterable[Node]:
    """IPVS, Open vSwitch, tc: what is set up there, service by service where the kernel lists them."""
    found = service_users(module)
    if found is None:
        return
    what, remedy = found
    services = build.tracking.services
    if module.name == "ip_vs" and services:
        yield from (Node(f"service:{s.option}:{s.address}", "service",
                         f"IPVS service {s.address} ({s.scheduler})", "/proc/net/ip_vs",
                         f"ipvsadm -D {s.option} {s.address}") for s in services)
    elif module.name.startswith("ip_vs_") and services:
        yield Node(f"unseen:{module.name}", "also", "IPVS services, told under ip_vs", "/proc/net/ip_vs")
    else:
        yield Node(f"unseen:{module.name}", "service", what, f"module {module.name}", remedy)


# --- tables and rules ------------------------------------------------------------------


def _filters(build: Builder, under: str, uses: Sequence[Use]) -> tuple[Node, ...]:
    """The tables of this host, then the namespaces with theirs."""
    found = list(_tables(build, under, [use for use in uses if not use.space]))
    for other in build.state.namespaces:
        inside = tuple(_tables(build, f"{under}:{other.inode}", [u for u in uses if u.space == other.inode]))
        if inside:
            space = build.tracking.space(other.inode)
            found.append(namespace_node(other, space.path if space else "", under, inside))
    return tuple(found)


def _tables(build: Builder, under: str, uses: Sequence[Use]) -> Iterable[Node]:
    for table in dict.fromkeys(use.table for use in uses):
        yield Node(f"table:{under}:{table}", "table", table, table, "",
                   _rules(build, f"{under}:{table}", [use for use in uses if use.table == table]))


def _rules(build: Builder, under: str, uses: Sequence[Use]) -> tuple[Node, ...]:
    """The rules of a program below it, the others as they are."""
    groups: dict[Writer | None, list[Node]] = {}
    for use in uses:
        writer = writer_of(use.names)
        # A program's rules come from the program; only ufw keeps them in files of rules.
        back = () if use.space or (writer and writer.name != "ufw") else rule_comes_back(use, build.lines, build.state)
        node = Node(use.id, "rule", use.what, use.where, use.remedy, back)
        groups.setdefault(writer, []).append(node)
    found: list[Node] = []
    for writer, nodes in groups.items():
        if writer is None:
            found += nodes
        else:
            build.units.update(writer.units)
            found.append(writer_node(writer, under, build.state, tuple(nodes)))
    return tuple(found)


def _beside(build: Builder) -> Iterable[Node]:
    """What holds no module, and yet needs conntrack or brings it back: processes, and units without rules here."""
    for one in build.tracking.listeners:
        owner = f", {one.owner}" if one.owner else ""
        unit = one.owner[len("unit "):] if one.owner.startswith("unit ") else ""
        yield Node(f"process:{one.pid}", "process", f"pid {one.pid} ({one.name}{owner}) listens to conntrack's events",
                   f"pid {one.pid}", f"systemctl disable --now {unit}" if unit else f"kill {one.pid}")
        build.units.add(unit)
    yield from (node for other in build.state.namespaces for node in _unparsed(build, other))
    yield from unit_nodes(build.state, build.units)


def _unparsed(build: Builder, other: OtherNamespace) -> Iterable[Node]:
    """The native tables of a namespace, where nothing more is known than that they use conntrack."""
    space = build.tracking.space(other.inode)
    if other.native and not (space and space.listing):
        where = f"network namespace of {other.owner}"
        for number, note in enumerate(other.native, 1):
            yield Node(f"namespace:{other.inode}:native{number}", "rule", f"{where}: {note}", where,
                       "stop what owns the namespace, or make its rules stateless")
