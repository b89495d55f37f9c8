"""Verified is an empty second plan, and the kernel's own evidence that agrees with it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from .config import Desired, Flows
from .errors import HostError
from .evidence import FAMILIES, Flow, demand, gathered
from .guard import kept_ports
from .host import observe, probe
from .host.outside import Answers, answers_outside
from .host.probe import Probe
from .host.root import Root
from .plan import Plan, make_plan
from .planning.nativefiles import to_list
from .said import Evidence
from .state import State
from .unchanged import Asked

__all__ = ["Before", "Evidence", "Verified", "after_apply", "before_apply", "demand", "evidence", "look", "observed",
           "probed"]

# Seconds for connections from outside: what drops them is asked once more after a second, as TCP does.
_ASKING = 1.5
_PATIENT = (4.0, 10.0)  # what is silent is asked once more: a busy machine is no lockout


@dataclass(frozen=True)
class Verified:
    """What looking again gave."""

    plan: Plan
    evidence: tuple[Evidence, ...]
    state: State  # the plan's

    @property
    def holds(self) -> bool:
        """Nothing left to do, and nothing speaks against it."""
        return self.plan.empty and all(e.holds is not False for e in self.evidence)


def look(desired: Desired, root: Root, live: bool) -> Verified:
    """Observe *root* afresh, plan again, and ask the kernel.  Changes nothing and loads nothing."""
    state = observed(desired, root, live)
    plan = make_plan(desired, state)
    return Verified(plan, evidence(desired, plan, root, live), state)


def observed(desired: Desired, root: Root, live: bool, looking: bool = True) -> State:
    """The host, those of its files that *desired* names, and what of its saved rules it has to know.

    The units write down which of them are asked for, see :mod:`.unchanged`.
    """
    state = observe.observe(root, live, desired.modules.extra, desired.flows.haproxy_cfg, to_list(desired), looking,
                            resolving=1)
    units = Asked(**vars(state.surroundings.units))
    return replace(state, surroundings=replace(state.surroundings, units=units))


def evidence(desired: Desired, plan: Plan, root: Root, live: bool) -> tuple[Evidence, ...]:
    """What the kernel itself says about the mode of *plan* and its flows."""
    return gathered(plan.mode, desired.modules.block and desired.persist, probed(plan.flows), root, live)


def probed(flows: Flows) -> tuple[Flow, ...]:
    """The flows that one packet can tell about: those to every address."""
    wanted = [(f.protocol, f.ports[0], f.family) for f in flows.frontends if f.everywhere]
    if flows.all:
        wanted = [("udp", 9, None)]
    return tuple((family, protocol, port) for protocol, port, only in wanted
                 for family in FAMILIES if only in (None, family))


@dataclass(frozen=True)
class Before:
    """What answered before apply: only that can be missed afterwards."""

    probes: tuple[Probe, ...] = ()
    outside: Answers = field(default_factory=Answers)


def before_apply(desired: Desired, plan: Plan, state: State, root: Root) -> Before:
    """Ask ``guard.probes``, and from outside the ports to be kept and those of the TCP frontends."""
    probes = tuple((host, port) for host, port in desired.guard.probes if probe.answers(host, port))
    served = {port for flow in plan.flows.frontends if flow.protocol == "tcp"
              for port in range(flow.ports[0], flow.ports[1] + 1)}
    return Before(probes, answers_outside(root, served.union(kept_ports(desired, state)), _ASKING))


def after_apply(desired: Desired, root: Root, live: bool, before: Before) -> Verified:
    """Verify what was just applied.  Raises HostError when it does not hold, or what answered fell silent."""
    found = look(desired, root, live)
    if not found.plan.empty:
        left = [f"{a.verb} {a.where}" for a in found.plan.actions] + [b.reason for b in found.plan.blockers]
        raise HostError("the host is not as planned: " + "; ".join(left), "verify", "this may be our defect: report it")
    demand(found.evidence)
    silent = [f"{host}:{port}" for host, port in desired.guard.probes if not probe.answers(host, port)]
    if silent:
        lost = [name for name in silent if name in {f"{h}:{p}" for h, p in before.probes}]
        why = "answered before apply and does not now" if lost else "does not answer"
        raise HostError(f"{', '.join(lost or silent)} {why}", "guard.probes", "look at the rules for it")
    return replace(found, evidence=found.evidence + _still_reached(before, root))


def _still_reached(before: Before, root: Root) -> tuple[Evidence, ...]:
    """The evidence of fresh connections from outside."""
    if before.outside.untried:
        return (Evidence("outside", None, f"no connection from outside could be tried: {before.outside.untried}"),)
    if not before.outside.given:
        return ()
    silent, untried = before.outside.given, ""
    for seconds in _PATIENT:
        now = answers_outside(root, {port for _, port in silent}, seconds)
        silent, untried = silent - now.given, now.untried
        if not silent:
            break
    told = ", ".join(f"{host} port {port}" for host, port in sorted(silent))
    if told:
        raise HostError(f"{told} took a fresh TCP connection from outside before apply and does not now"
                        + (f" ({untried})" if untried else ""), "guard", "look at the rules for it")
    return tuple(Evidence(f"outside:{host}:{port}", True, f"{host} port {port} takes a fresh connection from outside")
                 for host, port in sorted(before.outside.given))
