"""examples/: every file has a row in its README, and a test that runs it; each says what it gives up."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HERE = ROOT / "examples"
ROW = re.compile(r"^\| `(\S+)` \| [^|]+ \| `(\S+)::(\w+)` \|$", re.MULTILINE)
RUN_BY = {name: (path, test) for name, path, test in ROW.findall((HERE / "README.md").read_text(encoding="utf-8"))}
FILES = sorted(str(path.relative_to(HERE)) for path in HERE.rglob("*") if path.is_file() and path.name != "README.md")


def test_every_file_has_a_row_and_every_row_a_file() -> None:
    assert sorted(RUN_BY) == FILES


@pytest.mark.parametrize("name", RUN_BY)
def test_its_test_is_there_and_reads_it(name: str) -> None:
    path, test = RUN_BY[name]
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    tests = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert test in tests, f"{path} has no {test}"
    # seed_case.py and conftest.py read for the modules beside them
    beside = [ROOT / path, *(ROOT / path).parent.glob("seed_case.py"), *(ROOT / path).parent.glob("conftest.py")]
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in beside]
    texts = {node.value for t in trees for node in ast.walk(t) if isinstance(node, ast.Constant)}
    assert any(isinstance(text, str) and text.endswith(Path(name).name) for text in texts), f"{path} reads no {name}"


# JSON has no place for comments.
@pytest.mark.parametrize("name", [name for name in FILES if name != "seed-centos.yaml" and not name.endswith(".json")])
def test_it_says_what_it_gives_up(name: str) -> None:
    first, *rest = (HERE / name).read_text(encoding="utf-8").splitlines()
    assert first == "#cloud-config" or first.startswith("# ")
    comment = [line for line in rest if line.startswith("# ")]
    assert any("gives up:" in line for line in comment), "what it costs is as much worth knowing"
