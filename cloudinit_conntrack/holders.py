"""Why nf_conntrack is "in use": each holder by name, with what frees it.

A module is held by other modules (``/proc/modules`` column 4) and by users that are not
modules: one for each rule that uses a match or target, in every network namespace, and
services such as IPVS.  Rules are counted; users that no rule accounts for are said to be
unseen rather than guessed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .errors import ConntrackError
from .kmod import loaded_dependants
from .netfilter.iptables import parse_ruleset
from .netfilter.nft_ruleset import Entry, NftRuleSet, parse_nft
from .netfilter.nft_stateful import dependencies_of
from .netfilter.nft_tables import place_of
from .netfilter.nft_words import object_text, statements_text
from .netfilter.ruleset import Line
from .netfilter.stateful import modules_of
from .state import Kernel, LiveRules, Module, State


@dataclass(frozen=True)
class Holder:
    """One user of a conntrack module.  *kind* is ``module``, ``rule``, ``namespace`` or ``unseen``."""

    id: str
    module: str
    kind: str
    where: str
    what: str
    remedy: str


@dataclass(frozen=True)
class RuleUse:
    """A rule that uses conntrack, with its place: back end, family, table, chain, number."""

    live: LiveRules
    line: Line
    number: int
    modules: tuple[str, ...]

    @property
    def where(self) -> str:
        """The place as a person would look for it."""
        return f"iptables-{self.live.backend} {self.live.family}, table {self.line.table}, chain {self.line.chain}, " \
               f"rule {self.number}"

    @property
    def text(self) -> str:
        """The rule without its counters."""
        return self.line.text[len(self.line.rule.counters):].strip()

    @property
    def command(self) -> str:
        """The command that deletes the rule."""
        tool = "iptables" if self.live.family == "ipv4" else "ip6tables"
        return f"{tool}-{self.live.backend} -t {self.line.table} -D {self.line.chain} {self.number}"


def rule_uses(rules: Iterable[LiveRules]) -> Iterator[RuleUse]:
    """Every rule of *rules* that may hold a conntrack module."""
    for live in rules:
        try:
            ruleset = parse_ruleset(live.text, live.family, f"iptables-{live.backend}")
        except ConntrackError:
            continue  # told where it matters: the plan refuses the rule-set by name
        numbers: dict[tuple[str, str], int] = {}
        for line in ruleset.rules():
            key = (line.table, line.chain)
            numbers[key] = numbers.get(key, 0) + 1
            modules = modules_of(line.rule, line.table)
            if modules:
                yield RuleUse(live, line, numbers[key], modules)


def all_holders(state: State) -> tuple[Holder, ...]:
    """Every holder of conntrack in *state*, modules first, then rules, namespaces and the unseen."""
    found: list[Holder] = []
    kernel = state.kernel
    if kernel is None:
        return ()
    for module in kernel.modules:
        if module.name in loaded_dependants(kernel.modules):
            found.extend(
                Holder(f"module:{holder}:{module.name}", module.name, "module", f"module {holder}",
                       f"{holder} uses {module.name}", f"rmmod {holder}")
                for holder in module.holders
            )
    for use in rule_uses(state.live):
        module_name = _loaded(kernel, use)
        found.append(Holder(f"rule:{use.where}", module_name, "rule", use.where, use.text, use.command))
    found += _native_holders(state, kernel)
    return (*found, *foreign_holders(state), *_unaccounted(state, kernel))


def _native_holders(state: State, kernel: Kernel) -> Iterator[Holder]:
    """The objects of this host's native rules that use conntrack."""
    ruleset, uses = _native_uses(state)
    for entry, modules in uses:
        where = f"nft, {place_of(ruleset, entry.index)}"
        name = next((m for m in modules if kernel.module(m)), modules[0])
        what = statements_text(entry) if entry.kind == "rule" else object_text(entry)
        yield Holder(f"rule:{where}", name, "rule", where, what, deletion(entry))


def _native_uses(state: State) -> tuple[NftRuleSet, list[tuple[Entry, tuple[str, ...]]]]:
    """The live native rules, and (object, module of each use) for what uses conntrack in them."""
    if state.native is None:
        return NftRuleSet("", ()), []
    ruleset = parse_nft(state.native.listing, "nft -j list ruleset")
    found = ((entry, dependencies_of(entry)) for entry in ruleset.entries)
    return ruleset, [(entry, tuple(d.extension.modules[0] for d in uses)) for entry, uses in found if uses]


def deletion(entry: Entry) -> str:
    """The command that deletes *entry*."""
    if entry.kind == "rule":
        return f"nft delete rule {' '.join(entry.place)} handle {entry.body.get('handle', '?')}"
    return f"nft delete {entry.kind} {' '.join(entry.place)}"


def _loaded(kernel: Kernel, use: RuleUse) -> str:
    return next((name for name in use.modules if kernel.module(name)), use.modules[0])


def foreign_holders(state: State) -> tuple[Holder, ...]:
    """Holders that no rewrite of this host's own rules removes."""
    if state.kernel is None:
        return ()
    found: list[Holder] = []
    for namespace in state.namespaces:
        uses = list(rule_uses(namespace.rules))
        found += [
            Holder(f"namespace:{namespace.inode}:{number}", _loaded(state.kernel, use), "namespace",
                   f"network namespace of {namespace.owner}: {use.where}",
                   f"{use.text} keeps {_loaded(state.kernel, use)} in use",
                   "stop what owns the namespace, or make its rules stateless")
            for number, use in enumerate(uses, 1)
        ]
        found += [
            Holder(f"namespace:{namespace.inode}:native{number}", "nf_conntrack", "namespace",
                   f"network namespace of {namespace.owner}: nft list ruleset", note,
                   "stop what owns the namespace, or make its rules stateless")
            for number, note in enumerate(namespace.native, 1)
        ]
    return (*found, *_unseen(state.kernel))


def _unaccounted(state: State, kernel: Kernel) -> Iterator[Holder]:
    """Users that no rule accounts for: only told, since a rule that we cannot see may yet be one that goes."""
    rules = [*state.live, *(rules for namespace in state.namespaces for rules in namespace.rules)]
    known = Counter(_loaded(kernel, use) for use in rule_uses(rules))
    known.update(module for _, modules in _native_uses(state)[1] for module in modules)
    for name in loaded_dependants(kernel.modules):
        module = kernel.module(name)
        left = module.other_users - known[name] if module else 0
        if left > 0 and not service_of(name):
            yield Holder(f"unseen:{name}", name, "unseen", f"module {name}",
                         f"{left} more {'user' if left == 1 else 'users'} than the rules that can be seen",
                         "look for nft rules, BPF programs, tc filters and namespaces that only a process holds open")


# Modules whose users are no rules but settings of a service, and how to end them.
_SERVICES = {
    "ip_vs": ("IPVS services are set up", "ipvsadm -C (and stop keepalived or kube-proxy, which would set them again)"),
    "openvswitch": ("Open vSwitch has a datapath", "ovs-dpctl del-dp, and stop openvswitch"),
    "act_ct": ("a tc filter uses act_ct", "tc filter del"),
    "act_connmark": ("a tc filter uses act_connmark", "tc filter del"),
    "act_ctinfo": ("a tc filter uses act_ctinfo", "tc filter del"),
}


def service_of(name: str) -> str:
    """The key of :data:`_SERVICES` for the module *name*, or an empty string."""
    return "ip_vs" if name.startswith("ip_vs") else name if name in _SERVICES else ""


def _unseen(kernel: Kernel) -> Iterator[Holder]:
    for name in loaded_dependants(kernel.modules):
        module = kernel.module(name)
        found = service_users(module) if module else None
        if found is not None:
            yield Holder(f"unseen:{name}", name, "unseen", f"module {name}", *found)


def service_users(module: Module) -> tuple[str, str] | None:
    """What uses *module*, and what ends it, where that is a service's settings; ``None`` where there are none."""
    if not service_of(module.name):
        return None
    # A scheduler of IPVS counts twice: it depends on ip_vs, and it is registered there (ip_vs_sched.c).
    users = module.other_users - (len(module.holders) if module.name == "ip_vs" else 0)
    what, remedy = _SERVICES[service_of(module.name)]
    return (f"{what} ({users} users)", remedy) if users > 0 else None


def force_note(kernel: Kernel) -> str:
    """Why ``modules.force`` does not help against a holder that is known."""
    if kernel.forced_unload is False:
        return "this kernel is built without CONFIG_MODULE_FORCE_UNLOAD: it refuses rmmod -f"
    unknown = "" if kernel.forced_unload else ", and whether this kernel allows it at all is not known"
    return f"rmmod -f would leave the rules of these holders on freed memory{unknown}"
