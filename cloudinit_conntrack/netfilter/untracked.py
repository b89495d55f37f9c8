"""Which packets the raw table exempts from tracking: what UNTRACKED stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from .parts import PROTOCOLS, groups_of
from .replies import named_ports, overlap, port_range, ports_text
from .ruleset import Option, Rule, RuleSet
from .stateful import is_notrack


@dataclass(frozen=True)
class Exemption:
    """One NOTRACK rule.  *options* are its matches as text, ``None`` where its place in the
    raw table makes it depend on other rules."""

    rule: str
    options: str | None


def exemptions(ruleset: RuleSet) -> dict[str, tuple[Exemption, ...]]:
    """raw hook -> the exemptions it grants, in order."""
    found: dict[str, list[Exemption]] = {}
    for hook, lines in ((h, ruleset.appended.get(("raw", h), ())) for h in ("PREROUTING", "OUTPUT")):
        plain = True
        for line in lines:
            if is_notrack(line.rule):
                found.setdefault(hook, []).append(_exemption(line.rule, plain))
            elif line.rule.target not in ("", "LOG", "NFLOG", "TRACE", "MARK"):
                plain = False  # packets may leave the chain here, or come to a NOTRACK elsewhere
                reached = [x for x in ruleset.rules("raw") if x.chain == line.rule.target]
                found.setdefault(hook, []).extend(_exemption(x.rule, False) for x in reached if is_notrack(x.rule))
    return {hook: tuple(items) for hook, items in found.items()}


def _exemption(rule: Rule, plain: bool) -> Exemption:
    text = " ".join(rule.text[o.start : o.end] for o in _matches(rule))
    return Exemption(rule.text, text if plain else None)


def _matches(rule: Rule) -> list[Option]:
    return [o for o in rule.options[1:] if o.name not in ("-j", "-g", "--notrack", "--comment") and not _is_comment(o)]


def _is_comment(option: Option) -> bool:
    return option.name == "-m" and option.value == "comment"


def seen_by(found: Mapping[str, tuple[Exemption, ...]], hooks: tuple[str, ...]) -> tuple[Exemption, ...]:
    """The exemptions of the packets that a chain reached from *hooks* sees.

    Those that hold on one of its ways only cannot be told from the packet (*options* ``None``).
    """
    ways = [raw for raw, seen in _SEEN.items() if seen & set(hooks)]
    every = dict.fromkeys(exemption for raw in ways for exemption in found.get(raw, ()))
    granted = [{exemption.options for exemption in found.get(raw, ())} for raw in ways]
    return tuple(e if all(e.options in options for options in granted) else replace(e, options=None) for e in every)


_SEEN = {
    "PREROUTING": frozenset(("PREROUTING", "INPUT", "FORWARD", "POSTROUTING")),
    "OUTPUT": frozenset(("OUTPUT", "POSTROUTING")),
}


def may_meet(one: Rule, two: Rule, family: str) -> bool:
    """Whether a packet can match both rules, as far as protocols and ports tell."""
    if not set(groups_of(one, family)) & set(groups_of(two, family)):
        return False
    return all(_share(one, two, name) for name in ("--sport", "--dport"))


def _share(one: Rule, two: Rule, name: str) -> bool:
    first, second = (named_ports(rule, name, f"{name}s") for rule in (one, two))
    return not first or not second or any(a <= d and c <= b for a, b in first for c, d in second)


def merged(rule: Rule, exempt: Rule) -> tuple[str, ...] | None:
    """The options that make *rule* match what *exempt* exempts: none where no packet can match
    both, ``None`` where the two name an option that iptables allows once and cannot be merged."""
    found: list[str] = []
    for option in _matches(exempt):
        own = rule.first(option.name)
        if option.name == "-m" and option.value in ("tcp", "udp"):
            found += [] if option.value in rule.matches else ["-m " + option.value]
        elif own is None or option.name == "-m" or (option.name == "-p" and own.value.lower() in ("all", "0", "any")):
            found.append(exempt.text[option.start : option.end])
        elif option.name in ("--sport", "--dport") and not own.negated and not option.negated:
            mine, theirs = port_range(own.value), port_range(option.value)
            if mine is None or theirs is None:
                return None
            common = overlap(mine, theirs)
            if common is None:
                return ()
            found.append(f"{option.name} {ports_text(common)}")
        elif (own.negated, own.args) != (option.negated, option.args):
            return () if option.name == "-p" and not own.negated and not option.negated else None
    return (" ".join(_loaded(rule, exempt, found)),)


_OF_PROTOCOL = ("--sport", "--dport", "--syn", "--tcp-flags", "! --sport", "! --dport", "! --syn", "! --tcp-flags")


def _loaded(rule: Rule, exempt: Rule, options: list[str]) -> list[str]:
    """*options* behind ``-m tcp``, where ``--sport`` would else be read as multiport's ``--sports``, shortened."""
    if "multiport" not in (*rule.matches, *exempt.matches) or {"tcp", "udp"} & {*rule.matches, *exempt.matches}:
        return options
    named = [PROTOCOLS[o.value.lower()] for o in (*rule.all("-p"), *exempt.all("-p")) if o.value.lower() in PROTOCOLS]
    at = next((n for n, text in enumerate(options) if text.startswith(_OF_PROTOCOL)), None)
    return options if at is None or not named else [*options[:at], f"-m {named[0]}", *options[at:]]
