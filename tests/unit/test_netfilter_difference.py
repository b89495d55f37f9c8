"""The computed difference against z3: what is said is so, and nothing else is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from dataclasses import replace
from functools import reduce
from itertools import product
from pathlib import Path
from typing import Any

import netfilter_z3 as judge
import pytest
import z3  # type: ignore[import-untyped]
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as some
from test_netfilter_golden import FOLDERS, family_of, rewritten, source_of

from cloudinit_conntrack.netfilter.difference import PATHS, accepted, compare, told
from cloudinit_conntrack.netfilter.iptables import parse_ruleset
from cloudinit_conntrack.netfilter.notrack import Bypass, Flow, add_bypass
from cloudinit_conntrack.netfilter.packets import PacketSet, Space
from cloudinit_conntrack.netfilter.ruleset import RuleSet, format_ruleset
from cloudinit_conntrack.netfilter.stated import stated
from cloudinit_conntrack.netfilter.stateless import make_stateless
from cloudinit_conntrack.netfilter.telling import Told
from cloudinit_conntrack.netfilter.universe import (
    DESTINATION,
    DETAIL,
    DPORT,
    IN,
    OUT,
    PROTOCOL,
    SOURCE,
    SPORT,
    STATE,
    Universe,
    make_universe,
)

SLOW = settings(
    max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), phases=(Phase.generate,)
)  # shrinking by z3 takes minutes

# --- sets of packets, against counting -----------------------------------------------------------

SIZES = (3, 2, 4)
POINTS = tuple(product(*(range(size) for size in SIZES)))
ORDERS = ((), (2, 0, 1))  # in which the dimensions are asked
some_points = some.frozensets(some.sampled_from(POINTS))


def as_set(space: Space, points: Iterable[tuple[int, ...]]) -> PacketSet:
    boxes = [space.box({at: 1 << value for at, value in enumerate(point)}) for point in points]
    nothing: PacketSet = False
    return reduce(space.either, boxes, nothing)


def points_of(space: Space, found: PacketSet) -> frozenset[tuple[int, ...]]:
    inside = [p for p in POINTS for box in space.boxes(found) if all(m >> p[at] & 1 for at, m in box.items())]
    assert len(inside) == len(set(inside)), "boxes are disjoint"
    return frozenset(inside)


@pytest.mark.parametrize("order", ORDERS)
@settings(max_examples=80, deadline=None, derandomize=True)
@given(some_points, some_points)
def test_sets_of_packets_are_what_counting_says(
    order: tuple[int, ...], one: frozenset[tuple[int, ...]], two: frozenset[tuple[int, ...]]
) -> None:
    space = Space(SIZES, order)
    first, second = as_set(space, one), as_set(space, two)
    assert points_of(space, first) == one
    assert points_of(space, space.both(first, second)) == one & two
    assert points_of(space, space.either(first, second)) == one | two
    assert points_of(space, space.without(first, second)) == one - two
    assert space.union([first, second, first]) is space.either(first, second)
    for at, size in enumerate(SIZES):
        forgotten = {(*p[:at], value, *p[at + 1 :]) for p in one for value in range(size)}
        assert points_of(space, space.any_of(first, at)) == forgotten


@pytest.mark.parametrize("order", ORDERS)
@settings(max_examples=80, deadline=None, derandomize=True)
@given(some_points, some_points)
def test_equal_sets_are_one_object(
    order: tuple[int, ...], one: frozenset[tuple[int, ...]], two: frozenset[tuple[int, ...]]
) -> None:
    space = Space(SIZES, order)
    first, second = as_set(space, one), as_set(space, two)
    assert as_set(space, sorted(one, reverse=True)) is first
    assert space.without(True, space.without(True, first)) is first
    assert space.either(space.both(first, second), space.without(first, second)) is first
    assert (first is second) == (one == two)
    assert (first is True) == (len(one) == len(POINTS))
    assert (first is False) == (not one)


def test_a_box_of_no_atom_is_empty_and_one_of_every_atom_is_everything() -> None:
    space = Space(SIZES)
    assert space.box({0: 0b111, 1: 0}) is False
    assert space.box({0: 0b111, 1: 0b11}) is True


# --- rule-sets --------------------------------------------------------------------------------

NETS = {"ipv4": ("10.0.0.0/8", "10.1.0.0/16", "192.0.2.7/32"), "ipv6": ("fd00::/8", "fd00:1::/32", "2001:db8::7/128")}
ICMP = {
    "ipv4": ("icmp", "--icmp-type", ("8", "0", "3", "5", "any", "3/4")),
    "ipv6": ("ipv6-icmp", "--icmpv6-type", ("128", "1", "2", "135", "200")),
}
UNKNOWN = ("-m set --match-set bad src", "-m set ! --match-set bad src", "-m limit --limit 3/sec", "-m mark --mark 0x1")
STATED = ("NEW", "ESTABLISHED,RELATED", "INVALID", "UNTRACKED", "NEW,ESTABLISHED", "NEW,NEW", "RELATED", "NEW,DNAT")


def maybe(found: some.SearchStrategy[str]) -> some.SearchStrategy[str]:
    return some.one_of(some.just(""), some.just(""), found)


@some.composite
def rules(draw: some.DrawFn, family: str, table: str, chain: str, chains: tuple[str, ...]) -> str:
    no = some.sampled_from(("", "", "! "))

    def one(form: str, *values: str) -> some.SearchStrategy[str]:
        return maybe(some.builds(lambda n, v: n + form + " " + v, no, some.sampled_from(values)))

    words = [draw(one("-s", *NETS[family])), draw(one("-d", *NETS[family]))]
    if chain in ("INPUT", "FORWARD", "PREROUTING") or chain in chains:
        words.append(draw(one("-i", "lo", "eth0", "ppp+", "eth1", "+")))
    if chain in ("OUTPUT", "FORWARD", "POSTROUTING") or chain in chains:
        words.append(draw(one("-o", "lo", "eth0", "ppp+")))
    protocol = draw(some.sampled_from(("", "tcp", "tcp", "udp", "icmp", "47", "! tcp")))
    if protocol == "icmp":
        name, option, types = ICMP[family]
        words += [f"-p {name}", draw(one(option, *types))]
    elif protocol == "! tcp":
        words.append("! -p tcp")
    elif protocol:
        words.append(f"-p {protocol}")
    if protocol in ("tcp", "udp"):
        words += [draw(one("--dport", "22", "80", "1024:65535")), draw(one("--sport", "53", ":1023"))]
        words.append(draw(one("-m multiport --ports", "22,8000:8010").map(_inside)))
        words.append(draw(one("-m multiport --dports", "53,80:90").map(_inside)))
    if protocol == "tcp":
        words.append(draw(one("--tcp-flags", "FIN,SYN,RST,ACK SYN", "SYN,ACK ACK", "RST RST", "ALL NONE", "FIN FIN")))
        words.append(draw(maybe(some.sampled_from(("--syn", "! --syn")))))
    if table != "raw":
        words.append(draw(one("-m conntrack --ctstate", *STATED).map(_inside)))
    words.append(draw(maybe(some.sampled_from(UNKNOWN))))
    targets = ["-j ACCEPT", "-j DROP", "-j RETURN", *(f"-{how} {c}" for c in chains if c > chain for how in "jg")]
    targets += ["-j CT --notrack"] * 3 if table == "raw" else ["-j LOG --log-prefix x", "-j REJECT"]
    words.append(draw(some.sampled_from(targets)))
    return " ".join(["-A", chain, *(word for word in words if word)])


def _inside(text: str) -> str:
    """``! -m x --y`` as iptables writes it: ``-m x ! --y``."""
    return re.sub(r"^! (-m \S+) ", r"\1 ! ", text)


@some.composite
def rulesets(draw: some.DrawFn, family: str) -> str:
    lines: list[str] = []
    tables = {"filter": ("INPUT", "FORWARD", "OUTPUT"), "raw": ("PREROUTING", "OUTPUT"), "mangle": ("FORWARD", "INPUT")}
    for table, hooks in tables.items():
        if table != "filter" and draw(some.booleans()):
            continue
        chains = ("a-chain", "b-chain")  # a chain jumps to later ones only
        policies = {h: draw(some.sampled_from(("ACCEPT", "DROP") if table == "filter" else ("ACCEPT",))) for h in hooks}
        lines += [f"*{table}", *(f":{h} {p} [0:0]" for h, p in policies.items()), *(f":{c} - [0:0]" for c in chains)]
        for chain in (*hooks, *chains):
            lines += draw(some.lists(rules(family, table, chain, chains), max_size=4))
        lines.append("COMMIT")
    return "\n".join([*lines, ""])


some_family = some.shared(some.sampled_from(("ipv4", "ipv4", "ipv6")), key="family")
some_ruleset = some_family.flatmap(rulesets)


# --- what a diagram holds, and what the words say, as formulas ---------------------------------------


def as_formula(universe: Universe, found: PacketSet, packet: judge.Packet) -> Any:
    """The boxes of *found* as z3 sees them."""

    def spans(cuts: tuple[int, ...], value: Any, mask: int) -> Any:
        size = value.size() + 1
        wide = z3.ZeroExt(1, value)
        return z3.Or(
            *(
                z3.And(z3.UGE(wide, z3.BitVecVal(cuts[at], size)), z3.ULT(wide, z3.BitVecVal(cuts[at + 1], size)))
                for at in range(len(cuts) - 1)
                if mask >> at & 1
            )
        )

    def protocol(mask: int) -> Any:
        listed = [packet.protocol == n for n in universe.protocols]
        other = z3.And(z3.Not(z3.Or(*listed)), mask >> len(listed) & 1 == 1)
        return z3.Or(other, *(x for at, x in enumerate(listed) if mask >> at & 1))

    def detail(mask: int) -> Any:
        tcp, icmp = packet.protocol == 6, packet.protocol == universe.icmp
        neither = z3.And(z3.Not(tcp), z3.Not(icmp))
        return z3.Or(
            neither,
            z3.And(tcp, z3.Or(*(packet.flags == f for f in range(64) if mask >> f & 1))),
            z3.And(icmp, z3.Or(*(packet.icmp == t for t in range(256) if mask >> t & 1))),
        )

    def names(value: Any, mask: int) -> Any:
        """An atom is the first pattern that is the name, else the first that it begins as."""
        atoms = []
        for name in judge.INTERFACES:
            order = sorted(universe.interfaces, key=lambda p: (p.endswith("+"), -len(p)))
            fits = [p for p in order if p == name or (p.endswith("+") and name.startswith(p[:-1]))]
            atoms.append(universe.interfaces.index(fits[0]) if fits and name else len(universe.interfaces))
        return z3.Or(*(value == at for at, atom in enumerate(atoms) if mask >> atom & 1))

    def constraint(dimension: int, mask: int) -> Any:
        if dimension in (IN, OUT):
            return names(packet.incoming if dimension == IN else packet.outgoing, mask)
        if dimension in (SPORT, DPORT):
            return spans(universe.ports, packet.sport if dimension == SPORT else packet.dport, mask)
        if dimension in (SOURCE, DESTINATION):
            return spans(universe.addresses, packet.source if dimension == SOURCE else packet.destination, mask)
        if dimension == STATE:
            return z3.Or(*(packet.state == at for at in range(5) if mask >> at & 1))
        if dimension in (PROTOCOL, DETAIL):
            return protocol(mask) if dimension == PROTOCOL else detail(mask)
        condition = judge.unknown(universe.open_conditions[dimension - OUT - 1])
        return condition if mask == 2 else z3.Not(condition)

    return z3.Or(*(z3.And(*(constraint(*one) for one in box.items())) for box in universe.space.boxes(found)))


TCP_WORDS = {
    "TCP handshakes (SYN)": ("FIN,SYN,RST,ACK", "SYN"),
    "TCP segments with ACK set": ("ACK", "ACK"),
    "TCP segments with RST set": ("RST,ACK", "RST"),
    "TCP segments without SYN, RST and ACK": ("SYN,RST,ACK", "NONE"),
    "TCP segments with SYN and FIN": ("FIN,SYN,RST,ACK", "FIN,SYN"),
}
ICMP_WORDS = {
    "ipv4": {
        "echo replies": 0,
        "echo requests": 8,
        "destination-unreachable errors": 3,
        "time-exceeded errors": 11,
        "parameter-problem errors": 12,
        "source quench messages": 4,
        "redirects": 5,
    },
    "ipv6": {
        "echo replies": 129,
        "echo requests": 128,
        "destination-unreachable errors": 1,
        "packet-too-big errors": 2,
        "time-exceeded errors": 3,
        "parameter-problem errors": 4,
        "ICMPv6 node queries": 139,
        "ICMPv6 node answers": 140,
    },
}
LISTED = {"ipv4": (0, 3, 4, 5, 8, 11, 12, *range(13, 19)), "ipv6": (1, 2, 3, 4, *range(128, 137), 139, 140, 143)}
PLACES = re.compile(
    r"^(?P<kinds>.*?)(?: from (?P<sport>(?:any port but|port) [0-9, -]+?))??(?: to (?P<dport>(?:any port but|port) [0-9, -]+?))??"  # noqa: E501
    r"(?: from (?P<source>anywhere|(?:any but )?[0-9a-f][0-9a-f:./, -]*?))??"
    r"(?: to (?P<destination>anywhere|(?:any but )?[0-9a-f][0-9a-f:./, -]*?))??"
    r"(?: in by (?P<incoming>any interface(?: but [a-z0-9+, ]+?)?|[a-z0-9+, ]+?))??"
    r"(?: out by (?P<outgoing>any interface(?: but [a-z0-9+, ]+?)?|[a-z0-9+, ]+?))??"
    r"(?P<conditions>(?: (?:where|unless) (?:'[^']*'|\"[^\"]*\") holds)*)$"
)


# Many conditions are counted; what is said without them is more, never less.
SUMMARY = re.compile(r" (?:unless any of|where any of|depending on) .* and [0-9]+ more conditions?(?: holds)?$")

CUT_SHORT = re.compile("more sets of packets|, except |, and [0-9]+ more")


def in_words(told: Told, packet: judge.Packet, protocols: tuple[int, ...]) -> Any:
    """What a person reads in *told*, as a formula."""
    found = PLACES.match(SUMMARY.sub("", told.packets))
    assert found, told
    parts = [
        z3.Or(
            *(_kind(text, packet, protocols) for text in found["kinds"].replace("ACK or RST", "ACK/RST").split(" or "))
        )
    ]
    for name, read in (
        ("sport", judge.ports),
        ("dport", judge.ports),
        ("source", judge.networks),
        ("destination", judge.networks),
    ):
        text = found[name]
        if text and text != "anywhere":
            inside = read(getattr(packet, name), re.sub("^(any port but|port|any but) ", "", text))
            parts.append(z3.Not(inside) if text.startswith("any ") else inside)
    for name in ("incoming", "outgoing"):
        if found[name] and found[name] != "any interface":
            listed = re.sub("^any interface but ", "", found[name]).split(", ")
            inside = z3.Or(*(judge.interface(getattr(packet, name), one) for one in listed))
            parts.append(z3.Not(inside) if found[name].startswith("any ") else inside)
    for word, text in re.findall(r" (where|unless) ('[^']*'|\"[^\"]*\") holds", found["conditions"]):
        condition = judge.unknown(ast.literal_eval(text))
        parts.append(condition if word == "where" else z3.Not(condition))
    return z3.And(*parts)


def _kind(text: str, packet: judge.Packet, protocols: tuple[int, ...]) -> Any:
    tcp, icmp = packet.protocol == 6, packet.protocol == (1 if packet.family == "ipv4" else 58)
    if text in TCP_WORDS:
        return judge.flags(packet, *TCP_WORDS[text])
    if text in ("TCP segments", "TCP segments with ACK/RST set"):
        return z3.And(tcp, packet.flags & 20 != 0) if "ACK" in text else tcp
    if text.startswith("TCP segments with flags "):
        return z3.Or(
            *(
                judge.flags(packet, "ALL", flags.replace("+", ",").replace("none", "NONE"))
                for flags in text[24:].split(", ")
            )
        )
    if text == "UDP datagrams":
        return packet.protocol == 17
    if text == "packets of other protocols":
        return z3.And(*(packet.protocol != n for n in protocols))
    if text.startswith("packets of protocol "):
        return z3.Or(*(packet.protocol == int(n) for n in text[20:].split(", ")))
    if text == "ICMP messages":
        return icmp
    if text == "ICMP messages of other types":
        return z3.And(icmp, *(packet.icmp != n for n in LISTED[packet.family]))
    if text in ICMP_WORDS[packet.family]:
        return z3.And(icmp, packet.icmp == ICMP_WORDS[packet.family][text])
    assert "type" in text, text
    numbers = re.findall(r"(\d+)(?:-(\d+))?", text.split("type")[1])
    assert "type" in text and numbers, text
    return z3.And(
        icmp, z3.Or(*(z3.And(z3.UGE(packet.icmp, int(a)), z3.ULE(packet.icmp, int(b or a))) for a, b in numbers))
    )


def said(told: Iterable[Told], hook: str, packet: judge.Packet, protocols: tuple[int, ...]) -> Any:
    return z3.Or(*(in_words(one, packet, protocols) for one in told if one.hook == hook))


def check_pair(before: str, after: str, family: str) -> None:
    """Everything that is claimed of *before* and *after* is so for z3, at every hook."""
    old, new = parse_ruleset(before, family), parse_ruleset(after, family)
    universe, difference, packet = make_universe((old, new), family), compare(old, new), judge.Packet(family)
    for hook in PATHS:
        here = packet.at(hook)
        ours = [as_formula(universe, accepted(universe, ruleset, hook), packet) for ruleset in (old, new)]
        theirs = [judge.Firewall(text, packet).accepts(hook) for text in (before, after)]
        for mine, judged in zip(ours, theirs):
            assert not judge.counterexample(mine, judged, here), hook
        check_words(
            difference.widened,
            hook,
            judge.in_states(packet, z3.And(theirs[1], z3.Not(theirs[0])), judge.STRAY),
            packet,
            universe.protocols,
        )
        check_words(
            difference.narrowed,
            hook,
            judge.in_states(packet, z3.And(theirs[0], z3.Not(theirs[1])), judge.RUNNING),
            packet,
            universe.protocols,
        )


def check_words(
    told: tuple[Told, ...], hook: str, truth: Any, packet: judge.Packet, protocols: tuple[int, ...]
) -> None:
    words = [one for one in told if one.hook == hook]
    readable = [one for one in words if not CUT_SHORT.search(one.packets)]
    exact = [one for one in readable if not SUMMARY.search(one.packets)]
    spoken = said(exact, hook, packet, protocols)
    story = (hook, [str(one) for one in words])
    assert not judge.counterexample(spoken, z3.And(truth, spoken), packet.at(hook)), story
    if len(readable) == len(words):
        everything = said(readable, hook, packet, protocols)
        assert not judge.counterexample(truth, z3.And(truth, everything), packet.at(hook)), story


@SLOW
@given(some_family, some_ruleset, some_family.flatmap(rulesets))
def test_the_difference_of_two_rule_sets_is_what_z3_says(family: str, before: str, after: str) -> None:
    check_pair(before, after, family)


@SLOW
@given(some_family, some_ruleset)
def test_the_difference_of_a_rewrite_is_what_z3_says(family: str, before: str) -> None:
    done = make_stateless(parse_ruleset(before, family))
    check_pair(before, format_ruleset(done.ruleset), family)


GOLDEN = [folder for folder in FOLDERS if (folder / "out").exists()]


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
def test_the_difference_of_the_golden_rewrites_is_what_z3_says(folder: Path) -> None:
    check_pair(source_of(folder).read_text(), (folder / "out").read_text(), family_of(folder))


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
def test_no_rewrite_lets_handshakes_in(folder: Path) -> None:
    if folder.name == "stateful-removed":  # rules.stateful: remove says that it takes a limit away
        assert [c.reason for c in rewritten(folder).changes]
        return
    before = parse_ruleset(source_of(folder).read_text(), family_of(folder))
    assert compare(before, rewritten(folder).ruleset).handshakes == ()


# --- the order in which dimensions are asked --------------------------------------------------------


def with_backends(count: int) -> tuple[RuleSet, RuleSet]:
    """A rule-set, and the same with a bypass for *count* backends of different addresses and ports."""
    before = parse_ruleset(filter_table("-A INPUT -m state --state ESTABLISHED -j ACCEPT", "-A INPUT -j DROP"), "ipv4")
    flows = tuple(Flow("tcp", (8000 + 2 * n, 8000 + 2 * n), f"10.{n}.7.{n}/32") for n in range(count))
    return before, add_bypass(before, Bypass(backends=flows)).ruleset


def pairs() -> list[tuple[RuleSet, RuleSet]]:
    golden = ((parse_ruleset(source_of(f).read_text(), family_of(f)), rewritten(f).ruleset) for f in GOLDEN)
    return [*golden, with_backends(4)]


@pytest.mark.parametrize("number", range(len(GOLDEN) + 1))
def test_the_words_do_not_depend_on_the_order_of_asking(number: int) -> None:
    """Asked in the order in which they are told, one by one: as it was before the order was another."""
    before, after = pairs()[number]
    universe = make_universe((before, after), before.family)
    plain = replace(universe, space=Space(universe.space.sizes))
    sets = [(hook, accepted(plain, before, hook), accepted(plain, after, hook)) for hook in PATHS]
    assert compare(before, after) == told(plain, sets)


def test_backends_cost_what_they_are() -> None:
    """Twice as many flows make about twice as many nodes; in the order of telling it was four times as many."""
    counts = []
    for count in (32, 64):
        before, after = with_backends(count)
        universe = make_universe((before, after), "ipv4")
        for hook in ("INPUT", "OUTPUT"):
            assert accepted(universe, before, hook) is not accepted(universe, after, hook)
        counts.append(universe.space.nodes)
    assert counts[1] < 2.5 * counts[0], counts


def test_a_handshake_that_is_let_in_is_told() -> None:
    before, after = filter_table("-A INPUT -p tcp --dport 80 -j ACCEPT"), filter_table("-A INPUT -p tcp -j ACCEPT")
    found = compare(parse_ruleset(before, "ipv4"), parse_ruleset(after, "ipv4")).handshakes
    assert [str(one) for one in found] == ["INPUT: TCP handshakes (SYN) to any port but 80 from anywhere"]


def test_a_lone_ack_that_was_new_and_refused_is_told() -> None:
    """Conntrack picks streams up midway (nf_conntrack_tcp_loose): a DROP of NEW met their segments too."""
    before = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p tcp -m state --state NEW -j DROP\nCOMMIT\n"
    after = make_stateless(parse_ruleset(before, "ipv4")).ruleset
    (told,) = compare(parse_ruleset(before, "ipv4"), after).widened
    assert str(told) == "INPUT: TCP segments with flags ACK, PSH+ACK, ACK+URG, PSH+ACK+URG from anywhere"


def test_lost_redirects_are_told() -> None:
    before = "*filter\n:INPUT DROP [0:0]\n-A INPUT -m state --state RELATED -j ACCEPT\nCOMMIT\n"
    after = make_stateless(parse_ruleset(before, "ipv4")).ruleset
    assert [str(told) for told in compare(parse_ruleset(before, "ipv4"), after).narrowed] == [
        "INPUT: source quench messages or redirects from anywhere"
    ]


# --- the words --------------------------------------------------------------------------------


def filter_table(*lines: str) -> str:
    return "\n".join(("*filter", ":INPUT DROP [0:0]", ":OUTPUT DROP [0:0]", ":a - [0:0]", *lines, "COMMIT", ""))


WORDS = {
    "-A INPUT -s 10.0.0.0/8 -p tcp --dport 22 -m tcp ! --tcp-flags RST,ACK NONE -j ACCEPT": [
        "INPUT: TCP segments with ACK or RST set to port 22 from 10.0.0.0/8"
    ],
    "-A INPUT -p udp --sport 53 -i eth0 -j ACCEPT": ["INPUT: UDP datagrams from port 53 from anywhere in by eth0"],
    "-A INPUT -p udp ! -i eth0 -j ACCEPT": ["INPUT: UDP datagrams from anywhere in by any interface but eth0"],
    "-A INPUT -p icmp --icmp-type 8 -j ACCEPT": ["INPUT: echo requests from anywhere"],
    "-A OUTPUT -p 47 -d 192.0.2.1 -j ACCEPT": ["OUTPUT: packets of protocol 47 to 192.0.2.1/32"],
    "-A INPUT -p udp -m mark --mark 0x1 -j ACCEPT": [
        "INPUT: UDP datagrams from anywhere where '-m mark --mark 0x1' holds"
    ],
    "-A INPUT -p tcp --tcp-flags ALL SYN,FIN -j ACCEPT": ["INPUT: TCP segments with flags FIN+SYN from anywhere"],
}


@pytest.mark.parametrize("rule", WORDS, ids=str)
def test_the_words(rule: str) -> None:
    nothing, something = filter_table(), filter_table(rule)
    check_pair(nothing, something, "ipv4")
    found = compare(parse_ruleset(nothing, "ipv4"), parse_ruleset(something, "ipv4"))
    assert [str(one) for one in found.widened] == WORDS[rule]


def test_few_conditions_are_said_exactly_and_many_are_counted() -> None:
    """A whitelist of hardware addresses makes one sentence, not one for each of its rules."""
    def said_of(count: int, ends: str) -> list[str]:
        lists = [f"-A INPUT -m mac --mac-source 00:00:5e:00:53:{n:02x} -j {ends}" for n in range(count)]
        texts = [filter_table(*lists, *last) for last in ((), ("-A INPUT -p udp -j ACCEPT",))]
        check_pair(texts[0], texts[1], "ipv4")
        return [told.packets for told in compare(*(parse_ruleset(text, "ipv4") for text in texts)).widened]

    first, second = ("'-m mac --mac-source 00:00:5e:00:53:00'", "'-m mac --mac-source 00:00:5e:00:53:01'")
    assert said_of(2, "ACCEPT") == [f"UDP datagrams from anywhere unless {first} holds unless {second} holds"]
    third = first.replace(":00'", ":02'")
    (many,) = said_of(100, "ACCEPT")
    assert many == f"UDP datagrams from anywhere unless any of {first}, {second}, {third} and 97 more conditions holds"


def test_conditions_that_hang_together_do_not_double_the_work() -> None:
    """Each jump and the rule behind it: in the order of the walk their diagram is as long as the rule-set."""
    chains = [f":c{n} - [0:0]" for n in range(100)]
    jumps = [f"-A INPUT -m set --match-set s{n} src -j c{n}" for n in range(100)]
    drops = [f"-A c{n} -m set --match-set d{n} src -j DROP" for n in range(100)]
    texts = ["\n".join(("*filter", ":INPUT DROP [0:0]", *chains, *jumps, rule, *drops, "COMMIT", ""))
             for rule in ("-A INPUT -p tcp --dport 80 -j ACCEPT", "-A INPUT -p tcp -j ACCEPT")]
    before, after = (parse_ruleset(text, "ipv4") for text in texts)
    universe = make_universe((before, after), "ipv4")
    for ruleset in (before, after):
        accepted(universe, ruleset, "INPUT")
    assert universe.space.nodes < 2_000
    assert [told.packets.split(" depending")[0] for told in compare(before, after).widened] == [
        "TCP segments to any port but 80 from anywhere"
    ]


def test_what_would_take_too_long_is_refused_with_the_reason() -> None:
    """Conditions paired against the order of the walk double the diagram with each pair."""
    firsts = [f"-A INPUT -m set --match-set s{n} src -j MARK --set-mark {n}" for n in range(30)]
    pairs = [f"-A INPUT -m set --match-set s{n} src -j c{n}" for n in range(30)]
    chains = [f":c{n} - [0:0]" for n in range(30)]
    drops = [f"-A c{n} -m set --match-set d{n} src -j DROP" for n in range(30)]
    texts = ["\n".join(("*filter", ":INPUT DROP [0:0]", *chains, *firsts, *pairs, rule, *drops, "COMMIT", ""))
             for rule in ("-A INPUT -p tcp --dport 80 -j ACCEPT", "-A INPUT -p tcp -j ACCEPT")]
    difference, why_not = stated(*(parse_ruleset(text, "ipv4") for text in texts))
    assert difference is None
    assert why_not == "not compared packet by packet: too many combinations of conditions"
