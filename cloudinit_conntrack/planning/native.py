"""Native nftables rules: what becomes of the live ones, and what is said of any."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from .. import guard
from ..actions import LoadNative, NativeImage
from ..errors import ConntrackError
from ..netfilter import notrack
from ..netfilter.bypass import Flow
from ..netfilter.iptables import parse_ruleset
from ..netfilter.nft_bypass import add_bypass_nft, strip_own_nft, translates
from ..netfilter.nft_opening import without_refused
from ..netfilter.nft_ruleset import NftRuleSet, parse_nft
from ..netfilter.nft_tables import NOTHING, TableName, changed_tables, listed, only, place_of
from ..netfilter.nft_text import has_rules, tables_text, words_of
from ..netfilter.nft_twins import NftBypass
from ..netfilter.nft_work import NftRewritten
from ..state import FAMILIES, State
from .draft import Draft, Item, decoded
from .flows import bypassing, native_bypass_of, rewrite_policy
from .judging import Place, say_blockers, say_closed, say_closed_frontends, say_difference, say_notes

PLACE = "live native nftables"


def plan_native(draft: Draft) -> None:
    """The live native rules."""
    state = draft.state
    if state.kernel is None or state.native is None:
        return
    before = parse_nft(state.native.listing, PLACE)
    outcome = change(draft, before, PLACE)
    place = Place(PLACE, "native", partial(place_of, before))
    report(draft, outcome, before, place)
    if outcome.ruleset is before or outcome.blockers:
        return
    judge(draft, before, outcome, place)
    tables = changed_tables(before, outcome.ruleset)
    _refuse_foreign(draft, tables)
    there = tables_text(state.native.text)
    text = "".join(there.get(table, "") for table in tables)
    found = listed(only(before, tables))
    draft.rules.append(LoadNative(NativeImage(found, found, text), NativeImage(listed(only(outcome.ruleset, tables))),
                                  summary(outcome, draft.desired.mode)))


# Tables that a service writes, and writes anew whenever it likes.
_SERVICES = {
    "firewalld": "firewalld", "libvirt_network": "libvirt", "docker-bridges": "docker", "netavark": "podman",
    "kube-proxy": "kube-proxy", "lxd": "lxd", "incus": "incus",
}


def _refuse_foreign(draft: Draft, tables: tuple[TableName, ...]) -> None:
    for family, name in tables:
        if name in _SERVICES:
            owner = _SERVICES[name]
            draft.blockers.append(Item(f"service:{family}:{name}", f"{PLACE}: table {family} {name}",
                                       f"it is {owner}'s, which writes it anew whenever it changes something",
                                       f"stop and disable {owner}, or leave connection tracking to it"))


# --- who stops the tracking ------------------------------------------------------------------


def uses_own_table(state: State) -> bool:
    """Whether ``notrack`` stops the tracking by a native table of its own, not by iptables' raw table.

    Once and consistently: where there are iptables rules, live or saved, they do it, and
    native rules only get twins; else where there are native rules, or where nothing but nft
    is there.
    """
    if any(_says_something(live.text) for live in state.live):
        return False
    if any(_says_something(decoded(saved.image.content)) for saved in state.saved if saved.kind == "rules"):
        return False
    if state.kernel is not None and state.native is None:
        return False
    if not state.default_backend:
        return True
    native = state.native is not None and any(True for _ in _parsed(state.native.listing).of_kind("rule"))
    return native or any(has_rules(words_of(file.text)) for file in state.native_saved)


def _says_something(text: str) -> bool:
    """Whether an iptables rule-set has a rule, or a policy that refuses."""
    lines = (line.split("]", 1)[-1].lstrip() if line.startswith("[") else line for line in text.splitlines())
    return any(line.startswith("-A ") or (line.startswith(":") and " DROP" in line) for line in lines)


def _parsed(listing: str) -> NftRuleSet:
    return parse_nft(listing or NOTHING, PLACE)


# --- the rewrite -----------------------------------------------------------------------------


def change(draft: Draft, ruleset: NftRuleSet, where: str) -> NftRewritten:
    """What becomes of *ruleset*."""
    from ..netfilter.nft_stateless import make_stateless_nft  # here: a boot with nothing to do needs none of it

    desired, state = draft.desired, draft.state
    if desired.mode == "notrack":
        bypass = _without_closed(draft, native_bypass_of(desired, state.kernel), strip_own_nft(ruleset), where)
        return add_bypass_nft(ruleset, bypass, uses_own_table(state), _nat_by_iptables(state))
    own = strip_own_nft(ruleset)
    return make_stateless_nft(own, rewrite_policy(desired, state.kernel))


def _without_closed(draft: Draft, bypass: NftBypass, ruleset: NftRuleSet, where: str) -> NftBypass:
    """*bypass* without those of haproxy's flows that *ruleset* refuses: only who names a port opens it."""
    derived = {Flow(f.protocol, f.ports, f.address or ""): f for f in draft.derived}
    left, closed = without_refused(bypass, frozenset(derived), ruleset)
    draft.closed |= {derived[flow] for flow in closed}
    if closed:
        told = ", ".join(sorted(f"{f.protocol} {f.ports[0]}" for f in closed)[:12])
        what = f"the rules refuse haproxy's {told}: left as it is"
        draft.findings.append(Item(f"haproxy-closed:{where}", where, what,
                                   "name it in conntrack.flows if it shall be opened"))
    return left


def _nat_by_iptables(state: State) -> bool:
    """Whether an iptables rule-set, live or saved, translates addresses."""
    found = [(live.text, live.family) for live in state.live]
    found += [(decoded(s.image.content), s.family) for s in state.saved if s.kind == "rules"]
    return any("*nat" in text and _has_nat(text, family) for text, family in found)


def _has_nat(text: str, family: str) -> bool:
    try:
        return notrack.has_nat(parse_ruleset(text, family))
    except ConntrackError:
        return False  # told where the rule-set itself is planned


def native_nat(state: State) -> bool:
    """Whether the live native rules translate addresses."""
    return state.native is not None and translates(_parsed(state.native.listing))


def summary(outcome: NftRewritten, mode: str) -> str:
    if mode == "notrack":
        count = sum(1 for change in outcome.changes if change.becomes)
        return f"{count} {'rule is' if count == 1 else 'rules are'} added so that the flows bypass conntrack"
    count = sum(1 for change in outcome.changes if change.rule)
    if not count:
        return "our own rules of 'mode: notrack' are taken out: they hold conntrack in use"
    fates = sorted({"rewritten" if change.becomes else "removed" for change in outcome.changes}, reverse=True)
    what = "object that depends on conntrack is" if count == 1 else "objects that depend on conntrack are"
    return f"{count} {what} {' or '.join(fates)}"


# --- what is said ------------------------------------------------------------------------------


def report(draft: Draft, outcome: NftRewritten, before: NftRuleSet, place: Place) -> None:
    """What stands in the way, and what is to be known."""
    say_blockers(draft, outcome.blockers, place)
    say_notes(draft, (_placed(place, note.removeprefix(f"{before.name}: ")) for note in outcome.notes), place.key)


def _placed(place: Place, note: str) -> tuple[str, str]:
    """(where, text) of a note, which may begin with ``object 7:``."""
    head, colon, text = note.partition(": ")
    number = head.removeprefix("object ")
    if colon and head.startswith("object ") and number.isdigit():
        return place.at(int(number)), text
    return place.where, note


def judge(draft: Draft, before: NftRuleSet, outcome: NftRewritten, place: Place) -> None:
    """Say which packets are let through otherwise than before, and refuse to close a port that must stay open."""
    from ..netfilter.stated import stated_nft  # here: a boot with nothing to do needs none of it

    difference, why_not = stated_nft(before, outcome.ruleset)
    if difference is not None:
        difference = replace(difference, widened=tuple(told for told in difference.widened if _possible(str(told))),
                             narrowed=tuple(told for told in difference.narrowed if _possible(str(told))))
    say_difference(draft, (difference, why_not), outcome.changes, place)
    _guard(draft, before, outcome.ruleset, place.where)


def _possible(told: str) -> bool:
    """Whether there are such packets: what is forwarded is not for an address of this host."""
    return not (told.startswith("FORWARD") and "'fib daddr type local' holds" in told)


def _guard(draft: Draft, before: NftRuleSet, after: NftRuleSet, where: str) -> None:
    from ..netfilter.stated import MOST_RULES  # here: a boot with nothing to do needs none of it

    ports = guard.kept_ports(draft.desired, draft.state)
    if sum(1 for _ in before.of_kind("rule")) > MOST_RULES:
        draft.findings.append(Item(f"unguarded:{where}", where, "its rules are too many to prove packet by packet that "
                                   f"TCP {', '.join(map(str, ports))} stays reachable", "use guard.probes"))
        return
    try:
        untracked = {family: bypassing(draft.desired, ports, family) for family in FAMILIES}
        found = guard.closed_native_ports(before, after, ports, untracked)
    except ValueError as error:
        draft.findings.append(Item(f"unguarded:{where}", where, f"not proved packet by packet: {error}",
                                   "use guard.probes"))
        return
    say_closed(draft, found, where)
    say_closed_frontends(draft, partial(guard.unreachable_native, before), where)
