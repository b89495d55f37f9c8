"""Ports that must stay reachable: old rules against new ones, before anything is changed."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace

from .netfilter.parts import FLAG_BITS
from .netfilter.reach import Packet, syn, verdicts
from .netfilter.ruleset import RuleSet


def closed_ports(
    before: RuleSet, after: RuleSet, ports: tuple[int, ...], untracked: Container[int] = ()
) -> list[tuple[int, str]]:
    """The TCP *ports* that *before* let in from outside and *after* might not, with why.

    A handshake and a later segment of the connection are looked at, both ways; where rules
    ask for what is not known here (an address, an ipset), "perhaps" must not become "no".
    Behind *after* the packets of the ports in *untracked* have no state any more.
    """
    found: list[tuple[int, str]] = []
    for port in ports:
        for hook, packet, what in _packets(port):
            later = replace(packet, state="UNTRACKED") if port in untracked else packet
            old, new = verdicts(before, hook, packet), verdicts(after, hook, later)
            if "ACCEPT" in old and ("ACCEPT" not in new or (old == {"ACCEPT"} and new != old)):
                found.append((port, f"the new rules would refuse {what} TCP port {port}, which must stay reachable"))
                break
    return found


def _packets(port: int) -> list[tuple[str, Packet, str]]:
    """(hook, packet, what it is) for a connection to *port*."""
    ack, syn_ack = FLAG_BITS["ACK"], FLAG_BITS["SYN"] | FLAG_BITS["ACK"]
    return [
        ("INPUT", syn(port), "a handshake to"),
        ("OUTPUT", Packet("tcp", None, port, syn_ack, None, "ESTABLISHED"), "the answer to a handshake to"),
        ("INPUT", Packet("tcp", port, None, ack, None, "ESTABLISHED"), "a segment of a connection to"),
        ("OUTPUT", Packet("tcp", None, port, ack, None, "ESTABLISHED"), "a segment of a connection from"),
    ]


def is_closed(ruleset: RuleSet, port: int) -> bool:
    """Whether no handshake from outside can reach TCP *port*."""
    return "ACCEPT" not in verdicts(ruleset, "INPUT", syn(port))
