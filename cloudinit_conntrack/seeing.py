"""What ``status`` sees, as facts, as lines and as JSON: counters, hooks by namespace, the tree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from .drawing import MOST, SHOWN, printable, tree_lines
from .report import Sight
from .said import Node
from .tracking import Counters, Space, Tracking
from .tree.uses import Use

TYPE_CHECKING = False
if TYPE_CHECKING:  # a boot does without typing
    from typing import Any

NEARLY_FULL, FULL = 80, 95  # percent of the table
# The columns that a person looks for first; they mean lost packets, but for the first two.
_TOLD = ("insert", "found", "invalid", "insert_failed", "drop", "early_drop")
_LOSSES = ("insert_failed", "drop", "early_drop")
BY_RULES = "its rules"


def counter_facts(counters: Counters) -> Iterator[tuple[str, str]]:
    """The lines about the table, and about what became of packets since the namespace began."""
    if counters.entries is not None:
        full = f" of {counters.limit} ({counters.percent_full} % full)" if counters.limit else ""
        buckets = f", {counters.buckets} buckets" if counters.buckets else ""
        yield "entries", f"{counters.entries}{full} in this network namespace{buckets}"
    told = [f"{name} {value}" for name in _TOLD if (value := counters.column(name)) is not None]
    if told:
        yield "counters", ", ".join(told)


def alarms_of(counters: Counters | None) -> tuple[tuple[str, str], ...]:
    """(fact, colour) for a table that is nearly full, and for packets that were lost."""
    if counters is None:
        return ()
    percent = counters.percent_full or 0
    full = [("entries", "red" if percent >= FULL else "yellow")] if percent >= NEARLY_FULL else []
    lost = [("counters", "yellow")] if any(counters.column(name) for name in _LOSSES) else []
    return (*full, *lost)


def spaces_of(tracking: Tracking, uses: Sequence[Use]) -> tuple[Space, ...]:
    """The namespaces; where the kernel does not list its hooks, a rule still proves some.

    Loading a rule that asks conntrack registers its hooks (nf_ct_netns_get), NOTRACK alone does
    not.  That no rule is seen proves nothing.
    """
    by_rules = Counter((use.space, family) for use in uses for family in use.hooks)
    return tuple(space if space.evidence else _proved(space, by_rules) for space in tracking.spaces)


def _proved(space: Space, by_rules: Mapping[tuple[int, str], int]) -> Space:
    inode = 0 if space.own else space.inode
    hooks = tuple((family, True if by_rules[inode, family] else told) for family, told in space.hooks)
    return replace(space, hooks=hooks, evidence=BY_RULES) if hooks != space.hooks else space


def sections(sight: Sight, unicode: bool, colour: bool, verbose: bool) -> Iterator[tuple[str, list[str]]]:
    """(title, lines) for the text of a report."""
    yield "why it is in use", [f"  {line}" for line in tree_lines(sight.tree, unicode, colour, verbose)]
    kept = [space for space in sight.spaces if verbose or space.own or _is_busy(space)]
    kept = kept if verbose or len(kept) <= MOST else kept[:SHOWN]
    lines = [f"  {printable(space.owner)}: {_hooked(space)}" for space in kept]
    if len(kept) < len(sight.spaces):
        lines.append(f"  {len(sight.spaces) - len(kept)} more network namespaces (-v shows them)")
    yield "hooked in, by network namespace", lines


def _is_busy(space: Space) -> bool:
    return bool(space.entries) or any(hooked for _, hooked in space.hooks)


def _hooked(space: Space) -> str:
    """``ipv4 yes, ipv6 no, bridge ? (nft list hooks); 12 entries``."""
    words = {True: "yes", False: "no", None: "?"}
    told = ", ".join(f"{family} {words[hooked]}" for family, hooked in space.hooks)
    if all(hooked is None for _, hooked in space.hooks):
        told = "not told by this kernel"
    elif space.evidence:
        told += f" (by {space.evidence})"
    return told if space.entries is None else f"{told}; {space.entries} {'entry' if space.entries == 1 else 'entries'}"


def sight_json(sight: Sight) -> dict[str, Any]:
    """The keys of *sight* in JSON; ``counters`` is left out where conntrack is absent."""
    found: dict[str, Any] = {"tree": [node_json(node) for node in sight.tree]}
    if sight.counters is not None:
        found["counters"] = counters_json(sight.counters)
    found["namespaces"] = [_space_json(space) for space in sight.spaces]
    return found


def node_json(node: Node) -> dict[str, Any]:
    """*node* with all that is below it, nothing folded."""
    return {"id": node.id, "kind": node.kind, "what": node.what, "where": node.where, "remedy": node.remedy,
            "children": [node_json(child) for child in node.children]}


def counters_json(counters: Counters) -> dict[str, int]:
    """Integers alone; what the kernel does not tell is left out."""
    named = {"entries": counters.entries, "limit": counters.limit, "buckets": counters.buckets,
             "percent_full": counters.percent_full}
    return {**{name: value for name, value in named.items() if value is not None}, **dict(counters.columns)}


def _space_json(space: Space) -> dict[str, Any]:
    return {"inode": space.inode, "own": space.own, "owner": space.owner, "path": space.path,
            "entries": space.entries, "hooks": dict(space.hooks), "evidence": space.evidence or "not told"}
