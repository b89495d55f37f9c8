"""What depends on connection tracking in native nftables, in one place.

Each row names a statement, an expression key or an object of libnftables-json(5), the
kernel modules that carry it, why it needs conntrack and what to do instead.  Source:
``modules.dep`` of Debian's kernels; ``nft_ct.c`` (every key, ``notrack`` and the three
``ct`` objects), ``nft_connlimit.c`` (``ct count``), ``nft_flow_offload.c`` and
``nf_flow_table_core.c``, ``nft_synproxy.c``, ``nft_nat.c``, ``nft_masq.c``, ``nft_redir.c``,
``nft_chain_nat.c``; nft(8) for the names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .nft_ruleset import Entry, Json
from .stateful import MATCHES, NAT_TARGETS, STATES, TARGETS, Dependency, Extension

_PER_PACKET = "use a packet mark (meta mark) set by a rule that looks at each packet"
_RATE = "limit new connections by 'tcp flags & (fin | syn | rst | ack) == syn limit rate ...', or in haproxy"
_NAT = "let haproxy do it (bind another port, 'source'), or keep conntrack for it with 'mode: notrack'"
_HELPER = "remove the helper, or keep conntrack for it with 'mode: notrack'"
_PACKET = "match the packet's own addresses, ports and protocol (ip saddr, tcp dport, meta l4proto)"
_OWN_COUNT = "use a quota or a counter of the rule, or haproxy's own counters"
_TRACKING = "remove it: nothing is tracked any more"


def _row(name: str, modules: str, reason: str, remedy: str) -> Extension:
    return Extension(name, tuple(modules.split()), reason, remedy)


# ``{"ct": {"key": ...}}``, read or set.
KEYS: Mapping[str, Extension] = {
    key: _row(f"ct {key}", "nft_ct", reason, remedy)
    for keys, reason, remedy in (
        ("state", "matches the connection's state", ""),
        ("direction", "matches the connection's direction", "say which side's port or address it is"),
        ("status", "matches what conntrack did with the connection (NAT, assured, expected)", _PACKET),
        ("mark", "uses the connection's mark", _PER_PACKET),
        ("secmark", "uses the connection's security mark", "label packets by meta secmark alone"),
        ("label", "uses the connection's labels", _PER_PACKET),
        ("expiration", "asks how long the connection is still kept", _TRACKING),
        ("helper", "matches connections that a helper expects", _HELPER),
        ("zone", "uses conntrack zones", "separate by interface or address instead"),
        ("id", "matches the connection's id", _PACKET),
        ("event", "sets which conntrack events are sent", _TRACKING),
        ("l3proto|protocol|src|dst|saddr|daddr|proto-src|proto-dst|ip saddr|ip daddr|ip6 saddr|ip6 daddr",
         "matches the connection's addresses, ports or protocol", _PACKET),
        ("bytes|packets|avgpkt", "counts the connection's bytes or packets", _OWN_COUNT),
    )
    for key in keys.split("|")
}
UNKNOWN_KEY = _row("ct", "nft_ct", "asks something of the connection that we do not know", _PACKET)

STATEMENTS: Mapping[str, Extension] = {
    row.name: row
    for row in (
        _row("notrack", "nft_ct", "only says what is not tracked; it pins nf_conntrack", ""),
        _row("ct helper", "nft_ct", "gives the connection a helper", _HELPER),
        _row("ct timeout", "nft_ct nfnetlink_cttimeout", "sets the connection's timeouts", _TRACKING),
        _row("ct expectation", "nft_ct", "makes conntrack expect a connection", _HELPER),
        _row("ct count", "nft_connlimit nf_conncount", "counts connections", _RATE),
        _row("flow", "nft_flow_offload nf_flow_table", "offloads connections", "remove it and its flowtable"),
        _row("snat", "nft_nat nft_chain_nat nf_nat", "translates addresses", _NAT),
        _row("dnat", "nft_nat nft_chain_nat nf_nat", "translates addresses", _NAT),
        _row("masquerade", "nft_masq nft_chain_nat nf_nat", "translates addresses", _NAT),
        _row("redirect", "nft_redir nft_chain_nat nf_nat", "translates ports", "bind haproxy to the port itself"),
        _row("synproxy", "nft_synproxy nf_synproxy_core", "proxies handshakes", "set net.ipv4.tcp_syncookies=1"),
    )
}

OBJECTS: Mapping[str, Extension] = {
    row.name: row
    for row in (
        _row("ct helper", "nft_ct", "is a conntrack helper, which tracks everything", _HELPER),
        _row("ct timeout", "nft_ct nfnetlink_cttimeout", "holds conntrack timeouts", _TRACKING),
        _row("ct expectation", "nft_ct", "holds a conntrack expectation", _HELPER),
        _row("flowtable", "nf_flow_table nf_flow_table_inet", "offloads connections",
             "remove it and the rules that use it"),
        _row("synproxy", "nft_synproxy nf_synproxy_core", "proxies handshakes", "set net.ipv4.tcp_syncookies=1"),
    )
}
# nft before 1.0.6 lists every extension of iptables as ``{"xt": null}``.
NAMELESS = _row("xt", "nft_compat", "uses an iptables extension that this nft does not name",
                "list the rules with a newer nft, or take what iptables-save prints")
NAT_CHAIN = _row("nat chain", "nft_chain_nat nf_nat", "is a chain of type nat, which is a part of conntrack", _NAT)
NAT_STATEMENTS = frozenset(("snat", "dnat", "masquerade", "redirect"))

# Statements that look at one packet or keep lists of their own, and link to nothing of conntrack.
INDEPENDENT = frozenset(
    """
    match vmap accept drop return continue jump goto counter quota limit log reject mangle set map meter queue dup fwd
    tproxy secmark last reset comment
    """.split()
)
# Expressions of the same kind.
INDEPENDENT_EXPRESSIONS = frozenset(
    ("payload", "exthdr", "tcp option", "ip option", "sctp chunk", "dccp option", "meta", "rt", "fib", "socket", "osf",
     "ipsec", "numgen", "jhash", "symhash", "map", "set", "elem", "range", "prefix", "concat", "tunnel",
     "|", "&", "^", "<<", ">>")
)
STATE_BITS = {"INVALID": 1, "ESTABLISHED": 2, "RELATED": 4, "NEW": 8, "UNTRACKED": 64}
_ALL_STATES = frozenset(STATES)


def dependency(entry: Entry) -> Dependency | None:
    """Why *entry* depends on conntrack, the gravest reason first; ``None`` when it does not.

    *kind* of the result is ``state`` (can be rewritten), ``notrack``, ``nat`` or ``other``.
    """
    if entry.kind in OBJECTS:
        return Dependency("other", OBJECTS[entry.kind])
    if entry.base is not None and entry.base.kind == "nat":
        return Dependency("nat", NAT_CHAIN)
    if entry.kind not in ("rule", "set", "map", "element"):
        return None
    found = list(_dependencies(entry))
    for kind in ("nat", "other", "state", "notrack"):
        for one in found:
            if one.kind == kind:
                return one
    return None


def dependencies_of(entry: Entry) -> tuple[Dependency, ...]:
    """Every single use of conntrack in *entry*: each holds a module once."""
    if entry.kind in OBJECTS or (entry.base is not None and entry.base.kind == "nat"):
        return tuple(filter(None, [dependency(entry)]))
    return tuple(_dependencies(entry)) if entry.kind in ("rule", "set", "map", "element") else ()


def _dependencies(entry: Entry) -> Iterator[Dependency]:
    values = entry.statements if entry.kind == "rule" else (entry.body.get("stmt"), entry.body.get("elem"))
    for key, body in (pair for value in values for pair in _keys(value)):
        if key in STATEMENTS:
            kind = "nat" if key in NAT_STATEMENTS else ("notrack" if key == "notrack" else "other")
            yield Dependency(kind, STATEMENTS[key])
        elif key == "ct":
            name = str(body.get("key", "")) if isinstance(body, dict) else ""
            yield Dependency("state" if name == "state" else "other", KEYS.get(name, UNKNOWN_KEY))
        elif key == "xt":
            yield from _of_xt(body)


def _of_xt(body: Json) -> Iterator[Dependency]:
    """An expression of iptables-nft, which nft can only name."""
    name = str(body.get("name") or "") if isinstance(body, dict) else ""
    if not name:
        yield Dependency("other", NAMELESS)
    row = (TARGETS if isinstance(body, dict) and body.get("type") == "target" else MATCHES).get(name)
    if row is not None:
        yield Dependency("nat" if name in NAT_TARGETS else "other", row)


def _keys(value: Json) -> Iterator[tuple[str, Json]]:
    """Every (key, value) of every object in *value*."""
    if isinstance(value, list):
        for item in value:
            yield from _keys(item)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from _keys(inner)


def is_state(expression: Json) -> bool:
    """Whether *expression* is ``ct state``."""
    return isinstance(expression, dict) and expression.get("ct") == {"key": "state"}


def asks_state(statement: Mapping[str, Json]) -> bool:
    """Whether *statement* is a match or a verdict map that reads ``ct`` anything."""
    return any(key == "ct" for key, _ in _keys(statement))


def states_of(match: Json, members: tuple[Json, ...] | None = None) -> frozenset[str] | None:
    """The states for which a match of ``ct state`` holds; ``None`` where it is no such match.

    *members* are the elements of the named set on its right, if there is one.  A packet has
    one state, so its value has one bit: ``==`` with two bits never holds, ``!=`` always.
    """
    op, left, right = match["op"], match["left"], match["right"]
    mask = 0xFF
    if isinstance(left, dict) and "&" in left and isinstance(left["&"], list) and len(left["&"]) == 2:
        left, bits = left["&"]
        if not is_state(left) or (bits_of := _bits(bits)) is None:
            return None
        mask = bits_of
    if not is_state(left):
        return None
    if members is not None or (isinstance(right, dict) and "set" in right):
        return _of_set(op, mask, right["set"] if members is None else list(members))
    value = _bits(right)
    if value is None:
        return None
    tests = {"==": lambda bit: bit & mask == value, "!=": lambda bit: bit & mask != value,
             "in": lambda bit: bit & mask & value != 0, "!": lambda bit: bit & mask & value == 0}
    return frozenset(s for s, bit in STATE_BITS.items() if tests[op](bit)) if op in tests else None


def _of_set(op: str, mask: int, items: Json) -> frozenset[str] | None:
    values = [_bits(item) for item in (items if isinstance(items, list) else [items])]
    if None in values or op not in ("==", "in", "!="):
        return None
    inside = frozenset(state for state, bit in STATE_BITS.items() if bit & mask in values)
    return _ALL_STATES - inside if op == "!=" else inside


def _bits(value: Json) -> int | None:
    """A value of ``ct state`` as bits: a name, a number, a list or ``|`` of them, an element of a set."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, str):
        return STATE_BITS.get(value.upper())
    if isinstance(value, dict) and len(value) == 1:
        kind, body = next(iter(value.items()))
        if kind == "elem" and isinstance(body, dict) and set(body) <= {"val", "comment"}:
            return _bits(body.get("val"))
        value = body if kind == "|" else None
    if not isinstance(value, list):
        return None
    parts = [_bits(item) for item in value]
    found = 0
    for part in parts:
        if part is None:
            return None
        found |= part
    return found


def states_of_key(key: Json) -> frozenset[str] | None:
    """The state that a key of a ``ct state`` map names."""
    value = _bits(key)
    return None if value is None else frozenset(state for state, bit in STATE_BITS.items() if bit == value)


# --- tables that iptables-nft owns -----------------------------------------------------

_PRIORITIES = {"raw": -300, "mangle": -150, "filter": 0, "security": 50}
_NAT_PRIORITIES = {"prerouting": -100, "input": 100, "output": -100, "postrouting": 100}


def owned_by_iptables(entries: tuple[Entry, ...], table: tuple[str, str]) -> bool:
    """Whether iptables-nft made *table*, whose chains and rules are *entries*.

    It is so where a rule holds an ``xt`` expression, and where a table of iptables' name has
    iptables' chains only and no native statement that needs conntrack: iptables up to
    1.8.11 writes those as ``xt``.
    """
    rules = [entry for entry in entries if entry.kind == "rule"]
    if any(key == "xt" for rule in rules for statement in rule.statements for key in statement):
        return True
    family, name = table
    chains = [entry for entry in entries if entry.base is not None]
    if family not in ("ip", "ip6") or not chains or not all(_is_iptables_chain(name, chain) for chain in chains):
        return False
    return not any(dependency(rule) for rule in rules)


def _is_iptables_chain(table: str, chain: Entry) -> bool:
    base = chain.base
    if base is None or chain.place[2] != base.hook.upper():
        return False
    wanted = _NAT_PRIORITIES.get(base.hook) if table == "nat" else _PRIORITIES.get(table)
    return base.priority == wanted
