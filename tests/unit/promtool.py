"""Prometheus' own tool as judge: taken out of Debian's package, so that no service is installed."""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path


@cache
def promtool() -> Path:
    """The program; the first call on a machine downloads 19 MB."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cloudinit-conntrack"
    base.mkdir(parents=True, exist_ok=True)
    place = base / "promtool"
    with (base / "promtool.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            with tempfile.TemporaryDirectory(dir=base) as directory:
                _unpack(Path(directory)).rename(place)
    return place


def _unpack(directory: Path) -> Path:
    asked = ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", "prometheus"]
    if subprocess.run(asked, cwd=directory, capture_output=True).returncode != 0:  # no list of packages yet
        subprocess.run(["apt-get", "update", "-q"], check=True, capture_output=True)
        subprocess.run(asked, cwd=directory, check=True, capture_output=True)
    (package,) = directory.glob("prometheus_*.deb")
    subprocess.run(["dpkg-deb", "--extract", package, directory / "tree"], check=True)
    return directory / "tree/usr/bin/promtool"


def asked(*words: str | Path, stdin: str = "") -> tuple[int, str]:
    """Exit status of ``promtool WORDS``, and what it said."""
    done = subprocess.run([promtool(), *words], input=stdin, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr
