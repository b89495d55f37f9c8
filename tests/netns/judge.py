"""The verdict: the same traffic under the rules before and after, and what may differ."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cloudinit_conntrack.netfilter.iptables import parse_ruleset
from cloudinit_conntrack.netfilter.nft_work import NftRewritten
from cloudinit_conntrack.netfilter.stateless import Rewritten

from . import scan, usage
from .computed import Computed, computed
from .rulesets import Case
from .scan import Fate, Probe
from .topology import Topology


@dataclass(frozen=True)
class Observed:
    """Everything seen under one rule-set; *tracked* are the conntrack entries it left."""

    conversations: dict[str, str]
    fates: dict[Probe, Fate]
    tracked: tuple[str, ...]


def observe(net: Topology, backend: str, family: str, text: str, worked: dict[str, str]) -> Observed:
    """Load *text* on a host without rules or connections, and use it."""
    net.clear(backend)
    net.host.load_rules(text, backend, family)
    return asyncio.run(_observe(net, family, worked))


async def _observe(net: Topology, family: str, worked: dict[str, str]) -> Observed:
    held = await usage.use(net, family, worked)
    tracked = tuple(net.host.tracked())
    async with usage.services(net, family):
        fates = scan.scan(net, family, scan.everything(family))
    return Observed(held, fates, tracked + tuple(net.host.tracked()))


def compare(
    net: Topology, backend: str, family: str, case: Case, texts: tuple[str, str], rewritten: Rewritten,
    stateless: bool = True,
) -> tuple[Observed, Observed]:
    """Judge two rule-sets, the case's own and the one made from it: no complaint, or the test fails.

    What the machine was too slow for is tried once more: one attempt without a complaint is enough.
    """
    expected = dict.fromkeys(case.works, "ok")
    said = computed(parse_ruleset(texts[0], family, case.name), parse_ruleset(texts[1], family, case.name))
    for _ in range(2):
        before = observe(net, backend, family, texts[0], expected)
        _is_what_it_says(case, before)
        held = {name: result for name, result in before.conversations.items() if name not in case.unanswered}
        after = observe(net, backend, family, texts[1], held)
        found = complaints(before, after, rewritten, case.unanswered, stateless, said)
        if not found:
            break
    assert not found, "\n".join((*found, "", texts[1]))
    return before, after


def _is_what_it_says(case: Case, before: Observed) -> None:
    held = before.conversations
    wrong = [f"{name}: {held.get(name)}" for name in case.works if held.get(name) not in ("ok", "ECONNREFUSED")]
    wrong += [f"{name}: ok" for name in case.refused if held.get(name) == "ok"]
    assert not wrong, "the rules before are not what the case says"
    assert before.tracked, "conntrack did not track under the rules before: nothing is proved"


def complaints(
    before: Observed, after: Observed, rewritten: Rewritten | NftRewritten, unanswered: Sequence[str] = (),
    stateless: bool = True, said: Computed | None = None,
) -> list[str]:
    """What the rewrite changed and must not have, for a person to read: like packets on one line.

    *said* is the computed difference, in which every packet let in must lie (``None``: not asked).
    """
    found = list(_conversations(before, after, rewritten, unanswered))
    stated = [change.widens for change in rewritten.changes if change.widens]
    alike: dict[tuple[str, ...], list[Probe]] = {}
    for probe, fate in before.fates.items():
        wrong = _about(probe, fate, after.fates[probe], stated) or _unsaid(probe, fate, after.fates[probe], said)
        if wrong:
            key = (wrong, probe.way, probe.kind, str(probe.dport or ""), probe.cut, str(fate), str(after.fates[probe]))
            alike.setdefault(key, []).append(probe)
    found += [_line(key, probes) for key, probes in alike.items()]
    if after.tracked and stateless:
        found.append(f"conntrack still tracks: {after.tracked[0]}")
    return found


def _line(key: tuple[str, ...], probes: Sequence[Probe]) -> str:
    wrong, way, kind, dport, cut, before, after = key
    names = list(dict.fromkeys(probe.detail or "-" for probe in probes))
    details = ",".join(names[:8]) + (f",... ({len(names)} kinds)" if len(names) > 8 else "")
    sports = ",".join(dict.fromkeys(str(probe.sport) for probe in probes if probe.dport))
    to = f" {sports}->{dport}" if dport else ""
    fragments = f" in {cut} fragments" if cut else ""
    return f"{wrong}: {way} {kind} {details}{to}{fragments}: was: {before}; is: {after}"


def _conversations(
    before: Observed, after: Observed, rewritten: Rewritten | NftRewritten, unanswered: Sequence[str]
) -> Iterator[str]:
    texts = [*rewritten.notes, *(change.reason for change in rewritten.changes)]
    said = any(LOST_UDP.search(text) for text in texts)
    for name, result in before.conversations.items():
        now = after.conversations.get(name, "not possible")
        # nothing answers a fragment, so what refuses a big datagram may be silent now
        still_refused = name.endswith(" big") and "ok" not in (now, result)
        if now == result or still_refused:
            continue
        if name in unanswered and result == "ok":
            if not said:
                yield f"conversation {name}: its answer is lost, and nothing says so"
            continue
        yield f"conversation {name}: was {result}, is {now}"


_LOST = "(not let through|cannot|lost|no longer|left out)"
LOST_UDP = re.compile(f"{_LOST}.*UDP|UDP.*{_LOST}")


def _about(probe: Probe, before: Fate, after: Fate, stated: Sequence[str]) -> str:
    """What is wrong with the fate of a probe, or nothing."""
    if before.arrived and not after.arrived:
        return "lost" if matters(probe) else ""
    if after.arrived and not before.arrived:
        if is_handshake(probe):
            return "A HANDSHAKE IS LET IN"
        return "" if covered(probe, stated) else "let in, and nothing says so"
    return "" if _same_answer(probe, before, after, stated) else "answered otherwise"


def _unsaid(probe: Probe, before: Fate, after: Fate, said: Computed | None) -> str:
    """What the computed difference does not say of a probe, or nothing."""
    new = after.arrived and not before.arrived
    return "let in, and not in the difference" if said and new and not said.let_in(probe) else ""


def _same_answer(probe: Probe, before: Fate, after: Fate, stated: Sequence[str]) -> bool:
    """Whether the answers are the same, or one is let out now and a widening says so."""
    if before.answer == after.answer or (probe.cut and not after.answer):
        return True  # nothing answers a fragment
    if before.answer or not after.answer:
        return False
    kind, _, detail = after.answer.partition(" ")
    return covered(Probe("out", kind, detail), stated)


def matters(probe: Probe) -> bool:
    """Whether a packet can be a part of a connection, so that losing it is a loss.

    TCP segments without SYN, ACK and RST are no part of any; TCP headers cut in two are sent
    by nobody but an attacker; ICMP types that are no query, reply or error have no connection.
    """
    if probe.kind == "tcp":
        return probe.cut != "tiny" and (bool(set("AR") & set(probe.detail)) or is_handshake(probe))
    if probe.kind == "icmp":
        return int(probe.detail.split("/")[0]) in (0, 3, 8, 11, 12, 1, 2, 128, 129, *range(130, 137), 143)
    return True


def is_handshake(probe: Probe) -> bool:
    """Whether the probe asks for a connection: SYN without ACK, RST and FIN."""
    return probe.kind == "tcp" and "S" in probe.detail and not set("ARF") & set(probe.detail)


def covered(probe: Probe, stated: Sequence[str]) -> bool:
    """Whether a stated widening names the packet."""
    if probe.kind == "udp":
        return any(_covers_udp(probe, text) for text in stated)
    names = {"tcp": _tcp_names, "icmp": _icmp_names}.get(probe.kind, _no_names)(probe)
    return any(re.search(name, text) for name in names for text in stated)


def _no_names(probe: Probe) -> list[str]:
    return []  # nothing may let in packets of other protocols


def _tcp_names(probe: Probe) -> list[str]:
    flags = {"A": "ACK", "R": "RST"}
    return [rf"TCP segments with [^;]*\b{name}\b[^;]* set" for flag, name in flags.items() if flag in probe.detail]


def _icmp_names(probe: Probe) -> list[str]:
    kind = int(probe.detail.split("/")[0])
    if kind in (0, 129):
        return ["echo replies"]
    if kind in (3, 4, 5, 11, 12, 1, 2):
        return ["ICMP errors", "ICMP messages"]
    return [rf"\btype {kind}\b", "ICMP messages of other types"]


PORTS = r"(\d+)(?::(\d+))?"
UDP_REPLIES = re.compile(rf"UDP datagrams from port {PORTS}(?: of \S+)?(?: to local port {PORTS})?")


def _covers_udp(probe: Probe, text: str) -> bool:
    for found in UDP_REPLIES.finditer(text):
        first, last, low, high = (int(number) if number else None for number in found.groups())
        from_it = first is not None and first <= probe.sport <= (last or first)
        if from_it and (low is None or low <= probe.dport <= (high or low)):
            return True
    return False
