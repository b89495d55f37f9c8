"""A table of our own that stops the tracking of named flows, as ``nft -j`` takes it.

Both directions, both families, and what loopback needs beside them: see :mod:`.notrack`,
which does the same in iptables' raw table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .nft_kinds import NFPROTO, Statement, address_value
from .nft_ruleset import Entry, Json, made
from .nft_twins import FamilyFlow, NftBypass

OWN_TABLE = ("inet", "cloudinit_conntrack_notrack")
# NF_IP_PRI_RAW: before conntrack's own -200, and behind -400, where fragments are put together.
RAW = -300
ERRORS: dict[str, list[Json]] = {
    "icmp": ["destination-unreachable", "time-exceeded", "parameter-problem"],
    "icmpv6": ["destination-unreachable", "packet-too-big", "time-exceeded", "parameter-problem"],
}
NOTRACK: Statement = {"notrack": None}
_SOURCE = Entry(0, "table", {}, "")
_FLAGS: Json = {"payload": {"protocol": "tcp", "field": "flags"}}
_DECIDING: Json = {"|": [{"|": [{"|": ["fin", "syn"]}, "rst"]}, "ack"]}


def matching(op: str, left: Json, right: Json) -> Statement:
    """``LEFT OP RIGHT``."""
    return {"match": {"op": op, "left": left, "right": right}}


# What this host forwards to the same ports, and errors about it, stays with conntrack: exempt at
# prerouting alone, one direction of such a flow would be tracked and the other not.
LOCAL = matching("==", {"fib": {"result": "type", "flags": ["daddr"]}}, "local")
LOOPBACK = matching("==", {"meta": {"key": "oifname"}}, "lo")
# A backend may also open connections, from that port too.
NO_HANDSHAKE = matching("!=", {"&": [_FLAGS, _DECIDING]}, "syn")
RUNNING = matching("in", _FLAGS, "ack")


def of_family(family: str) -> tuple[Statement, ...]:
    """``meta nfproto``; nothing for both families."""
    return (matching("==", {"meta": {"key": "nfproto"}}, family),) if family in NFPROTO else ()


def flow_matches(one: FamilyFlow, side: str, family: str = "") -> tuple[Statement, ...]:
    """The packets of a flow that name its port as destination (*side* ``d``) or source (``s``), of *family* only."""
    flow = one.flow
    first, last = flow.ports
    ports: Json = first if first == last else {"range": [first, last]}
    named = matching("==", {"payload": {"protocol": flow.protocol, "field": f"{side}port"}}, ports)
    if not flow.address:
        return (*of_family(one.family or family), named)
    protocol = "ip6" if ":" in flow.address else "ip"
    address, slash, length = flow.address.partition("/")
    whole = not slash or length == ("128" if protocol == "ip6" else "32")
    value = address if whole else address_value(flow.address)
    return (matching("==", {"payload": {"protocol": protocol, "field": f"{side}addr"}}, value), named)


def errors_matches(protocol: str) -> tuple[Statement, ...]:
    """The ICMP errors that path-MTU discovery lives on; *protocol* ``icmp`` or ``icmpv6``."""
    return (matching("==", {"payload": {"protocol": protocol, "field": "type"}}, {"set": ERRORS[protocol]}),)


def own_table(bypass: NftBypass, forwards: bool, translating: bool) -> list[tuple[str, tuple[Statement, ...]]]:
    """(chain, rule) for every rule of our table.

    *forwards*: packets of the flows may have foreign addresses (tproxy); *translating*:
    some rule translates addresses, so ICMP errors must stay tracked.
    """
    if bypass.plain.everything:
        return [("prerouting", (NOTRACK,)), ("output", (NOTRACK,))]
    local = () if forwards else (LOCAL,)
    found: list[tuple[str, tuple[Statement, ...]]] = []
    for one in bypass.frontends:
        found += _both_ways(one, ("prerouting", "output"), local)
    for one in bypass.backends:
        found += _both_ways(one, ("output", "prerouting"), local)
    if not translating:
        found += [("prerouting", (*errors_matches(p), LOCAL, NOTRACK)) for p in ERRORS]
    return [rule for at, rule in enumerate(found) if rule not in found[:at]]


def _both_ways(
    one: FamilyFlow, hooks: tuple[str, str], local: tuple[Statement, ...]
) -> Iterator[tuple[str, tuple[Statement, ...]]]:
    """Requests at the first hook, replies at the second, and for loopback the one that is left at output.

    A packet on loopback passes output and then prerouting, and keeps the mark it got first.
    """
    there, back = hooks
    request, reply = flow_matches(one, "d"), flow_matches(one, "s")
    if one.flow.protocol == "tcp" and back == "prerouting":
        reply = (*reply, NO_HANDSHAKE)
    loop = reply if there == "output" else request
    coming, going = (reply, request) if there == "output" else (request, reply)
    yield "prerouting", (*coming, *local, NOTRACK)
    yield "output", (*going, NOTRACK)
    yield "output", (LOOPBACK, *loop, NOTRACK)


def own_chains() -> Iterator[Entry]:
    """The table and its chains."""
    family, name = OWN_TABLE
    yield made(_SOURCE, "table", {"family": family, "name": name})
    for hook in ("prerouting", "output"):
        yield made(_SOURCE, "chain", {"family": family, "table": name, "name": hook, "type": "filter", "hook": hook,
                                      "prio": RAW, "policy": "accept"})  # fmt: skip


def own_rule(chain: str, statements: Iterable[Statement]) -> Entry:
    """A rule of our table."""
    family, name = OWN_TABLE
    return made(_SOURCE, "rule", {"family": family, "table": name, "chain": chain, "expr": list(statements)})
