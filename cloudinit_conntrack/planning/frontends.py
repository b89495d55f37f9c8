"""Firewall programs that write rules of their own: which of them a mode can live with.

Saved rules (Red Hat's iptables service, netfilter-persistent, ``iptables-restore`` from a
script) are rewritten by :mod:`.rules`, ufw's by :mod:`.ufw`, native nftables elsewhere.  The
programs here compile rules that always match states, and would put them back at every start.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..state import State
from . import ufw
from .draft import Draft, Item


@dataclass(frozen=True)
class FrontEnd:
    """A program, the *units* that start it, what it *does* to stateless rules, and to the bypass of ``notrack``."""

    name: str
    units: tuple[str, ...]
    does: str
    bypass: str
    bypass_remedy: str


_KEEP = ("write the same rules as saved ones first (iptables-save and ip6tables-save, or nft list ruleset, show them; "
         "'cloudinit-conntrack rewrite' makes them stateless), then 'systemctl disable --now {units}', let "
         "iptables.service, netfilter-persistent.service or nftables.service load them, and apply again")

FRONT_ENDS: tuple[FrontEnd, ...] = (
    # Measured with 1.3.3: 14 rules with ct and three nat chains in its empty default zone; start and reload flush
    # whatever is in iptables-nft, the raw table too.  firewalld#1483: stateless is "specifically a non-goal".
    FrontEnd("firewalld", ("firewalld.service",),
             "every rule-set of firewalld matches connection states and has nat chains",
             "firewalld flushes iptables at every start and reload, NOTRACK rules too, and its own rules refuse "
             "untracked replies",
             "give the flows to firewalld itself ('firewall-cmd --permanent --direct --add-rule ipv4 raw PREROUTING 0 "
             "-p tcp --dport 80 -j CT --notrack', and its other direction), or replace firewalld by saved rules "
             "(docs/how-to/firewalld.md)"),
    # https://shorewall.org/manpages/shorewall-conntrack.html; states are in every zone's chains.
    FrontEnd("shorewall", ("shorewall.service", "shorewall6.service", "shorewall-lite.service"),
             "Shorewall's compiler writes rules that match connection states",
             "Shorewall replaces the raw table at every start",
             "name the flows in /etc/shorewall/conntrack (NOTRACK, :P and :O) and accept them in /etc/shorewall/rules"),
    FrontEnd("ferm", ("ferm.service",), "ferm loads its own rules anew at every start",
             "ferm loads its own rules anew at every start, over the bypass",
             "write the raw rules into ferm.conf ('table raw chain (PREROUTING OUTPUT)')"),
    # csf.conf has LF_SPI, yet its chains for logging and packet checks keep INVALID rules.
    FrontEnd("csf", ("csf.service", "lfd.service"), "csf writes rules that match connection states at every start",
             "csf flushes every table at every start", "write the bypass into /etc/csf/csfpost.sh"),
)


# Services that load saved rules and write none: the files are rewritten, and any mode holds.
_LOADERS = (("iptables-services", ("iptables.service", "ip6tables.service")),
            ("netfilter-persistent", ("netfilter-persistent.service",)), ("nftables", ("nftables.service",)))
_FIREWALLDS = re.compile(r"\btable (inet|ip|ip6) firewalld\b")
MODES = ("notrack", "stateless", "unload")


@dataclass(frozen=True)
class FoundFrontEnd:
    """A firewall program or service of this host that starts at boot or runs, and the *modes* that can hold with it."""

    name: str
    units: tuple[str, ...]
    modes: tuple[str, ...]


def found_front_ends(state: State) -> tuple[FoundFrontEnd, ...]:
    """What loads rules on this host; a rule of theirs may still be a blocker, as the plan says."""
    known: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = [(p.name, p.units, ()) for p in FRONT_ENDS]
    known += [(name, units, MODES) for name, units in _LOADERS]
    found = [FoundFrontEnd(name, started, modes) for name, units, modes in known if (started := _started(state, units))]
    if ufw.is_enabled(state):
        found.append(FoundFrontEnd("ufw", ufw.UNITS, ("stateless", "unload")))
    return tuple(found)


def _started(state: State, units: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in units if state.surroundings.units.starts(name))


def plan_front_ends(draft: Draft) -> None:
    """A blocker for each program of :data:`FRONT_ENDS` that starts at boot or runs now."""
    units = draft.state.surroundings.units
    for program in FRONT_ENDS:
        found = _started(draft.state, program.units)
        if not found:
            continue
        where = ", ".join(found)
        if draft.desired.mode == "notrack":
            draft.blockers.append(Item(f"frontend:{program.name}", where, program.bypass, program.bypass_remedy))
        else:
            remedy = _KEEP.format(units=" ".join(found))
            draft.blockers.append(Item(f"frontend:{program.name}", where, program.does, remedy))
    if draft.desired.mode == "unload" and units.starts("iptables.service", "ip6tables.service"):
        _say_how_to_reload(draft)


def without_their_rules(blockers: list[Item]) -> list[Item]:
    """*blockers* without those of firewalld's own native table, where firewalld blocks as a whole.

    They go with it; their remedies would send people into a table that it writes anew.
    """
    if not any(blocker.id == "frontend:firewalld" for blocker in blockers):
        return blockers
    return [blocker for blocker in blockers if not _FIREWALLDS.search(blocker.where)]


def _say_how_to_reload(draft: Draft) -> None:
    """Red Hat's init script (EL8, EL9) sets the policies of nat when it stops, which asks for the module."""
    if draft.state.default_backend == "nft":
        draft.findings.append(Item(
            "iptables-stop", "iptables.service",
            "to stop it sets the policies of the nat table too (EL8, EL9): under the block that prints [FAILED]",
            "use 'systemctl reload iptables' to load changed rules; a start is not affected"))
