"""The shell recipe that our module replaces: the same rules one by one, sed over saved files, modprobe, tee.

Both hosts begin with the same rules: what a CentOS has, and one ``NEW`` rule for each port.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

SAVED = {"iptables": "/etc/iptables/rules.v4", "ip6tables": "/etc/iptables/rules.v6"}
ICMP = {"iptables": ("icmp", "icmp-host-prohibited", ("0", "3", "11", "12")),
        "ip6tables": ("ipv6-icmp", "icmp6-adm-prohibited", ("1", "2", "3", "4", "129"))}
FIRST = 20_000
NEW = "-p tcp -m state --state NEW -m tcp --dport"
KNOWN = "-m state --state RELATED,ESTABLISHED"


def ports(count: int) -> list[int]:
    """*count* ports, not all neighbours: two neighbours, a gap."""
    return [FIRST + number * 3 // 2 for number in range(count)]


def rules(command: str, served: Sequence[int]) -> str:
    """The rule-set of the host, for ``iptables-restore`` or ``ip6tables-restore``."""
    protocol, rejected, _ = ICMP[command]
    accepted = [f"-A INPUT {NEW} {port} -j ACCEPT" for port in (22, *served)]
    lines = ["*filter", *(f":{chain} ACCEPT [0:0]" for chain in ("INPUT", "FORWARD", "OUTPUT")),
             f"-A INPUT {KNOWN} -j ACCEPT", f"-A INPUT -p {protocol} -j ACCEPT", "-A INPUT -i lo -j ACCEPT", *accepted,
             f"-A INPUT -j REJECT --reject-with {rejected}", "COMMIT"]
    return "\n".join(lines) + "\n"


def notrack(served: Sequence[int]) -> str:
    """Four raw rules for each port and family, one that accepts what is untracked, and the rules saved."""
    return "\n".join(line for command in SAVED for line in _notrack(command, served)) + "\n"


def _notrack(command: str, served: Sequence[int]) -> Iterator[str]:
    yield f"{command} -I INPUT -p tcp -m conntrack --ctstate UNTRACKED -j ACCEPT"
    for port in served:
        for chain, what in (("PREROUTING", "--dport"), ("OUTPUT", "--sport"), ("OUTPUT -o lo", "--dport"),
                            ("PREROUTING -i lo", "--sport")):
            yield f"{command} -t raw -A {chain} -p tcp {what} {port} -j CT --notrack"
    yield f"{command}-save >{SAVED[command]}"


def stateless(served: Sequence[int]) -> str:
    """Each stateful rule deleted and its successors inserted in its place; sed, modprobe -r, tee."""
    live = [line for command in SAVED for line in _stateless(command, served)]
    return "\n".join([*live, *(_sed(command) for command in SAVED), "modprobe -r nf_conntrack || :",
                      "printf 'install %s /bin/false\\n' nf_conntrack nf_conntrack_ipv4 nf_conntrack_ipv6 xt_conntrack "
                      "| tee /etc/modprobe.d/no-conntrack.conf >/dev/null"]) + "\n"


def _successors(command: str) -> list[str]:
    """What stands for established and related: as our own rewrite has it."""
    protocol, _, types = ICMP[command]
    option = "--icmp-type" if command == "iptables" else "--icmpv6-type"
    return ["-p tcp --tcp-flags ACK ACK", "-p tcp --tcp-flags RST,ACK RST", "-p udp --sport 53 --dport 32768:60999",
            "-p udp --sport 123 --dport 32768:60999", "-p udp --sport 123 --dport 123",
            *(f"-p {protocol} {option} {number}" for number in types)]


def _stateless(command: str, served: Sequence[int]) -> Iterator[str]:
    successors = _successors(command)
    yield f"{command} -D INPUT {KNOWN} -j ACCEPT"
    for place, rule in enumerate(successors, 1):
        yield f"{command} -I INPUT {place} {rule} -j ACCEPT"
    for place, port in enumerate((22, *served), len(successors) + 3):
        yield f"{command} -D INPUT {NEW} {port} -j ACCEPT"
        yield f"{command} -I INPUT {place} -p tcp --dport {port} --syn -j ACCEPT"


def _sed(command: str) -> str:
    lines = "\\n".join(f"-A INPUT {rule} -j ACCEPT" for rule in _successors(command))
    return (f"sed -i -e 's/{NEW} \\([0-9]*\\)/-p tcp -m tcp --dport \\1 --syn/' "
            f"-e 's/^-A INPUT {KNOWN} -j ACCEPT$/{lines}/' {SAVED[command]}")
