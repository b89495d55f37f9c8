"""Fragments, which conntrack reassembled before any rule of ``filter`` saw them.

Without it, an IPv6 fragment other than the first comes to ``input`` as it is, and has no
ports; forwarded ones of both families do too.  (IPv4's own delivery reassembles before
``input``, and what this host sends is cut up behind ``postrouting``.)  So what let fragmented
packets through lets their later fragments through: nothing comes of those where the first
one, which has the ports, is refused.  Measured: ../shared/facts/netfilter.md, section 6.
"""

from __future__ import annotations

from collections.abc import Iterator

from .nft_ruleset import Entry, Json, Place, made
from .nft_selection import FAMILIES
from .nft_stateful import dependency
from .nft_words import object_text, statements_text
from .nft_work import Work
from .stateless import Change

# NF_IP_PRI_CONNTRACK_DEFRAG: chains before it saw fragments already.
DEFRAG = -400
_BY_HOOK = {"prerouting": ("ipv4", "ipv6"), "input": ("ipv6",), "forward": ("ipv4", "ipv6")}
_LATER: dict[str, Json] = {
    "ipv4": {"op": "!=", "left": {"&": [{"payload": {"protocol": "ip", "field": "frag-off"}}, 8191]}, "right": 0},
    "ipv6": {"op": "!=", "left": {"exthdr": {"name": "frag", "field": "frag-off"}}, "right": 0},
}
_NAMES = {"ipv4": "IPv4", "ipv6": "IPv6"}


def keep_fragments(work: Work) -> None:
    """Put a rule for later fragments at the head of each base chain that needs one."""
    tracked = _tracked(work)
    if not tracked:
        return
    for chain in [entry for entry in work.entries if entry.base is not None and entry.table not in work.owned]:
        for family in reversed(_needed(work, chain, tracked)):
            _insert(work, chain, family)


def _tracked(work: Work) -> frozenset[str]:
    """The families that the rule-set had tracked, and so reassembled."""
    kinds = ((entry, dependency(entry)) for entry in work.ruleset.entries)
    used = {entry.family for entry, found in kinds if found is not None and found.kind != "notrack"}
    return frozenset(family for name in used for family in FAMILIES.get(name, ()))


def _needed(work: Work, chain: Entry, tracked: frozenset[str]) -> list[str]:
    """The families whose fragments *chain* would refuse now where it accepts the whole packet."""
    base = chain.base
    if base is None or base.kind == "nat" or base.priority <= DEFRAG:
        return []
    verdicts = set(_verdicts(work, chain.place))
    refuses = base.policy == "drop" or bool(verdicts & {"drop", "reject"})
    accepts = base.policy == "accept" or "accept" in verdicts
    if not (refuses and accepts):
        return []
    return [f for f in _BY_HOOK.get(base.hook, ()) if f in tracked and f in FAMILIES.get(chain.family, ())]


def _verdicts(work: Work, start: Place) -> Iterator[str]:
    for place, bases in work.ruleset.hooks.items():
        if work.ruleset.bases[start] in bases and place[:2] == start[:2]:
            for entry in work.ruleset.rules.get(place, ()):
                yield from (next(iter(statement)) for statement in entry.statements)
                for statement in entry.statements:
                    if "vmap" in statement:
                        yield from (next(iter(v)) for _, v in work.ruleset.arms(entry, statement["vmap"]["data"]))


def _insert(work: Work, chain: Entry, family: str) -> None:
    place = {"family": chain.family, "table": chain.table[1], "chain": chain.place[2]}
    comment = "later fragments"
    rule = made(chain, "rule", {**place, "comment": comment, "expr": [{"match": _LATER[family]}, {"accept": None}]})
    mine = [at for at, entry in enumerate(work.entries) if entry.kind == "rule" and entry.place == chain.place]
    beside = [at for at, entry in enumerate(work.entries) if entry.kind in ("chain", "rule")]
    last = max(at for at in beside if work.entries[at].table == chain.table)
    at = mine[0] if mine else last + 1
    work.entries.insert(at, rule)
    work.changes.append(
        Change(chain.index, object_text(chain), (statements_text(rule),),
               "conntrack reassembled fragments before this chain saw them",
               f"{_NAMES[family]} fragments other than the first are accepted; without the first nothing comes of them")
    )  # fmt: skip
