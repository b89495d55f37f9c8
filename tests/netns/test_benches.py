"""The benches run, with one round each and into a place of their own; what they measure is judged by nobody."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import kept, recipe

from .applying import CHECKOUT
from .namespace import Namespace
from .topology import BACKENDS

COMMANDS = {"iptables": "ipv4", "ip6tables": "ipv6"}


def test_start(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "bench.start", "--rounds", "1", "--ports", "2", "--modes", "notrack"]
    done = subprocess.run([*words, "--results", str(tmp_path)], cwd=CHECKOUT, capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "start.json").read_text())["rows"]
    assert {row["command"] for row in rows} == {"status", "plan", "verify", "by hand", "bare"}
    assert all(row["cpu"]["least"] > 0 and 1 < row["mib"]["median"] < 1000 for row in rows)
    assert (tmp_path / "start.md").read_text().count("\n| ") == 1 + len(rows)


@pytest.mark.parametrize("text, wanted", [("345ms", 0.345), ("2.345s", 2.345), ("1min 2.5s", 62.5)])
def test_what_systemd_analyze_says(text: str, wanted: float) -> None:
    assert kept.seconds(text) == pytest.approx(wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_recipe_ends_without_state(backend: str) -> None:
    """One by one, it comes out where a rewrite of the whole does: every port is open, no rule asks for a state."""
    place, served = Namespace("host"), recipe.ports(3)
    try:
        for command, family in COMMANDS.items():
            place.load_rules(recipe.rules(command, served), backend, family)
        lines = recipe.stateless(served).splitlines()
        for words in (line.split() for line in lines if line.startswith(tuple(COMMANDS))):
            place.run(f"{words[0]}-{backend}", *words[1:])
        for family in COMMANDS.values():
            text = place.save_rules(backend, family)
            assert "state" not in text and "REJECT" in text.splitlines()[-2]
            assert all(f"--dport {port} " in text for port in (22, *served))
    finally:
        place.close()
