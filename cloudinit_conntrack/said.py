"""What a run says: one thing of it, and who it was."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """A blocker, a widening or a finding: a stable *id*, where, why, and what to do."""

    id: str
    where: str
    reason: str
    remedy: str = ""


@dataclass(frozen=True)
class Evidence:
    """One fact from the kernel.  *holds* is ``None`` where it cannot be told on this host."""

    id: str
    holds: bool | None
    what: str


@dataclass(frozen=True)
class Run:
    """Who made a report: our *version*, the node's host name, UTC *time* (RFC 3339), and how many *seconds* it took."""

    version: str
    host: str
    time: str
    seconds: float


@dataclass(frozen=True)
class Node:
    """One part of why conntrack is in use, with what in turn holds it.

    *kind* is ``conntrack``, ``module``, ``table``, ``rule``, ``writer``, ``namespace``, ``owner``,
    ``service``, ``unit``, ``process``, ``saved``, ``unseen`` or ``also``.  *what* is for reading,
    *where* the place (a rule's, ``FILE:LINE``, a unit), *remedy* the command that removes it, or
    the words where no single command does.
    """

    id: str
    kind: str
    what: str
    where: str = ""
    remedy: str = ""
    children: tuple[Node, ...] = ()
