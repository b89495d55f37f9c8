"""Native rules, judged by what iptables-translate is to print, and by what nft lists of iptables-nft's own tables.

Everything that the real nft loads and lists as JSON must be read, written back byte for byte,
and rewritten or refused; what the rewrite makes must load again.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import pytest

from cloudinit_conntrack.netfilter.iptables import parse_rule
from cloudinit_conntrack.netfilter.nft_ruleset import format_nft, parse_nft
from cloudinit_conntrack.netfilter.nft_stateful import dependency
from cloudinit_conntrack.netfilter.nft_stateless import make_stateless_nft
from cloudinit_conntrack.netfilter.stateful import dependency as iptables_dependency

from .extension_rules import Translation, candidates, translations
from .restoring import PREFIX, file_of

PRIORITIES = {"raw": -300, "mangle": -150, "nat": -100, "filter": 0, "security": 50}
HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
# 370 of 398 with nft 1.0.6 and a 6.18 kernel.
FLOOR = 300
# $1 is a folder, $2 the program that reads in.*
_SCRIPT = """
cd "$1"
for file in in.*; do
  number=${file#in.}
  $2 < "$file" > "err.$number" 2>&1
  echo $? > "rc.$number"
  nft -j list ruleset > "json.$number"
  nft flush ruleset
done
true
"""


def listed(texts: Sequence[str], program: str) -> list[tuple[bool, str, str]]:
    """Load each of *texts* by *program*: whether it took it, what nft then lists as JSON, and what it said."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, text in enumerate(texts):
            (folder / f"in.{number:05}").write_text(text)
        command = ["unshare", "--net", "sh", "-c", _SCRIPT, "sh", name, program]
        where = {"LC_ALL": "C.UTF-8", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        # nft 1.0.6 aborts while it lists jhash of a ct expression, and leaves the listing empty
        subprocess.run(command, check=True, timeout=300, env=where, stderr=subprocess.DEVNULL)
        ends = sorted(path.suffix for path in folder.glob("in.*"))
        return [
            ((folder / f"rc{end}").read_text().strip() == "0", (folder / f"json{end}").read_text(),
             (folder / f"err{end}").read_text())
            for end in ends
        ]  # fmt: skip


def script_of(translation: Translation) -> str:
    """Its commands, behind the tables and chains that they are for."""
    places = dict.fromkeys(tuple(c.split()[2:5]) for c in translation.commands if c.split()[1:2] == ["rule"])
    tables = dict.fromkeys(f"add table {family} {table}" for family, table, _ in places)
    return "\n".join([*tables, *(_chain(*place) for place in places), *translation.commands, ""])


def _chain(family: str, table: str, chain: str) -> str:
    hook = chain.lower()
    if hook not in HOOKS or family == "bridge":
        return f"add chain {family} {table} {chain}"
    kind = "nat" if table == "nat" and hook != "forward" else "filter"
    return f"add chain {family} {table} {chain} {{ type {kind} hook {hook} priority {PRIORITIES[table]}; }}"


@lru_cache(maxsize=1)
def loaded(tree: Path) -> list[tuple[Translation, str]]:
    """What nft takes of the translations, and its listing of each."""
    mine = list(translations(tree))
    with ThreadPoolExecutor(2) as pool:
        halves = pool.map(lambda part: listed([script_of(x) for x in part], "nft -f -"), (mine[::2], mine[1::2]))
    rows = [row for part, results in zip((mine[::2], mine[1::2]), halves) for row in zip(part, results)]
    return [(translation, text) for translation, (took, text, _) in rows if took and text]


def test_enough_is_loaded_and_all_of_it_is_written_back(tree: Path, measured: list[str]) -> None:
    tried = len(list(translations(tree)))
    measured.append(f"nft: {tried} translations tried, {len(loaded(tree))} loaded and listed")
    assert len(loaded(tree)) > FLOOR
    for _, text in loaded(tree):
        assert format_nft(parse_nft(text)) == text


def test_every_native_rule_is_rewritten_or_refused_and_loads_again(tree: Path) -> None:
    results: list[str] = []
    refused = 0
    for _, text in loaded(tree):
        done = make_stateless_nft(parse_nft(text))
        refused += bool(done.blockers)
        if done.blockers:
            continue
        assert not any(dependency(entry) for entry in done.ruleset.entries), text
        assert done.changes or format_nft(done.ruleset) == text
        if done.changes:
            results.append(format_nft(done.ruleset))
    assert len(results) > 4 and refused > 40
    for text, (took, again, error) in zip(results, listed(results, "nft -j -f -")):
        assert took, (error, text)
        assert not make_stateless_nft(parse_nft(again)).changes, text


def test_a_native_rule_depends_on_conntrack_when_its_original_does(tree: Path) -> None:
    """Two languages, two tables of what needs conntrack, and one answer."""
    both = [(x.source, parse_nft(text)) for x, text in loaded(tree) if x.source]
    needing = 0
    for source, ruleset in both:
        wanted = iptables_dependency(parse_rule(source.text), source.table) is not None
        needing += wanted
        assert any(dependency(entry) for entry in ruleset.entries) == wanted, source
    assert needing > 50


@pytest.mark.parametrize("family", ("ipv4", "ipv6"))
def test_tables_of_iptables_nft_are_read_and_told(tree: Path, family: str) -> None:
    """What nft lists of iptables-nft's rules is kept; what in it depends on conntrack is refused by name."""
    mine = [c for c in candidates(tree) if c.family == family and not c.refused][::6]
    results = listed([file_of(c.table, [c.text]) for c in mine], f"{PREFIX[family]}-nft-restore")
    taken = [(candidate, text) for candidate, (took, text, _) in zip(mine, results) if took and text]
    assert len(taken) > 50
    for candidate, text in taken:
        ruleset = parse_nft(text)
        assert format_nft(ruleset) == text
        needs = iptables_dependency(parse_rule(candidate.text), candidate.table) is not None
        done = make_stateless_nft(ruleset)
        assert needs == bool(done.blockers or done.changes), (candidate.text, text)
