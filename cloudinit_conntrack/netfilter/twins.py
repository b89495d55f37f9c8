"""The twin of a stateful rule: what it says of tracked packets, said of untracked ones.

An untracked packet is neither NEW nor ESTABLISHED, so without the twin NOTRACK under an
ESTABLISHED rule is an outage.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import edit, effects, selection, stateful
from .bypass import TAG, Bypass
from .iptables import parse_rule
from .parts import Part
from .replies import Reply, named_ports, replies_by_hook, replies_seen
from .ruleset import Line, Rule, RuleSet
from .stateless import RuleBlocker


@dataclass(frozen=True)
class Twins:
    """What stands before a rule for the flows' untracked packets: *texts*, and what they widen.

    *lost* says which replies do not come through, *blocker* why there can be no twin.
    """

    texts: tuple[str, ...] = ()
    widens: str | None = None
    lost: str | None = None
    blocker: RuleBlocker | None = None


def twins_of(base: RuleSet, line: Line, bypass: Bypass) -> Twins:
    """The twins of *line*, a rule of *base*; nothing where it asks for no state or concerns no flow."""
    rule = line.rule
    states = stateful.states_of(rule) if rule.command == "-A" and "state" in line.text else None
    if states is None or _elsewhere(rule, states, bypass):
        return Twins()
    replies = _replies(base, bypass, base.hooks.get((line.table, line.chain), ()))
    parts = tuple(p for p in selection.parts_for(rule, base.family, replies) if _concerns(p, bypass))
    if "UNTRACKED" in states:
        return Twins(blocker=_catching(line, parts, states, bypass))
    chosen = selection.select(rule, base.family, parts, states, frozenset())
    if chosen.form != "around":
        lost = effects.lost(rule, states, chosen) if bypass.everything else None
        return Twins(tuple(_twin(rule, p) for p in chosen.pieces), effects.widening(rule, states, chosen), lost)
    if rule.target in effects.WATCHING:
        return Twins()
    return Twins(blocker=RuleBlocker(
        line.number, line.text, "what it says of untracked packets takes a chain of its own",
        "name protocols and ports in it, or put what it decides into a user chain"))


def _catching(line: Line, parts: tuple[Part, ...], states: frozenset[str], bypass: Bypass) -> RuleBlocker | None:
    """Why a rule that matches UNTRACKED itself stops what it did not stop, or opens what it did not open.

    Accepting UNTRACKED is how an administrator prepares for named flows.
    """
    others = [part for part in parts if part.state not in states | {"INVALID"} and not part.rare]
    accepts = line.rule.target == "ACCEPT"
    if not others or line.rule.target in effects.WATCHING or (accepts and not bypass.everything):
        return None
    return RuleBlocker(
        line.number, line.text, "it matches UNTRACKED, and so every packet of the flows that are to bypass conntrack",
        "name the states that it is for without '!' and without UNTRACKED")


def _concerns(part: Part, bypass: Bypass) -> bool:
    """Whether packets of *part* can be untracked: those of the flows, errors about them, and discovery always."""
    if bypass.everything or (part.group == "icmp" and part.state in ("RELATED", "UNTRACKED")):
        return True
    return any(f.protocol == part.group for f in bypass.frontends + bypass.backends)


def _replies(base: RuleSet, bypass: Bypass, hooks: tuple[str, ...]) -> tuple[Reply, ...]:
    """UDP replies among the flows: from our frontends going out, from backends coming in."""
    if bypass.everything:
        return replies_seen(replies_by_hook(base, bypass.local_ports, bypass.asked, ()), hooks)
    found: list[Reply] = []
    if {"OUTPUT", "POSTROUTING"} & set(hooks):
        found += [Reply(f.ports) for f in bypass.frontends if f.protocol == "udp"]
    if {"INPUT", "PREROUTING"} & set(hooks):
        found += [Reply(f.ports, bypass.local_ports, f.address) for f in bypass.backends if f.protocol == "udp"]
    return tuple(found)


def _twin(rule: Rule, piece: selection.Piece) -> str:
    untracked = f"{piece.matches} -m conntrack --ctstate UNTRACKED {TAG}".strip()
    return edit.rebuilt(_without_comment(rule), piece.protocol, untracked)


def _without_comment(rule: Rule) -> Rule:
    """*rule* without its own comment: a rule carries ours or the administrator's, not both."""
    options = tuple(o for o in rule.options if o.name != "--comment" and o.value != "comment")
    if len(options) == len(rule.options):
        return rule
    text = " ".join(rule.text[o.start : o.end] for o in options)
    return parse_rule(text)


def _elsewhere(rule: Rule, states: frozenset[str], bypass: Bypass) -> bool:
    """Whether *rule* names ports that none of the flows uses, so that no twin is needed."""
    if bypass.everything or "ESTABLISHED" in states:
        return False
    ports = [f.ports for f in bypass.frontends + bypass.backends]
    named = named_ports(rule, "--dport", "--dports")
    return bool(named) and not any(a <= last and first <= b for a, b in named for first, last in ports)
