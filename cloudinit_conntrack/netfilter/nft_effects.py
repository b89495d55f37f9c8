"""What a rewritten native rule does, and what it does otherwise than before, in words."""

from __future__ import annotations

from .effects import described
from .nft_fates import ACCEPTS, GOES_ON, REFUSES
from .nft_kinds import Kind
from .nft_questions import Asked
from .nft_selection import Selection
from .nft_words import statement_text
from .parts import OTHER, UDP_REST, Part
from .stateful import STATES

# Verdicts after which a packet goes on as if the rule were not there.
WATCHING = frozenset(("log", "counter"))
_VERBS = {"accept": ("accepted", "not accepted"), "return": ("sent back", "not sent back"),
          "drop": ("refused", "not refused here"), "reject": ("refused", "not refused here")}
_NAME_THEM = "(name their ports in flows.outbound)"


def reason(asked: Asked, chosen: Selection, fates: frozenset[str]) -> str:
    """Which traffic the rule's states have become."""
    names = ",".join(state for state in STATES if state in asked.states) or "no state"
    gone = lost(asked, chosen, fates)
    meaning = _described(chosen.chosen)
    meaning = meaning or "no packet that gets here can stand for it, so the rule never matches"
    return f"{names}: {meaning}" + (f" ({gone})" if gone else "")


def _described(kinds: tuple[Kind, ...] | list[Kind]) -> str:
    return described([kind.part for kind in kinds])


def widening(asked: Asked, chosen: Selection) -> str | None:
    """Which packets of no connection the rule lets in now, or does not stop any more."""
    if (asked.verdict or "log") in WATCHING:
        return None
    refuses, accepts = asked.verdict in ("drop", "reject"), asked.verdict == "accept"
    gained = [] if refuses else [kind for kind in chosen.matched if not kind.part.stray <= asked.states]
    missed = [] if accepts else [kind for kind in chosen.missed if kind.part.stray & asked.states]
    target = statement_text(asked.after[-1])
    verbs = _VERBS.get(asked.verdict, (f"sent to {target!r}", f"not sent to {target!r}"))
    told = [
        f"{_described(kinds)} that belong to no connection are {verb}"
        for kinds, verb in zip((gained, missed), verbs) if kinds
    ]
    return "; ".join(told) or None


def lost(asked: Asked, chosen: Selection, fates: frozenset[str]) -> str | None:
    """Which replies came through and may not any more (CONTRACT.md, G2).

    *fates* are those that the rule's verdict has in store, see :mod:`.nft_fates`.
    """
    matched, missed = ({kind.part for kind in kinds} for kinds in (chosen.matched, chosen.missed))
    if "ESTABLISHED" in asked.states:
        return _lost_replies(asked, missed, fates) or _lost_requests(asked, chosen, fates)
    if REFUSES in fates and "NEW" in asked.states and UDP_REST in matched:
        return f"UDP replies that {_it(asked)} refuses cannot be told from requests {_NAME_THEM}"
    if GOES_ON in fates and "NEW" in asked.states and UDP_REST in matched:
        return f"UDP replies are sent back too: they cannot be told from requests {_NAME_THEM}"
    return None


def _it(asked: Asked) -> str:
    """What refuses: the rule itself, or where it sends packets."""
    return "it" if asked.verdict in ("drop", "reject") else repr(statement_text(asked.after[-1]))


def _lost_replies(asked: Asked, missed: set[Part], fates: frozenset[str]) -> str | None:
    """Replies that the rule knew by their connection and does not know any more."""
    found = [f"other UDP replies {_NAME_THEM}"] if UDP_REST in missed else []
    found += ["replies of protocols other than TCP, UDP and ICMP"] if OTHER in missed else []
    if not found:
        return None
    if asked.verdict == "accept":
        return f"not let through any more: {', '.join(found)}"
    if GOES_ON in fates:
        return f"not let through or sent back any more: {', '.join(found)}"
    return f"not let through by {_it(asked)} any more: {', '.join(found)}" if ACCEPTS in fates else None


def _lost_requests(asked: Asked, chosen: Selection, fates: frozenset[str]) -> str | None:
    if REFUSES not in fates or "NEW" in asked.states or not any(kind.part.reply for kind in chosen.matched):
        return None
    return f"UDP requests from the ports that {_it(asked)} refuses as replies cannot be told from replies"


def counted(asked: Asked, chosen: Selection) -> str | None:
    """Where a limit on new flows becomes one on packets: no datagram is known as its flow's first."""
    counting = [s for s in asked.before + asked.after if next(iter(s)) in ("limit", "quota", "meter", "set")]
    each = [k.part for k in chosen.matched if k.part.group != "tcp" and k.part.state == "NEW" and not k.part.rare]
    if not counting or not each or "NEW" not in asked.states or "ESTABLISHED" in asked.states:
        return None
    return (f"{next(iter(counting[0]))} counts each of these from now on, not only the first of a flow: "
            f"{described(each)}")
