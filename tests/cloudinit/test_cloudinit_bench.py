"""``bench.handle`` runs, with one round into a place of its own; what it measures is judged by nobody."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from chroots import SUITES
from conftest import ChrootOf
from installation import PRODUCT


def test_handle_beside_the_recipe(chroot_of: ChrootOf, tmp_path: Path) -> None:
    suite = SUITES[2]
    chroot_of(suite)  # made here, where it may take its time
    words = [sys.executable, "-m", "bench.handle", "--rounds", "1", "--ports", "2", "--versions", suite.version,
             "--modes", "stateless", "--results", str(tmp_path)]
    done = subprocess.run(words, cwd=PRODUCT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "handle.json").read_text())["rows"]
    assert [(row["mode"], row["ports"]) for row in rows] == [("stateless", 2)]
    assert all(row[side]["cpu"]["least"] > 0 for row in rows for side in ("handle", "recipe"))
