"""Real rule-sets (../shared/real, not part of this repository) are read whole, and rewritten or refused by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from netfilter_kernel import load

from cloudinit_conntrack.netfilter.iptables import parse_ruleset
from cloudinit_conntrack.netfilter.notrack import OWNER, Bypass, Flow, add_bypass
from cloudinit_conntrack.netfilter.ruleset import RuleSet, format_ruleset
from cloudinit_conntrack.netfilter.stateful import dependency
from cloudinit_conntrack.netfilter.stateless import Policy, Rewritten, make_stateless

REAL = Path(__file__).resolve().parents[3] / "shared" / "real"
FILES = (
    sorted(p for p in REAL.glob("*") if re.search(rb"(?m)^\*[a-z]+ *\r?$", p.read_bytes()))
    if REAL.is_dir()
    else []
)

pytestmark = pytest.mark.skipif(
    not FILES, reason="no ../shared/real beside this clone: its files belong to others"
)


def family(path: Path) -> str:
    return "ipv6" if re.search(r"ip6tables|before6|rules\.v6", path.name) else "ipv4"


def text_of(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "surrogateescape")


def parsed(path: Path) -> RuleSet:
    return parse_ruleset(text_of(path), family(path), path.name)


def outputs() -> dict[Path, Rewritten]:
    done = {path: make_stateless(parsed(path), Policy(nat="remove")) for path in FILES}
    return {path: result for path, result in done.items() if not result.blockers}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_is_lost_in_reading(path: Path) -> None:
    assert format_ruleset(parsed(path)) == text_of(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_rewritten_or_refused_by_name(path: Path) -> None:
    ruleset = parsed(path)
    stateful = [x for x in ruleset.rules() if dependency(x.rule, x.table)]
    done = make_stateless(ruleset)
    assert bool(done.blockers or done.changes) == bool(stateful or "nat" in ruleset.tables())
    for blocker in done.blockers:
        assert ruleset.lines[blocker.line - 1].text == blocker.rule and blocker.reason and blocker.remedy
    if not done.blockers:
        assert not [x.text for x in done.ruleset.rules() if dependency(x.rule, x.table)]
        changed = {change.line for change in done.changes}
        rest = iter(x.text for x in done.ruleset.lines)
        kept = [x.text for x in ruleset.lines if x.number not in changed and x.table != "nat"]
        assert all(any(text == other for other in rest) for text in kept), "every other line stands, in its order"
        assert not make_stateless(done.ruleset).changes


def test_most_real_files_can_be_rewritten() -> None:
    assert len(outputs()) >= len(FILES) * 3 // 4, sorted(set(FILES) - set(outputs()))


@pytest.mark.parametrize("backend", ["legacy", "nft"])
def test_the_kernel_loads_what_it_loaded_before(backend: str) -> None:
    loaded = 0
    for kind in ("ipv4", "ipv6"):
        done = {path: result for path, result in outputs().items() if family(path) == kind}
        before = load((text_of(path) for path in done), kind, backend)
        after = load((format_ruleset(result.ruleset) for result in done.values()), kind, backend)
        for path, old, new in zip(done, before, after):
            if old.code == 0:
                loaded += 1
                assert new.code == 0, f"{path.name}: {new.error}"
                assert "state" not in re.sub(r'"[^"]*"|stateless-[a-z0-9]+', "", new.saved), new.saved
    assert loaded >= 10


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_bypass_beside_real_rules(path: Path) -> None:
    ruleset = parsed(path)
    bypass = Bypass(
        (Flow("tcp", (8443, 8443)),),
        (Flow("tcp", (8080, 8080), "10.0.0.0/8" if family(path) == "ipv4" else "fd00::/8"),),
    )
    done = add_bypass(ruleset, bypass)
    if done.blockers:
        assert all(ruleset.lines[b.line - 1].text == b.rule and b.remedy for b in done.blockers)
        return
    rest = iter(x.text for x in done.ruleset.lines)
    assert all(any(x.text == other for other in rest) for x in ruleset.lines)
    assert sum(OWNER in x.text for x in done.ruleset.rules("raw")) >= 6
    assert not add_bypass(done.ruleset, bypass).changes
