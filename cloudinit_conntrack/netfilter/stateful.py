"""What depends on connection tracking, in one place.

Each row names an iptables extension, the kernel modules that carry it, why it needs
conntrack and what to do instead.  Source: ``modules.dep`` of Debian's 5.10, 6.1, 6.12 and
7.2 kernels, and the Kconfig of net/netfilter ("depends on NF_CONNTRACK") for the older
eras; ``xt_state`` is served by ``xt_conntrack`` since iptables 1.4.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from .ruleset import Line, Rule


@dataclass(frozen=True)
class Extension:
    """One match or target that needs conntrack."""

    name: str
    modules: tuple[str, ...]
    reason: str
    remedy: str


@dataclass(frozen=True)
class Dependency:
    """Why one rule depends on conntrack.  *kind* is ``state``, ``notrack``, ``nat`` or ``other``."""

    kind: str
    extension: Extension


def _row(name: str, modules: str, reason: str, remedy: str) -> Extension:
    return Extension(name, tuple(modules.split()), reason, remedy)


_PER_PACKET = "use a packet mark (-m mark, -j MARK) set by a rule that looks at each packet"
_RATE = ("limit new connections: '-p tcp --syn -m hashlimit --hashlimit-above 20/sec --hashlimit-mode srcip "
         "--hashlimit-name web', or by a stick-table in haproxy")
_NAT = ("let haproxy do it (bind another port, 'source'), take it out with 'rules.nat: remove', "
        "or keep conntrack for it with 'mode: notrack'")
_HELPER = "remove the helper, or keep conntrack for it with 'mode: notrack'"

MATCHES: Mapping[str, Extension] = {
    row.name: row
    for row in (
        _row("state", "xt_conntrack xt_state ipt_state", "matches the connection's state", ""),
        _row("conntrack", "xt_conntrack ipt_conntrack", "matches the connection's state", ""),
        _row("connmark", "xt_connmark ipt_connmark", "matches the connection's mark", _PER_PACKET),
        _row("connbytes", "xt_connbytes", "counts a connection's bytes",
             "haproxy counts and limits bytes for each connection; for a rule as a whole use -m quota"),
        _row("connlabel", "xt_connlabel", "matches a connection's label", _PER_PACKET),
        _row("connlimit", "xt_connlimit nf_conncount", "counts a source's connections", _RATE),
        _row("helper", "xt_helper", "matches connections that a helper expects", _HELPER),
        _row("cluster", "xt_cluster", "hashes a connection's source", "balance in front of this host"),
        _row("ipvs", "xt_ipvs", "matches IPVS connections, which need conntrack here", "let haproxy balance"),
        _row("layer7", "xt_layer7 ipt_layer7", "inspects a connection's stream", "inspect in haproxy"),
        _row("connrate", "xt_connrate", "measures a connection's rate", _RATE),
    )
}

TARGETS: Mapping[str, Extension] = {
    row.name: row
    for row in (
        _row("CT", "xt_CT", "sets up tracking (zone, helper, timeout)",
             "remove it, since nothing is tracked any more, or keep conntrack for it with 'mode: notrack'"),
        _row("NOTRACK", "xt_CT xt_NOTRACK", "only says what is not tracked; it pins nf_conntrack", ""),
        _row("CONNMARK", "xt_connmark xt_CONNMARK", "marks the connection", _PER_PACKET),
        _row("CONNSECMARK", "xt_CONNSECMARK", "labels the connection", "label packets by SECMARK alone"),
        _row("SNAT", "xt_nat iptable_nat ip6table_nat nft_chain_nat nf_nat", "translates addresses", _NAT),
        _row("DNAT", "xt_nat iptable_nat ip6table_nat nft_chain_nat nf_nat", "translates addresses", _NAT),
        _row("MASQUERADE", "xt_MASQUERADE ipt_MASQUERADE ip6t_MASQUERADE nf_nat", "translates addresses", _NAT),
        _row("REDIRECT", "xt_REDIRECT ipt_REDIRECT nf_nat", "translates ports", "bind haproxy to the port itself"),
        _row("NETMAP", "xt_NETMAP ipt_NETMAP nf_nat", "translates addresses", _NAT),
        _row("SAME", "ipt_SAME ip_nat", "translates addresses", _NAT),
        _row("CLUSTERIP", "ipt_CLUSTERIP", "shares an address by connection", "use keepalived or an anycast route"),
        _row("SYNPROXY", "ipt_SYNPROXY ip6t_SYNPROXY nf_synproxy_core", "proxies handshakes",
             "set net.ipv4.tcp_syncookies=1"),
        _row("FLOWOFFLOAD", "xt_FLOWOFFLOAD nf_flow_table", "offloads connections",
             "remove it: it only makes forwarding faster"),
    )
}

# Extensions that look at one packet (or keep lists of their own) and link to nothing of
# conntrack.  xt_socket needs it on RHEL 6 only, whose Python is too old for us.
INDEPENDENT: frozenset[str] = frozenset(
    """
    addrtype ah bpf cgroup comment condition cpu dccp devgroup dscp dst ecn eui64 esp frag geoip hashlimit hbh hl
    icmp icmp6 icmpv6 iface ipcomp iprange ipv4options ipv6header l2tp length length2 limit lscan mac mark mh multiport
    nfacct osf owner physdev pkttype policy psd quota quota2 rateest realm recent rpfilter rt sctp set socket srh
    standard statistic string tcp tcpmss time tos ttl u32 udp udplite unclean
    ACCEPT ACCOUNT AUDIT CHECKSUM CHAOS CLASSIFY DELUDE DHCPMAC DNPT DROP DSCP ECHO ECN HL HMARK IDLETIMER IPMARK
    LED LOG LOGMARK MARK MIRROR NFLOG NFQUEUE PROTO QUEUE RATEEST RECENT REJECT RETURN SECMARK SET SNPT STEAL SYSRQ
    TARPIT TCPMSS TCPOPTSTRIP TEE TOS TPROXY TRACE TTL ULOG
    """.split()
)

NAT_TABLE = _row("nat", "iptable_nat nf_nat", "stands in the nat table, which is a part of conntrack", _NAT)
NAT_TARGETS = frozenset(("SNAT", "DNAT", "MASQUERADE", "REDIRECT", "NETMAP", "SAME"))
STATE_OPTIONS = ("--state", "--ctstate")
STATES = ("NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED")


def is_notrack(rule: Rule) -> bool:
    """Whether *rule* only exempts packets from tracking (``NOTRACK``, ``CT --notrack``)."""
    return rule.target == "NOTRACK" or (rule.target == "CT" and rule.first("--notrack") is not None)


# What a rule of plain words holds: long options in full, and the commonest matches and targets.
_PLAIN = re.compile(
    r"-A [A-Za-z0-9_-]+"
    r"(?: !| -[sdio] [^ \t\"=-][^ \t\"=]*| -p [a-z0-9]+| -m (?:tcp|udp|icmp|icmp6|multiport|limit)"
    r"| --(?:sport|dport|sports|dports|icmp-type|limit) [A-Za-z0-9:,/]+)*"
    r" -j (?:ACCEPT|DROP|RETURN)"
)


def may_depend(line: Line) -> bool:
    """A quick answer for the many rules that plainly do not: no unusual match or target.

    Only ``-m`` names and targets matter, and those of the common rules are few.
    """
    return line.table == "nat" or not _PLAIN.fullmatch(line.text)


def dependency(rule: Rule, table: str = "") -> Dependency | None:
    """Why *rule* depends on conntrack, the gravest reason first; ``None`` when it does not.

    A jump to a user chain depends on nothing; extension names are compared as written.
    """
    if is_notrack(rule):
        return Dependency("notrack", TARGETS["NOTRACK"])
    if rule.target in NAT_TARGETS:
        return Dependency("nat", TARGETS[rule.target])
    if rule.target in TARGETS:
        return Dependency("other", TARGETS[rule.target])
    for name in rule.matches:
        if name in MATCHES and name not in ("state", "conntrack"):
            return Dependency("other", MATCHES[name])
    states = next((name for name in rule.matches if name in ("state", "conntrack")), None)
    if states is not None:
        return Dependency("state", MATCHES[states])
    if table == "nat" and rule.command in ("-A", "-I"):
        return Dependency("nat", NAT_TABLE)
    return None


def unknown_extension(rule: Rule, user_chains: Mapping[str, str]) -> str:
    """The first match or target that we know nothing about, or an empty string."""
    for name in rule.matches:
        if name not in MATCHES and name not in INDEPENDENT:
            return name
    target = rule.target
    known = target in TARGETS or target in INDEPENDENT or target in user_chains
    return "" if known or not target else target


def states_of(rule: Rule) -> frozenset[str] | None:
    """The set of states that *rule* matches, every state option taken together.

    ``None`` when the rule uses something of the match that is no plain state (DNAT, SNAT,
    ctdir, ctproto ...): that cannot be told from one packet.
    """
    wanted = frozenset(STATES)
    asked = rule.all(*STATE_OPTIONS)
    for option in asked:
        names = _named_states(option.value)
        if names is None:
            return None
        wanted &= frozenset(STATES) - names if option.negated else names
    foreign = [o for o in rule.options if o.name[:4] == "--ct" and o.name != "--ctstate"]
    return None if foreign or not asked else wanted


_SAME = "the same on a host that translates no addresses"
# What -m conntrack asks beside the state.  None has an exact stateless meaning that the rules alone
# show: an ICMP error is matched by the protocol, addresses and ports of the connection that it is
# about, and whether the host translates may stand in another table, family or back end.
_REMEDIES: Mapping[str, str] = {
    "--ctproto": "ask by -p ('-p tcp') and by a state",
    "--ctorigsrc": f"ask by -s for requests, -d for answers: {_SAME}",
    "--ctorigdst": f"ask by -d for requests, -s for answers: {_SAME}",
    "--ctreplsrc": f"ask by -d for requests, -s for answers: {_SAME}",
    "--ctrepldst": f"ask by -s for requests, -d for answers: {_SAME}",
    "--ctorigsrcport": f"ask by --sport for requests, --dport for answers: {_SAME}",
    "--ctorigdstport": f"ask by --dport for requests, --sport for answers: {_SAME}",
    "--ctreplsrcport": f"ask by --dport for requests, --sport for answers: {_SAME}",
    "--ctrepldstport": f"ask by --sport for requests, --dport for answers: {_SAME}",
    "--ctdir": "say which port or address is the server's: --dport and -d for requests, --sport and -s for answers",
    "--ctstatus": "take it out: a packet alone does not show it; a state, addresses and ports can stay",
    "--ctexpire": "take it out, or limit by -m hashlimit, which forgets by itself",
    "SNAT": "name the addresses before they were translated, or take the rule out with its NAT",
    "DNAT": "name the address and port to which it was translated, or take the rule out with its NAT",
}


def beside_states(rule: Rule) -> tuple[str, str]:
    """What *rule*, for which :func:`states_of` has no answer, asks beside states, and what to do about it."""
    asked = [option.name for option in rule.options if option.name[:4] == "--ct" and option.name != "--ctstate"]
    for option in rule.all(*STATE_OPTIONS):
        asked += [name for name in option.value.upper().split(",") if name and name not in STATES]
    names = tuple(dict.fromkeys(asked))
    remedies = dict.fromkeys(_REMEDIES[name] for name in names if name in _REMEDIES)
    return ", ".join(names) or "no state", "; ".join(remedies) or "name a state, addresses and ports"


@lru_cache(maxsize=64)
def _named_states(text: str) -> frozenset[str] | None:
    names = frozenset(name for name in text.upper().split(",") if name)
    return names if names <= frozenset(STATES) else None


def modules_of(rule: Rule, table: str) -> tuple[str, ...]:
    """Conntrack modules that *rule* may hold in use, most likely first."""
    found: dict[str, None] = {}
    for name in rule.matches:
        if name in MATCHES:
            found.update(dict.fromkeys(MATCHES[name].modules))
    if rule.target in TARGETS:
        found.update(dict.fromkeys(TARGETS[rule.target].modules))
    if table == "nat":
        found.update(dict.fromkeys(("iptable_nat", "ip6table_nat", "nft_chain_nat", "nf_nat")))
    return tuple(found)
