"""Looking up rules by port changes no verdict: beside a walk that looks at each of them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudinit_conntrack.netfilter import reach
from cloudinit_conntrack.netfilter.iptables import parse_ruleset
from cloudinit_conntrack.netfilter.reach import Packet

PORTS = (None, 22, 80, 81, 443, 8000, 40000)
NAMES = ("--dport 80", "--dport 22", "! --dport 80", "--dport 8000:8001", "--dport 20:9000", "--sport 80", "--sport 22",
         "--dport 80 --sport 22", "--dport http", "--dport nonsense", "--sport 443", "")
LISTS = ("-m multiport --dports 80,443", "-m multiport ! --dports 22,80", "-m multiport --sports 80,8000:8001", "")
TARGETS = ("ACCEPT", "DROP", "RETURN", "apart", "LOG")
RULE = st.tuples(st.sampled_from(("tcp", "udp")), st.sampled_from(NAMES), st.sampled_from(LISTS),
                 st.sampled_from(TARGETS))
PACKET = st.builds(Packet, st.sampled_from(("tcp", "udp")), st.sampled_from(PORTS), st.sampled_from(PORTS), st.just(2))


def text_of(chain: str, rules: list[tuple[str, str, str, str]]) -> str:
    return "".join(f"-A {chain} -p {protocol} -m {protocol} {ports} {more} -j {target}\n"
                   for protocol, ports, more, target in rules if chain == "INPUT" or target != "apart")


@given(st.lists(RULE, min_size=reach._FEW, max_size=24), st.lists(RULE, max_size=12), st.lists(PACKET, max_size=8))
@settings(max_examples=150, deadline=None)
def test_by_port(rules: list[tuple[str, str, str, str]], apart: list[tuple[str, str, str, str]],
                 packets: list[Packet]) -> None:
    text = "*filter\n:INPUT DROP [0:0]\n:apart - [0:0]\n" + text_of("INPUT", rules) + text_of("apart", apart)
    ruleset = parse_ruleset(text + "COMMIT\n", "ipv4")
    quick = [reach.verdicts(ruleset, "INPUT", packet) for packet in packets]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reach, "_FEW", 1_000)
        assert quick == [reach.verdicts(ruleset, "INPUT", packet) for packet in packets]
