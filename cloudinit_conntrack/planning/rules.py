"""iptables rules, live and saved: what becomes of them, and what that changes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from .. import guard
from ..actions import LoadRules, WriteFile
from ..config import Desired
from ..errors import ConntrackError
from ..haproxy.merging import flow_text
from ..netfilter import notrack
from ..netfilter.iptables import parse_ruleset
from ..netfilter.ruleset import RuleSet, format_ruleset
from ..netfilter.stateless import Rewritten, make_stateless
from ..netfilter.tables import filled, split_tables, tables_alone
from ..state import LiveRules, SavedFile, State
from .draft import Draft, Item, decoded, new_image, place_of
from .flows import bypass_of, bypassing, rewrite_policy, without_closed
from .judging import Place, say_blockers, say_closed, say_closed_frontends, say_difference, say_notes
from .native import native_nat, uses_own_table


def live_to_plan(desired: Desired, state: State) -> tuple[LiveRules, ...]:
    """The live rule-sets to look at; for notrack also an empty one of the default back end."""
    found = tuple(live for live in state.live if live.text.strip())
    if desired.mode == "notrack" and uses_own_table(state):
        return ()  # empty tables at most
    if desired.mode != "notrack" or state.kernel is None:
        return found
    have = {live.family for live in found}
    extra = tuple(LiveRules(state.default_backend or "legacy", f, "") for f in ("ipv4", "ipv6") if f not in have)
    return found + extra


def plan_live(draft: Draft, live: LiveRules) -> None:
    where = f"live iptables-{live.backend} {live.family}"
    before = parse_ruleset(live.text, live.family, where)
    outcome = _change(draft, before, live.backend, where)
    place = Place(where, f"{live.backend}:{live.family}", partial(place_of, before))
    _report(draft, outcome, place)
    if outcome.ruleset is before or outcome.blockers:
        return
    _judge(draft, before, outcome, place)
    old, new, dropped, created = split_tables(before, outcome.ruleset)
    reason = _summary(outcome, draft.desired.mode)
    draft.rules.append(LoadRules(live.backend, live.family, old, new, reason, dropped, created))


def plan_saved(draft: Draft, saved: SavedFile) -> None:
    if draft.desired.mode == "notrack" and uses_own_table(draft.state):
        return
    before = parse_ruleset(decoded(saved.image.content), saved.family, saved.path)
    outcome = _change(draft, before, "", saved.path)
    place = Place(saved.path, saved.path, partial(place_of, before))
    _report(draft, outcome, place)
    if outcome.ruleset is before or outcome.blockers:
        return
    _judge(draft, before, outcome, place)
    content = format_ruleset(outcome.ruleset).encode("utf-8", "surrogateescape")
    reason = _summary(outcome, draft.desired.mode)
    draft.files.append(WriteFile(saved.path, saved.image, new_image(saved.image, content), reason))
    _load_mended(draft, saved, before, outcome.ruleset)


def _load_mended(draft: Draft, saved: SavedFile, before: RuleSet, mended: RuleSet) -> None:
    """Load what a boot could not: under the block a table with stateful rules is refused whole.

    Somebody changed the file since the last apply, its service failed, and the host is without that table
    and those behind it in the file; what stood before it was loaded.
    """
    state = draft.state
    if draft.desired.mode != "unload" or state.kernel is None or state.boot is None or state.block is None:
        return
    live = [parse_ruleset(rules.text, rules.family, "live rules") for rules in state.live
            if rules.family == saved.family]
    there = {table for rules in live for table in filled(rules)}
    lost = [table for table in filled(before) if table not in there]
    planned = any(isinstance(a, LoadRules) and a.family == saved.family for a in draft.rules)
    if saved.path not in state.boot.loaded or planned or not lost:
        return
    # What a failed restore leaves behind: tables without a rule (legacy), or none (nft).
    text = "".join(rules.text for rules in state.live
                   if (rules.family, rules.backend) == (saved.family, state.default_backend))
    missing = [table for table in filled(mended) if table not in there]
    old, new, _, created = split_tables(tables_alone(parse_ruleset(text, saved.family, "live rules"), missing),
                                        tables_alone(mended, missing))
    reason = f"under the block {saved.path} could not load, and the host is without its rules"
    draft.rules.append(LoadRules(state.default_backend, saved.family, old, new, reason, (), created))


def _change(draft: Draft, ruleset: RuleSet, live_backend: str, where: str) -> Rewritten:
    desired = draft.desired
    if desired.mode == "notrack":
        bypass = bypass_of(_without_closed(draft, ruleset, where), draft.state.kernel, ruleset.family)
        return notrack.add_bypass(ruleset, bypass, _nat_somewhere(draft, ruleset.family))
    own = notrack.strip_own(ruleset)
    # A live legacy table goes with its module only; yet with "unload" revert must bring it back.
    drop_nat = not live_backend or desired.mode == "unload"
    return make_stateless(own, replace(rewrite_policy(desired, draft.state.kernel), drop_empty_nat=drop_nat))


def _without_closed(draft: Draft, ruleset: RuleSet, where: str) -> Desired:
    """The desired state without those of haproxy's flows that *ruleset* refuses: only who names a port opens it."""
    if not draft.derived:
        return draft.desired
    left, closed = without_closed(draft.desired, draft.derived, notrack.strip_own(ruleset))
    draft.closed |= closed
    if closed:
        told = ", ".join(flow_text(flow) for flow in sorted(closed, key=lambda f: (f.protocol, f.ports))[:12])
        what = f"the rules refuse haproxy's {told}: left as it is"
        draft.findings.append(Item(f"haproxy-closed:{where}", where, what,
                                   "name it in conntrack.flows if it shall be opened"))
    return left


def _nat_somewhere(draft: Draft, family: str) -> bool:
    """Whether any rule-set of *family*, live or saved, translates addresses; a native one, of whatever family."""
    if native_nat(draft.state):
        return True
    texts = [live.text for live in draft.state.live if live.family == family]
    texts += [decoded(s.image.content) for s in draft.state.saved if s.kind == "rules" and s.family == family]
    for text in texts:
        try:
            if "*nat" in text and notrack.has_nat(parse_ruleset(text, family)):
                return True
        except ConntrackError:
            continue  # told where the rule-set itself is planned
    return False


def _summary(outcome: Rewritten, mode: str) -> str:
    if mode == "notrack":
        count = len(outcome.changes)
        return f"{count} {'rule is' if count == 1 else 'rules are'} added so that the flows bypass conntrack"
    changes = [change for change in outcome.changes if change.rule]  # the others are rules that are added
    count = len(changes)
    if not count:
        return "our own rules of 'mode: notrack' are taken out: NOTRACK holds conntrack in use"
    fates = {"rewritten" if change.becomes else "removed": None for change in changes}
    what = "rule that depends on conntrack is" if count == 1 else "rules that depend on conntrack are"
    return f"{count} {what} {' or '.join(sorted(fates, reverse=True))}"


def _report(draft: Draft, outcome: Rewritten, place: Place) -> None:
    say_blockers(draft, outcome.blockers, place)
    say_notes(draft, ((place.where, note) for note in outcome.notes), place.key)


def _judge(draft: Draft, before: RuleSet, outcome: Rewritten, place: Place) -> None:
    """No port that must stay is closed; what is let through otherwise than before."""
    from ..netfilter.stated import stated  # here: only a change has a difference, and a boot has none

    after, ports = outcome.ruleset, guard.kept_ports(draft.desired, draft.state)
    untracked = bypassing(draft.desired, ports, before.family)
    say_closed(draft, guard.closed_ports(before, after, ports, untracked), place.where)
    say_closed_frontends(draft, partial(guard.unreachable, before), place.where)
    say_difference(draft, stated(before, after), outcome.changes, place)
