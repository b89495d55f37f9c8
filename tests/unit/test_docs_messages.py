"""docs/how-to/troubleshooting.md: what it quotes as ours we do say, and nothing that we say by name lacks an entry."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudinit_conntrack import errors

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/how-to/troubleshooting.md").read_text(encoding="utf-8")
OTHERS = "## What the kernel and other programs say"
SOURCES = [path for path in sorted((ROOT / "cloudinit_conntrack").rglob("*.py")) if path.parent.name != "carried"]
TREES = [ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES]
CODE = re.compile(r"`([^`]+)`")
SAYING = {"Item", "Holder"}  # their first word is an id


def pieces() -> list[str]:
    """Every text in the sources, as far as it stands there."""
    return [node.value for tree in TREES for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)]  # fmt: skip


def quoted() -> Iterator[str]:
    """What the first column of the tables about us quotes; braces stand for what differs."""
    ours = PAGE.replace(PAGE[PAGE.index(OTHERS) : PAGE.index("## It is blocked")], "")
    for line in ours.splitlines():
        cells = line.split("|")
        if line.startswith("| ") and len(cells) > 3 and not cells[1].strip().isdigit():
            yield from CODE.findall(cells[1])


def ids() -> Iterator[str]:
    """The id of everything that a run may say, as far as it is the same on each host."""
    for tree in TREES:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in SAYING and node.args:
                first = node.args[0]
                if isinstance(first, ast.Constant):
                    yield str(first.value)
                elif isinstance(first, ast.JoinedStr) and isinstance(first.values[0], ast.Constant):
                    yield str(first.values[0].value)


SOURCE = "\n".join(pieces())
IDS = sorted(set(ids()))
CLASSES = sorted(name for name, one in vars(errors).items()
                 if isinstance(one, type) and issubclass(one, errors.ConntrackError))  # fmt: skip


@pytest.mark.parametrize("message", sorted(set(quoted())))
def test_what_is_quoted_is_said(message: str) -> None:
    parts = [part.strip() for part in re.split(r"\{\w+\}", message)]
    assert all(part in SOURCE for part in parts), f"no source says {message!r}"


def test_enough_is_quoted() -> None:
    assert len(set(quoted())) > 100 and len(IDS) > 50, "the page or this test is read wrongly"


@pytest.mark.parametrize("name", IDS)
def test_each_id_has_an_entry(name: str) -> None:
    assert f"`{name}`" in PAGE, f"nobody who sees {name!r} finds out what it means"


@pytest.mark.parametrize("name", sorted(set(CLASSES) - {"ConntrackError"}))
def test_each_kind_of_error_has_an_entry(name: str) -> None:
    assert f"`{name}`" in PAGE
