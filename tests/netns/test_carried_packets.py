"""The rewrite that user-data carries: the same packets under the rules before and after, as for the whole program's.

What it lets in must be among the widenings that the whole program names for the same rules.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from cloudinit_conntrack.carried.rules import Blocked, stateless
from cloudinit_conntrack.netfilter.iptables import parse_ruleset
from cloudinit_conntrack.netfilter.stateless import make_stateless

from . import judge
from .rulesets import CASES, Case
from .topology import BACKENDS, FAMILIES, Topology, topology

# Each family with one back end: that both load the same text, the whole program's tests show.
EACH = tuple(zip(BACKENDS, FAMILIES))
OUTBOUND = [["udp", port, port, ""] for port in (53, 123, 67)]
CONFIG: dict[str, Any] = {"stateful": "rewrite", "frontends": [], "backends": [], "outbound": OUTBOUND}
LOCAL = "32768:60999"
# States of whatever protocol before a jump, a DROP or a RETURN: only the whole program can say them.
REFUSED = ("accept-then-drop-new", "multiport-and-chains", "fwbuilder", "goto-verdict", "return-from-chain",
           "shared-chain")
LOADED = [case for case in CASES if case.name not in REFUSED]


@pytest.fixture(scope="module")
def net() -> Iterator[Topology]:
    with topology() as made:
        yield made


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", REFUSED)
def test_what_it_cannot_say_it_refuses(name: str, family: str) -> None:
    case = next(case for case in CASES if case.name == name)
    with pytest.raises(Blocked, match="needs a protocol"):
        stateless(case.text(family), family, CONFIG, LOCAL, True)


@pytest.mark.parametrize(("backend", "family"), EACH)
@pytest.mark.parametrize("case", LOADED, ids=[case.name for case in LOADED])
def test_only_what_the_whole_program_states_changes(net: Topology, backend: str, family: str, case: Case) -> None:
    text = case.text(family)
    after = stateless(text, family, CONFIG, LOCAL, True)
    assert stateless(after, family, CONFIG, LOCAL, True) == after

    judge.compare(net, backend, family, case, (text, after), make_stateless(parse_ruleset(text, family, case.name)))
