"""Rules before and after the rewrite, loaded in turn, judged by the same packets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cloudinit_conntrack.netfilter.iptables import parse_ruleset
from cloudinit_conntrack.netfilter.ruleset import format_ruleset
from cloudinit_conntrack.netfilter.stateless import make_stateless

from . import judge
from .rulesets import CASES, Case
from .topology import BACKENDS, FAMILIES, Topology, topology

Net = tuple[Topology, str]


@pytest.fixture(scope="module", params=BACKENDS)
def net(request: pytest.FixtureRequest) -> Iterator[Net]:
    with topology() as made:
        yield made, request.param


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_only_what_is_stated_changes(net: Net, family: str, case: Case) -> None:
    host, backend = net
    text = case.text(family)
    rewritten = make_stateless(parse_ruleset(text, family, case.name))
    assert not rewritten.blockers
    after_text = format_ruleset(rewritten.ruleset)

    judge.compare(host, backend, family, case, (text, after_text), rewritten)
