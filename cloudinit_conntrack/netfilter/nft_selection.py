"""From "these parts of traffic, not those" to the shortest nft rules that say so.

The same decisions as :mod:`.selection` takes for iptables; nft can say more in one rule: a
set of ICMP types, of ports or of flags, and "every other protocol".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from .nft_match import Ranges, Test, common, field_ranges, merged, values_of
from .nft_ruleset import Json
from .parts import ALL_FLAGS, OTHER, TCP, UDP_REST, Part, icmp_parts
from .replies import Reply
from .selection import reply_part

FAMILIES = {"ip": ("ipv4",), "ip6": ("ipv6",), "inet": ("ipv4", "ipv6")}
NFPROTO = {"ipv4": 2, "ipv6": 10}
_PROTOCOL = {("tcp", ""): "tcp", ("udp", ""): "udp", ("icmp", "ipv4"): "icmp", ("icmp", "ipv6"): "ipv6-icmp"}
_NUMBER = {"tcp": 6, "udp": 17, "icmp": 1, "ipv6-icmp": 58}

Statement = Mapping[str, Json]


@dataclass(frozen=True)
class Kind:
    """Some packets: a part of traffic, of one family or (empty) of both."""

    family: str
    part: Part

    @property
    def protocol(self) -> str:
        """nft's name of the protocol; empty for "every other"."""
        return _PROTOCOL.get((self.part.group, self.family if self.part.group == "icmp" else ""), "")


@dataclass(frozen=True)
class Piece:
    """Matches to put in place of the state match, and the kinds of packets that they let through."""

    matches: tuple[Statement, ...]
    kinds: tuple[Kind, ...]


@dataclass(frozen=True)
class Selection:
    """What a rule shall match: *chosen* kinds.  *pieces* are ``None`` where the chosen ones have
    no match of their own; *around* are then the pieces that must go around the rule.
    *matched* and *missed* are the kinds that get to the rule, and do or do not match."""

    pieces: tuple[Piece, ...] | None
    around: tuple[Piece, ...] = ()
    chosen: tuple[Kind, ...] = ()
    matched: tuple[Kind, ...] = ()
    missed: tuple[Kind, ...] = ()


def kinds_for(
    families: tuple[str, ...], tests: tuple[Test, ...], replies: Iterable[tuple[str, Reply]]
) -> tuple[Kind, ...]:
    """The kinds of packets that a rule with *tests* can match at all, in a table of *families*."""
    asked = {test.field: ranges for test in tests if (ranges := field_ranges(tests, test.field)) is not None}
    found = [Kind("", part) for part in TCP]
    if "l4proto" not in asked or _inside(17, asked["l4proto"]):
        for family, reply in replies:
            if (not family or family in families) and _meets(reply, asked):
                # a table of one family needs no match of it
                found.append(Kind(family if len(families) > 1 else "", reply_part(reply)))
    found.append(Kind("", UDP_REST))
    found += [Kind(family, part) for family in families for part in icmp_parts(family)]
    found.append(Kind("", OTHER))
    flags = flags_of(tests)
    return tuple(kind for kind in found if _possible(kind, asked, flags))


def _possible(kind: Kind, asked: Mapping[str, Ranges], flags: frozenset[int]) -> bool:
    family, protocol = asked.get("nfproto"), asked.get("l4proto")
    wanted = [NFPROTO[kind.family]] if kind.family else list(NFPROTO.values())
    if family is not None and not any(_inside(number, family) for number in wanted):
        return False
    if protocol is not None and not _shares_protocol(kind, protocol):
        return False
    if kind.part.group == "tcp":
        return bool(kind.part.flags & flags)
    return kind.part.group != "icmp" or _icmp_possible(kind, asked)


def _inside(number: int, ranges: Ranges) -> bool:
    return any(first <= number <= last for first, last in ranges)


def _shares_protocol(kind: Kind, ranges: Ranges) -> bool:
    if kind.protocol:
        return _inside(_NUMBER[kind.protocol], ranges)
    return sum(last - first + 1 for first, last in ranges) > sum(_inside(n, ranges) for n in _NUMBER.values())


def flags_of(tests: tuple[Test, ...]) -> frozenset[int]:
    """The flag bytes (of 64) that *tests* can match, with whatever ECN bits."""
    ranges = field_ranges(tests, "flags")
    if ranges is None:
        return ALL_FLAGS
    return frozenset(byte & 63 for byte in range(256) if _inside(byte, ranges))


def _icmp_possible(kind: Kind, asked: Mapping[str, Ranges]) -> bool:
    ranges = asked.get("icmp" if kind.family == "ipv4" else "icmpv6")
    if ranges is None:
        return True
    if kind.part.icmp_type >= 0:
        return _inside(kind.part.icmp_type, ranges)
    listed = [part.icmp_type for part in icmp_parts(kind.family)[:-1]]
    return any(_inside(number, ranges) for number in range(256) if number not in listed)


def _meets(reply: Reply, asked: Mapping[str, Ranges]) -> bool:
    """Whether a packet can be *reply* and match what is *asked*."""
    return all(field not in asked or common(mine, asked[field]) for field, mine in _fields(reply))


@lru_cache(maxsize=100_000)
def _fields(reply: Reply) -> tuple[tuple[str, Ranges], ...]:
    found: list[tuple[str, Ranges]] = [("sport", (reply.sport,))]
    found += [("dport", (reply.dport,))] if reply.dport else []
    for side, text in (("saddr", reply.source), ("daddr", reply.destination)):
        for address in text.split(",") if text else ():
            field = f"{'ip6' if ':' in address else 'ip'} {side}"
            ranges = values_of(field, _address(address))
            found += [(field, ranges)] if ranges else []
    return tuple(found)


def _address(text: str) -> Json:
    address, slash, length = text.partition("/")
    return {"prefix": {"addr": address, "len": int(length)}} if slash else address


# --- choosing --------------------------------------------------------------------------


def select(
    kinds: tuple[Kind, ...], states: frozenset[str], decided: frozenset[Kind], accepts: bool, tests: tuple[Test, ...]
) -> Selection:
    """Choose pieces that match the *kinds* standing for *states* and no other one.

    Kinds in *decided* never get here, so they may go either way; and what may come in
    uninvited may come in invited (see :func:`.selection.select`).
    """
    chosen, refused = _sorted(kinds, states, decided, accepts, field_ranges(tests, "l4proto") is None)
    here = tuple(kind for kind in kinds if kind not in decided)
    if not chosen:
        return Selection((), missed=here)
    pieces = pieces_for(kinds, chosen, refused, tests)
    if pieces is None:
        around = pieces_for(kinds, refused, chosen, tests) or ()
        return Selection(None, around, chosen, tuple(k for k in here if k not in refused), refused)
    taken = {kind for piece in pieces for kind in piece.kinds}
    return Selection(pieces, (), chosen, tuple(k for k in here if k in taken), tuple(k for k in here if k not in taken))


def _sorted(
    kinds: tuple[Kind, ...], states: frozenset[str], decided: frozenset[Kind], accepts: bool, any_protocol: bool
) -> tuple[tuple[Kind, ...], tuple[Kind, ...]]:
    """The kinds that must match, and those that must not; the others do not matter."""
    open_door = accepts and "NEW" in states
    chosen: list[Kind] = []
    refused: list[Kind] = []
    for kind in kinds:
        part = kind.part
        if kind in decided or (part.group == "icmp" and part.name == "rest"):
            continue
        if part.state in states:
            chosen += [] if part.rare and accepts and not open_door else [kind]
        elif open_door and (part.reply is not None or (any_protocol and part.group == "icmp")):
            continue
        elif not (part.rare and accepts):
            refused.append(kind)
    return tuple(chosen), tuple(refused)


def pieces_for(
    kinds: tuple[Kind, ...], chosen: tuple[Kind, ...], refused: tuple[Kind, ...], tests: tuple[Test, ...]
) -> tuple[Piece, ...] | None:
    """Rules side by side, or ``None`` where "UDP but those replies" is asked."""
    if not refused:
        return (Piece((), kinds),)
    groups = _groups(kinds)
    mixed = {name for name in groups if _has(groups[name], chosen) and _has(groups[name], refused)}
    whole = [name for name in groups if name not in mixed and _has(groups[name], chosen)]
    if any(kind.part is UDP_REST for name in mixed for kind in groups[name] if kind in chosen):
        return None
    found: list[Piece] = []
    for name in (name for name in groups if name in mixed):
        found += _of_group(groups[name], chosen, refused, tests)
    if whole:
        found.append(_of_protocols(groups, whole, refused))
    return tuple(found)


def _groups(kinds: tuple[Kind, ...]) -> dict[str, tuple[Kind, ...]]:
    names = dict.fromkeys(kind.protocol for kind in kinds)
    return {name: tuple(kind for kind in kinds if kind.protocol == name) for name in names}


def _has(group: tuple[Kind, ...], wanted: tuple[Kind, ...]) -> bool:
    return any(kind in wanted for kind in group)


def _of_protocols(groups: dict[str, tuple[Kind, ...]], whole: list[str], refused: tuple[Kind, ...]) -> Piece:
    """One rule for whole protocols: those named, or all but those named."""
    if "" in whole:
        left_out = [name for name in groups if name not in whole and _has(groups[name], refused)]
        taken = tuple(kind for name in groups if name not in left_out for kind in groups[name])
        return Piece((protocol_match("!=", left_out),), taken)
    return Piece((protocol_match("==", whole),), tuple(kind for name in whole for kind in groups[name]))


def protocol_match(op: str, names: list[str]) -> Statement:
    """``meta l4proto`` (not) one of *names*."""
    ordered = sorted(names, key=lambda name: _NUMBER[name])
    return _match(op, {"meta": {"key": "l4proto"}}, ordered[0] if len(ordered) == 1 else {"set": ordered})


def _match(op: str, left: Json, right: Json) -> Statement:
    return {"match": {"op": op, "left": left, "right": right}}


def _payload(protocol: str, field: str) -> Json:
    return {"payload": {"protocol": protocol, "field": field}}


def _of_group(
    group: tuple[Kind, ...], chosen: tuple[Kind, ...], refused: tuple[Kind, ...], tests: tuple[Test, ...]
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
    mine = {**dict(_fields(one[1])), "sport": sports[one]}
    theirs = {**dict(_fields(two[1])), "sport": sports[two]}
    return all(field in mine and common(mine[field], ranges) == mine[field] for field, ranges in theirs.items())


def _reply(kind: Kind) -> Reply:
    assert kind.part.reply is not None
    return kind.part.reply


def _reply_matches(family: str, reply: Reply, sports: Ranges, tests: tuple[Test, ...]) -> tuple[Statement, ...]:
    """The matches of UDP replies, without those that the rule makes itself."""
    addresses = [field for field, _ in _fields(reply) if field.startswith("ip")]
    found: list[Statement] = []
    if family and not addresses and not _implied(tests, "nfproto", ((NFPROTO[family], NFPROTO[family]),)):
        found.append(_match("==", {"meta": {"key": "nfproto"}}, family))
    for side, text in (("saddr", reply.source), ("daddr", reply.destination)):
        if text:
            protocol = "ip6" if ":" in text else "ip"
            ranges = values_of(f"{protocol} {side}", _address(text))
            if ranges and not _implied(tests, f"{protocol} {side}", ranges):
                found.append(_match("==", _payload(protocol, side), _address(text)))
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
