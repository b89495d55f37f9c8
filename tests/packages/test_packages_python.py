"""The sdist is the whole source, the wheel the whole program, and all packages are of one version."""

from __future__ import annotations

import os
import re
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

from .building import ROOT, Dist, run

PACKAGE = ROOT / "cloudinit_conntrack"
# What a working tree holds beside its source: at its top, and anywhere.
NOT_SOURCE = (".git", ".venv", ".cache", ".hypothesis", "build", "dist")
NOWHERE_SOURCE = ("__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache")


def program() -> set[str]:
    """Every module and every file of data of this tree's program, by its path in site-packages."""
    found = (path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {"cc_conntrack.py", *(str(path.relative_to(ROOT)) for path in found)}


def source() -> set[str]:
    """Every file of this tree's source."""
    found: set[str] = set()
    for place, directories, files in os.walk(ROOT):
        inner = Path(place).relative_to(ROOT)
        beside = NOWHERE_SOURCE if inner.parts else (*NOWHERE_SOURCE, *NOT_SOURCE)
        directories[:] = [name for name in directories if name not in beside and not name.endswith(".egg-info")]
        found.update(str(inner / name) for name in files if inner.parts or name not in beside)
    return found


def test_the_wheel_holds_the_whole_program(dist: Dist) -> None:
    with zipfile.ZipFile(dist.wheel) as wheel:
        held = {name: wheel.read(name) for name in wheel.namelist() if ".dist-info/" not in name}
    assert set(held) == program()
    assert {name for name, content in held.items() if content != (ROOT / name).read_bytes()} == set()


def test_the_wheel_asks_for_pyyaml_alone(dist: Dist) -> None:
    with zipfile.ZipFile(dist.wheel) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        said = Parser().parsestr(wheel.read(name).decode())
    assert said.get_all("Requires-Dist") == ["PyYAML"]
    assert said["Requires-Python"] == ">=3.9"
    assert said["License"] == "Apache-2.0"


def test_the_wheel_installs_and_runs(dist: Dist, tmp_path: Path) -> None:
    run(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps",
        "--target", str(tmp_path), str(dist.wheel))
    done = run("env", f"PYTHONPATH={tmp_path}", "--chdir=/", str(tmp_path / "bin/cloudinit-conntrack"), "--version")
    assert done == f"cloudinit-conntrack {version()}\n"


def test_the_sdist_is_the_whole_source(dist: Dist) -> None:
    with tarfile.open(dist.sdist) as sdist:
        members = sdist.getmembers()
        top = {member.name.split("/")[0] for member in members}
        held = {member.name.partition("/")[2] for member in members if not member.isdir()}
    assert top == {f"cloudinit_conntrack-{version()}"}
    assert held - {"PKG-INFO", "setup.cfg"} == source()


def test_the_sdist_holds_no_link_and_no_name_of_a_person(dist: Dist) -> None:
    with tarfile.open(dist.sdist) as sdist:
        members = sdist.getmembers()
    assert {(m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, "", "")}
    assert [m.name for m in members if not (m.isfile() or m.isdir())] == []


def test_all_packages_are_of_one_version(dist: Dist) -> None:
    spec = (ROOT / "packages/cloudinit-conntrack.spec").read_text()
    assert re.findall(r"(?m)^Version: +(\S+)", spec) == [version()]
    assert (ROOT / "debian/changelog").read_text().startswith(f"cloudinit-conntrack ({version()}) ")
    assert dist.wheel.name == f"cloudinit_conntrack-{version()}-py3-none-any.whl"


def version() -> str:
    """The version that the program says it is."""
    (found,) = re.findall(r'(?m)^__version__ = "(.+)"', (PACKAGE / "__init__.py").read_text())
    assert isinstance(found, str)
    return found
