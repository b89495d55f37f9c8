"""One thing that a run says."""

from __future__ import annotations

from .values import dataclass


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
