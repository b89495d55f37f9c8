"""Letting named flows bypass conntrack while the rest of the host keeps it.

In the raw table, rules for each port: both directions, and what loopback needs beside
them, where a packet goes out and comes in again.  Next to each rule that asks for a state stands
its twin for untracked packets (:mod:`.twins`), made by the same rewrite that makes a whole
rule-set stateless.

Every rule that we add carries our comment; planning strips them and writes them anew.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import ip_network

from . import stateful
from .bypass import OWNER, TAG, Bypass, Flow, is_own
from .commands import NUMBERED, SAVE_FIRST, shifted
from .parts import FLAG_BITS, SYN_ONLY
from .reach import Packet, syn, verdicts
from .replies import named_ports, ports_text
from .ruleset import Line, Rule, RuleSet
from .stateless import Change, Rewritten, RuleBlocker
from .twins import Twins, twins_of

__all__ = ["OWNER", "Bypass", "Flow", "add_bypass", "has_nat", "strip_own"]

NOTRACK = f"{TAG} -j CT --notrack"
ERRORS = {"ipv4": ("-p icmp -m icmp --icmp-type", (3, 11, 12)),
          "ipv6": ("-p ipv6-icmp -m icmp6 --icmpv6-type", (1, 2, 3, 4))}


def strip_own(ruleset: RuleSet) -> RuleSet:
    """*ruleset* without the rules that carry our comment."""
    if OWNER not in "".join(x.text for x in ruleset.lines if x.kind == "rule" and OWNER in x.text):
        return ruleset
    return ruleset.with_lines(x for x in ruleset.lines if not is_own(x))


def add_bypass(ruleset: RuleSet, bypass: Bypass, nat_elsewhere: bool = False) -> Rewritten:
    """Add the bypass to *ruleset*; unchanged where it is there already.

    *nat_elsewhere*: another rule-set of the host translates addresses, so ICMP errors must
    stay tracked.  Blockers where a nat rule names a port of the flows.
    """
    asked = (_said(ruleset), bypass, nat_elsewhere)
    if asked in _COMPLETE:
        return Rewritten(ruleset)
    base = strip_own(ruleset)
    twins = {x: twins_of(base, x, bypass) for x in base.rules() if x.table not in ("raw", "nat")}
    blockers = _nat_blockers(base, bypass) + tuple(t.blocker for t in twins.values() if t.blocker)
    if blockers:
        return Rewritten(ruleset, (), blockers)
    translating = nat_elsewhere or has_nat(base)
    changes: list[Change] = []
    lines = _with_raw(base, bypass, translating)
    changes += [_added(text, "the flow bypasses conntrack") for text in _raw_rules(base, bypass, translating)]
    result = base.with_lines(_with_twins(lines, twins, changes))
    result = _opened(base, result, bypass, translating, changes)
    if _same(ruleset, result):
        _COMPLETE.append(asked)
        return Rewritten(ruleset)
    moved = tuple(RuleBlocker(x.number, x.text, NUMBERED, SAVE_FIRST) for x in shifted(base, result))
    if moved:
        return Rewritten(ruleset, (), moved)
    return Rewritten(result, tuple(changes))


# What was found to have its bypass already: a host's saved rules are mostly its live ones, and are asked about next.
_COMPLETE: deque[tuple[dict[tuple[str, str], list[str]], Bypass, bool]] = deque(maxlen=4)
_COUNTERS = re.compile(r"^\[\d+:\d+\] | \[\d+:\d+\]$")


def _said(ruleset: RuleSet) -> dict[tuple[str, str], list[str]]:
    """What *ruleset* says, by table and chain, without comments and counters."""
    tables, lines = ruleset.tables(), [x for x in ruleset.lines if x.kind not in ("comment", "blank")]
    # Else another order of chains may mean something else: a table's second header empties it.
    plain = len(set(tables)) == len(tables) and all(x.kind != "rule" or x.command == "-A" for x in lines)
    found: dict[tuple[str, str], list[str]] = {("", ""): [ruleset.family]}
    for line in lines:
        found.setdefault((line.table, line.chain) if plain else ("", ""), []).append(_COUNTERS.sub("", line.text))
    return found


def _added(text: str, reason: str, widens: str | None = None) -> Change:
    return Change(0, "", (text,), reason, widens)


def has_nat(ruleset: RuleSet) -> bool:
    """Whether any rule translates addresses or ports."""
    return any(x.rule.target in stateful.NAT_TARGETS for x in ruleset.rules("nat"))


def _same(one: RuleSet, two: RuleSet) -> bool:
    return len(list(one.rules())) == len(list(two.rules())) and _canonical(one) == _canonical(two)


def _canonical(ruleset: RuleSet) -> dict[tuple[str, str], list[object]]:
    """(table, chain) -> its rules; of ours the order of options does not matter (a save sorts them)."""
    found: dict[tuple[str, str], list[object]] = {}
    for line in ruleset.rules():
        options = sorted((o.name, o.negated, o.args) for o in line.rule.options) if is_own(line) else line.text
        found.setdefault((line.table, line.chain), []).append(options)
    return found


# --- the raw table ---------------------------------------------------------------------


def _raw_rules(base: RuleSet, bypass: Bypass, translating: bool) -> list[str]:
    family = base.family
    if bypass.everything:
        return [f"-A PREROUTING {NOTRACK}", f"-A OUTPUT {NOTRACK}"]
    # With TPROXY the flows' own packets have foreign addresses.
    local = "" if any(x.rule.target == "TPROXY" for x in base.rules("mangle")) else f" {_LOCAL}"
    found: list[str] = []
    for flow in bypass.frontends:
        found += _both_ways(flow, ("PREROUTING", "OUTPUT"), local)
    for flow in bypass.backends:
        found += _both_ways(flow, ("OUTPUT", "PREROUTING"), local)
    if not translating:
        match, types = ERRORS[family]
        found += [f"-A PREROUTING {match} {n} {_LOCAL} {NOTRACK}" for n in types]
    return list(dict.fromkeys(found))


# What this host forwards to the same ports, and errors about it, stays with conntrack: exempt at
# PREROUTING alone, one direction of such a flow would be tracked and the other not.
_LOCAL = "-m addrtype --dst-type LOCAL"


def _both_ways(flow: Flow, hooks: tuple[str, str], local: str) -> list[str]:
    """Requests at the first hook, replies at the second, and for loopback the one that is left at OUTPUT.

    A packet on loopback passes OUTPUT and then PREROUTING, and keeps the mark it got first.
    """
    there, back = hooks
    request, reply = _match(flow, "d"), _match(flow, "s")
    if flow.protocol == "tcp" and back == "PREROUTING":
        reply += f" ! --tcp-flags {' '.join(SYN_ONLY)}"  # a backend may also open connections, from that port too
    loop = reply if there == "OUTPUT" else request
    coming, going = (reply, request) if there == "OUTPUT" else (request, reply)
    return [f"-A PREROUTING {coming}{local} {NOTRACK}", f"-A OUTPUT {going} {NOTRACK}",
            f"-A OUTPUT -o lo {loop} {NOTRACK}"]


def _match(flow: Flow, side: str) -> str:
    address = f"-{side} {flow.address} " if flow.address else ""
    return f"{address}-p {flow.protocol} -m {flow.protocol} --{side}port {ports_text(flow.ports)}"


def _with_raw(base: RuleSet, bypass: Bypass, translating: bool) -> list[Line]:
    """The lines of *base* with our rules at the head of the raw chains."""
    texts = _raw_rules(base, bypass, translating)
    lines = list(base.lines)
    ours = [Line(0, text, "rule", "raw", text.split()[1]) for text in texts]
    if "raw" not in base.tables():
        return [*lines, Line(0, "*raw", "table", "raw"),
                Line(0, ":PREROUTING ACCEPT [0:0]", "chain", "raw", "PREROUTING"),
                Line(0, ":OUTPUT ACCEPT [0:0]", "chain", "raw", "OUTPUT"),
                *ours, Line(0, "COMMIT", "commit", "raw")]
    at = 1 + max(i for i, x in enumerate(lines) if x.table == "raw" and x.kind in ("table", "chain"))
    lines[at:at] = ours
    return lines


# --- the twins of stateful rules -------------------------------------------------------


def _with_twins(lines: Iterable[Line], twins: Mapping[Line, Twins], changes: list[Change]) -> list[Line]:
    result: list[Line] = []
    for line in lines:
        found = twins.get(line, Twins())
        for number, text in enumerate(found.texts):
            result.append(Line(line.number, text, "rule", line.table, line.chain))
            reason = f"the untracked flows' twin of line {line.number}: {line.text}"
            reason += f" ({found.lost})" if found.lost else ""
            changes.append(_added(text, reason, found.widens if number == 0 else None))
        result.append(line)
    return result


# --- flows that the rules do not let through -------------------------------------------


def _opened(base: RuleSet, result: RuleSet, bypass: Bypass, translating: bool, changes: list[Change]) -> RuleSet:
    """Accept what a flow needs and no rule lets through."""
    texts: list[str] = []
    for flow in bypass.frontends:
        texts += _entry(base, result, "INPUT", flow, changes, "was closed and is open now")
        texts += _missing(result, "OUTPUT", answer_from(flow), f"{_match(flow, 's')}{_running(flow)}", changes)
    for flow in bypass.backends:
        texts += _entry(base, result, "OUTPUT", flow, changes, "was refused as a destination and is not now")
        texts += _missing(result, "INPUT", answer_from(flow), f"{_match(flow, 's')}{_running(flow)}", changes)
    if translating and _drops_invalid(result):
        match, types = ERRORS[result.family]
        errors = [f"-A INPUT {match} {n} {TAG} -j ACCEPT" for n in types]
        changes += [_added(text, "the flows' path-MTU errors count as INVALID",
                           "ICMP errors that belong to no connection are accepted") for text in errors]
        texts += errors
    if not texts:
        return result
    lines = list(result.lines)
    at = 1 + max(i for i, x in enumerate(lines) if x.table == "filter" and x.kind in ("table", "chain"))
    lines[at:at] = [Line(0, text, "rule", "filter", text.split()[1]) for text in dict.fromkeys(texts)]
    return result.with_lines(lines)


def _running(flow: Flow) -> str:
    """Only segments of a running connection: a SYN from a backend's port is new."""
    return " --tcp-flags ACK ACK" if flow.protocol == "tcp" else ""


def first_of(flow: Flow) -> Packet:
    """The first packet of *flow*, untracked."""
    if flow.protocol == "tcp":
        return syn(flow.ports[0], "UNTRACKED")
    return Packet(flow.protocol, flow.ports[0], None, 0, None, "UNTRACKED")


def answer_from(flow: Flow) -> Packet:
    """A packet coming back in *flow*, untracked."""
    flags = FLAG_BITS["ACK"] if flow.protocol == "tcp" else 0
    return Packet(flow.protocol, 40000, flow.ports[0], flags, None, "UNTRACKED")


def _entry(
    base: RuleSet, result: RuleSet, hook: str, flow: Flow, changes: list[Change], told: str
) -> list[str]:
    """What lets the flow's own direction through: its first packet, and those that follow."""
    widens = f"{flow.protocol} port {ports_text(flow.ports)} {told}"
    texts = _missing(result, hook, first_of(flow), _match(flow, "d"), changes, widens)
    if texts:
        return texts
    if "ACCEPT" not in verdicts(base, hook, replace(first_of(flow), state="NEW")):
        changes.append(Change(0, "", (), "a rule lets untracked packets through", widens))
    if flow.protocol != "tcp":
        return []
    following = replace(first_of(flow), flags=FLAG_BITS["ACK"])
    return _missing(result, hook, following, f"{_match(flow, 'd')}{_running(flow)}", changes)


def _missing(
    result: RuleSet, hook: str, packet: Packet, match: str, changes: list[Change], widens: str = ""
) -> list[str]:
    if "ACCEPT" in verdicts(result, hook, packet) or "filter" not in result.tables():
        return []
    text = f"-A {hook} {match} {TAG} -j ACCEPT"
    changes.append(_added(text, f"no rule lets this flow through at {hook}", widens or None))
    return [text]


def _drops_invalid(ruleset: RuleSet) -> bool:
    return any("INVALID" in (stateful.states_of(x.rule) or ()) and x.rule.target != "ACCEPT"
               for x in ruleset.rules("filter") if "INVALID" in x.text)


# --- blockers --------------------------------------------------------------------------


def _nat_blockers(base: RuleSet, bypass: Bypass) -> tuple[RuleBlocker, ...]:
    found: list[RuleBlocker] = []
    for line in base.rules("nat"):
        rule = line.rule
        if rule.target in stateful.NAT_TARGETS and _meets(rule, line.chain, bypass):
            found.append(RuleBlocker(line.number, line.text, "it translates a flow that is to bypass conntrack, and "
                                     "an untracked packet is never translated",
                                     "remove the rule (let haproxy bind the port itself), or take the port out of "
                                     "conntrack.flows"))
    return tuple(found)


def _meets(rule: Rule, chain: str, bypass: Bypass) -> bool:
    """Whether *rule* can translate one of the flows."""
    if bypass.everything:
        return True
    named = named_ports(rule, "--dport", "--dports")
    protocol = rule.first("-p")
    source_side = rule.target in ("MASQUERADE", "SNAT", "NETMAP", "SAME")
    if source_side and not named:
        return False  # it names no port: what haproxy sends has this host's own address already
    # What leaves from a frontend is an answer, and an answer is never translated by a rule.
    candidates = bypass.backends if source_side and chain == "POSTROUTING" else bypass.frontends + bypass.backends
    flows = [f for f in candidates if (protocol is None or protocol.value == f.protocol) and not _elsewhere(rule, f)]
    if not named:
        return bool(flows) and rule.first("-s", "-d", "-i") is None
    return any(a <= f.ports[1] and f.ports[0] <= b for a, b in named for f in flows)


def _elsewhere(rule: Rule, flow: Flow) -> bool:
    """Whether *rule* is for other destinations than those of *flow*."""
    to = rule.first("-d")
    if to is None or to.negated or not flow.address:
        return False
    try:
        return not ip_network(to.value).overlaps(ip_network(flow.address))
    except ValueError:
        return False  # a mask with holes in it
