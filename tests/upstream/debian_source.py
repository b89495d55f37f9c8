"""Source packages of the Debian that this machine runs, fetched at test time with ``apt-get source``.

apt reads a configuration of our own below the cache: the machine's mirrors and keys, asked
for sources.  /etc/apt stays as it is.  The cache is named by the package's version, so a
newer package means a fresh tree, whatever the date.  Nothing of it enters this repository.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "debian-source"
APT = Path("/etc/apt")


class SourceError(Exception):
    """A source package could not be fetched; holds what apt said."""


def source_tree(package: str) -> Path:
    """The unpacked sources of *package*, in the version that is installed here.

    Raises :class:`SourceError` where the package is not installed, or no mirror has it.
    """
    version = _run(["dpkg-query", "-W", "-f", "${source:Version}", package])
    name = _run(["dpkg-query", "-W", "-f", "${source:Package}", package])
    tree = CACHE / f"{name}-{version}"
    if tree.exists():
        return tree
    CACHE.mkdir(parents=True, exist_ok=True)
    with _alone(), tempfile.TemporaryDirectory(dir=CACHE) as folder:
        if not tree.exists():
            _fetch(f"{name}={version}", Path(folder)).rename(tree)
    return tree


@contextmanager
def _alone() -> Iterator[None]:
    """Two test runs at once: the second waits, and finds what the first has fetched."""
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(what: str, folder: Path) -> Path:
    parts = folder / "sources.list.d"
    for path in (parts, folder / "lists" / "partial", folder / "tree"):
        path.mkdir(parents=True)
    for path in (APT / "sources.list", *(APT / "sources.list.d").glob("*")):
        if path.suffix in (".list", ".sources") and path.exists():
            (parts / path.name).write_text(as_source(path.read_text()))
    options = {
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": str(parts),
        "Dir::State::lists": str(folder / "lists"),
        "Dir::Cache": str(folder),
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "root",  # the folder is ours alone
    }
    apt = ["apt-get", "-q", *(word for key, value in options.items() for word in ("-o", f"{key}={value}"))]
    # A third party's repository without sources makes this fail; what counts is the next command.
    update = subprocess.run([*apt, "update"], capture_output=True, text=True, timeout=300, check=False)
    _run([*apt, "source", "--only-source", what], folder / "tree", update.stderr)
    return next(path for path in (folder / "tree").iterdir() if path.is_dir())


def as_source(text: str) -> str:
    """A file of apt's sources, both of its forms, asked for source packages instead of binary ones."""
    return "\n".join(_line_as_source(line) for line in text.split("\n"))


def _line_as_source(line: str) -> str:
    if line.lower().startswith("types:"):
        return "Types: deb-src"
    if line.startswith(("deb ", "deb\t")):
        return "deb-src" + line[3:]
    return line


def _run(command: Sequence[str], where: Path | None = None, before: str = "") -> str:
    done = subprocess.run(
        command, cwd=where, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "LC_ALL": "C"}
    )
    if done.returncode:
        raise SourceError(f"{' '.join(command)} failed with status {done.returncode}:\n{before}{done.stderr}")
    return done.stdout
