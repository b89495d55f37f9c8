"""The bench of what conntrack costs (``bench.effect``, ``bench.memory``): does it measure what it says?

No time is judged here: each variant must have proved itself, and the files must be there.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import effect, memory, table
from bench.intervals import interval
from bench.variants import SMALL, Variant, ready, stateful
from tests.netns.namespace import Namespace


def test_a_quick_run_proves_its_variants_and_writes_its_files(tmp_path: Path) -> None:
    effect.main(["--quick", "--results", str(tmp_path)])
    cells = {cell["kind"]: cell for cell in json.loads((tmp_path / "effect.json").read_text())["cells"]}
    proofs = {kind: cell["proof"] for kind, cell in cells.items()}
    assert proofs["stateful"]["tracked"] > 0 and proofs["apply stateless"]["tracked_before"] > 0
    assert proofs["no rules"]["tracked"] == proofs["apply stateless"]["tracked"] == 0
    assert all(cell["good"] > 0 and cell["bad"] == 0 and cell["balancer"]["median"] > 0 for cell in cells.values())
    assert "| apply stateless |" in (tmp_path / "effect.md").read_text()
    rows = (tmp_path / "effect-rounds.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * len(cells), "the header, and two rounds of each variant"


def test_a_variant_that_is_not_what_it_says_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Variant, "tracked", property(lambda one: one.kind != "stateful"))
    with pytest.raises(RuntimeError, match=r"conntrack knows \d+ connections"), \
            ready(Variant("stateful"), tmp_path / "site"):
        pass


def test_the_table_is_filled_with_as_many_connections_as_were_asked_for() -> None:
    place = Namespace("host")
    try:
        table.fill(place, 1234)
        assert table.count(place) == 1234
        assert len(place.tracked("ESTABLISHED", "[ASSURED]", "dport=80", "dst=10.77.1.1")) == 1234
    finally:
        place.close()


def test_memory_counts_entries_that_packets_made() -> None:
    place = Namespace("host")
    try:
        place.run("ip", "link", "set", "lo", "up")
        place.load_rules(stateful(SMALL, "ipv4"), "legacy", "ipv4")
        found = memory.turn(place, 3000)
        assert found["entries"] == 3000 and table.count(place) == 0
        with pytest.raises(RuntimeError, match="of 3000"):
            place.clear_rules("legacy", "ipv4")
            memory.turn(place, 3000)
    finally:
        place.close()


def test_an_interval_holds_the_median_and_is_repeatable() -> None:
    values = [0.9, 0.95, 1.0, 1.05, 1.1]
    found = interval(values, seed=3)
    assert found == interval(values, seed=3)
    assert 0.9 <= found["low"] < found["median"] == 1.0 < found["high"] <= 1.1
    assert interval([2.0] * 4, seed=1) == {"median": 2.0, "low": 2.0, "high": 2.0}
