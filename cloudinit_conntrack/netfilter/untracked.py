"""Which packets the raw table exempts from tracking: what UNTRACKED stands for."""

from __future__ import annotations

from dataclasses import dataclass

from .ruleset import Option, Rule, RuleSet
from .stateful import is_notrack


@dataclass(frozen=True)
class Exemption:
    """One NOTRACK rule.  *options* are its matches as text, ``None`` where its place in the
    raw table makes it depend on other rules; *base* names the base options among them."""

    rule: str
    options: str | None
    base: tuple[str, ...]


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
    matches = [o for o in rule.options[1:] if o.name not in ("-j", "-g", "--notrack")]
    matches = [o for o in matches if o.name != "--comment" and not _is_comment(o)]
    base = tuple(o.name for o in matches if o.name in ("-p", "-s", "-d", "-i", "-o"))
    text = " ".join(rule.text[o.start : o.end] for o in matches)
    return Exemption(rule.text, text if plain else None, base)


def _is_comment(option: Option) -> bool:
    return option.name == "-m" and option.value == "comment"
