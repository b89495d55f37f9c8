"""Which rules need conntrack, judged by a kernel: load one, and see whether nf_conntrack came along.

The rules are those by which iptables tests its extensions (tests/upstream), one group for
each table, set of matches and target.  What the guest's kernel cannot load is judged by its
own ``modules.dep``, as is every name in our tables of extensions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import pytest
from upstream.debian_source import source_tree
from upstream.extension_rules import Candidate, candidates
from upstream.restoring import PREFIX, file_of

from cloudinit_conntrack.netfilter.iptables import parse_rule, parse_ruleset
from cloudinit_conntrack.netfilter.nft_ruleset import parse_nft
from cloudinit_conntrack.netfilter.nft_stateful import dependency as native_dependency
from cloudinit_conntrack.netfilter.ruleset import format_ruleset
from cloudinit_conntrack.netfilter.stateful import INDEPENDENT, MATCHES, TARGETS, dependency
from cloudinit_conntrack.netfilter.stateless import make_stateless

from .later import Later
from .uml import MODULES, run_quick

FAMILIES = ("ipv4", "ipv6")
# Each group is a folder of files, tried until one is accepted.  A line for each: its number, the file that
# was accepted, whether nf_conntrack was there then, and whether it could go once the rules had gone.
SCRIPT = """
here() { if [ -e /sys/module/nf_conntrack ]; then echo yes; else echo no; fi; }
drop() { # a module, those that need it first
    for holder in /sys/module/$1/holders/*; do
        if [ -e "$holder" ]; then drop "${holder##*/}"; fi
    done
    rmmod "$1" 2>/dev/null
}
cd /root/groups
for group in *; do
    accepted=none
    for file in "$group"/*; do
        if PROGRAM-legacy-restore <"$file" 2>/dev/null; then
            accepted=${file##*/}
            break
        fi
    done
    loaded=$(here)
    if [ $loaded = yes ]; then
        for table in $(cat /proc/net/NAMES); do
            PROGRAM-legacy -t $table -F
            PROGRAM-legacy -t $table -X
        done
        drop nf_conntrack
    fi
    echo $group $accepted $loaded $(here)
done
"""
NAMES = {"ipv4": "ip_tables_names", "ipv6": "ip6_tables_names"}
# Beside a handful that need a set, an object or an interface that is not there.
MOST_REFUSED = 12


@dataclass(frozen=True)
class Group:
    """Rules of one table with the same matches and target; *needs* is what we say of them."""

    name: str
    extensions: tuple[str, ...]
    needs: bool
    files: tuple[str, ...]


@dataclass(frozen=True)
class Seen:
    """What became of a group in the guest."""

    group: Group
    accepted: bool
    loaded: bool
    stayed: bool


@lru_cache(maxsize=2)
def groups(family: str) -> tuple[Group, ...]:
    """Every combination of extensions, and what the rewrite makes of those that ask for a state."""
    found: dict[tuple[str, ...], list[Candidate]] = {}
    for candidate in candidates(source_tree("iptables")):
        if candidate.family == family and not candidate.refused and candidate.text.startswith("-A "):
            rule = parse_rule(candidate.text)
            found.setdefault((candidate.table, *sorted(set(rule.matches)), rule.target), []).append(candidate)
    return tuple(_group(key, mine) for key, mine in sorted(found.items())) + tuple(_rewritten(family, found.values()))


def _group(key: tuple[str, ...], mine: list[Candidate]) -> Group:
    needs = {dependency(parse_rule(c.text), c.table) is not None for c in mine}
    (one,) = needs
    texts = [[c.text for c in mine], *([c.text] for c in mine[:4])]  # all at once, or one that this kernel takes
    return Group(" ".join(key), tuple(filter(None, key[1:])), one, tuple(file_of(key[0], text) for text in texts))


def _rewritten(family: str, found: Iterable[list[Candidate]]) -> Iterable[Group]:
    for candidate in (c for mine in found for c in mine):
        text = file_of(candidate.table, [candidate.text])
        done = make_stateless(parse_ruleset(text, family))
        if done.changes and not done.blockers:
            yield Group(f"rewritten {candidate.text}", (), False, (format_ruleset(done.ruleset),))


def judged(family: str) -> tuple[Seen, ...]:
    """Each group of *family*, tried in a guest of its own."""
    mine = groups(family)
    files = {
        f"/root/groups/{number:03}/{at}": text for number, g in enumerate(mine) for at, text in enumerate(g.files)
    }
    script = SCRIPT.replace("PROGRAM", PREFIX[family]).replace("NAMES", NAMES[family])
    result = run_quick(script, files=files, timeout=300)
    lines = [line.split() for line in result.stdout.splitlines()]
    assert len(lines) == len(mine), result.output[-2000:]
    return tuple(Seen(g, row[1] != "none", row[2] == "yes", row[3] == "yes") for g, row in zip(mine, lines))


IPV4, IPV6 = Later(partial(judged, "ipv4")), Later(partial(judged, "ipv6"))
STORY = {"ipv4": IPV4, "ipv6": IPV6}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rule_depends_on_conntrack_when_it_loads_it(family: str, measured: list[str]) -> None:
    seen = STORY[family].result()
    wrong = [(s.group.name, s.loaded) for s in seen if s.accepted and s.loaded != s.group.needs]
    assert not wrong
    refused = [s.group for s in seen if not s.accepted]
    measured.append(f"{family}: {len(seen)} kinds of rules in a guest, {sum(s.loaded for s in seen)} loaded conntrack, "
                    f"refused: {', '.join(g.name for g in refused)}")  # fmt: skip
    assert sum(s.loaded for s in seen) > 15 and sum(not s.loaded for s in seen) > 60
    assert len(refused) <= MOST_REFUSED
    for group in refused:
        modules = [module for name in group.extensions for module in modules_of(name)]
        assert any(map(needs_conntrack, modules)) <= group.needs, group


@pytest.mark.parametrize("family", FAMILIES)
def test_conntrack_can_go_when_the_rule_has_gone(family: str) -> None:
    assert not [s.group.name for s in STORY[family].result() if s.stayed]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_rewrite_makes_loads_without_conntrack(family: str) -> None:
    seen = [s for s in STORY[family].result() if s.group.name.startswith("rewritten")]
    assert len(seen) > 8 and all(s.accepted and not s.loaded for s in seen)


@lru_cache(maxsize=1)
def dependencies() -> dict[str, tuple[str, ...]]:
    """module -> modules that it needs, from modules.dep, which lists them all."""
    (path,) = MODULES.glob("*/modules.dep")
    rows = (line.partition(":") for line in path.read_text().splitlines())
    return {_module(name): tuple(map(_module, needed.split())) for name, _, needed in rows}


def _module(path: str) -> str:
    return path.rsplit("/", 1)[-1].partition(".ko")[0].replace("-", "_")


@lru_cache(maxsize=1)
def aliases() -> dict[str, list[str]]:
    """alias -> modules: ``ipt_SNAT`` is in xt_nat."""
    (path,) = MODULES.glob("*/modules.alias")
    found: dict[str, list[str]] = {}
    for words in (line.split() for line in path.read_text().splitlines()):
        if words[0] == "alias":
            found.setdefault(words[1], []).append(words[2])
    return found


def modules_of(extension: str) -> list[str]:
    """The modules that the kernel would load for a match or target of this name."""
    names = [f"{prefix}_{extension}" for prefix in ("xt", "ipt", "ip6t")]
    known = [name for name in names if name in dependencies()]
    return list(dict.fromkeys([*known, *(module for name in names for module in aliases().get(name, ()))]))


def needs_conntrack(module: str) -> bool:
    return "nf_conntrack" in dependencies()[module]


def test_every_extension_that_is_a_module_is_on_the_right_side(measured: list[str]) -> None:
    tables = {name: False for name in INDEPENDENT} | {name: True for name in (*MATCHES, *TARGETS)}
    modules = {name: modules_of(name) for name in tables}
    wrong = {name for name, found in modules.items() for module in found if needs_conntrack(module) != tables[name]}
    assert not wrong
    judged = sum(1 for found in modules.values() if found)
    assert judged > 90
    unjudged = sorted(name for name, found in modules.items() if not found)
    measured.append(f"{judged} of {len(tables)} extensions are modules here; not: {' '.join(unjudged)}")


def test_every_module_of_xtables_is_in_our_tables() -> None:
    """A match or target that this kernel has and we do not name would only be noted, not told."""
    names = {alias.split("_", 1)[1]: module for alias, found in aliases().items() for module in found
             if alias.startswith(("ipt_", "ip6t_")) and module in dependencies()}  # fmt: skip
    unknown = {name for name in names if name not in INDEPENDENT and name not in MATCHES and name not in TARGETS}
    assert not unknown


# What the kernel asks modprobe for (nft_expr_type_get, nft_obj_type_get) -> what makes it ask: a statement of a
# rule, or an object.  This kernel has no nat, fib, dup, fwd, synproxy and flow_offload as modules.
NATIVE: dict[str, list[dict[str, Any]]] = {
    "nft-expr-ct": [{"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "new"}},
                    {"mangle": {"key": {"ct": {"key": "mark"}}, "value": 1}}, {"ct helper": "h"}],
    "nft-expr-notrack": [{"notrack": None}],
    "nft-obj-3": [{"ct helper": {"family": "ip", "table": "t", "name": "h", "type": "ftp", "protocol": "tcp"}}],
    "nft-obj-7": [{"ct timeout": {"family": "ip", "table": "t", "name": "h", "protocol": "tcp"}}],
    "nft-obj-9": [{"ct expectation": {"family": "ip", "table": "t", "name": "h", "protocol": "tcp"}}],
    "nft-expr-connlimit": [{"ct count": {"val": 5}}],
    "nft-expr-masq": [{"masquerade": None}],
    "nft-expr-redir": [{"redirect": {"port": 80}}],
    "nft-expr-limit": [{"limit": {"rate": 5, "per": "second"}}],
    "nft-expr-log": [{"log": {"prefix": "ct state"}}],
    "nft-expr-queue": [{"queue": {"num": 1}}],
    "nft-expr-quota": [{"quota": {"val": 1, "val_unit": "bytes"}}],
    "nft-expr-tproxy": [{"tproxy": {"port": 80}}],
    "nft-expr-socket": [{"match": {"op": "==", "left": {"socket": {"key": "transparent"}}, "right": 1}}],
    "nft-expr-osf": [{"match": {"op": "==", "left": {"osf": {"key": "name"}}, "right": "Linux"}}],
    "nft-expr-numgen": [{"match": {"op": "==", "left": {"numgen": {"mode": "inc", "mod": 2}}, "right": 1}}],
    "nft-expr-hash": [{"match": {"op": "==", "left": {"symhash": {"mod": 2}}, "right": 1}}],
    "nft-expr-xfrm": [{"match": {"op": "==", "left": {"ipsec": {"dir": "in", "key": "reqid"}}, "right": 1}}],
    "nft-expr-tunnel": [{"tunnel": "t"}],
}  # fmt: skip


@pytest.mark.parametrize("alias", NATIVE)
def test_native_rules_depend_on_conntrack_when_their_module_does(alias: str) -> None:
    (module,) = aliases()[alias]
    for one in NATIVE[alias]:
        place = {"family": "ip", "table": "t", "chain": "c"}
        entry = one if alias.startswith("nft-obj") else {"rule": {**place, "expr": [one]}}
        ruleset = parse_nft(json.dumps({"nftables": [entry]}))
        assert (native_dependency(ruleset.entries[0]) is not None) == needs_conntrack(module), (one, module)


def test_every_native_module_of_this_kernel_is_named() -> None:
    """An expression that is new here must be put on one side or the other."""
    there = {alias for alias in aliases() if alias.startswith("nft-expr-")}
    # match and target are iptables-nft's; objref names an object, limits and counters among them
    assert there - set(NATIVE) == {"nft-expr-match", "nft-expr-target", "nft-expr-objref"}
