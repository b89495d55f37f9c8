"""The rewrite of a native nftables rule-set: stateful in, stateless out, and what that changes.

The same meaning as :mod:`.stateless`: every rule that asks for a connection's state is
replaced by rules that ask which part of traffic a packet belongs to (:mod:`.parts`).
Everything else stays as it is, byte for byte.  What cannot be said without conntrack is a
blocker; nothing is dropped silently.
"""

from __future__ import annotations

from . import nft_stateful as stateful
from .collecting import without_collector
from .nft_declared import check_declared
from .nft_fragments import keep_fragments
from .nft_kinds import FAMILIES
from .nft_replies import replies_by_hook
from .nft_ruleset import Base, Entry, NftRuleSet, made
from .nft_states import rewrite_states, settle_plain
from .nft_unknown import unknown_words
from .nft_untracked import CONNTRACK, exemptions
from .nft_words import object_text, statements_text
from .nft_work import NftRewritten, Work
from .stateful import Dependency
from .stateless import Change, Policy

_DEFAULT = Policy()


def make_stateless_nft(ruleset: NftRuleSet, policy: Policy = _DEFAULT, leave_iptables: bool = False) -> NftRewritten:
    """Rewrite *ruleset* so that no rule depends on conntrack.

    Returns the input unchanged, with blockers, where that cannot be done.  Tables that
    iptables-nft owns stay as they are: with *leave_iptables* whatever they hold (they are
    rewritten as iptables rules), else what depends on conntrack in them is a blocker.
    Raises RulesSyntaxError where the list is not whole.
    """
    with without_collector():
        return _made_stateless(ruleset, policy, leave_iptables)


def _made_stateless(ruleset: NftRuleSet, policy: Policy, leave_iptables: bool) -> NftRewritten:
    check_declared(ruleset)
    owned = _owned_tables(ruleset)
    work = Work(
        ruleset,
        policy,
        replies_by_hook(ruleset, policy.local_ports, policy.asked, policy.answered),
        exemptions(ruleset),
        owned,
    )
    for entry in ruleset.entries:
        _rewrite_entry(work, entry, leave_iptables)
        if work.too_much:
            work.block(entry, "so many states times so many UDP ports or exemptions make too many rules",
                       "name fewer UDP ports, or exempt with fewer rules")
            break
    for family, table in sorted(owned):
        work.notes[f"{ruleset.name}: table {family} {table} is iptables-nft's and left alone; "
                   "rewrite it from what iptables-save prints"] = None
    if work.blockers:
        return NftRewritten(ruleset, (), tuple(work.blockers), tuple(work.notes), tuple(sorted(owned)))
    work.place_new()
    keep_fragments(work)
    work.place_new()
    result = ruleset.with_entries(work.entries) if work.changes else ruleset
    return NftRewritten(result, tuple(work.changes), (), tuple(work.notes), tuple(sorted(owned)))


def _owned_tables(ruleset: NftRuleSet) -> frozenset[tuple[str, str]]:
    by_table: dict[tuple[str, str], list[Entry]] = {}
    for entry in ruleset.of_kind("chain", "rule"):
        by_table.setdefault(entry.table, []).append(entry)
    return frozenset(table for table, mine in by_table.items() if stateful.owned_by_iptables(tuple(mine), table))


def _rewrite_entry(work: Work, entry: Entry, leave_iptables: bool) -> None:
    found = stateful.dependency(entry)
    if entry.table in work.owned:
        work.entries.append(entry)
        if not leave_iptables:
            _tell_unknown(work, entry)
        if found is not None and not leave_iptables:
            work.block(entry, f"it {found.extension.reason}, and its table is iptables-nft's",
                       "rewrite what iptables-save prints, load that, and list the rules again")
        return
    if entry.kind == "rule":
        _rewrite_rule(work, entry, found)
    elif found is None:
        work.entries.append(entry)
    elif found.kind == "nat":
        _rewrite_nat_chain(work, entry)
    else:
        _rewrite_object(work, entry, found)


def _rewrite_object(work: Work, entry: Entry, found: Dependency) -> None:
    """A flowtable, a ct helper ..., or a set with ``ct count`` in it."""
    if work.policy.stateful == "remove" and entry.kind in stateful.OBJECTS:
        work.remove(entry, f"it {found.extension.reason}, and rules.stateful is 'remove'")
    else:
        work.block(entry, f"it {found.extension.reason}", found.extension.remedy or "remove it")


def _rewrite_nat_chain(work: Work, entry: Entry) -> None:
    rules = work.ruleset.rules.get(entry.place, ())
    if entry.base is not None and entry.base.policy == "drop":
        work.block(entry, "it is a chain of type nat that drops packets", "drop them in a chain of type filter")
    elif work.policy.nat == "refuse" and rules:
        work.entries.append(entry)  # its rules are the blockers
    elif work.policy.nat == "refuse" and not work.policy.drop_empty_nat:
        work.entries.append(entry)
    else:
        work.remove(entry, "even an empty chain of type nat loads nf_nat and nf_conntrack")


def _rewrite_rule(work: Work, entry: Entry, found: Dependency | None) -> None:
    base = work.ruleset.bases.get(entry.place)
    if base is not None and base.kind == "nat" and (found is None or found.kind != "nat"):
        found = Dependency("nat", stateful.NAT_CHAIN)
    _tell_unknown(work, entry)
    if found is None:
        work.entries.append(entry)
        settle_plain(work, entry)
    elif found.kind == "notrack":
        _without_notrack(work, entry)
    elif found.kind == "nat":
        _rewrite_nat(work, entry, found)
    elif work.policy.nat == "remove" and _asks_for_nat(entry):
        work.remove(entry, "without NAT no connection has this status, so it never matches")
    elif work.policy.stateful == "refuse":
        work.block(entry, f"it {found.extension.reason}, and rules.stateful is 'refuse'", "set it to 'rewrite'")
    elif work.policy.stateful == "remove":
        work.remove(entry, f"it {found.extension.reason}, and rules.stateful is 'remove'")
    elif found.kind == "other":
        work.block(entry, f"it {found.extension.reason}", found.extension.remedy)
    elif entry.family not in FAMILIES:
        work.block(entry, f"it asks for a connection's state in the family {entry.family}",
                   "match addresses and ports instead, or filter in a table of family inet")
    elif any(_before_conntrack(base) for base in work.bases(entry)):
        work.block(entry, "so early no packet has a state yet", "remove it, or move it behind priority -200")
    else:
        rewrite_states(work, entry)


def _asks_for_nat(entry: Entry) -> bool:
    """Whether the rule is for connections that NAT has changed, and for no others (``ct status dnat``)."""
    for match in (statement["match"] for statement in entry.statements if "match" in statement):
        asked = match.get("right")
        asked = asked.get("set") if isinstance(asked, dict) else asked
        bits = asked if isinstance(asked, list) else [asked]
        alone = bool(bits) and all(bit in ("dnat", "snat") for bit in bits)
        if alone and match.get("left") == {"ct": {"key": "status"}} and match.get("op") in ("in", "=="):
            return True
    return False


def _tell_unknown(work: Work, entry: Entry) -> None:
    for word in unknown_words(entry):
        work.note(entry, f"unknown expression {word!r}: whether it needs conntrack cannot be told from the rule; the "
                  "kernel's own evidence decides")


def _before_conntrack(base: Base) -> bool:
    early = base.hook in ("prerouting", "output") and base.priority <= CONNTRACK
    return early or base.hook in ("ingress", "egress")


def _without_notrack(work: Work, entry: Entry) -> None:
    """Nothing is tracked any more, so nothing needs to be exempted; what else the rule does stays."""
    rest = [statement for statement in entry.statements if "notrack" not in statement]
    reason = "nothing is tracked any more, so nothing needs to be exempted"
    if all(next(iter(statement)) in ("match", "counter") for statement in rest):
        work.remove(entry, reason)
        return
    kept = made(entry, "rule", {**entry.body, "expr": rest})
    work.entries.append(kept)
    work.changes.append(Change(entry.index, object_text(entry), (statements_text(kept),), reason))


def _rewrite_nat(work: Work, entry: Entry, found: Dependency) -> None:
    if work.policy.nat == "remove":
        work.remove(entry, f"it {found.extension.reason}, and rules.nat is 'remove'")
    else:
        work.block(entry, f"it {found.extension.reason}; that cannot be done without conntrack", found.extension.remedy)
