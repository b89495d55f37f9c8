"""Native nftables rules before and after the rewrite, loaded in turn, judged by the same packets."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudinit_conntrack.netfilter.nft_difference import packet_sets
from cloudinit_conntrack.netfilter.nft_ruleset import format_nft, parse_nft
from cloudinit_conntrack.netfilter.nft_stateless import make_stateless_nft

from . import judge
from .judge import Observed
from .membership import unstated
from .rulesets import ASKED_FREELY, DNS_WORKS, OTHER_REFUSED, OUT_WORKS, SSH_WORKS, Case
from .topology import FAMILIES, Topology, topology

RULES = Path(__file__).with_name("native")
CASES = (
    Case(
        "server-vmap",
        works=(*SSH_WORKS, *OUT_WORKS, *DNS_WORKS, "tcp in 80 caller closes", "udp in 53", "udp in 53 big",
               "udp in 443", "ping in", "tcp lo 8080 caller closes"),
        refused=(*OTHER_REFUSED, "udp in 514", "tcp through 8080 called closes"),
        unanswered=ASKED_FREELY,
    ),
    Case(
        "workstation",
        works=(*SSH_WORKS, *OUT_WORKS, *DNS_WORKS, "udp in 53", "udp in 53 big", "udp in 514", "ping in"),
        refused=(*OTHER_REFUSED, "udp in 443", "tcp in 80 caller closes"),
        unanswered=ASKED_FREELY,
    ),
    Case(
        "balancer",
        works=(*SSH_WORKS, "tcp in 80 caller closes", "udp in 443", "tcp out 8080 called closes", "udp out 53",
               "udp out 53 big", "udp out 123", "udp out 5000", "tcp out 25 caller closes", "tcp lo 80 caller closes"),
        refused=(*OTHER_REFUSED, "tcp out 80 caller closes", "ping in", "ping out"),
    ),
    Case(
        "router",
        works=(*SSH_WORKS, *OUT_WORKS, "tcp through 8080 called closes", "udp through 53", "udp through 53 big",
               "tcp back 8080 called resets", "ping back", "ping back big", "small link: download through 8080",
               "small link: upload back 8080"),
        refused=(*OTHER_REFUSED, "ping through", "udp back 53"),
        unanswered=ASKED_FREELY,
    ),
    Case(
        "accept-then-drop-new",
        works=(*SSH_WORKS, *OUT_WORKS, *DNS_WORKS, "ping in", "tcp back 8080 called closes", "udp back 53"),
        refused=(*OTHER_REFUSED, "tcp in 80 caller closes", "tcp through 8080 called closes", "udp through 53"),
        unanswered=(*ASKED_FREELY, "udp back 53", "udp back 53 big"),
    ),
    Case(
        "dispatch",
        works=(*SSH_WORKS, *OUT_WORKS, *DNS_WORKS, "tcp in 80 caller closes", "udp in 53", "udp in 53 big",
               "udp in 514", "ping in", "tcp lo 8080 caller closes"),
        refused=(*OTHER_REFUSED, "tcp in 8080 caller closes", "udp in 443"),
        unanswered=ASKED_FREELY,
    ),
    Case(
        "two-chains",
        works=(*SSH_WORKS, *OUT_WORKS, *DNS_WORKS, "tcp in 80 caller closes", "udp in 53", "udp in 53 big", "ping in"),
        refused=(*OTHER_REFUSED, "udp in 514"),
        unanswered=ASKED_FREELY,
    ),
    Case(
        "arch",
        works=(*SSH_WORKS, *OUT_WORKS, *DNS_WORKS, "ping in", "tcp lo 8080 caller closes"),
        refused=(*OTHER_REFUSED, "tcp in 80 caller closes", "udp in 53", "tcp through 8080 called closes"),
        unanswered=ASKED_FREELY,
    ),
    Case(
        "gentoo",
        works=(*SSH_WORKS, *OUT_WORKS, *DNS_WORKS, "ping in", "tcp in 80 caller closes", "udp out 53 big"),
        refused=(*OTHER_REFUSED, "udp in 53", "udp out 5000", "tcp in 8080 caller closes"),
    ),
    Case(
        "role",
        works=(*SSH_WORKS, "tcp out 8080 called closes", "ping out", "udp out 53", "udp out 123", "ping in",
               "tcp in 80 caller closes", "udp in 53", "udp in 53 big", "udp in 443"),
        refused=(*OTHER_REFUSED, "udp in 514", "udp out 5000", "tcp out 80 caller closes"),
    ),
    Case(
        "blacklist",
        works=(*SSH_WORKS, *OUT_WORKS, *DNS_WORKS, "ping in", "udp in 53", "udp in 53 big", "tcp in 80 caller closes"),
        refused=(*OTHER_REFUSED, "udp in 443"),
        unanswered=ASKED_FREELY,
    ),
    Case(
        "zones",
        works=(*SSH_WORKS, *OUT_WORKS, *DNS_WORKS, "ping in", "udp in 53", "udp in 443", "tcp in 80 caller closes",
               "tcp through 8080 called closes", "udp through 53", "tcp back 8080 called closes", "udp back 53"),
        refused=(*OTHER_REFUSED, "udp in 514", "tcp through 80 caller closes", "ping through"),
        unanswered=(*ASKED_FREELY, "udp back 53", "udp back 53 big"),
    ),
    Case(
        "limited",
        works=(*SSH_WORKS, *OUT_WORKS, *DNS_WORKS, "ping in", "udp in 53", "tcp in 80 caller closes"),
        refused=(*OTHER_REFUSED, "udp in 514", "tcp through 8080 called closes"),
        unanswered=ASKED_FREELY,
    ),
    Case(
        "amphora",
        works=(*SSH_WORKS, *OUT_WORKS, *DNS_WORKS, "tcp in 80 caller closes", "udp in 443"),
        refused=(*OTHER_REFUSED, "udp in 53", "ping in"),
        unanswered=ASKED_FREELY,
    ),
    Case(
        "bits",
        works=(*SSH_WORKS, *OUT_WORKS, *DNS_WORKS, "tcp in 80 caller closes", "udp in 53", "ping in"),
        refused=(*OTHER_REFUSED, "udp in 514"),
        unanswered=ASKED_FREELY,
    ),
    Case(
        "exempt",
        works=(*SSH_WORKS, *OUT_WORKS, *DNS_WORKS, "tcp in 80 caller closes", "udp in 53", "udp in 443", "ping in"),
        refused=(*OTHER_REFUSED, "udp in 514"),
        unanswered=ASKED_FREELY,
    ),
    Case(
        "new-goes-apart",
        works=(*SSH_WORKS, *OUT_WORKS, *DNS_WORKS, "tcp in 80 caller closes", "udp in 53", "ping in", "udp through 53"),
        refused=(*OTHER_REFUSED, "udp in 514", "tcp through 8080 called closes"),
        unanswered=ASKED_FREELY,
    ),
    Case(
        "return-known",
        works=(*SSH_WORKS, *OUT_WORKS, *DNS_WORKS, "tcp in 80 caller closes", "udp in 53", "ping in",
               "tcp back 8080 called closes", "udp back 53"),
        refused=(*OTHER_REFUSED, "udp in 443", "tcp through 8080 called closes"),
        unanswered=(*ASKED_FREELY, "udp back 53", "udp back 53 big"),
    ),
)


@pytest.fixture(scope="module")
def net() -> Iterator[Topology]:
    with topology() as made:
        yield made


def load(net: Topology, text: str, *options: str) -> str:
    """Load *text* on a host without rules or connections; gives what nft lists then."""
    net.host.run("nft", "flush", "ruleset")
    net.host.run("nft", *options, "-f", "-", stdin=text)
    net.host.forget_connections()
    return net.host.run("nft", "-j", "list", "ruleset").stdout


def observe(net: Topology, family: str, text: str, worked: dict[str, str]) -> Observed:
    load(net, text, "-j")
    return asyncio.run(judge._observe(net, family, worked))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_only_what_is_stated_changes(net: Topology, family: str, case: Case) -> None:
    text = load(net, (RULES / f"{case.name}.nft").read_text())
    rewritten = make_stateless_nft(parse_nft(text, case.name))
    assert not rewritten.blockers
    sets = packet_sets(parse_nft(text), rewritten.ruleset, family)
    for _ in range(2):  # what the machine was too slow for is tried once more
        before = observe(net, family, text, dict.fromkeys(case.works, "ok"))
        judge._is_what_it_says(case, before)
        held = {name: result for name, result in before.conversations.items() if name not in case.unanswered}
        after = observe(net, family, format_nft(rewritten.ruleset), held)
        found = judge.complaints(before, after, rewritten, case.unanswered)
        found += unstated(before.fates, after.fates, sets)
        if not found:
            break
    assert not found, "\n".join((*found, "", net.host.run("nft", "list", "ruleset").stdout))
