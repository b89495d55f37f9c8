"""Fragments, which conntrack reassembled before any rule of ``filter`` saw them.

Without it, an IPv6 fragment other than the first comes to ``input`` as it is, and has no
ports; forwarded ones of both families do too.  (IPv4's own delivery reassembles before
``input``, and what this host sends is cut up behind ``postrouting``.)  So what let fragmented
packets through lets their later fragments through: nothing comes of those where the first
one, which has the ports, is refused.  Measured: ../shared/facts/netfilter.md, section 6.
"""

from __future__ import annotations

from collections.abc import Iterator

from .nft_match import LATER_FRAGMENTS, tests_of
from .nft_ruleset import Base, Entry, Json, NftRuleSet, Place, made
from .nft_selection import FAMILIES
from .nft_stateful import dependency
from .nft_words import object_text, statements_text
from .nft_work import Work
from .stateless import Change

# NF_IP_PRI_CONNTRACK_DEFRAG: chains before it saw fragments already.
DEFRAG = -400
_BY_HOOK = {"prerouting": ("ipv4", "ipv6"), "input": ("ipv6",), "forward": ("ipv4", "ipv6")}
_LATER: dict[str, Json] = {
    family: {"op": "!=", "left": left, "right": 0} for family, left in zip(("ipv6", "ipv4"), LATER_FRAGMENTS)
}
_NAMES = {"ipv4": "IPv4", "ipv6": "IPv6"}


def keep_fragments(work: Work) -> None:
    """Put a rule for later fragments at the head of each base chain that needs one."""
    tracked = _tracked(work)
    if not tracked:
        return
    after = work.ruleset.with_entries(work.entries)
    for chain in [entry for entry in work.entries if entry.base is not None and entry.table not in work.owned]:
        for family in reversed(_needed(after, chain, tracked)):
            _insert(work, chain, family)


def _tracked(work: Work) -> frozenset[str]:
    """The families that the rule-set had tracked, and so reassembled."""
    kinds = ((entry, dependency(entry)) for entry in work.ruleset.entries)
    used = {entry.family for entry, found in kinds if found is not None and found.kind != "notrack"}
    return frozenset(family for name in used for family in FAMILIES.get(name, ()))


def _needed(after: NftRuleSet, chain: Entry, tracked: frozenset[str]) -> list[str]:
    """The families whose fragments *chain* would refuse now where it accepts the whole packet."""
    base = chain.base
    if base is None or base.kind == "nat" or base.priority <= DEFRAG:
        return []
    verdicts = set(_verdicts(after, chain.place, base))
    accepts = base.policy == "accept" or any(verdict == "accept" for verdict, _ in verdicts)
    refuses = base.policy == "drop" or any(verdict in ("drop", "reject") and whole for verdict, whole in verdicts)
    if not (refuses and accepts):
        return []
    return [f for f in _BY_HOOK.get(base.hook, ()) if f in tracked and f in FAMILIES.get(chain.family, ())]


# What a later fragment does not have, so that no rule asking for it matches one.
_IN_FIRST = frozenset(("sport", "dport", "flags", "icmp", "icmpv6"))


def _verdicts(after: NftRuleSet, start: Place, base: Base) -> Iterator[tuple[str, bool]]:
    """The verdicts of the rules that packets at *start* meet, and whether they may meet later fragments."""
    for place, bases in after.hooks.items():
        for entry in after.rules.get(place, ()) if base in bases and place[:2] == start[:2] else ():
            tests = tests_of(after, entry, entry.statements)
            whole = not any(test.field in _IN_FIRST for test in tests)
            last = entry.statements[-1] if entry.statements else {}
            if "vmap" in last:
                yield from ((next(iter(verdict)), whole) for _, verdict in after.arms(entry, last["vmap"]["data"]))
            else:
                yield next(iter(last), ""), whole


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
    )
