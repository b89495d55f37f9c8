"""Which UDP datagrams are replies, by the ports that a native rule-set or the policy names."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from .nft_kinds import FAMILIES, NFPROTO
from .nft_match import Test, field_ranges, tests_of
from .nft_ruleset import Entry, Json, NftRuleSet
from .nft_values import Ranges, common, field_of, merged, values_of
from .replies import HIGH_PORTS, Ports, Reply, UdpFlow, outbound_replies

# A reply and the family it is of; empty for both.
FamilyReply = tuple[str, Reply]
_OTHER_WAY = {"input": "output", "output": "input", "forward": "forward"}
_MOST_NETWORKS = 8


def replies_by_hook(
    ruleset: NftRuleSet, local_ports: Ports, asked: tuple[UdpFlow, ...], answered: tuple[UdpFlow, ...]
) -> dict[str, tuple[FamilyReply, ...]]:
    """The replies that the hooks ``input``, ``output`` and ``forward`` see.

    *asked* are flows that this host asks for, *answered* those that it serves.
    """
    found: dict[str, dict[FamilyReply, None]] = {hook: {} for hook in _OTHER_WAY}
    both = [outbound_replies(asked, family, local_ports) for family in ("ipv4", "ipv6")]
    for family, replies, others in (("ipv4", both[0], both[1]), ("ipv6", both[1], both[0])):
        found["input"].update(dict.fromkeys(("" if reply in others else family, reply) for reply in replies))
    for flow in answered:
        found["output"][flow.family, Reply(flow.ports)] = None
    for place, bases in ruleset.hooks.items():
        for hook in dict.fromkeys(base.hook for base in bases if base.hook in _OTHER_WAY):
            for entry in ruleset.rules.get(place, ()):
                found[_OTHER_WAY[hook]].update(dict.fromkeys(_mirrored(ruleset, entry, hook, local_ports)))
    return {hook: tuple(replies) for hook, replies in found.items()}


def _mirrored(ruleset: NftRuleSet, entry: Entry, hook: str, local_ports: Ports) -> Iterator[FamilyReply]:
    """The replies to what the rule lets through as new UDP."""
    if not any("accept" in statement or "vmap" in statement for statement in entry.statements):
        return
    tests = tests_of(ruleset, entry, entry.statements)
    family = _family(entry, tests)
    if family is None or not _new_udp(tests) or _on_loopback(tests):
        return
    back_to: Ports | None = {"input": None, "output": local_ports, "forward": HIGH_PORTS}[hook]
    asked_from: Ranges | None = field_ranges(tests, "sport")
    targets: list[Ports | None] = [*asked_from] if asked_from else [back_to]
    pairs = [(s, d) for s in _networks(tests, "saddr") for d in _networks(tests, "daddr")]
    for port in _named_ports(ruleset, entry, tests):
        for target in targets:
            yield from ((family, Reply(port, target, d, s)) for s, d in pairs)


def _family(entry: Entry, tests: tuple[Test, ...]) -> str | None:
    """The one family that the rule is about; empty for both, ``None`` for neither."""
    ranges = field_ranges(tests, "nfproto")
    left = [f for f in FAMILIES.get(entry.family, ()) if ranges is None or common(ranges, ((NFPROTO[f], NFPROTO[f]),))]
    return None if not left else (left[0] if len(left) == 1 else "")


def _new_udp(tests: tuple[Test, ...]) -> bool:
    protocol = field_ranges(tests, "l4proto")
    states = [test.names for test in tests if test.field == "state"]
    return protocol is not None and bool(common(protocol, ((17, 17),))) and all("NEW" in names for names in states)


def _on_loopback(tests: tuple[Test, ...]) -> bool:
    return any(test.field in ("in", "out") and test.names == ("lo",) and not test.negated for test in tests)


def _networks(tests: tuple[Test, ...], side: str) -> list[str]:
    """The networks that a side of the packet is in, as texts; one empty text for "any"."""
    found: list[str] = []
    for field, kind in ((f"ip {side}", ipaddress.IPv4Address), (f"ip6 {side}", ipaddress.IPv6Address)):
        for first, last in field_ranges(tests, field) or ():
            found += [str(n) for n in ipaddress.summarize_address_range(kind(first), kind(last))]
    shown = [text[:-3] if text.endswith("/32") else (text[:-4] if text.endswith("/128") else text) for text in found]
    return shown if 0 < len(shown) <= _MOST_NETWORKS else [""]


def _named_ports(ruleset: NftRuleSet, entry: Entry, tests: tuple[Test, ...]) -> Ranges:
    """The destination ports that the rule names; what it only excludes is left out."""
    found: list[Ports] = []
    for statement in entry.statements:
        kind, body = next(iter(statement.items()))
        if kind == "match" and body["op"] in ("==", "in"):
            found += _ports_in(body["left"], _listed(ruleset, entry, body["right"]))
        elif kind == "vmap":
            accepted = [key for key, verdict in ruleset.arms(entry, body["data"]) if "accept" in verdict]
            found += _ports_in(body["key"], accepted)
    own = field_ranges(tests, "dport")
    return common(merged(found), own) if own is not None else merged(found)


def _listed(ruleset: NftRuleSet, entry: Entry, right: Json) -> list[Json]:
    named = (isinstance(right, str) and right.startswith("@")) or (isinstance(right, dict) and "set" in right)
    return list(ruleset.members(entry, right)) if named else [right]


def _maybe_udp(keys: list[Json], values: list[Json]) -> bool:
    """Whether the protocol among *keys*, if there is one, can be UDP."""
    ranges = [values_of("l4proto", value) for key, value in zip(keys, values) if field_of(key) == "l4proto"]
    return all(not one or bool(common(one, ((17, 17),))) for one in ranges)


def _ports_in(left: Json, values: list[Json]) -> list[Ports]:
    """The destination ports among *values* of *left*, which may be a concatenation with a port in it."""
    keys = left["concat"] if isinstance(left, dict) and isinstance(left.get("concat"), list) else [left]
    places = [at for at, key in enumerate(keys) if field_of(key) == "dport"]
    if not places:
        return []
    found: list[Ports] = []
    for value in values:
        value = value["elem"].get("val") if isinstance(value, dict) and isinstance(value.get("elem"), dict) else value
        parts = value.get("concat") if isinstance(value, dict) and len(keys) > 1 else [value]
        if isinstance(parts, list) and len(parts) == len(keys) and _maybe_udp(keys, parts):
            found += values_of("dport", parts[places[0]]) or ()
    return found
