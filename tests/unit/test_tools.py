"""Linters and the type checker are tests: what they say fails the run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "words",
    [
        ["ruff", "check", "--no-cache", "."],
        ["mypy"],
        # pytest's own sources are newer than Python 3.9
        ["mypy", "--python-version", "3.11", "tests/unit"],
        ["mypy", "--python-version", "3.11", "tests/netns"],
        ["mypy", "--python-version", "3.11", "tests/guest"],
        ["mypy", "--python-version", "3.11", "tests/effect"],
        ["mypy", "--python-version", "3.11", "tests/upstream"],
        ["mypy", "--python-version", "3.11", "tests/packages"],
        ["mypy", "packages"],
    ],
    ids=" ".join,
)
def test_tool(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.parametrize("path", sorted((ROOT / "cloudinit_conntrack").rglob("*.py")), ids=lambda p: p.name)
def test_files_stay_short(path: Path) -> None:
    """Past about 300 lines a file is really two."""
    assert len(path.read_text().splitlines()) <= 400
