"""Native nftables rules: read, so that they can be planned; what cannot be read is said.

The tables that iptables-nft owns are read as iptables rules, and where there are no others nft is
asked for names alone: thousands of such rules take it half a second to print.  Everything else is
what ``nft -j list ruleset`` shows, which loads nothing.  In other namespaces it is only looked
through for expressions that need connection tracking (libnftables-json(5)).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from ..errors import HostError, RulesSyntaxError
from ..kmod import is_conntrack_module
from ..netfilter.nft_text import NOTHING, tables_text
from ..state import LiveRules, NativeRules
from . import kernel
from .process import Completed, find, run
from .root import HOST, Root

TYPE_CHECKING = False
if TYPE_CHECKING:  # a boot does without typing
    from typing import Any

PREFIX = "native nftables: "

_IPTABLES = frozenset((family, table) for family in ("ip", "ip6")
                      for table in ("filter", "nat", "mangle", "raw", "security"))
_STATEFUL = frozenset(("ct", "ct helper", "ct timeout", "ct expectation", "ct count", "notrack", "flow",
                       "flowtable", "synproxy", "snat", "dnat", "masquerade", "redirect"))
# What iptables-nft-save prints in place of rules that it cannot show (1.8.0 to 1.8.11).
_INCOMPATIBLE = re.compile(r"^# Table `(\w+)' (?:is incompatible|contains incompatible)", re.MULTILINE)
_SHOWN = 3


# What iptables-nft-save shows without an extension.  For anything else it asks the kernel for
# the extension's revision, which loads nft_compat and the extension (measured, 1.8.9 on 6.1).
_PLAIN = frozenset(("counter", "accept", "drop", "return", "jump", "goto"))
_PLAIN_META = frozenset(("iifname", "oifname", "l4proto"))
_PLAIN_FIELDS = frozenset(("saddr", "daddr", "protocol", "nexthdr"))


def needs_extensions(item: object) -> bool:
    """Whether iptables-nft-save would need an extension to show *item*, an expression of a rule."""
    if not isinstance(item, dict):
        return True
    for key, body in item.items():
        left = body.get("left", {}) if key == "match" and isinstance(body, dict) else {}
        meta, payload = left.get("meta", {}), left.get("payload", {})
        plain = (key in _PLAIN or meta.get("key") in _PLAIN_META
                 or (payload.get("protocol") in ("ip", "ip6") and payload.get("field") in _PLAIN_FIELDS))
        if not plain:
            return True
    return False


def beyond_iptables(family: str, any_rule: bool, netns: str | None = None) -> tuple[str, ...]:
    """Tables of iptables' names that belong to native nftables: with a rule that needs an extension.

    For where nft_compat is not loaded: iptables-nft itself would have loaded it for such a
    rule.  With *any_rule* every such table that has a chain counts.
    """
    done = run(["nft", "-j", "list", "ruleset", family], check=False, netns=netns)
    if not _is_json(done):
        return ()
    found: dict[str, None] = {}
    for item in _items(done.stdout):
        for kind, body in item.items():
            table = str(body.get("table", ""))
            if (family, table) not in _IPTABLES or kind not in ("chain", "rule"):
                continue
            if any_rule or any(needs_extensions(expression) for expression in body.get("expr", ())):
                found[table] = None
    return tuple(sorted(found))


# What iptables-nft-save (1.8.2 to 1.8.11) and nft (1.0.6) say on a kernel that has no nf_tables and
# cannot load it: no netlink family at all, or the family without this subsystem.
_ABSENT = re.compile(r"(initialize nft|initialize Netlink socket|set generation id|cache initialization failed).*"
                     r"(Protocol not supported|Invalid argument|Operation not supported)")


def no_nf_tables(done: Completed) -> bool:
    """Whether *done* failed because this kernel has no nf_tables: it then holds no rule of theirs."""
    return done.status != 0 and _ABSENT.search(done.stderr) is not None


def native_rules(live: tuple[LiveRules, ...], root: Root = HOST) -> tuple[NativeRules | None, tuple[str, ...]]:
    """The native rules of this namespace, and notes on what cannot be read (see :func:`native_notes`).

    Nothing where nft is not there, or no nf_tables; an empty listing where nf_tables could
    be loaded and is not.
    """
    if not find("nft"):
        return None, native_notes(live, root)
    if not kernel.available(root, "nf_tables"):
        return NativeRules(NOTHING), ()
    done = run(["nft", "-j", "list", "tables"], check=False)
    foreign = _incompatible(live)
    if _is_json(done):
        if all(table in _IPTABLES and table not in foreign for table in _tables(done.stdout)):
            return NativeRules(NOTHING), ()
        done = run(["nft", "-j", "list", "ruleset"], check=False)
    if not _is_json(done):
        return None, () if no_nf_tables(done) else (_unreadable(done),)
    from ..netfilter.nft_ruleset import parse_nft  # here: many hosts have no native table
    from ..netfilter.nft_tables import listed, tables_of, without
    from .nft import printed

    try:
        ruleset = parse_nft(done.stdout, "nft -j list ruleset")
    except RulesSyntaxError:  # of a version that we do not know: no harm where conntrack is not used
        return None, notes_of(done.stdout, foreign)
    native = without(ruleset, {table for table in tables_of(ruleset) if table in _IPTABLES and table not in foreign})
    text = tables_text(printed())
    return NativeRules(listed(native), "".join(text.get(table, "") for table in tables_of(native))), ()


def foreign_listing(live: tuple[LiveRules, ...], netns: str) -> str:
    """The JSON of the native tables of another namespace, whose iptables rules are *live*; empty where unreadable."""
    from ..netfilter.nft_ruleset import parse_nft
    from ..netfilter.nft_tables import listed, tables_of, without

    done = run(["nft", "-j", "list", "ruleset"], check=False, netns=netns)
    if not _is_json(done):
        return ""
    foreign = _incompatible(live)
    try:
        ruleset = parse_nft(done.stdout, "nft -j list ruleset")
    except RulesSyntaxError:
        return ""
    return listed(without(ruleset, {t for t in tables_of(ruleset) if t in _IPTABLES and t not in foreign}))


def _is_json(done: Completed) -> bool:
    return done.status == 0 and done.stdout.startswith("{")


def _unreadable(done: Completed) -> str:
    return f"{PREFIX}nft cannot list its tables as JSON: {done.stderr.strip()[:200]}"


def native_notes(live: tuple[LiveRules, ...], root: Root = HOST, netns: str | None = None) -> tuple[str, ...]:
    """One line for each native table that uses conntrack, or that iptables would take for its own.

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
    if no_nf_tables(done):
        return ()
    if not _is_json(done):
        return (_unreadable(done),)
    return notes_of(done.stdout, foreign)


def notes_of(text: str, foreign: frozenset[tuple[str, str]] = frozenset()) -> tuple[str, ...]:
    """The lines for the JSON *text*; *foreign* are tables of iptables' names that are native all the same."""
    uses: dict[tuple[str, str], list[str]] = {table: [] for table in foreign}
    for item in _items(text):
        for kind, body in item.items():
            table = (str(body.get("family", "")), str(body.get("table", "")))
            if kind in ("metainfo", "table") or (table in _IPTABLES and table not in foreign):
                continue
            found = sorted(set(_uses(item)) | ({"type nat"} if body.get("type") == "nat" else set()))
            if found:
                place = f"chain {body['chain']}" if kind == "rule" else f"{kind} {body.get('name', '')}"
                uses.setdefault(table, []).append(f"{place}: {', '.join(found)}")
    return tuple(f"{PREFIX}table {' '.join(table)} {_summary(found)}" for table, found in sorted(uses.items()))


def _tables(text: str) -> list[tuple[str, str]]:
    """(family, name) of the table that each object of nft's JSON is, or belongs to."""
    found = (pair for item in _items(text) for pair in item.items() if pair[0] != "metainfo")
    return [(str(body.get("family", "")), str(body.get("name" if kind == "table" else "table", "")))
            for kind, body in found]


def _items(text: str) -> list[dict[str, dict[str, Any]]]:
    """The objects of nft's JSON, each ``{kind: body}``."""
    try:
        found = json.loads(text)["nftables"]
        return [item for item in found if all(isinstance(body, dict) for body in item.values())]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise HostError(f"prints no JSON that we know: {error}", "nft -j list ruleset") from error


def _summary(found: list[str]) -> str:
    if not found:
        return "has rules that iptables does not show"
    shown = list(dict.fromkeys(found))
    more = f"; and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return f"uses conntrack ({'; '.join(shown[:_SHOWN])}{more})"


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
