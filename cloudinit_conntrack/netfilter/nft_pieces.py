"""The shortest nft rules for some kinds of packets and not for others.

nft can say more in one rule than iptables: a set of ICMP types, of ports or of flags, and
"every other protocol".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .nft_kinds import NFPROTO, NUMBERS, Kind, Statement, address_value, reply_fields
from .nft_match import Test, field_ranges
from .nft_ruleset import Json
from .nft_values import Ranges, common, merged, values_of
from .parts import TCP, UDP_REST
from .replies import Reply


@dataclass(frozen=True)
class Piece:
    """Matches to put in place of the state match, and the kinds of packets that they let through."""

    matches: tuple[Statement, ...]
    kinds: tuple[Kind, ...]


def pieces_for(
    kinds: tuple[Kind, ...], chosen: tuple[Kind, ...], refused: tuple[Kind, ...], tests: tuple[Test, ...]
) -> tuple[Piece, ...] | None:
    """Rules side by side, or ``None`` where "UDP but those replies" is asked."""
    if not refused:
        return (Piece((), kinds),)
    groups = _groups(kinds)
    wanted, unwanted = frozenset(chosen), frozenset(refused)
    mixed = {name for name in groups if _has(groups[name], wanted) and _has(groups[name], unwanted)}
    whole = [name for name in groups if name not in mixed and _has(groups[name], wanted)]
    if any(kind.part is UDP_REST for name in mixed for kind in groups[name] if kind in wanted):
        return None
    found: list[Piece] = []
    for name in (name for name in groups if name in mixed):
        found += _of_group(groups[name], wanted, unwanted, tests)
    if whole:
        found.append(_of_protocols(groups, whole, unwanted))
    return tuple(found)


def _groups(kinds: tuple[Kind, ...]) -> dict[str, tuple[Kind, ...]]:
    found: dict[str, list[Kind]] = {}
    for kind in kinds:
        found.setdefault(kind.protocol, []).append(kind)
    return {name: tuple(group) for name, group in found.items()}


def _has(group: tuple[Kind, ...], wanted: frozenset[Kind]) -> bool:
    return any(kind in wanted for kind in group)


def _of_protocols(groups: dict[str, tuple[Kind, ...]], whole: list[str], refused: frozenset[Kind]) -> Piece:
    """One rule for whole protocols: those named, or all but those named."""
    if "" in whole:
        left_out = [name for name in groups if name not in whole and _has(groups[name], refused)]
        taken = tuple(kind for name in groups if name not in left_out for kind in groups[name])
        return Piece((protocol_match("!=", left_out),), taken)
    return Piece((protocol_match("==", whole),), tuple(kind for name in whole for kind in groups[name]))


def protocol_match(op: str, names: list[str]) -> Statement:
    """``meta l4proto`` (not) one of *names*."""
    ordered = sorted(names, key=lambda name: NUMBERS[name])
    return _match(op, {"meta": {"key": "l4proto"}}, ordered[0] if len(ordered) == 1 else {"set": ordered})


def _match(op: str, left: Json, right: Json) -> Statement:
    return {"match": {"op": op, "left": left, "right": right}}


def _payload(protocol: str, field: str) -> Json:
    return {"payload": {"protocol": protocol, "field": field}}


def _of_group(
    group: tuple[Kind, ...], chosen: frozenset[Kind], refused: frozenset[Kind], tests: tuple[Test, ...]
) -> list[Piece]:
    """Rules for some kinds of one protocol."""
    mine = tuple(kind for kind in group if kind in chosen)
    if group[0].part.group == "tcp":
        return [Piece((flags_match(mine, tuple(kind for kind in group if kind in refused)),), mine)]
    if group[0].part.group == "icmp":
        return [Piece((_types_match(mine),), mine)]
    return reply_pieces(mine, tests)


def _types_match(kinds: tuple[Kind, ...]) -> Statement:
    protocol = "icmp" if kinds[0].family == "ipv4" else "icmpv6"
    numbers: list[Json] = [_TYPE_NAMES[protocol].get(k.part.icmp_type, k.part.icmp_type) for k in _by_type(kinds)]
    return _match("==", _payload(protocol, "type"), numbers[0] if len(numbers) == 1 else {"set": numbers})


def _by_type(kinds: tuple[Kind, ...]) -> list[Kind]:
    return sorted((kind for kind in kinds if kind.part.icmp_type >= 0), key=lambda kind: kind.part.icmp_type)


# nft's own names (icmp_type_tbl, icmp6_type_tbl in its datatype.c); a number where it knows none.
_TYPE_NAMES: Mapping[str, Mapping[int, str]] = {
    "icmp": {0: "echo-reply", 3: "destination-unreachable", 8: "echo-request", 11: "time-exceeded",
             12: "parameter-problem", 13: "timestamp-request", 14: "timestamp-reply", 15: "info-request",
             16: "info-reply", 17: "address-mask-request", 18: "address-mask-reply"},
    "icmpv6": {1: "destination-unreachable", 2: "packet-too-big", 3: "time-exceeded", 4: "parameter-problem",
               128: "echo-request", 129: "echo-reply", 130: "mld-listener-query", 131: "mld-listener-report",
               132: "mld-listener-done", 133: "nd-router-solicit", 134: "nd-router-advert", 135: "nd-neighbor-solicit",
               136: "nd-neighbor-advert", 143: "mld2-listener-report"},
}

_DECIDING = ("fin", "syn", "rst", "ack")
# The flag bytes of each part, FIN, SYN, RST and ACK alone.
_BYTES: Mapping[str, tuple[int, ...]] = {part.name: tuple(sorted({byte & 23 for byte in part.flags})) for part in TCP}
_FLAG_NAMES = {1: "fin", 2: "syn", 4: "rst", 16: "ack"}


def flags_match(kinds: tuple[Kind, ...], refused: tuple[Kind, ...]) -> Statement:
    """The TCP segments of *kinds* and not of *refused*, in one match; what is in neither may match or not."""
    names = {kind.part.name for kind in kinds}
    flags = _payload("tcp", "flags")
    if names == {"ack", "rst"}:
        return _match("in", flags, ["rst", "ack"])
    if names == {"ack"}:
        return _match("in", flags, "ack")
    masked = {"&": [flags, _either(_DECIDING)]}
    inside = sorted(byte for name in names for byte in _BYTES[name])
    outside = sorted(byte for kind in refused for byte in _BYTES[kind.part.name])
    values, op = (outside, "!=") if len(outside) < len(inside) and len(inside) > 4 else (inside, "==")
    listed = [_either(tuple(n for bit, n in _FLAG_NAMES.items() if byte & bit)) for byte in values]
    return _match(op, masked, listed[0] if len(listed) == 1 else {"set": listed})


def _either(names: tuple[str, ...]) -> Json:
    """Flags joined by ``|``, two by two as nft before 1.1 reads them; 0 for none."""
    if not names:
        return 0
    return names[0] if len(names) == 1 else {"|": [_either(names[:-1]), names[-1]]}


# --- UDP replies -----------------------------------------------------------------------


def reply_pieces(kinds: tuple[Kind, ...], tests: tuple[Test, ...]) -> list[Piece]:
    """Rules for UDP replies: those that differ in the port they come from alone share one."""
    shared: dict[tuple[str, Reply], list[Kind]] = {}
    for kind in kinds:
        reply = _reply(kind)
        key = kind.family, Reply((0, 0), reply.dport, reply.source, reply.destination)
        shared.setdefault(key, []).append(kind)
    sports = {key: merged(_reply(kind).sport for kind in alike) for key, alike in shared.items()}
    covered = _covered(sports) if len(sports) <= _MOST_COMPARED else {}
    for key, wider in covered.items():
        shared[wider] += shared.pop(key)
    return [Piece(_reply_matches(*key, sports[key], tests), tuple(alike)) for key, alike in shared.items()]


_MOST_COMPARED = 200


def _covered(sports: Mapping[tuple[str, Reply], Ranges]) -> dict[tuple[str, Reply], tuple[str, Reply]]:
    """The replies whose packets are all of another one's, with that one; of equal ones the first stays."""
    found: dict[tuple[str, Reply], tuple[str, Reply]] = {}
    for key in sports:
        wider = next((o for o in sports if o != key and o not in found and _within(key, o, sports)), None)
        if wider is not None:
            found[key] = wider
    return found


def _within(
    one: tuple[str, Reply], two: tuple[str, Reply], sports: Mapping[tuple[str, Reply], Ranges]
) -> bool:
    if two[0] not in ("", one[0]):
        return False
    mine = {**dict(reply_fields(one[1])), "sport": sports[one]}
    theirs = {**dict(reply_fields(two[1])), "sport": sports[two]}
    return all(field in mine and common(mine[field], ranges) == mine[field] for field, ranges in theirs.items())


def _reply(kind: Kind) -> Reply:
    assert kind.part.reply is not None
    return kind.part.reply


def _reply_matches(family: str, reply: Reply, sports: Ranges, tests: tuple[Test, ...]) -> tuple[Statement, ...]:
    """The matches of UDP replies, without those that the rule makes itself."""
    addresses = [field for field, _ in reply_fields(reply) if field.startswith("ip")]
    found: list[Statement] = []
    if family and not addresses and not _implied(tests, "nfproto", ((NFPROTO[family], NFPROTO[family]),)):
        found.append(_match("==", {"meta": {"key": "nfproto"}}, family))
    for side, text in (("saddr", reply.source), ("daddr", reply.destination)):
        if text:
            protocol = "ip6" if ":" in text else "ip"
            ranges = values_of(f"{protocol} {side}", address_value(text))
            if ranges and not _implied(tests, f"{protocol} {side}", ranges):
                found.append(_match("==", _payload(protocol, side), address_value(text)))
    for field, ranges in (("sport", sports), ("dport", (reply.dport,) if reply.dport else ())):
        if ranges and not _implied(tests, field, ranges):
            found.append(_match("==", _payload("udp", field), _ports(ranges)))
    said = any(_payload("udp", field) == one["match"]["left"] for one in found for field in ("sport", "dport"))
    if not said and not _implied(tests, "l4proto", ((17, 17),)):
        found.append(protocol_match("==", ["udp"]))
    return tuple(found)


def _implied(tests: tuple[Test, ...], field: str, ranges: Ranges) -> bool:
    mine = field_ranges(tests, field)
    return mine is not None and common(mine, ranges) == mine


def _ports(ranges: Ranges) -> Json:
    """Port ranges as nft writes them."""
    listed: list[Json] = [first if first == last else {"range": [first, last]} for first, last in ranges]
    return listed[0] if len(listed) == 1 else {"set": listed}
