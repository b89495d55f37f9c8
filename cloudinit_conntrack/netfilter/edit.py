"""Changing one rule's text and nothing else in it.

A rule is edited by cutting options out and writing options in at chosen places, so what
we do not understand stays as the administrator wrote it.
"""

from __future__ import annotations

from collections.abc import Iterable

from .iptables import parse_rule
from .ruleset import Option, Rule

STATE_OPTIONS = frozenset(("--state", "--ctstate"))
_OF_MATCH = {
    "tcp": frozenset(("--sport", "--dport", "--tcp-option")),
    "udp": frozenset(("--sport", "--dport")),
}


_NARROWED = frozenset(("-p", "-s", "-d", "--sport", "--dport", "--tcp-flags"))


def without_state(rule: Rule) -> list[Option]:
    """The options that make up *rule*'s state matches."""
    return [
        o for o in rule.options
        if o.name in STATE_OPTIONS or (o.name == "-m" and o.value in ("state", "conntrack"))
    ]


def rebuilt(rule: Rule, protocol: str = "", matches: str = "", counters: str = "[0:0]") -> str:
    """*rule* without its state matches, with *protocol* and *matches* put in their place.

    *protocol* is ``tcp``, ``! tcp`` ... and is left out where the rule has it already; a
    negated protocol of the rule gives way to it.  *matches* is written in one piece.
    """
    cut = without_state(rule)
    place = cut[0].start if cut else _target_start(rule)
    cut += _superseded(rule, matches)
    own = rule.first("-p")
    if protocol and own is not None and (own.negated or own.value.lower() in ("all", "0", "any")):
        cut.append(own)
    elif own is not None:
        protocol = ""
    inserted: list[tuple[int, str]] = []
    if matches:
        inserted.append(_match_place(rule, matches, place, cut))
    if protocol:
        text = f"! -p {protocol[2:]}" if protocol.startswith("! ") else f"-p {protocol}"
        inserted.insert(0, (min([place] + [at for at, _ in inserted]), text))
    return _with_counters(_edited(rule.text, cut, inserted), counters)


def _superseded(rule: Rule, matches: str) -> list[Option]:
    """The options of *rule* that *matches* says more narrowly."""
    if not matches:
        return []
    names = {word for word in matches.split() if word in _NARROWED}
    return [o for o in rule.options if o.name in names or (o.name == "--syn" and "--tcp-flags" in names)]


def _match_place(rule: Rule, matches: str, place: int, cut: Iterable[Option]) -> tuple[int, str]:
    """Where *matches* (``-m tcp --tcp-flags ...``) goes: into the rule's own ``-m tcp``, where it has one.

    A second ``-m tcp`` is lost when iptables-nft-save up to 1.8.9 prints the rule.
    """
    words = matches.split(" ", 2)
    if words[0] != "-m" or words[1] not in _OF_MATCH:
        return place, matches
    named = [o for o in rule.options if o.name == "-m" and o.value == words[1]]
    mine = [o for o in rule.options if o.name in _OF_MATCH[words[1]] and o not in cut]
    if not named and not mine:
        return place, matches
    return (mine or named)[-1].end, words[2]


def _target_start(rule: Rule) -> int:
    target = rule.first("-j", "-g")
    return target.start if target else len(rule.text)


def _edited(text: str, cut: Iterable[Option], inserted: Iterable[tuple[int, str]]) -> str:
    edits: list[tuple[int, int, int, str]] = [(o.start, 1, o.end, "") for o in cut]
    # the second key keeps what is written in at a place before what is cut from it
    edits += [(at, 0, at, words) for at, words in inserted]
    pieces: list[str] = []
    at = 0
    for start, _, end, words in sorted(edits, key=lambda edit: edit[:2]):
        pieces.append(text[at:start].strip(" \t"))
        pieces.append(words.strip(" \t"))
        at = max(at, end)
    pieces.append(text[at:].strip(" \t"))
    return " ".join(filter(None, pieces))


def _with_counters(text: str, counters: str) -> str:
    if not text.startswith("["):
        return text
    return f"{counters} {text.split(']', 1)[1].lstrip()}"


def moved(rule: Rule, chain: str, text: str | None = None) -> str:
    """*rule* (or *text* made from it), which is an ``-A``, appended to another *chain*, without counters."""
    source = rule if text is None else parse_rule(text)
    command = source.options[0]
    before = source.text[: command.start].replace(source.counters, "", 1)
    return " ".join(("-A", chain, *before.split(), source.text[command.end :].strip()))


def retargeted(text: str, target: str) -> str:
    """The rule *text* with another target: ``-j DROP``, ``-g CHAIN``; counters go."""
    rule = parse_rule(text)
    own = rule.first("-j", "-g")
    assert own is not None
    return _with_counters(_edited(rule.text, [own], [(own.start, target)]), "[0:0]")
