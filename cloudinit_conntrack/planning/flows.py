"""The flows of a section as the language of rules takes them."""

from __future__ import annotations

from dataclasses import replace

from ..config import Desired
from ..config import Flow as ConfigFlow
from ..netfilter import notrack
from ..netfilter.replies import UdpFlow
from ..netfilter.stateless import Policy
from ..state import Kernel


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


def bypassing(desired: Desired, ports: tuple[int, ...], family: str) -> frozenset[int]:
    """Those of the TCP *ports* whose packets conntrack does not see any more, so that they have no state."""
    if desired.mode != "notrack":
        return frozenset()
    flows = [f.ports for f in of_family(desired.flows.frontends, family) if f.protocol == "tcp" and not f.address]
    return frozenset(p for p in ports if desired.flows.all or any(first <= p <= last for first, last in flows))
