"""From "these parts of traffic, not those" to the shortest rules that say so."""

from __future__ import annotations

from dataclasses import dataclass

from .parts import OTHER, TCP, UDP_REST, Part, flag_matches, flags_of, groups_of, icmp_parts, icmp_type_of
from .replies import Reply, narrowed, no_reply
from .ruleset import Rule

# Targets that end a packet's way through the table.
FINAL = frozenset(("ACCEPT", "DROP", "REJECT"))
# Matches that keep a count of their own: split into several rules they would count several times.
COUNTING = frozenset(("limit", "quota", "quota2", "statistic", "hashlimit", "nfacct", "rateest"))
PROTOCOL_OF_ICMP = {"ipv4": "icmp", "ipv6": "ipv6-icmp"}
MATCH_OF_ICMP = {"ipv4": "icmp", "ipv6": "icmp6"}


@dataclass(frozen=True)
class Piece:
    """One rule to write: the original with this protocol and these matches added."""

    protocol: str
    matches: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Selection:
    """What a rule shall match: *chosen* parts.  *matched* are those that it does match, with
    what goes along; *missed* are those that get to it and are not matched.

    ``beside``: *pieces* are the rules to write, side by side.  ``shared``: the same, but one
    rule must serve them all, since it counts.  ``around``: *pieces* are what must go around
    the rule, because what is chosen has no match of its own ("every other protocol").
    """

    form: str
    pieces: tuple[Piece, ...]
    chosen: tuple[Part, ...] = ()
    matched: tuple[Part, ...] = ()
    missed: tuple[Part, ...] = ()


def parts_for(rule: Rule, family: str, replies: tuple[Reply, ...]) -> tuple[Part, ...]:
    """The parts of traffic that *rule* can match at all, its state match aside."""
    found: list[Part] = []
    groups = groups_of(rule, family)
    if "tcp" in groups:
        allowed = flags_of(rule)
        found += [part for part in TCP if part.flags & allowed]
    if "udp" in groups:
        found += [reply_part(r) for r in replies if narrowed(rule, r) is not None] + [UDP_REST]
    if "icmp" in groups:
        wanted = icmp_type_of(rule, family)
        listed = icmp_parts(family)
        own = [part for part in listed if wanted is None or part.icmp_type == wanted]
        found += own or [listed[-1]]
    if "other" in groups:
        found.append(OTHER)
    return tuple(found)


# Options that say where a packet comes from or goes to: of no account here, but to UDP replies.
_PLACES = frozenset(("-A", "-s", "-d", "-i", "-o", "--sport", "--dport", "--sports", "--dports", "--comment"))


def shape(rule: Rule) -> tuple[tuple[str, tuple[str, ...], bool], ...]:
    """What :func:`parts_for` and :func:`select` look at in *rule*, where places do not matter."""
    return tuple([(o.name, o.args, o.negated) for o in rule.options if o.name not in _PLACES])


def alike(rule: Rule, states: frozenset[str], replies: bool) -> bool:
    """Whether :func:`select` answers the same for every rule that differs from *rule* in places only.

    Not where the rule may match UDP *replies* and they matter: to an ACCEPT of what is new they do not.
    """
    protocol = rule.first("-p")
    if not replies or (protocol is not None and not protocol.negated
                       and protocol.value in ("tcp", "icmp", "ipv6-icmp")):
        return True
    return rule.target == "ACCEPT" and "NEW" in states and "ESTABLISHED" not in states


def reply_part(reply: Reply) -> Part:
    """UDP replies as a part of traffic."""
    name = f"{reply.addresses} {reply.options}".strip()
    return Part("udp", name, "ESTABLISHED", reply.options, reply.meaning, reply=reply)


def select(
    rule: Rule,
    family: str,
    parts: tuple[Part, ...],
    states: frozenset[str],
    decided: frozenset[str],
    listed: bool = False,
) -> Selection:
    """Choose rules that match the *parts* standing for *states* and no other part.

    Parts named in *decided* never get here, so they may go either way.  An ACCEPT of new
    traffic of every protocol also takes ICMP of every type, and UDP replies with it: what
    may come in uninvited may come in invited.
    """
    accepts = rule.target == "ACCEPT"
    chosen, refused = _sort(rule, parts, states, decided, accepts)
    here = tuple(part for part in parts if part.name not in decided)
    if not chosen:
        return Selection("beside", (), missed=here)
    pieces = _pieces(rule, family, parts, chosen, refused, listed)
    if pieces is None:
        around = tuple(p for group in _groups(refused) for p in _listed(rule, family, group))
        return Selection("around", around, chosen, _without(here, frozenset(refused)), refused)
    # what a RETURN counts is not worth a block: each of the rules counts for itself then
    counting = len(pieces) > 1 and rule.target != "RETURN" and any(name in COUNTING for name in rule.matches)
    named = frozenset(part for piece in pieces for part in piece.parts)
    whole = frozenset(piece.protocol for piece in pieces if not piece.matches)
    missed = _without(here, named | frozenset(p for p in here if _whole(p, whole, family)))
    matched = _without(here, frozenset(missed))
    return Selection("shared" if counting else "beside", pieces, chosen, matched, missed)


def _whole(part: Part, protocols: frozenset[str], family: str) -> bool:
    """Whether pieces of these whole *protocols* (empty: every one) match *part*."""
    return bool({"", _protocol(part.group, family)} & protocols) or ("! tcp" in protocols and part.group != "tcp")


def _without(parts: tuple[Part, ...], others: frozenset[Part]) -> tuple[Part, ...]:
    return tuple(part for part in parts if part not in others)


def _sort(
    rule: Rule, parts: tuple[Part, ...], states: frozenset[str], decided: frozenset[str], accepts: bool
) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    """The parts that must match, and those that must not; the others do not matter."""
    open_door = accepts and "NEW" in states
    wide = open_door and rule.first("-p") is None
    chosen: list[Part] = []
    refused: list[Part] = []
    for part in parts:
        if part.name in decided or (part.group == "icmp" and part.name == "rest"):
            continue
        reply = part.group == "udp" and part.state == "ESTABLISHED"
        if part.state in states:
            chosen += [] if part.rare and accepts and not open_door else [part]
        elif (open_door and reply) or (wide and part.group == "icmp"):
            continue
        elif not (part.rare and (accepts or (part.state == "RELATED" and "INVALID" in states))):
            refused.append(part)  # a rare error is mostly forged, and INVALID then: it may go along
    return tuple(chosen), tuple(refused)


def _groups(parts: tuple[Part, ...]) -> list[tuple[Part, ...]]:
    names = dict.fromkeys(part.group for part in parts)
    return [tuple(p for p in parts if p.group == name) for name in names]


def _pieces(
    rule: Rule, family: str, parts: tuple[Part, ...], chosen: tuple[Part, ...], refused: tuple[Part, ...], listed: bool
) -> tuple[Piece, ...] | None:
    """Rules side by side, or ``None`` where the rest of a group cannot be told apart."""
    if not refused:
        return (Piece("", "", chosen),)
    present = {part.group for part in parts}
    whole = {part.group for part in chosen} - {part.group for part in refused}
    asked = present - _undecided(parts, chosen, refused)
    if rule.first("-p") is None and "other" in whole and "tcp" in present and whole | {"tcp"} >= asked:
        rest = tuple(p for p in chosen if p.group != "tcp")
        tcp = tuple(p for p in chosen if p.group == "tcp")
        return (*_listed(rule, family, tcp), Piece("! tcp", "", rest))
    if "other" in whole and present != {"other"}:
        return None
    found: list[Piece] = []
    for group in _groups(chosen):
        if group[0].group in whole:
            found.append(Piece(_protocol(group[0].group, family), "", group))
        elif listed and group == (UDP_REST,) and (others := no_reply(_replies_in(refused))) is not None:
            found.extend(Piece("udp", matches, group) for matches in others)
        elif any(not part.options for part in group):
            return None
        else:
            found.extend(_listed(rule, family, group))
    return tuple(found)


def _replies_in(parts: tuple[Part, ...]) -> tuple[Reply, ...]:
    return tuple(part.reply for part in parts if part.reply is not None)


def _undecided(parts: tuple[Part, ...], chosen: tuple[Part, ...], refused: tuple[Part, ...]) -> frozenset[str]:
    """Groups of which nothing matters."""
    return frozenset(p.group for p in parts) - frozenset(p.group for p in chosen + refused)


def _protocol(group: str, family: str) -> str:
    return PROTOCOL_OF_ICMP[family] if group == "icmp" else ("" if group == "other" else group)


def _listed(rule: Rule, family: str, parts: tuple[Part, ...]) -> tuple[Piece, ...]:
    """One piece for each part of a single group."""
    found: list[Piece] = []
    for part in parts:
        protocol = _protocol(part.group, family)
        found += [Piece(protocol, matches, (part,)) for matches in _matches(rule, family, part)]
    return tuple(found)


def _matches(rule: Rule, family: str, part: Part) -> tuple[str, ...]:
    if part.group == "tcp":
        allowed = flags_of(rule)
        if allowed <= part.flags:
            return ("",)
        return tuple(f"-m tcp --tcp-flags {mask} {value}" for mask, value in flag_matches(allowed & part.flags))
    if part.group == "icmp":
        known = icmp_type_of(rule, family) == part.icmp_type
        return ("" if known or not part.options else f"-m {MATCH_OF_ICMP[family]} {part.options}",)
    return (narrowed(rule, part.reply) or "",) if part.reply else ("",)


def settles(rule: Rule) -> bool:
    """Whether *rule* has no condition but protocol, state and comment: only such a rule settles anything."""
    plain = ("-A", "-p", "-m", "--comment", "--state", "--ctstate", "-j", "--reject-with")
    if rule.target not in FINAL:
        return False
    for option in rule.options:
        if option.name not in plain:
            return False
    return all(m in ("state", "conntrack", "comment", "tcp", "udp", "icmp", "icmp6", "icmpv6") for m in rule.matches)


def settled(rule: Rule, parts: tuple[Part, ...], states: frozenset[str] | None) -> frozenset[str]:
    """Names of the parts that end at *rule*, so that no later rule of the chain sees them."""
    if not settles(rule):
        return frozenset()
    if any(o.name == "-p" and (o.negated or parts == (OTHER,)) for o in rule.options):
        return frozenset()
    return frozenset(p.name for p in parts if states is None or p.state in states)
