"""What a rewritten rule does, and what it does otherwise than before, in words."""

from __future__ import annotations

from collections.abc import Sequence

from .parts import OTHER, UDP_REST, Part
from .ruleset import Rule
from .selection import COUNTING, Selection
from .stateful import STATES

# Targets after which a packet goes on as if the rule were not there.
WATCHING = frozenset(("", "LOG", "NFLOG", "ULOG"))
_VERBS = {"ACCEPT": ("accepted", "not accepted"), "RETURN": ("sent back", "not sent back"),
          "DROP": ("refused", "not refused here"), "REJECT": ("refused", "not refused here")}


def reason(rule: Rule, states: frozenset[str], chosen: Selection) -> str:
    """Which traffic the rule's *states* have become."""
    names = ",".join(state for state in STATES if state in states) or "no state"
    gone = "; ".join(text for text in (lost(rule, states, chosen), _left_out(states, chosen)) if text)
    meaning = described(chosen.chosen) or "no packet that gets here can stand for it, so the rule never matches"
    return f"{names}: {meaning}" + (f" ({gone})" if gone else "")


def described(parts: Sequence[Part]) -> str:
    """*parts* in a few words: what belongs together is said together."""
    names = {part.name for part in parts}
    texts: dict[str, None] = {}
    for part in parts:
        if {"ack", "rst"} <= names and part.name in ("ack", "rst"):
            texts["TCP segments with ACK or RST set"] = None
        elif part.group == "icmp" and part.state == "RELATED":
            texts["ICMP errors"] = None
        elif part.group == "icmp" and part.state == "UNTRACKED":
            texts["neighbour and listener discovery"] = None
        else:
            texts[part.meaning] = None
    return "; ".join(texts)


def widening(rule: Rule, states: frozenset[str], chosen: Selection) -> str | None:
    """Which packets of no connection the rule lets in now, or does not stop any more."""
    if rule.target in WATCHING:
        return None
    gained = [] if rule.target in ("DROP", "REJECT") else [p for p in chosen.matched if not p.stray <= states]
    missed = [] if rule.target == "ACCEPT" else [p for p in chosen.missed if p.stray & states]
    verbs = _VERBS.get(rule.target, (f"sent to {rule.target}", f"not sent to {rule.target}"))
    told = [
        f"{described(parts)} that belong to no connection are {verb}"
        for parts, verb in zip((gained, missed), verbs) if parts
    ]
    return "; ".join(told) or None


def lost(rule: Rule, states: frozenset[str], chosen: Selection) -> str | None:
    """Which replies came through and do not any more (CONTRACT.md, G2)."""
    if rule.target in ("DROP", "REJECT") and "NEW" in states and UDP_REST in chosen.matched:
        return "UDP replies that it refuses cannot be told from requests (name their ports in flows.outbound)"
    if rule.target != "ACCEPT" or "ESTABLISHED" not in states:
        return None
    found = ["other UDP replies (name their ports in flows.outbound)"] if UDP_REST in chosen.missed else []
    found += ["replies of protocols other than TCP, UDP and ICMP"] if OTHER in chosen.missed else []
    return f"not let through any more: {', '.join(found)}" if found else None


def removed(rule: Rule) -> str | None:
    """What taking *rule* out lets through; nothing where it let something through itself, or watched."""
    if rule.target in WATCHING or rule.target in ("ACCEPT", "NFQUEUE", "QUEUE"):
        return None
    verb = _VERBS.get(rule.target, ("", f"not sent to {rule.target}"))[1]
    return f"packets that it matched are {verb}"


def _left_out(states: frozenset[str], chosen: Selection) -> str | None:
    """Which errors the rule matched and does not any more: those that nobody should miss (RFC 6633, RFC 1812)."""
    missed = [part for part in chosen.missed if part.rare and part.state == "RELATED"]
    return f"without {' and '.join(p.meaning for p in missed)}" if missed and "RELATED" in states else None


def counted(rule: Rule, states: frozenset[str], chosen: Selection) -> str | None:
    """Where a limit on new flows becomes one on packets: no datagram is known as its flow's first."""
    counting = [name for name in rule.matches if name in COUNTING or name == "recent"]
    each = [p for p in chosen.matched if p.group != "tcp" and p.state == "NEW" and not p.rare]
    if not counting or not each or "NEW" not in states or "ESTABLISHED" in states:
        return None
    return f"-m {counting[0]} counts each of these from now on, not only the first of a flow: {described(each)}"
