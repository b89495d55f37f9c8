"""Rules before and after the rewrite, loaded in turn, judged by the same packets."""

from __future__ import annotations

from typing import Iterator, Tuple

import pytest

from cloudinit_conntrack.netfilter.iptables import parse_ruleset
from cloudinit_conntrack.netfilter.ruleset import format_ruleset
from cloudinit_conntrack.netfilter.stateless import make_stateless

from . import judge
from .rulesets import CASES, Case
from .topology import BACKENDS, FAMILIES, Topology, topology

Net = Tuple[Topology, str]


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

    before = judge.observe(host, backend, family, text, {})
    wrong = [f"{name}: {before.conversations[name]}" for name in case.works if not _works(before.conversations[name])]
    wrong += [f"{name}: ok" for name in case.refused if before.conversations[name] == "ok"]
    assert not wrong, "the rules before are not what the case says"
    assert before.tracked, "conntrack did not track under the rules before: nothing is proved"

    after = judge.observe(host, backend, family, after_text, before.conversations)
    found = judge.complaints(before, after, rewritten, case.unanswered)
    assert not found, "\n".join((*found, "", after_text))


def _works(outcome: str) -> bool:
    return outcome in ("ok", "ECONNREFUSED")
