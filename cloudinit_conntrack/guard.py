"""Ports that must stay reachable: old rules against new ones, before anything is changed."""

from __future__ import annotations

from .netfilter.parts import FLAG_BITS
from .netfilter.reach import Packet, syn, verdicts
from .netfilter.ruleset import RuleSet


def closed_ports(before: RuleSet, after: RuleSet, ports: tuple[int, ...]) -> list[tuple[int, str]]:
    """The TCP *ports* that *before* let in from outside and *after* might not, with why.

    A handshake and a later segment of the connection are looked at; where rules ask for
    what is not known here (an address, an ipset), "perhaps" must not become "no".
    """
    found: list[tuple[int, str]] = []
    for port in ports:
        for packet_before, packet_after, what in _packets(port):
            old, new = verdicts(before, "INPUT", packet_before), verdicts(after, "INPUT", packet_after)
            if "ACCEPT" in old and ("ACCEPT" not in new or (old == {"ACCEPT"} and new != old)):
                found.append((port, f"the new rules would refuse {what} TCP port {port}, which must stay reachable"))
                break
    return found


def _packets(port: int) -> list[tuple[Packet, Packet, str]]:
    segment = Packet("tcp", port, None, FLAG_BITS["ACK"], None, "ESTABLISHED")
    return [(syn(port), syn(port), "a handshake to"), (segment, segment, "a segment of a connection to")]


def is_closed(ruleset: RuleSet, port: int) -> bool:
    """Whether no handshake from outside can reach TCP *port*."""
    return "ACCEPT" not in verdicts(ruleset, "INPUT", syn(port))
