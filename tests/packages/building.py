"""The packages of this tree, built by ``packages/build``, and packages made of them for a test."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD_SECONDS = 600  # a limit; half a minute is usual, and as much for installing tools


@dataclass(frozen=True)
class Dist:
    """What was built."""

    directory: Path

    @property
    def sdist(self) -> Path:
        return self._one("cloudinit_conntrack-*.tar.gz")

    @property
    def wheel(self) -> Path:
        return self._one("*-py3-none-any.whl")

    @property
    def deb(self) -> Path:
        return self._one("*_all.deb")

    def rpm(self, dist: str) -> Path:
        """The .rpm for *dist*, such as ``el9``."""
        return self._one(f"*.{dist}.noarch.rpm")

    def _one(self, pattern: str) -> Path:
        (found,) = self.directory.glob(pattern)
        return found


def build(out: Path, tree: Path = ROOT, **environment: str) -> Dist:
    """Build all packages of *tree* into *out*, with nothing but *environment* (and PATH) in the environment."""
    command = ["env", "-i", "PATH=/usr/bin:/bin:/usr/sbin:/sbin", *(f"{k}={v}" for k, v in environment.items()),
               str(tree / "packages/build"), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return Dist(out)


def older(deb: Path, work: Path) -> Path:
    """*deb* as an earlier version, with a module that the later one has no more."""
    tree = work / "older"
    run("dpkg-deb", "--raw-extract", str(deb), str(tree))
    control = tree / "DEBIAN/control"
    control.write_text(re.sub(r"(?m)^Version: .*", "Version: 0.0.1", control.read_text()))
    (tree / "usr/lib/python3/dist-packages/cloudinit_conntrack/gone.py").write_text("OLD = True\n")
    return packed(tree, work / "older.deb")


def neighbour(work: Path, path: str, content: str) -> Path:
    """Another package, that brings the file *path*."""
    tree = work / "neighbour"
    place = tree / path.lstrip("/")
    place.parent.mkdir(parents=True)
    place.write_text(content)
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN/control").write_text(
        "Package: neighbour\nVersion: 1\nArchitecture: all\nMaintainer: test <test@localhost>\nDescription: a test's\n")
    return packed(tree, work / "neighbour.deb")


def packed(tree: Path, deb: Path) -> Path:
    """*tree* as a package."""
    run("dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(deb))
    return deb


def run(*command: str, timeout: float = 120) -> str:
    """Standard output of *command*, which must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"{command}: status {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout
