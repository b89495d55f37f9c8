"""Keeping fragments whole without conntrack.

Conntrack reassembles every packet before any rule sees it.  Without it IPv6 rules see
fragments, of which only the first has ports, so a port rule loses the others (IPv4 does
reassemble what is for this host, but not what it forwards).  The same reassembly
(nf_defrag_ipv4, nf_defrag_ipv6) is switched on by any rule with ``-m socket``, which needs
no conntrack (``socket_mt_enable_defrag`` in net/netfilter/xt_socket.c, kernel 4.10 and
later; measured on 6.18).  So the rewrite leaves one such rule, which never matches.
"""

from __future__ import annotations

from .ruleset import Line, RuleSet
from .tables import CHAINS

MARK = "stateless-reassembly"
# An interface that no host has: the rule is there for what it switches on.
RULE = f"-A PREROUTING -i none0 -p tcp -m socket -m comment --comment {MARK} -j ACCEPT"


_LOOKING_INSIDE = frozenset(
    "--dport --sport --dports --sports --ports --syn --tcp-flags --icmp-type --icmpv6-type".split()
)


def needs_reassembly(after: RuleSet) -> bool:
    """Whether rules of *after* look where only the first fragment has something to show.

    Asked only where a state match kept conntrack at work, and so packets whole.  IPv6: any
    such rule; IPv4: one that packets meet before they are delivered, or on their way through.
    """
    hooks = ("PREROUTING", "FORWARD", "POSTROUTING")
    forwarded = {table: set().union(*(after.reached(table, h) for h in hooks)) for table in after.chains}
    return any(
        any(option.name in _LOOKING_INSIDE for option in line.rule.options)
        for line in after.rules()
        if after.family == "ipv6" or line.chain in forwarded[line.table]
    )


def with_reassembly(ruleset: RuleSet) -> RuleSet:
    """*ruleset* with the rule that keeps packets whole; unchanged where such a rule is there."""
    if any("socket" in line.rule.matches for line in ruleset.rules("mangle") if "socket" in line.text):
        return ruleset
    lines = list(ruleset.lines)
    own = Line(0, RULE, "rule", "mangle", "PREROUTING")
    if "mangle" not in ruleset.tables():
        chains = [Line(0, f":{c} ACCEPT [0:0]", "chain", "mangle", c) for c in CHAINS["mangle"]]
        table = [Line(0, "*mangle", "table", "mangle"), *chains, own, Line(0, "COMMIT", "commit", "mangle")]
        return ruleset.with_lines([*lines, *table])
    at = next(i for i, line in enumerate(lines) if line.kind == "commit" and line.table == "mangle")
    lines.insert(at, own)
    return ruleset.with_lines(lines)
