"""Each rule, and each other object of the packet filter, that holds a conntrack module, in every namespace."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..errors import ConntrackError
from ..holders import RuleUse, deletion, rule_uses
from ..netfilter.nft_ruleset import Entry, NftRuleSet, parse_nft
from ..netfilter.nft_stateful import dependencies_of
from ..netfilter.nft_tables import place_of
from ..netfilter.nft_words import object_text, statements_text
from ..netfilter.ruleset import Rule
from ..netfilter.stateful import MATCHES, TARGETS, Extension, is_notrack
from ..state import Kernel, LiveRules, State
from ..tracking import Tracking

# What iptables-nft may take in place of its own extensions.
_NATIVE = {"state": "nft_ct", "conntrack": "nft_ct", "connlimit": "nft_connlimit", "MASQUERADE": "nft_masq",
           "REDIRECT": "nft_redir", "SNAT": "nft_nat", "DNAT": "nft_nat"}
_NAT_TABLE = {("legacy", "ipv4"): "iptable_nat", ("legacy", "ipv6"): "ip6table_nat"}
_NFT_FAMILY = {"ipv4": "ip", "ipv6": "ip6"}
_HOOKED = {"ip": ("ipv4",), "ip6": ("ipv6",), "inet": ("ipv4", "ipv6"), "bridge": ("bridge",),
           "ipv4": ("ipv4",), "ipv6": ("ipv6",)}


@dataclass(frozen=True)
class Use:
    """One user of conntrack in the packet filter.

    *space* is the inode of its network namespace, 0 for the host's own; *table* names back end,
    family and table; *chain* where in it.  *modules* are the loaded ones that it uses, the
    most particular first; *counted* those whose use counts it raises, once for each name.
    *names* are the chains by which a program's rules are known; *key* is the rule in iptables'
    words, *family* and *backend* what saved file may hold it; *hooks* the families in which it
    makes conntrack look at packets.
    """

    id: str
    kind: str
    space: int
    table: str
    what: str
    where: str
    remedy: str
    modules: tuple[str, ...]
    counted: tuple[str, ...]
    names: tuple[str, ...] = ()
    hooks: tuple[str, ...] = ()
    rule: RuleUse | None = None
    statements: str = ""


def all_uses(state: State, tracking: Tracking) -> tuple[Use, ...]:
    """Every use in *state*: of this host's own rules first, then namespace by namespace.

    In a chain the last rule comes first: deleted in this order, the numbers of the others stay right.
    """
    kernel = state.kernel
    if kernel is None:
        return ()
    found = [*_of_iptables(state.live, kernel), *_of_native(state.native.listing if state.native else "", kernel)]
    for other in state.namespaces:
        space = tracking.space(other.inode)
        path = space.path if space else ""
        inside = list(_of_iptables(other.rules, kernel))
        numbers = {use.where: number for number, use in enumerate(rule_uses(other.rules), 1)}
        found += [_entered(use, other.inode, path, f"namespace:{other.inode}:{numbers.get(use.where, use.id)}")
                  for use in inside]
        native = list(_of_native(space.listing if space else "", kernel))
        found += [_entered(use, other.inode, path, f"namespace:{other.inode}:{use.id}") for use in native]
    return tuple(found)


def _entered(use: Use, inode: int, path: str, name: str) -> Use:
    """*use* as it is in another namespace, whose *path* leads there for its command."""
    command = f"nsenter --net={path} {use.remedy}" if path else use.remedy
    return replace(use, id=name, space=inode, remedy=command)


def _of_iptables(rules: tuple[LiveRules, ...], kernel: Kernel) -> Iterator[Use]:
    for live in rules:
        seen: set[str] = set()
        mine = list(rule_uses([live]))
        for rule in reversed(mine):
            yield _of_rule(rule, kernel, seen)
        if live.backend == "nft" and "\n*nat\n" in f"\n{live.text}":
            yield _nat_table(live, kernel)


def _of_rule(rule: RuleUse, kernel: Kernel, seen: set[str]) -> Use:
    """*seen* are the legacy tables that were counted: each holds its module once, whatever it has."""
    line, live = rule.line, rule.live
    used = [name for extension in _extensions(line.rule) if (name := _first(extension, live.backend, kernel))]
    used += _helper(line.rule, kernel)
    table = _NAT_TABLE.get((live.backend, live.family), "") if line.table == "nat" else ""
    counted = list(used)
    if table and kernel.module(table):
        counted += [] if table in seen else [table]
        used.append(table)
        seen.add(table)
    return Use(
        f"rule:{rule.where}", "rule", 0, f"iptables-{live.backend} {live.family}, table {line.table}",
        f"{line.chain}, rule {rule.number}: {_without_chain(rule)}", rule.where, rule.command,
        tuple(dict.fromkeys(used)),
        tuple(counted), (line.chain, line.rule.target), () if is_notrack(line.rule) else _HOOKED[live.family], rule,
    )


def _without_chain(rule: RuleUse) -> str:
    """The rule as iptables-save prints it, but for its chain, which is said beside it."""
    return rule.text[len(start):] if rule.text.startswith(start := f"-A {rule.line.chain} ") else rule.text


def _extensions(rule: Rule) -> Iterator[Extension]:
    yield from (MATCHES[name] for name in rule.matches if name in MATCHES)
    if rule.target in TARGETS:
        yield TARGETS[rule.target]


def _first(extension: Extension, backend: str, kernel: Kernel) -> str:
    """The loaded module that carries *extension*; empty where none of them is a module here."""
    names = extension.modules
    if backend == "nft" and extension.name in _NATIVE:
        names = (*names, _NATIVE[extension.name])
    return next((name for name in names if kernel.module(name)), "")


def _helper(rule: Rule, kernel: Kernel) -> list[str]:
    """The module of the helper that ``-j CT --helper`` gives; ``-m helper`` only asks for it."""
    option = rule.first("--helper") if rule.target == "CT" else None
    name = f"nf_conntrack_{option.value.replace('-', '_')}" if option else ""
    return [name] if name and kernel.module(name) else []


def _nat_table(live: LiveRules, kernel: Kernel) -> Use:
    """The chains of iptables-nft's nat table, which stay when their rules go, and hold conntrack."""
    lines = live.text.split("*nat\n", 1)[1].split("\nCOMMIT", 1)[0].split("\n")
    chains = [line for line in lines if line.startswith(":") and line.split()[1:2] != ["-"]]
    table = f"iptables-nft {live.family}, table nat"
    counted = ("nft_chain_nat",) * len(chains) if kernel.module("nft_chain_nat") else ()
    return Use(f"table:{table}", "rule", 0, table, f"the table itself: {len(chains)} chains of type nat", table,
               f"nft delete table {_NFT_FAMILY[live.family]} nat", counted[:1], counted, (), _HOOKED[live.family])


def _of_native(listing: str, kernel: Kernel) -> Iterator[Use]:
    """The uses of native nftables; none where the listing is in words that we do not know."""
    try:
        ruleset = parse_nft(listing, "nft -j list ruleset") if listing else None
    except ConntrackError:
        return
    if ruleset is not None:
        found = (use for entry in reversed(ruleset.entries) if (use := _of_entry(ruleset, entry, kernel)))
        # What a rule may refer to comes behind the rules, and chains last: none goes while it is used.
        yield from sorted(found, key=lambda use: ("chain" in use.kind, use.kind != "nft rule"))


def _of_entry(ruleset: NftRuleSet, entry: Entry, kernel: Kernel) -> Use | None:
    needs = dependencies_of(entry)
    if not needs:
        return None
    counted = [need.extension.modules[0] for need in needs if kernel.module(need.extension.modules[0])]
    if entry.kind == "ct helper" and kernel.module(helper := f"nf_conntrack_{entry.body.get('type', '')}"):
        counted.append(helper)
    where = f"nft, {place_of(ruleset, entry.index)}"
    text = statements_text(entry) if entry.kind == "rule" else object_text(entry)
    place = f"{entry.place[2]}, handle {entry.body.get('handle', '?')}" if entry.kind == "rule" else entry.kind
    hooks = () if all(need.kind == "notrack" for need in needs) else _HOOKED.get(entry.family, ())
    return Use(f"rule:{where}", f"nft {entry.kind}", 0, f"nft, table {' '.join(entry.table)}", f"{place}: {text}",
               where, deletion(entry), tuple(dict.fromkeys(counted)), tuple(counted), (entry.table[1], entry.place[2]),
               hooks, None, text)
