"""Imports run one way, and only the door opens files and starts processes."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "cloudinit_conntrack"
# Ground first.  A module may import from its own floor and from those before it.
FLOORS = (
    ("errors",),
    ("netfilter",),
    ("state", "said", "messages", "fields", "document", "config", "kmod", "service", "shellvars", "haproxy", "scripts",
     "containers", "reduce", "cloudcfg", "tracking", "metrics", "fleet"),
    ("actions", "kinds", "linediff", "diffs", "journal", "guard", "holders", "planning", "plan", "planned",
     "userdata", "tree"),
    ("host",),
    ("perform", "perform_native", "rehearsal", "lastgood", "evidence", "verify", "transaction", "report", "showing",
     "status", "drawing", "seeing", "picture", "unchanged", "run", "enable", "forget"),
    ("boot", "rewriting", "carrying", "looking", "watching", "measuring", "comparing", "exits", "cli", "quick",
     "__main__"),
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# What touches files, processes, sockets, clocks or the environment.
OUTSIDE = {"subprocess", "os", "pathlib", "shutil", "tempfile", "socket", "time", "signal", "glob", "platform", "io"}
CARRIED = sorted((PACKAGE / "carried").glob("*.py"))  # a program of its own, which knows no floor
SOURCES = sorted(set(PACKAGE.rglob("*.py")) - set(CARRIED))


def room_of(path: Path) -> str:
    """``host`` for host/rules.py, ``plan`` for plan.py."""
    inner = path.relative_to(PACKAGE)
    return inner.parts[0] if len(inner.parts) > 1 else inner.stem


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) for every import statement of *path*; ours without the package's name."""
    package = ("cloudinit_conntrack", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, ""
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            for alias in node.names:
                yield module, alias.name


def rooms_imported(path: Path) -> Iterator[str]:
    for module, name in imports(path):
        words = module.split(".")
        if words[0] == "cloudinit_conntrack":
            room = words[1] if len(words) > 1 else name
            if room != "__version__":
                yield room


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(path) for path in SOURCES} - {"__init__"}
    assert rooms == set(FLOOR_OF)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        assert not list(imports(path))
        return
    upward = {other for other in rooms_imported(path) if FLOOR_OF[other] > FLOOR_OF[room]}
    assert not upward, f"{room} imports from above: {sorted(upward)}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_door_touches_the_host(path: Path) -> None:
    if room_of(path) == "host":
        return
    touched = {module.split(".")[0] for module, _ in imports(path)} & OUTSIDE
    calls = {
        node.func.id
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not touched | (calls & {"open", "exec", "eval", "__import__"})


def test_one_file_starts_processes() -> None:
    starting = [str(p.relative_to(PACKAGE)) for p in SOURCES if "subprocess" in {m for m, _ in imports(p)}]
    assert starting == ["host/process.py"]


@pytest.mark.parametrize("path", CARRIED, ids=lambda p: p.name)
def test_the_carried_program_imports_nothing_of_ours(path: Path) -> None:
    from_elsewhere = [module for module, _ in imports(path) if not module.startswith("cloudinit_conntrack.carried.")]
    assert set(from_elsewhere) <= sys.stdlib_module_names | {"__future__"}


def test_cloudinit_is_known_in_one_place_and_not_imported() -> None:
    names = {m for p in SOURCES for m, _ in imports(p)}
    assert not {m for m in names if m.split(".")[0] == "cloudinit"}
    face = ast.parse((ROOT / "cc_conntrack.py").read_text(), feature_version=(3, 6))
    top = [n for n in face.body if isinstance(n, (ast.Import, ast.ImportFrom))]
    assert {alias.name for n in top for alias in n.names} == {"contextlib", "functools", "logging"}
