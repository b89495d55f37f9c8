"""Fragments, which conntrack reassembled before any rule of ``filter`` saw them.

Without it, an IPv6 fragment other than the first comes to ``input`` as it is, and has no
ports; forwarded ones of both families do too.  (IPv4's own delivery reassembles before
``input``, and what this host sends is cut up behind ``postrouting``.)  So what let fragmented
packets through lets their later fragments through: nothing comes of those where the first
one, which has the ports, is refused.  And a first one whose TCP header is cut off, which no
rule can judge by its flags, is refused (RFC 3128).  Measured: ../shared/facts/netfilter.md,
section 6, and tests/netns/test_nft_packets.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from .nft_kinds import FAMILIES, Statement
from .nft_match import FIRST_FRAGMENTS, LATER_FRAGMENTS
from .nft_pieces import protocol_match
from .nft_ruleset import Base, Entry, NftRuleSet, Place, made
from .nft_stateful import dependency
from .nft_words import object_text, statements_text
from .nft_work import Work
from .stateless import Change

# NF_IP_PRI_CONNTRACK_DEFRAG: chains before it saw fragments already.
DEFRAG = -400
_BOTH = ("ipv4", "ipv6")
_BY_HOOK = {"prerouting": _BOTH, "input": ("ipv6",), "forward": _BOTH, "postrouting": _BOTH}
_NAMES = {"ipv4": "IPv4", "ipv6": "IPv6"}
# A TCP header that is there as far as its flags; a rule that asks for what is not there does not match.
_WHOLE_HEADER: Statement = {
    "match": {"op": ">=", "left": {"payload": {"protocol": "tcp", "field": "doff"}}, "right": 5}
}


def keep_fragments(work: Work) -> None:
    """Put rules for fragments at the head of each base chain that needs them."""
    tracked = _tracked(work)
    if not tracked:
        return
    after = work.ruleset.with_entries(work.entries)
    judges: dict[tuple[str, str], str] = {}
    for chain in [entry for entry in work.entries if entry.base is not None and entry.table not in work.owned]:
        for family in reversed(_needed(after, chain, tracked)):
            if chain.table not in judges:
                judges[chain.table] = work.new_chain(chain, [(_WHOLE_HEADER, {"return": None}), ({"drop": None},)])
            _insert(work, chain, family, judges[chain.table])


def _tracked(work: Work) -> frozenset[str]:
    """The families that the rule-set had tracked, and so reassembled."""
    kinds = ((entry, dependency(entry)) for entry in work.ruleset.entries)
    used = {entry.family for entry, found in kinds if found is not None and found.kind != "notrack"}
    return frozenset(family for name in used for family in FAMILIES.get(name, ()))


def _needed(after: NftRuleSet, chain: Entry, tracked: frozenset[str]) -> list[str]:
    """The families whose fragments *chain* would judge otherwise now: not where it takes or refuses all.

    Any refusing rule counts, also one for some port: on 6.18 later fragments were seen to match a
    rule for TCP flags (nft_payload_fast_eval() in nf_tables_core.c does not look at
    ``pkt->fragoff``, read in versions up to 2024), so such a rule refuses them by chance.
    """
    base = chain.base
    if base is None or base.kind == "nat" or base.priority <= DEFRAG:
        return []
    verdicts = {verdict for verdict in _verdicts(after, chain.place, base) if verdict}
    accepts = base.policy == "accept" or "accept" in verdicts
    refuses = base.policy == "drop" or bool(verdicts & {"drop", "reject"})
    families = _BY_HOOK.get(base.hook, ()) if accepts and refuses else ()
    return [f for f in families if f in tracked and f in FAMILIES.get(chain.family, ())]


def _verdicts(after: NftRuleSet, start: Place, base: Base) -> Iterator[str]:
    """The verdicts of the rules that packets at *start* meet."""
    for place, bases in after.hooks.items():
        for entry in after.rules.get(place, ()) if base in bases and place[:2] == start[:2] else ():
            last = entry.statements[-1] if entry.statements else {}
            if "vmap" in last:
                yield from (next(iter(verdict)) for _, verdict in after.arms(entry, last["vmap"]["data"]))
            else:
                yield next(iter(last), "")


def _insert(work: Work, chain: Entry, family: str, judge: str) -> None:
    place = {"family": chain.family, "table": chain.table[1], "chain": chain.place[2], "comment": "fragments"}
    later: tuple[Statement, ...] = ({"match": LATER_FRAGMENTS[family]}, {"accept": None})
    first = ({"match": FIRST_FRAGMENTS[family]}, protocol_match("==", ["tcp"]), {"jump": {"target": judge}})
    new = [made(chain, "rule", {**place, "expr": list(rule)}) for rule in (later, first)]
    mine = [at for at, entry in enumerate(work.entries) if entry.kind == "rule" and entry.place == chain.place]
    beside = [at for at, entry in enumerate(work.entries) if entry.kind in ("chain", "rule")]
    last = max(at for at in beside if work.entries[at].table == chain.table)
    at = mine[0] if mine else last + 1
    work.entries[at:at] = new
    name = _NAMES[family]
    reason = f"conntrack reassembled {name} fragments before this chain saw them; a TCP header cut in two is refused"
    widens = f"{name} fragments other than the first are accepted; without the first nothing comes of them"
    becomes = tuple(statements_text(one) for one in new)
    work.changes.append(Change(chain.index, object_text(chain), becomes, reason, widens))
    work.note(chain, widens)  # the computed difference speaks of whole packets
