"""What a rewrite is asked for, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass

from .replies import DEFAULT_OUTBOUND, Ports, UdpFlow
from .ruleset import RuleSet

# What a hostile rule-set may grow to.
MOST_LINES = 500_000


@dataclass(frozen=True)
class Policy:
    """How to rewrite.

    *stateful* is ``rewrite``, ``remove`` or ``refuse``; *nat* is ``refuse`` or ``remove``.
    *asked* is UDP that this host asks for, *answered* UDP that it serves; *local_ports* is
    the range that it asks from (``net.ipv4.ip_local_port_range``).  *drop_empty_nat* leaves out
    a nat table without rules (a legacy table that is live goes with its module only).  *reassemble* adds a
    rule that keeps fragments whole, which needs xt_socket.
    """

    stateful: str = "rewrite"
    nat: str = "refuse"
    asked: tuple[UdpFlow, ...] = DEFAULT_OUTBOUND
    answered: tuple[UdpFlow, ...] = ()
    local_ports: Ports = (32768, 60999)
    drop_empty_nat: bool = True
    reassemble: bool = True


@dataclass(frozen=True)
class Change:
    """One rule that changed.  *widens* says which packets are accepted now and were not before."""

    line: int
    rule: str
    becomes: tuple[str, ...]
    reason: str
    widens: str | None = None


@dataclass(frozen=True)
class RuleBlocker:
    """A rule that cannot be made stateless, and what to do about it."""

    line: int
    rule: str
    reason: str
    remedy: str


@dataclass(frozen=True)
class Rewritten:
    """The result; *ruleset* is the input itself where there are blockers."""

    ruleset: RuleSet
    changes: tuple[Change, ...] = ()
    blockers: tuple[RuleBlocker, ...] = ()
    notes: tuple[str, ...] = ()
