"""Ports that must stay reachable: old rules against new ones, before anything is changed."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace

from .config import Desired
from .netfilter.nft_kinds import NFPROTO
from .netfilter.nft_match import Test
from .netfilter.nft_ruleset import NftRuleSet
from .netfilter.parts import FLAG_BITS
from .netfilter.reach import Packet, syn, verdicts
from .netfilter.ruleset import RuleSet
from .state import State


def kept_ports(desired: Desired, state: State) -> tuple[int, ...]:
    """The TCP ports that must stay reachable: ``guard.keep``, or what sshd listens on."""
    return state.sshd_ports if desired.guard.keep is None else desired.guard.keep


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


def unreachable(ruleset: RuleSet, ports: Iterable[int]) -> list[int]:
    """Those of the TCP *ports* that no handshake from outside can reach."""
    return [port for port in ports if "ACCEPT" not in verdicts(ruleset, "INPUT", syn(port))]


# --- native nftables -------------------------------------------------------------------


def closed_native_ports(
    before: NftRuleSet, after: NftRuleSet, ports: tuple[int, ...], untracked: Mapping[str, Container[int]]
) -> list[tuple[int, str]]:
    """The same for native rules, through every base chain on the way; *untracked* for each family.

    A port is named once, for whichever family.

    ValueError where the rules cannot be compared (see :func:`~.netfilter.stated.stated_nft`).
    """
    from .netfilter.nft_difference import passing  # here: a boot with nothing to do needs none of it

    found: dict[int, str] = {}
    for family in NFPROTO:
        asked = [(port, *packet) for port in ports for packet in _packets(port)]
        old = passing(before, family, [(path, _tests(path, packet)) for _, path, packet, _ in asked])
        now = [replace(p, state="UNTRACKED") if port in untracked[family] else p for port, _, p, _ in asked]
        new = passing(after, family, [(path, _tests(path, packet)) for (_, path, _, _), packet in zip(asked, now)])
        for (port, _, _, what), (was_some, was_all), (is_some, is_all) in zip(asked, old, new):
            if was_some and (not is_some or (was_all and not is_all)):
                told = f"the new rules would refuse {what} TCP port {port} over {family}, which must stay reachable"
                found.setdefault(port, told)
    return list(found.items())


def unreachable_native(ruleset: NftRuleSet, ports: Sequence[int]) -> list[int]:
    """Those of the TCP *ports* that no handshake from outside can reach over either family."""
    from .netfilter.nft_difference import passing  # here: a boot with nothing to do needs none of it

    asked = [("INPUT", _tests("INPUT", syn(port))) for port in ports]
    reached = [passing(ruleset, family, asked) for family in NFPROTO]
    return [port for port, *found in zip(ports, *reached) if not any(some for some, _ in found)]


def _tests(path: str, packet: Packet) -> tuple[Test, ...]:
    """*packet* as what native rules ask of it; it does not come over loopback."""
    found = [Test("l4proto", ((6, 6),)), Test("flags", ((packet.flags, packet.flags),)),
             Test("state", names=(packet.state,)),
             Test("in" if path == "INPUT" else "out", names=("lo",), negated=True)]
    for field, port in (("sport", packet.sport), ("dport", packet.dport)):
        found += [Test(field, ((port, port),))] if port is not None else []
    return tuple(found)
