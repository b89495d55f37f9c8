"""One Debian chroot per cloud-init version, made once and kept by what it is made of.

``python3 tests/cloudinit/chroots.py [SUITE...]`` makes them by hand; the tests make what
they need.  A chroot is never written to after it is made: tests mount it copy-on-write
(:mod:`machines`).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Suite:
    """A Debian suite and the cloud-init it brings (*version*: what the tests are about)."""

    name: str
    version: str
    single_process: bool  # its own systemd units run one process for all stages (24.3+)

    @property
    def rejects_unknown_keys(self) -> bool:
        """Whether its schema warns about top-level keys it does not know (23.4+)."""
        return numbers(self.version) >= (23, 4)


SUITES = (
    Suite("bullseye", "20.4", single_process=False),
    Suite("bookworm", "22.4", single_process=False),
    Suite("trixie", "25.1", single_process=True),
    Suite("sid", "26.2", single_process=True),
)

# openssh-client and passwd: without them cloud-init's own modules fail, and a boot is never
# clean.  systemd is not booted, but its systemctl enables units as on a real host.
PACKAGES = (
    "cloud-init", "iproute2", "iptables", "kmod", "mount", "openssh-client", "passwd",
    "python3-jsonschema", "python3-yaml", "systemd", "util-linux",
)

# bullseye and sid outlive the dates in their Release files.  The variant is the smallest
# that has apt, as every cloud image has; pages nobody reads here are left out for speed.
RECIPE = (
    "--mode=root",
    "--variant=apt",
    "--format=directory",
    "--include=" + ",".join(PACKAGES),
    '--aptopt=Acquire::Check-Valid-Until "false"',
    '--aptopt=APT::Sandbox::User "root"',
    "--dpkgopt=force-unsafe-io",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
)

BUILD_SECONDS = 900  # limit for one chroot on a slow mirror; about 30 are usual
AT_ONCE = 2


class ChrootError(Exception):
    """A chroot cannot be made; the message holds the last lines of what was tried."""


def cache() -> Path:
    """The directory that keeps the chroots, made when missing."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(base) / "cloudinit-conntrack" / "chroots"
    path.mkdir(parents=True, exist_ok=True)
    return path


def chroot_path(suite: Suite) -> Path:
    """Where the chroot of *suite* is kept: the name holds a hash of the recipe."""
    made_of = "\n".join((suite.name, *RECIPE))
    return cache() / f"{suite.name}-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"


def mirror() -> str:
    """The Debian mirror that this machine's own apt uses.

    apt itself is asked, so both forms of its sources and an empty list directory work.
    """
    codename = _os_release("VERSION_CODENAME")
    asked = subprocess.run(
        ["apt-get", "update", "--print-uris"], capture_output=True, text=True, check=True, timeout=60,
    )
    found = re.search(rf"^'(\S+)/dists/{re.escape(codename)}/(?:In)?Release'", asked.stdout, re.MULTILINE)
    if found is None:
        raise ChrootError(f"apt names no mirror for {codename}: {asked.stdout[:400]!r}")
    return found[1]


def make_chroots(suites: tuple[Suite, ...], progress: Progress) -> dict[str, Path]:
    """Make what is missing of *suites*, two at a time; their paths by suite name."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        paths = pool.map(lambda suite: make_chroot(suite, progress), suites)
        return {suite.name: path for suite, path in zip(suites, paths)}


def make_chroot(suite: Suite, progress: Progress) -> Path:
    """The chroot of *suite*, made now if it is not in the cache.

    Made beside its place and renamed, under a lock, so that neither an interrupted
    build nor a second run at the same time leaves half a chroot there.
    """
    path = chroot_path(suite)
    with _locked(path.with_suffix(".lock")):
        if path.exists():
            return path
        partial = path.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        started = time.monotonic()
        _mmdebstrap(suite, partial, progress)
        partial.rename(path)
    progress(f"{suite.name}: chroot made in {time.monotonic() - started:.0f} s")
    return path


def _mmdebstrap(suite: Suite, target: Path, progress: Progress) -> None:
    # In namespaces of its own: what mmdebstrap mounts goes when it goes, however it ends.
    command = [
        "unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child",
        "timeout", str(BUILD_SECONDS),
        "mmdebstrap", *RECIPE, suite.name, str(target), mirror(),
    ]
    lines: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip())
            if line.startswith("I: "):
                progress(f"{suite.name}: {line[3:].rstrip()}")
    if process.returncode != 0:
        shutil.rmtree(target, ignore_errors=True)
        raise ChrootError(f"mmdebstrap {suite.name}: status {process.returncode}\n" + "\n".join(lines[-15:]))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _os_release(key: str) -> str:
    found = re.search(rf'^{key}="?([^"\n]+)', Path("/etc/os-release").read_text(), re.MULTILINE)
    if found is None:
        raise ChrootError(f"/etc/os-release has no {key}")
    return found[1]


def numbers(version: str) -> tuple[int, ...]:
    """A version such as ``22.4.2``, to compare."""
    return tuple(int(part) for part in version.split("."))


def main(names: list[str]) -> None:
    """Make the chroots of the suites *names*, or all."""
    chosen = tuple(suite for suite in SUITES if not names or suite.name in names)
    for name, path in make_chroots(chosen, lambda line: print(line, flush=True)).items():
        print(name, path)


if __name__ == "__main__":
    main(sys.argv[1:])
