"""Native nftables rules: seen and said, so that no plan ignores them.

The tables that iptables-nft owns are read as iptables rules.  Everything else that
``nft -j list ruleset`` shows, which loads nothing, is looked through for expressions that
need connection tracking (libnftables-json(5)).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from ..errors import HostError
from ..kmod import is_conntrack_module
from ..state import LiveRules
from . import kernel
from .process import find, run
from .root import HOST, Root

PREFIX = "native nftables: "

_IPTABLES = frozenset((family, table) for family in ("ip", "ip6")
                      for table in ("filter", "nat", "mangle", "raw", "security"))
_STATEFUL = frozenset(("ct", "ct helper", "ct timeout", "ct expectation", "ct count", "notrack", "flow",
                       "flowtable", "synproxy", "snat", "dnat", "masquerade", "redirect"))
# What iptables-nft-save prints in place of rules that it cannot show (1.8.0 to 1.8.11).
_INCOMPATIBLE = re.compile(r"^# Table `(\w+)' (?:is incompatible|contains incompatible)", re.MULTILINE)
_SHOWN = 3


def native_notes(live: tuple[LiveRules, ...], root: Root = HOST, netns: str | None = None) -> tuple[str, ...]:
    """One line for each native table that uses conntrack or cannot be looked through.

    *live* are the rules of the same namespace: they tell which tables iptables owns.  Each
    line starts with :data:`PREFIX`.
    """
    if not kernel.available(root, "nf_tables"):
        return ()
    foreign = _incompatible(live)
    if not find("nft"):
        return tuple(f"{PREFIX}table {f} {t} has rules that iptables does not show, and nft is not there; "
                     "install the package nftables" for f, t in sorted(foreign))
    done = run(["nft", "-j", "list", "ruleset"], check=False, netns=netns)
    if done.status != 0 or not done.stdout.startswith("{"):
        return (f"{PREFIX}nft cannot list its tables as JSON: {done.stderr.strip()[:200]}",)
    return notes_of(done.stdout, foreign)


def notes_of(text: str, foreign: frozenset[tuple[str, str]] = frozenset()) -> tuple[str, ...]:
    """The lines for the JSON *text*; *foreign* are tables of iptables' names that are native all the same."""
    uses: dict[tuple[str, str], list[str]] = {}
    try:
        items = json.loads(text)["nftables"]
    except (ValueError, KeyError, RecursionError) as error:
        raise HostError(f"prints no JSON that we know: {error}", "nft -j list ruleset") from error
    for item in items:
        for kind, body in item.items():
            table = (str(body.get("family", "")), str(body.get("table", "")))
            if kind in ("metainfo", "table") or (table in _IPTABLES and table not in foreign):
                continue
            found = sorted(set(_uses(item)) | ({"type nat"} if body.get("type") == "nat" else set()))
            if found:
                place = f"chain {body['chain']}" if kind == "rule" else f"{kind} {body.get('name', '')}"
                uses.setdefault(table, []).append(f"{place}: {', '.join(found)}")
    return tuple(f"{PREFIX}table {' '.join(table)} uses conntrack ({_summary(found)})"
                 for table, found in sorted(uses.items()))


def _summary(found: list[str]) -> str:
    shown = list(dict.fromkeys(found))
    more = f"; and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return "; ".join(shown[:_SHOWN]) + more


def _uses(value: object) -> Iterator[str]:
    """The stateful expressions anywhere in *value*."""
    if isinstance(value, list):
        for one in value:
            yield from _uses(one)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key in _STATEFUL:
                yield key
            elif key == "xt" and isinstance(inner, dict) and is_conntrack_module(f"xt_{inner.get('name')}"):
                yield f"xt {inner.get('name')}"
            yield from _uses(inner)


def _incompatible(live: tuple[LiveRules, ...]) -> frozenset[tuple[str, str]]:
    return frozenset(("ip" if rules.family == "ipv4" else "ip6", table) for rules in live
                     if rules.backend == "nft" for table in _INCOMPATIBLE.findall(rules.text))
