"""The flows of a section as the language of rules takes them."""

from __future__ import annotations

from dataclasses import replace

from ..config import Desired, Flows
from ..config import Flow as ConfigFlow
from ..haproxy.merging import joined_ports
from ..netfilter import notrack
from ..netfilter.nft_twins import FamilyFlow, NftBypass
from ..netfilter.parts import FLAG_BITS
from ..netfilter.reach import Packet, verdicts
from ..netfilter.replies import UdpFlow
from ..netfilter.ruleset import RuleSet
from ..netfilter.stateless import Policy
from ..state import Kernel
from .draft import Draft

SYN_FLAG = FLAG_BITS["SYN"]
_MOST_PORTS = 256  # looked at one by one


def rewrite_policy(desired: Desired, kernel: Kernel | None) -> Policy:
    """How *desired* wants rule-sets rewritten; without a *kernel* to ask, what most hosts have."""
    flows = desired.flows
    policy = Policy(desired.rules.stateful, desired.rules.nat, asked(desired), udp(flows.frontends))
    if kernel is None:
        return policy
    return replace(policy, local_ports=kernel.local_ports, reassemble=kernel.socket_match)


def asked(desired: Desired) -> tuple[UdpFlow, ...]:
    return udp(desired.flows.outbound + desired.flows.backends)


def udp(flows: tuple[ConfigFlow, ...]) -> tuple[UdpFlow, ...]:
    return tuple(UdpFlow(f.ports, _address(f), f.family or "") for f in flows if f.protocol == "udp")


def of_family(flows: tuple[ConfigFlow, ...], family: str) -> tuple[notrack.Flow, ...]:
    return tuple(notrack.Flow(f.protocol, f.ports, _address(f)) for f in flows if f.family in (None, family))


def _address(flow: ConfigFlow) -> str:
    """Nothing for every address of a family: the save programs leave out '-d 0.0.0.0/0' too."""
    return "" if flow.everywhere else flow.address or ""


def bypass_of(desired: Desired, kernel: Kernel | None, family: str) -> notrack.Bypass:
    named = desired.flows
    ports = kernel.local_ports if kernel else Policy().local_ports
    return notrack.Bypass(of_family(named.frontends, family), of_family(named.backends, family), named.all, ports,
                          asked(desired))


def native_bypass_of(desired: Desired, kernel: Kernel | None) -> NftBypass:
    """The same for native rules, of both families at once."""
    named = desired.flows
    return NftBypass(_both(named.frontends), _both(named.backends), bypass_of(desired, kernel, ""))


def _both(flows: tuple[ConfigFlow, ...]) -> tuple[FamilyFlow, ...]:
    return tuple(FamilyFlow(notrack.Flow(f.protocol, f.ports, f.address or ""), f.family or "") for f in flows)


def flows_left(draft: Draft) -> Flows:
    """The flows of *draft* that its plan works on: those that a live rule-set refuses are left alone."""
    flows = draft.desired.flows
    return replace(flows, frontends=tuple(f for f in flows.frontends if f not in draft.closed),
                   backends=tuple(f for f in flows.backends if f not in draft.closed))


def without_closed(
    desired: Desired, derived: frozenset[ConfigFlow], ruleset: RuleSet
) -> tuple[Desired, set[ConfigFlow]]:
    """*desired* less the ports of *derived* whose first packet *ruleset* surely refuses, and their flows."""
    closed: set[ConfigFlow] = set()

    def left(flows: tuple[ConfigFlow, ...], hook: str) -> tuple[ConfigFlow, ...]:
        found: list[ConfigFlow] = []
        for flow in flows:
            looked_at = flow in derived and flow.family in (None, ruleset.family)
            kept = _let_through(flow, hook, ruleset) if looked_at else [flow]
            if kept != [flow]:
                closed.add(flow)
            found += kept
        return tuple(found)

    flows = replace(desired.flows, frontends=left(desired.flows.frontends, "INPUT"),
                    backends=left(desired.flows.backends, "OUTPUT"))
    return replace(desired, flows=flows), closed


def _let_through(flow: ConfigFlow, hook: str, ruleset: RuleSet) -> list[ConfigFlow]:
    """The ports of *flow* that *ruleset* may accept at *hook*; of a very long range its first port decides."""
    first, last = flow.ports
    step = 1 if last - first < _MOST_PORTS else last - first + 1
    found = [(port, port + step - 1) for port in range(first, last + 1, step)
             if "ACCEPT" in verdicts(ruleset, hook, Packet(flow.protocol, port, None, SYN_FLAG, None, "NEW"))]
    return [replace(flow, ports=ports) for ports in joined_ports(found)]


def bypassing(desired: Desired, ports: tuple[int, ...], family: str) -> frozenset[int]:
    """Those of the TCP *ports* whose packets conntrack does not see any more, so that they have no state."""
    if desired.mode != "notrack":
        return frozenset()
    flows = [f.ports for f in of_family(desired.flows.frontends, family) if f.protocol == "tcp" and not f.address]
    return frozenset(p for p in ports if desired.flows.all or any(first <= p <= last for first, last in flows))
