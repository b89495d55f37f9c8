"""The rewrite of iptables-save text that the carried program knows; pure.

A rule that asks for a state becomes rules that ask which packets stand for it, as in
:mod:`..netfilter.parts`; the parts are disjoint, so order and targets keep their meaning.  What
this cannot say exactly is a blocker.
"""

from __future__ import annotations

import re
from typing import Any

TAG = "cloudinit-conntrack"
STATES = ("NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED")
ASKS = re.compile(r" -m (?:state|conntrack)( !)? --(?:ct)?state (!? ?)([A-Z,]+)(?= )")
NEEDS = re.compile(
    r"-m (state|conntrack|connmark|connbytes|connlabel|connlimit|helper|cluster|ipvs|layer7|connrate) "
    r"|-j (CT|NOTRACK|CONNMARK|CONNSECMARK|SNAT|DNAT|MASQUERADE|REDIRECT|NETMAP|SAME|CLUSTERIP|SYNPROXY|FLOWOFFLOAD) "
)
NOTRACK = re.compile(r"-j (NOTRACK|CT --notrack) ")
BITS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG")
SYN = "FIN,SYN,RST,ACK SYN"
TCP = (("NEW", SYN), ("ESTABLISHED", "ACK ACK"), ("ESTABLISHED", "RST,ACK RST"),
       ("INVALID", "SYN,RST,ACK NONE"), ("INVALID", "FIN,SYN,RST,ACK FIN,SYN"))
ICMP = {"ipv4": {"NEW": (8,), "ESTABLISHED": (0,), "RELATED": (3, 11, 12), "UNTRACKED": (),
                 "more": {13: "NEW", 15: "NEW", 17: "NEW", 14: "ESTABLISHED", 16: "ESTABLISHED", 18: "ESTABLISHED"}},
        "ipv6": {"NEW": (128,), "ESTABLISHED": (129,), "RELATED": (1, 2, 3, 4),
                 "UNTRACKED": (130, 131, 132, 133, 134, 135, 136, 143), "more": {}}}
ICMP_OPTION = {"ipv4": "icmp --icmp-type", "ipv6": "ipv6-icmp --icmpv6-type"}
CHAINS = {"raw": "PREROUTING OUTPUT", "mangle": "PREROUTING INPUT FORWARD OUTPUT POSTROUTING"}
WHOLE = "-A PREROUTING -i none0 -p tcp -m socket -m comment --comment stateless-reassembly -j ACCEPT"
OTHER = {"INPUT": "OUTPUT", "OUTPUT": "INPUT", "FORWARD": "FORWARD"}

Line = tuple[str, str]  # its table, its text


class Blocked(Exception):
    """A rule, and why it cannot be made stateless here."""


def lines_of(text: str) -> list[Line]:
    """The lines of a save, each with its table; Blocked where it is none."""
    found: list[Line] = []
    table = ""
    if "\r" in text or "\0" in text:
        raise Blocked("it has CRLF line ends or NUL bytes")
    for line in text.split("\n")[: -1 if text.endswith("\n") else None]:
        if "incompatible" in line and line.startswith("# Table"):
            raise Blocked(f"{line}: these rules are not iptables' own")
        if line.startswith("*"):
            table = line[1:].strip()
        elif line.strip() and not re.match(r"#|:|(\[\d+:\d+\] )?-A \S|COMMIT\s*$", line):
            raise Blocked(f"{line}: iptables-save does not write such a line")
        found.append((table, line))
        if line.startswith("COMMIT"):
            table = ""
    if table:
        raise Blocked(f"table {table} has no COMMIT")
    return found


def plain(text: str) -> str:
    """*text* with what is quoted blotted out, and a blank at its end: only options are looked at."""
    return re.sub(r'"(?:[^"\\]|\\.)*"', lambda found: "_" * len(found[0]), text) + " "


def stateless(text: str, family: str, config: dict[str, Any], local: str, whole: bool) -> str:
    """*text* without a rule that depends on conntrack; the same text where none does.  Blocked where it cannot be.

    *local* are the ports from which this host asks, such as ``32768:60999``; *whole*: the kernel has
    ``-m socket``, which keeps fragments reassembled where rules meet them (:mod:`..netfilter.fragments`).
    """
    old = lines_of(text)
    lines = [line for line in old if not is_own(line[1])]
    replies = udp_replies(lines, family, config, local)
    result: list[Line] = []
    states = False
    for table, line in lines:
        found = NEEDS.search(plain(line)) if " -A " in f" {line}" else None
        if table == "nat" and " -A " in f" {line}":
            raise Blocked(f"{line}: it translates addresses, which needs conntrack")
        if found is None:
            result.append((table, line))
        elif NOTRACK.search(plain(line)):
            continue  # nothing is tracked any more
        elif config["stateful"] == "refuse":
            raise Blocked(f"{line}: it depends on conntrack, and rules.stateful is 'refuse'")
        else:
            states = True
            result += [(table, new) for new in rewritten(line, table, family, replies)]
    met = family == "ipv6" or re.search("-A (FORWARD|PREROUTING) ", text)
    if states and whole and met and WHOLE not in text:
        result = with_rules(result, "mangle", [WHOLE])
    return text if result == old else joined(result)


def joined(lines: list[Line]) -> str:
    """The text of *lines*."""
    return "".join(f"{line}\n" for _, line in lines)


def is_own(line: str) -> bool:
    """Whether *line* is one of the rules that bypass conntrack."""
    return bool(re.search(rf'--comment "?{TAG}"? ', line))


def with_rules(lines: list[Line], table: str, rules: list[str]) -> list[Line]:
    """*lines* with *rules* at the end of *table*, which is made where it is missing."""
    if not any(line == f"*{table}" for _, line in lines):
        chains = [f":{chain} ACCEPT [0:0]" for chain in CHAINS[table].split()]
        lines = lines + [(table, line) for line in (f"*{table}", *chains, "COMMIT")]
    at = next(n for n, (name, line) in enumerate(lines) if name == table and line.startswith("COMMIT"))
    return lines[:at] + [(table, rule) for rule in rules] + lines[at:]


# --- one rule --------------------------------------------------------------------------


def rewritten(line: str, table: str, family: str, replies: dict[str, list[str]]) -> list[str]:
    """The rules that stand for *line*, which asks for a state."""
    found = ASKS.search(plain(line))
    rest = line[: found.start()] + line[found.end() :] if found else line
    if found is None or table == "raw" or NEEDS.search(plain(rest)):
        raise Blocked(f"{line}: it asks more of a connection than its state")
    states = set(found[3].split(","))
    if not states <= set(STATES):
        raise Blocked(f"{line}: no rule can tell these states from the packet")
    if found[1] or found[2].strip():
        states = set(STATES) - states
    chain = re.findall(r"-A (\S+)", rest)[0]
    seen = replies.get(chain) or []
    pieces = pieces_of(plain(rest), states, family, seen, chain)
    if pieces is None:
        raise Blocked(f"{line}: without conntrack this needs a protocol: write '-p tcp', '-p udp --dport ...' or so")
    if len(pieces) > 1:
        rest = re.sub(r"^\[\d+:\d+\]", "[0:0]", rest)
    at = (re.search(r" -[jg] ", plain(rest)) or re.search("$", rest)).start()  # type: ignore[union-attr]
    return [rest[:at] + piece + rest[at:] for piece in pieces]  # behind the matches whose options it may hold


def pieces_of(rule: str, states: set[str], family: str, replies: list[str], chain: str) -> list[str] | None:
    """What stands for *states* in *rule*, once for each part of its traffic; None where nothing can."""
    protocol = (re.findall(r" -p (\S+)", rule) or [""])[0]
    accepts = rule.endswith("-j ACCEPT ")
    discovery = family == "ipv4" or "UNTRACKED" in states  # no rule may take IPv6's neighbours away
    every = {"NEW", "ESTABLISHED", "RELATED"} <= states and (accepts or discovery)
    if " ! -p " in rule:
        return None
    if protocol in ("tcp", "6"):
        return tcp_pieces(rule, states)
    if protocol in ("icmp", "1", "icmpv6", "ipv6-icmp", "58"):
        return icmp_pieces(rule, states, family)
    if protocol in ("udp", "17"):
        return udp_pieces(rule, states, replies, chain, accepts)
    if protocol:
        return [""] if "NEW" in states and accepts else None
    tcp = [f" -p tcp{piece}" for piece in tcp_pieces(rule, states) or ()]
    if every or ("NEW" in states and accepts):
        return [*tcp, " ! -p tcp"]
    if "NEW" in states:
        return None
    icmp = [f" -p {ICMP_OPTION[family]} {n}" for state in sorted(states) for n in ICMP[family].get(state, ())]
    udp = [f" -p udp {reply}" for reply in replies] if "ESTABLISHED" in states else []
    return tcp + icmp + udp


def flags(option: str) -> set[int]:
    """The flag bytes that ``--tcp-flags`` *option* (mask and value) matches."""
    mask, wanted = (sum(1 << n for n, bit in enumerate(BITS) if bit in word.replace("ALL", ",".join(BITS)).split(","))
                    for word in option.split())
    return {byte for byte in range(64) if byte & mask == wanted}


def tcp_pieces(rule: str, states: set[str]) -> list[str] | None:
    """The flags that stand for *states*, as far as the rule's own flags let them."""
    own = re.findall(r" (! )?--(?:tcp-flags (\S+ \S+)|syn )", rule)
    if len(own) > 1:
        return None
    allowed = set(range(64))
    for negated, option in own:
        allowed = allowed - flags(option or SYN) if negated else flags(option or SYN)
    found = []
    for state, option in TCP:
        common = allowed & flags(option)
        if state in states and common:
            if common != allowed and own:
                return None
            found.append("" if own else f" --tcp-flags {option}")
    return found


def icmp_pieces(rule: str, states: set[str], family: str) -> list[str] | None:
    """The types that stand for *states*; a rule with a type of its own matches always or never."""
    known: Any = ICMP[family]
    own = re.findall(r" --icmp(?:v6)?-type (\S+)", rule)
    if not own:
        if {"NEW", "ESTABLISHED", "RELATED"} <= states and (family == "ipv4" or "UNTRACKED" in states):
            return [""]
        option = ICMP_OPTION[family].split()[1]
        return [f" {option} {n}" for state in sorted(states) for n in known.get(state, ())]
    number = own[0].partition("/")[0]
    if not number.isdigit() or " ! --icmp" in rule:
        return None
    state = known["more"].get(int(number), "INVALID")
    state = next((s for s in STATES if int(number) in known.get(s, ())), state)
    return [""] if state in states else []


def udp_pieces(rule: str, states: set[str], replies: list[str], chain: str, accepts: bool) -> list[str] | None:
    """The ports that tell replies from requests."""
    names_source, names_target = re.search(r" --sports? (\S+)", rule), re.search(r" --dports? ", rule)
    if {"NEW", "ESTABLISHED"} <= states:
        return [""]
    if "NEW" in states:
        return [""] if accepts or names_target else None
    if "ESTABLISHED" not in states:
        return []
    if names_source:
        known = [m[1] for m in map(re.compile(rf"--sport {names_source[1]}( --dport \S+)").match, replies) if m]
        return [""] if names_target or chain == "OUTPUT" else known or [" --dport 1024:65535"]
    own = "|".join(o for o in (" --dport", " -s", " -d") if o + " " in rule or o + "s " in rule)
    return [" " + re.sub(rf"({own}) \S+" if own else "$^", "", reply) for reply in replies]


def udp_replies(lines: list[Line], family: str, config: dict[str, Any], local: str) -> dict[str, list[str]]:
    """The matches of UDP replies that each hook sees: to what is configured, and to what the rules accept."""
    found: dict[str, dict[str, None]] = {"INPUT": {}, "OUTPUT": {}, "FORWARD": {}}
    chains = {re.findall(r"-A (\S+)", line)[0] for _, line in lines if "-A " in plain(line)}
    for protocol, first, last, address in config["outbound"]:
        server, client = (67, 68) if family == "ipv4" else (547, 546)
        if protocol != "udp" or (address and (":" in address) != (family == "ipv6")):
            continue
        source = f" -s {address}" if address else ""
        if first == last == 67:
            found["INPUT"][f"--sport {server} --dport {client}{source}"] = None
            continue
        found["INPUT"][f"--sport {ports_text(first, last)} --dport {local}{source}"] = None
        if first == last and first in (123, 500, 4500):
            found["INPUT"][f"--sport {first} --dport {first}{source}"] = None
    for protocol, first, last, address in config["frontends"]:
        if protocol == "udp" and (not address or (":" in address) == (family == "ipv6")):
            found["OUTPUT"][f"--sport {ports_text(first, last)}"] = None
    hooks = hooks_of(lines)
    for table, line in lines:
        rule = plain(line)
        chain = (re.findall(r"-A (\S+)", rule) or [""])[0]
        ports = re.findall(r" --dports? (\S+)", rule)
        if table != "filter" or not ports or "-p udp " not in rule or not rule.endswith("-j ACCEPT "):
            continue
        ends = "".join(f" -{'ds'['sd'.index(n)]} {where}" for n, where in re.findall(r"(?<!!) -([sd]) (\S+)", rule))
        for hook in hooks.get(chain, OTHER):
            to = {"INPUT": "", "OUTPUT": f" --dport {local}", "FORWARD": " --dport 1024:65535"}[hook]
            for port in ports[0].split(","):
                found[OTHER[hook]][f"--sport {port}{to}{ends}"] = None
    seen = {chain: [r for hook in OTHER if hook in hooks.get(chain, OTHER) for r in found[hook]] for chain in chains}
    return {chain: list(dict.fromkeys(replies)) for chain, replies in seen.items()}


def hooks_of(lines: list[Line]) -> dict[str, set[str]]:
    """The hooks from which each chain is reached; a chain that nothing here reaches is left out."""
    found = {hook: {hook} for hook in OTHER}
    jumps = [re.findall(r"-A (\S+)(?:.* -[jg] (\S+))?", plain(line))[0] for _, line in lines if "-A " in line]
    for _ in range(16):
        for chain, target in jumps:
            found.setdefault(target, set()).update(found.get(chain, ()))
    return {chain: hooks for chain, hooks in found.items() if hooks}


def ports_text(first: int, last: int) -> str:
    """A range as iptables-save writes it."""
    return str(first) if first == last else f"{first}:{last}"


# --- the bypass ------------------------------------------------------------------------


def bypassed(text: str, family: str, config: dict[str, Any]) -> str:
    """*text* with the rules by which the named flows bypass conntrack; the same text where they are there already."""
    old = lines_of(text)
    lines = [line for line in old if not is_own(line[1])]
    nat = [plain(line) for table, line in lines if table == "nat" and " -A " in f" {line}"]
    raw, accepts = flow_rules(family, config, not nat)
    for protocol, first, last, _ in config["frontends"] + config["backends"]:
        for rule in nat:
            for port in ",".join(re.findall(r" --dports? (\S+)", rule) or ["-1"]).split(","):
                if int(port.partition(":")[0]) <= last and int(port.rpartition(":")[2]) >= first:
                    raise Blocked(f"{rule}: it translates {protocol} port {first}, which shall bypass conntrack")
    new = with_rules(lines, "raw", [f"{rule} -m comment --comment {TAG} -j CT --notrack" for rule in raw])
    new = with_accepts(new, accepts)
    return text if told(old) == told(new) else joined(new)


def with_accepts(lines: list[Line], accepts: dict[str, list[str]]) -> list[Line]:
    """*lines* with the flows accepted before the first rule of a chain that asks for a state."""
    asking = {re.findall(r"-A (\S+)", line)[0] for table, line in lines
              if table == "filter" and ASKS.search(plain(line))}
    if asking - {"INPUT", "OUTPUT", "FORWARD"}:
        raise Blocked(f"chain {min(asking)} asks for states: whether the flows come by cannot be told here")
    result: list[Line] = []
    seen = {"FORWARD"}
    for table, line in lines:
        chain = (re.findall(r"-A (\S+)", line) or [""])[0]
        if table == "filter" and ASKS.search(plain(line)) and chain not in seen:
            seen.add(chain)
            result += [(table, f"-A {chain} {match} -m comment --comment {TAG} -j ACCEPT") for match in accepts[chain]]
        result.append((table, line))
    return result


def flow_rules(family: str, config: dict[str, Any], errors: bool) -> tuple[list[str], dict[str, list[str]]]:
    """What stops the tracking of the flows, and what accepts them at INPUT and OUTPUT."""
    raw: list[str] = []
    accepts: dict[str, list[str]] = {"INPUT": [], "OUTPUT": []}
    to_us = " -m addrtype --dst-type LOCAL"
    for kind in ("frontends", "backends"):
        there, back = ("INPUT", "OUTPUT") if kind == "frontends" else ("OUTPUT", "INPUT")
        for protocol, first, last, address in config[kind]:
            if address and (":" in address) != (family == "ipv6"):
                continue
            ends = address and not address.endswith("/0")
            ask, answer = (f"-p {protocol} --{way}port {ports_text(first, last)}"
                           + (f" -{way} {address}" if ends else "") for way in "ds")
            strict = f" ! --tcp-flags {SYN}" if protocol == "tcp" and kind == "backends" else ""
            if kind == "frontends":
                raw += [f"-A PREROUTING {ask}{to_us}", f"-A OUTPUT {answer}", f"-A OUTPUT {ask} -o lo"]
            else:
                raw += [f"-A OUTPUT {ask}", f"-A PREROUTING {answer}{strict}{to_us}", f"-A OUTPUT {answer} -o lo"]
            accepts[there].append(ask)
            parts = [f" --tcp-flags {option}" for state, option in TCP if state == "ESTABLISHED"]
            accepts[back] += [answer + part for part in (parts if protocol == "tcp" else [""])]
    types = [f"-p {ICMP_OPTION[family]} {n}" for n in ICMP[family]["RELATED"]]
    if errors:
        raw += [f"-A PREROUTING {match}{to_us}" for match in types]
        accepts = {hook: found + types for hook, found in accepts.items()}
    return raw, accepts


def told(lines: list[Line]) -> list[tuple[str, list[str]]]:
    """The rules of *lines* by chain, ours as the words that they hold: a save sorts those, and adds some."""
    found = []
    for table, line in lines:
        if " -A " in f" {line}":
            words = [line]
            if is_own(line):
                words = sorted(re.sub(r"^\[\S+ | -m \w+", "", line).split())
            found.append((table + re.findall(r"-A (\S+)", line)[0], words))
    return sorted(found, key=lambda item: item[0])
