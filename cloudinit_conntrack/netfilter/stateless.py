"""The rewrite: a stateful rule-set in, a stateless one out, and what that changes.

Every rule that asks for a connection's state is replaced by rules that ask which part of
traffic a packet belongs to (:mod:`.parts`).  Order, chains, policies and every rule that
does not depend on conntrack stay as they are, byte for byte.  What cannot be said without
conntrack is a blocker; nothing is dropped silently.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import NamedTuple

from . import alike, edit, effects, fragments, selection, stateful
from .collecting import without_collector
from .commands import NUMBERED, SAVE_FIRST, may_be_undone, shifted, unfit_for_rewrite
from .iptables import chain_of, parse_rule
from .leaving import leaves
from .outcome import MOST_LINES, Change, Policy, Rewritten, RuleBlocker
from .own_chains import OwnChains
from .parts import rare_errors
from .replies import Reply, replies_by_hook, replies_seen
from .ruleset import HOOKS, Line, RuleSet
from .untracked import Exemption, exemptions, may_meet, merged, seen_by

__all__ = ["Change", "Policy", "Rewritten", "RuleBlocker", "make_stateless"]

USUAL = Policy()
MOST_EFFORT = 2_000_000


class _Choice(NamedTuple):
    """What a rule's states become, and what there is to say about it."""

    selection: selection.Selection
    notes: tuple[str, ...]
    reason: str
    widening: str | None


@dataclass
class _Work:
    """What one run of the rewrite carries along."""

    ruleset: RuleSet
    policy: Policy
    replies: dict[str, tuple[Reply, ...]]
    exempt: dict[str, tuple[Exemption, ...]]
    own: OwnChains
    lines: list[Line] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    blockers: list[RuleBlocker] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)
    decided: dict[tuple[str, str], frozenset[str]] = field(default_factory=dict)
    choices: dict[Hashable, _Choice] = field(default_factory=dict)
    seen: dict[tuple[str, ...], tuple[Reply, ...]] = field(default_factory=dict)
    known: dict[Hashable, alike.Known] = field(default_factory=dict)
    effort: int = 0
    undone: bool = False

    @property
    def too_much(self) -> bool:
        """Whether a hostile rule-set, many states times many UDP ports, grows beyond all use."""
        return len(self.lines) > MOST_LINES + len(self.ruleset.lines) or self.effort > MOST_EFFORT


def make_stateless(ruleset: RuleSet, policy: Policy = USUAL) -> Rewritten:
    """Rewrite *ruleset* so that no rule depends on conntrack.

    Returns the input unchanged, with blockers, where that cannot be done.
    """
    with without_collector():
        return _made_stateless(ruleset, policy)


def _made_stateless(ruleset: RuleSet, policy: Policy) -> Rewritten:
    work = _Work(
        ruleset,
        policy,
        replies_by_hook(ruleset, policy.local_ports, policy.asked, policy.answered),
        exemptions(ruleset),
        OwnChains(ruleset),
        undone=may_be_undone(ruleset),
    )
    for line in ruleset.lines:
        if line.kind == "rule":
            _rewrite_rule(work, line)
        else:
            work.lines.append(line)
        if work.too_much:
            _block(work, line, "so many states times so many UDP ports make too many rules", "name fewer UDP ports")
            break
    if work.blockers:
        return Rewritten(ruleset, (), tuple(work.blockers), tuple(work.notes))
    _drop_nat_table(work)
    work.lines = work.own.declared(work.lines)
    result = _kept_whole(work) if work.changes else ruleset
    for line in shifted(ruleset, result):
        _block(work, line, NUMBERED, SAVE_FIRST)
    if work.blockers:
        return Rewritten(ruleset, (), tuple(work.blockers), tuple(work.notes))
    return Rewritten(result, tuple(work.changes), (), tuple(work.notes))


def _kept_whole(work: _Work) -> RuleSet:
    """The rewritten rule-set, with what keeps fragments reassembled where a state match did so."""
    result = work.ruleset.with_lines(work.lines)
    states = any(option in change.rule for change in work.changes for option in stateful.STATE_OPTIONS)
    if not states or not work.policy.reassemble or not fragments.needs_reassembly(result):
        return result
    whole = fragments.with_reassembly(result)
    if whole is not result:
        reason = "conntrack reassembled fragments; this rule never matches, and keeps them reassembled"
        work.changes.append(Change(0, "", (fragments.RULE,), reason))
    return whole


def _rewrite_rule(work: _Work, line: Line) -> None:
    known = work.known.get(alike.key(line, work.decided.get((line.table, line.chain))))
    if known is not None:
        _as_known(work, line, known)
        return
    if not stateful.may_depend(line):
        _know(work, line, alike.Known(None))
        _keep(work, line)
        return
    rule = line.rule
    found = stateful.dependency(rule, line.table)
    unknown = stateful.unknown_extension(rule, work.ruleset.chains.get(line.table, {}))
    if unknown:
        work.notes[f"{work.ruleset.name}:{line.number}: unknown extension {unknown!r}: whether it needs conntrack "
                   "cannot be told from the rule; the kernel's own evidence decides"] = None
    if found is None:
        if not unknown:
            _know(work, line, alike.Known(None))
        _keep(work, line)
    elif (unfit := unfit_for_rewrite(rule, work.ruleset.family)) is not None:
        _block(work, line, *unfit)
    elif found.kind == "notrack":
        _remove(work, line, "nothing is tracked any more, so nothing needs to be exempted")
    elif found.kind == "nat":
        _rewrite_nat(work, line, found)
    elif work.policy.stateful == "refuse":
        _block(work, line, f"it {found.extension.reason}, and rules.stateful is 'refuse'", "set it to 'rewrite'")
    elif work.policy.stateful == "remove":
        _remove(work, line, f"it {found.extension.reason}, and rules.stateful is 'remove'", effects.removed(rule))
    elif found.kind == "other":
        _block(work, line, f"it {found.extension.reason}", found.extension.remedy)
    else:
        _rewrite_states(work, line)


def _know(work: _Work, line: Line, known: alike.Known) -> None:
    key = alike.key(line, work.decided.get((line.table, line.chain)))
    if key is not None:
        work.known[key] = known


def _as_known(work: _Work, line: Line, known: alike.Known) -> None:
    """Do with *line* what was done with one like it.  Neither settles anything, since both name places."""
    if known.texts is None:
        work.lines.append(line)
        return
    texts = alike.becomes(known.texts, line)
    for note in known.notes:
        work.notes[f"{work.ruleset.name}:{line.number}: {note}"] = None
    work.lines += [Line(line.number, text, "rule", line.table, line.chain) for text in texts]
    work.changes.append(Change(line.number, line.text, texts, known.reason, known.widening))


def _keep(work: _Work, line: Line) -> None:
    work.lines.append(line)
    if line.rule.command == "-A" and line.rule.target in selection.FINAL:
        _settle(work, line, None)


def _settle(work: _Work, line: Line, states: frozenset[str] | None) -> None:
    if work.undone or not selection.settles(line.rule):
        return
    parts = selection.parts_for(line.rule, work.ruleset.family, _replies_for(work, line))
    key = (line.table, line.chain)
    ended = selection.settled(line.rule, parts, states)
    work.decided[key] = work.decided.get(key, frozenset()) | ended


def _replies_for(work: _Work, line: Line) -> tuple[Reply, ...]:
    """The UDP replies that *line*'s chain sees; a chain reached from nowhere may see all."""
    hooks = work.ruleset.hooks.get((line.table, line.chain), HOOKS)
    if hooks not in work.seen:
        work.seen[hooks] = replies_seen(work.replies, hooks)
    found = work.seen[hooks]
    work.effort += len(found)
    return found


def _block(work: _Work, line: Line, reason: str, remedy: str) -> None:
    work.blockers.append(RuleBlocker(line.number, line.text, reason, remedy))


def _remove(work: _Work, line: Line, reason: str, widens: str | None = None) -> None:
    work.changes.append(Change(line.number, line.text, (), reason, widens))


def _rewrite_nat(work: _Work, line: Line, found: stateful.Dependency) -> None:
    if work.policy.nat == "remove":
        _remove(work, line, f"it {found.extension.reason}, and rules.nat is 'remove'")
    else:
        reason = f"it {found.extension.reason}; that cannot be done without conntrack"
        _block(work, line, reason, found.extension.remedy)


def _rewrite_states(work: _Work, line: Line) -> None:
    rule = line.rule
    states = stateful.states_of(rule)
    if states is None:
        asked, remedy = stateful.beside_states(rule)
        _block(work, line, f"it asks more of a connection than its state: {asked}", remedy)
        return
    if line.table == "raw":
        _block(work, line, "in the raw table no packet has a state yet", "remove it, or move it to the filter table")
        return
    choice = _choice(work, line, states)
    chosen = choice.selection
    exempt = _around(work, line, states, chosen)
    if any(exemption.options is None for exemption in exempt):
        _block_untracked(work, line, next(e for e in exempt if e.options is None))
        return
    texts = _texts(work, line, chosen, exempt)
    if texts is None:
        return
    for text in choice.notes:
        work.notes[f"{work.ruleset.name}:{line.number}: {text}"] = None
    if "UNTRACKED" in states:
        extra = _untracked_texts(work, line)
        if extra is None:
            return
        texts += extra
    if not work.exempt and chosen.form == "beside" and selection.alike(rule, states, bool(_replies_for(work, line))):
        gaps = alike.texts_with_gaps(line, chosen)
        if gaps is not None:
            _know(work, line, alike.Known(gaps, choice.notes, choice.reason, choice.widening))
    _replace(work, line, texts, choice.reason, choice.widening)
    if rule.command == "-A" and ("UNTRACKED" in states or not work.exempt):
        _settle(work, line, states)  # an exempt packet has passed by, whatever its part


def _choice(work: _Work, line: Line, states: frozenset[str]) -> _Choice:
    """What *line*'s states become; worked out once for the many rules that differ in addresses and ports only."""
    rule = line.rule
    replies = _replies_for(work, line)
    # an inserted rule stands before those that settled something
    decided = work.decided.get((line.table, line.chain), frozenset()) if rule.command == "-A" else frozenset()
    if "RELATED" in states and rule.target != "ACCEPT" and work.own.ways(line.table).may_accept(rule.target):
        decided |= rare_errors(work.ruleset.family)  # a chain that accepts is as careful with them as an ACCEPT
    by_shape = selection.alike(rule, states, bool(replies)) and not leaves(rule)  # those look at the chain too
    shape = selection.shape(rule) if by_shape else None
    known = work.choices.get((shape, decided)) if shape is not None else None
    if known is not None:
        return known
    parts = selection.parts_for(rule, work.ruleset.family, replies)
    chosen = selection.select(rule, work.ruleset.family, parts, states, decided)
    if chosen.form != "beside" and leaves(rule):
        entering = work.own.ways(line.table).entering(line.chain)
        parts = tuple(part for part in parts if part.group in entering)
        chosen = selection.select(rule, work.ruleset.family, parts, states, decided, listed=True)
    notes = (effects.counted(rule, states, chosen), effects.lost(rule, states, chosen))
    told = effects.reason(rule, states, chosen), effects.widening(rule, states, chosen)
    choice = _Choice(chosen, tuple(text for text in notes if text), *told)
    if shape is not None:
        work.choices[shape, decided] = choice
    return choice


def _around(
    work: _Work, line: Line, states: frozenset[str], chosen: selection.Selection
) -> tuple[Exemption, ...]:
    """The exemptions whose packets, in none of the rule's states until now, must go around it.

    Not around an ACCEPT of what belongs to connections: that is a widening, and told as one.
    """
    rule = line.rule
    if "UNTRACKED" in states or not chosen.matched or rule.target in effects.WATCHING:
        return ()
    if rule.target == "ACCEPT" and states <= {"ESTABLISHED", "RELATED"}:
        return ()
    if rule.target in ("DROP", "REJECT", "RETURN") and all(part.state == "INVALID" for part in chosen.matched):
        return ()  # segments that no connection needs
    return tuple(e for e in _exemptions(work, line) if may_meet(rule, parse_rule(e.rule), work.ruleset.family))


def _texts(
    work: _Work, line: Line, chosen: selection.Selection, exempt: tuple[Exemption, ...]
) -> list[str] | None:
    rule = line.rule
    if chosen.form == "beside" and not exempt:
        return [
            edit.rebuilt(rule, piece.protocol, piece.matches, rule.counters if len(chosen.pieces) == 1 else "[0:0]")
            for piece in chosen.pieces
        ]
    if rule.command != "-A":
        _block(work, line, "what it matches takes a chain of its own, and it is inserted (-I)",
               "load the rules once, save them with iptables-save, and use that file")
        return None
    final = work.own.leaving(line) if leaves(rule) else [edit.rebuilt(rule)]
    if not final:
        _block(work, line, "what it matches takes a chain of its own, and it leaves its chain, for different places",
               "write one rule for each protocol in its place: -p tcp, -p icmp, -p udp with the ports that are meant")
        return None
    return work.own.write(line, chosen, exempt, final)


def _untracked_texts(work: _Work, line: Line) -> list[str] | None:
    """The rules that stand for UNTRACKED: one for each exemption that the raw table grants."""
    texts: list[str] = []
    for exemption in _exemptions(work, line):
        options = merged(line.rule, parse_rule(exemption.rule))
        if options is None or (options and exemption.options is None):
            _block_untracked(work, line, exemption)
            return None
        texts += [edit.rebuilt(line.rule, "", text) for text in options]
    return texts


def _exemptions(work: _Work, line: Line) -> tuple[Exemption, ...]:
    """Those whose packets *line* sees; a chain that nothing here reaches sees none of them."""
    return () if not work.exempt else seen_by(work.exempt, work.ruleset.hooks.get((line.table, line.chain), ()))


def _block_untracked(work: _Work, line: Line, exemption: Exemption) -> None:
    _block(work, line, f"which packets are UNTRACKED is decided by {exemption.rule!r}, which cannot be merged",
           "name the ports in this rule instead of the state")


def _replace(work: _Work, line: Line, texts: list[str], reason: str, widens: str | None) -> None:
    if line.rule.command == "-I" and len(texts) > 1:
        _block(work, line, "an inserted rule (-I) would become several", "save the rules with iptables-save first")
        return
    work.lines += [Line(line.number, text, "rule", line.table, chain_of(text)) for text in texts]
    work.changes.append(Change(line.number, line.text, tuple(texts), reason, widens))


def _drop_nat_table(work: _Work) -> None:
    """Drop a nat table without rules: restoring even an empty one loads nf_nat and nf_conntrack."""
    left = [x for x in work.lines if x.table == "nat"]
    rules = any(x.kind == "rule" and x.rule.command in ("-A", "-I") for x in left)
    if not left or rules or not work.policy.drop_empty_nat:
        return
    work.lines = [x for x in work.lines if x.table != "nat"]
    work.changes.append(
        Change(left[0].number, "*nat", (), "loading even an empty nat table loads nf_nat and nf_conntrack")
    )
