"""Which flows bypass conntrack, and how the rules that let them are known as ours."""

from __future__ import annotations

from dataclasses import dataclass

from .replies import DEFAULT_OUTBOUND, Ports, UdpFlow
from .ruleset import Line

OWNER = "cloudinit-conntrack"
TAG = f"-m comment --comment {OWNER}"


@dataclass(frozen=True)
class Flow:
    """A flow that bypasses conntrack; *address* is the backend's or the frontend's, or empty."""

    protocol: str
    ports: Ports
    address: str = ""


@dataclass(frozen=True)
class Bypass:
    """What bypasses: *frontends* listen here, *backends* are remote, *everything* is all.

    *asked* is UDP whose replies must come back when everything is untracked.
    """

    frontends: tuple[Flow, ...] = ()
    backends: tuple[Flow, ...] = ()
    everything: bool = False
    local_ports: Ports = (32768, 60999)
    asked: tuple[UdpFlow, ...] = DEFAULT_OUTBOUND


def is_own(line: Line) -> bool:
    """Whether *line* is a rule that carries our comment."""
    return line.kind == "rule" and OWNER in line.text and line.rule.comment == OWNER
