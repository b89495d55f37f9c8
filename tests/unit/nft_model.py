"""A native nftables firewall in small, to judge the rewrite by; it shares no code with the package.

Written from the kernel's semantics (nf_tables_core.c, nft_payload.c, nft_lookup.c): a rule's
statements run in order, a field that a packet does not have ends the rule, ``accept`` ends the
base chain and the next one of the hook goes on, ``drop`` ends the packet.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from netfilter_packets import Packet

Json = Any
FLAGS = {"fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16, "urg": 32, "ecn": 64, "cwr": 128}
STATES = {"invalid": 1, "established": 2, "related": 4, "new": 8, "untracked": 64}
PROTOCOLS = {"tcp": 6, "udp": 17, "gre": 47, "icmp": 1, "ipv6-icmp": 58, "icmpv6": 58}
TYPES = {
    "icmp": {"echo-reply": 0, "destination-unreachable": 3, "echo-request": 8, "time-exceeded": 11,
             "parameter-problem": 12, "timestamp-request": 13, "timestamp-reply": 14, "info-request": 15,
             "info-reply": 16, "address-mask-request": 17, "address-mask-reply": 18},
    "icmpv6": {"destination-unreachable": 1, "packet-too-big": 2, "time-exceeded": 3, "parameter-problem": 4,
               "echo-request": 128, "echo-reply": 129, "mld-listener-query": 130, "mld-listener-report": 131,
               "mld-listener-done": 132, "nd-router-solicit": 133, "nd-router-advert": 134,
               "nd-neighbor-solicit": 135, "nd-neighbor-advert": 136, "mld2-listener-report": 143},
}  # fmt: skip
FAMILY = {"ipv4": ("ip", "inet"), "ipv6": ("ip6", "inet")}


class NoFieldError(Exception):
    """The packet has no such field: the rule ends."""


@dataclass(frozen=True)
class Outcome:
    verdict: str
    logged: tuple[str, ...]


class Firewall:
    """A rule-set that packets of one family can be sent through."""

    def __init__(self, text: str, family: str) -> None:
        self.family = family
        self.bases: list[dict[str, Json]] = []
        self.rules: dict[tuple[str, str, str], list[list[dict[str, Json]]]] = {}
        self.sets: dict[tuple[str, str, str], list[Json]] = {}
        for item in json.loads(text)["nftables"]:
            kind, body = next(iter(item.items()))
            if body.get("family") not in FAMILY[family]:
                continue
            if kind == "chain" and "hook" in body:
                self.bases.append(body)
            elif kind == "rule":
                self.rules.setdefault((body["family"], body["table"], body["chain"]), []).append(body["expr"])
            elif kind in ("set", "map"):
                self.sets[body["family"], body["table"], body["name"]] = body.get("elem", [])
        self.bases.sort(key=lambda base: int(base["prio"]))

    def send(self, hook: str, packet: Packet, state: str = "") -> Outcome:
        """Walk *packet*, its *state* already decided, through every base chain of *hook*."""
        logged: list[str] = []
        for base in self.bases:
            if base["hook"] != hook.lower():
                continue
            place = (base["family"], base["table"], base["name"])
            verdict = _Walk(self, packet, state, logged).chain(place, 0)
            if verdict in ("", "return"):
                verdict = base.get("policy", "accept")
            if verdict != "accept":
                return Outcome("DROP", tuple(logged))
        return Outcome("ACCEPT", tuple(logged))

    def exempt(self, hook: str, packet: Packet) -> bool:
        """Whether a raw chain takes *packet*, which *hook* sees, from tracking."""
        raw = "output" if hook == "OUTPUT" else "prerouting"
        walk = _Walk(self, packet, "", [])
        for base in self.bases:
            if base["hook"] == raw and int(base["prio"]) < -200:
                walk.chain((base["family"], base["table"], base["name"]), 0)
        return walk.notrack


@dataclass
class _Walk:
    firewall: Firewall
    packet: Packet
    state: str
    logged: list[str]
    notrack: bool = False

    def chain(self, place: tuple[str, str, str], depth: int) -> str:
        """accept, drop, return, or nothing for "came to the end"."""
        assert depth < 20, "a loop"
        for rule in self.firewall.rules.get(place, ()):
            verdict = self.rule(place, rule, depth)
            if verdict:
                return verdict
        return ""

    def rule(self, place: tuple[str, str, str], rule: list[dict[str, Json]], depth: int) -> str:
        try:
            for statement in rule:
                kind, body = next(iter(statement.items()))
                if kind == "vmap":
                    kind, body = self.lookup(place, body)
                if (kind == "match" and not self.match(place, body)) or (kind == "limit" and not self.packet.chance):
                    return ""
                verdict = self.act(place, kind, body, depth)
                if verdict:
                    return verdict
        except NoFieldError:
            pass
        return ""

    def act(self, place: tuple[str, str, str], kind: str, body: Json, depth: int) -> str:
        if kind in ("jump", "goto"):
            verdict = self.chain((*place[:2], body["target"]), depth + 1)
            return verdict if verdict in ("accept", "drop") else ("return" if kind == "goto" else "")
        if kind in ("accept", "drop", "return"):
            return kind
        if kind == "log":
            self.logged.append(body["prefix"])
        elif kind == "notrack":
            self.notrack = True
        else:
            known = ("match", "limit", "counter", "continue", "reject", "set")
            assert kind in known, f"the model does not know {kind}"
        return "drop" if kind == "reject" else ""

    def lookup(self, place: tuple[str, str, str], body: Json) -> tuple[str, Json]:
        value, names = self.field(body["key"])
        items = body["data"]
        items = self.firewall.sets[(*place[:2], items[1:])] if isinstance(items, str) else items["set"]
        for key, verdict in items:
            if _equals(value, key, names):
                kind, inner = next(iter(verdict.items()))
                return kind, inner
        raise NoFieldError

    def match(self, place: tuple[str, str, str], body: Json) -> bool:
        value, names = self.field(body["left"])
        right, op = body["right"], body["op"]
        if isinstance(right, str) and right.startswith("@"):
            right = {"set": self.firewall.sets[(*place[:2], right[1:])]}
        if isinstance(right, dict) and "set" in right:
            items = right["set"] if isinstance(right["set"], list) else [right["set"]]
            inside = any(_equals(value, item, names) for item in items)
            assert op in ("==", "in", "!="), op
            return bool(inside == (op != "!="))
        if op in ("in", "!") and names in (FLAGS, STATES):
            return bool(bool(int(value) & _number(right, names)) == (op == "in"))
        if op in ("<", ">", "<=", ">="):
            number = _number(right, names)
            return bool({"<": value < number, ">": value > number, "<=": value <= number, ">=": value >= number}[op])
        assert op in ("==", "!=", "in"), op
        return bool(_equals(value, right, names) == (op != "!="))

    def field(self, left: Json) -> tuple[Any, Mapping[str, int]]:
        """The packet's value of an expression, and the names that its values have."""
        kind, body = next(iter(left.items()))
        p, family = self.packet, self.firewall.family
        if kind == "&":
            value, names = self.field(body[0])
            return value & _number(body[1], names), names
        if kind == "ct" and body == {"key": "state"}:
            return STATES[self.state.lower()], STATES
        if kind == "meta":
            number = 58 if (p.protocol, family) == ("icmp", "ipv6") else PROTOCOLS[p.protocol]
            known = {"l4proto": (number, PROTOCOLS), "nfproto": (family, {}), "iifname": (p.interface, {}),
                     "oifname": (p.interface, {}), "iif": (p.interface, {})}  # fmt: skip
            return known[body["key"]]
        if kind == "exthdr":
            raise NoFieldError  # no packet of ours is a fragment
        assert kind == "payload", f"the model does not know {kind}"
        return self.payload(body["protocol"], body["field"])

    def payload(self, protocol: str, field: str) -> tuple[Any, Mapping[str, int]]:
        p, family = self.packet, self.firewall.family
        if protocol in ("ip", "ip6"):
            if (protocol == "ip") != (family == "ipv4") or field == "frag-off":
                raise NoFieldError
            if field in ("protocol", "nexthdr"):
                return (58 if (p.protocol, family) == ("icmp", "ipv6") else PROTOCOLS[p.protocol]), PROTOCOLS
            return ipaddress.ip_address(p.source if field == "saddr" else p.destination), {}
        if protocol in ("icmp", "icmpv6"):
            if p.protocol != "icmp" or (protocol == "icmp") != (family == "ipv4"):
                raise NoFieldError
            return p.icmp_type, TYPES[protocol]
        if p.protocol not in ("tcp", "udp") or protocol not in (p.protocol, "th"):
            raise NoFieldError
        values: dict[str, tuple[Any, Mapping[str, int]]] = {
            "sport": (p.sport, {}), "dport": (p.dport, {}), "flags": (p.flags, FLAGS)}  # fmt: skip
        return values[field]


def _equals(value: Any, item: Json, names: Mapping[str, int]) -> bool:
    if isinstance(item, dict):
        kind, body = next(iter(item.items()))
        if kind == "range":
            return bool(_plain(value, body[0]) <= value <= _plain(value, body[1]))
        if kind == "prefix":
            return value in ipaddress.ip_network(f"{body['addr']}/{body['len']}")
        if kind == "elem":
            return _equals(value, body["val"], names)
    if isinstance(item, str) and item not in names:
        return bool(value == _plain(value, item))
    return bool(value == _number(item, names))


def _plain(value: Any, item: Json) -> Any:
    return ipaddress.ip_address(item) if isinstance(value, (ipaddress.IPv4Address, ipaddress.IPv6Address)) else item


def _number(value: Json, names: Mapping[str, int]) -> int:
    if isinstance(value, (list, dict)):
        found = 0
        for item in value if isinstance(value, list) else value["|"]:
            found |= _number(item, names)
        return found
    return names[value] if isinstance(value, str) else int(value)
