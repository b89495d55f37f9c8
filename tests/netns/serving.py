"""haproxy on the host between a client and a server, and what clients get from it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .namespace import Namespace

TIMEOUTS = "defaults\n    mode http\n    timeout connect 5s\n    timeout client 5s\n    timeout server 5s\n"
PAGE = "served"
_PATIENCE = 15.0  # seconds; a server that haproxy has not yet found alive is waited for


def listener(name: str, bind: str, server: str) -> str:
    """A section of haproxy.cfg that serves on *bind* what *server* (``ADDRESS:PORT``) has."""
    return f"\nlisten {name}\n    bind {bind}\n    server app {server} check inter 300ms\n"


@contextmanager
def program(place: Namespace, cwd: Path, *argv: str) -> Iterator[None]:
    """A program that runs in *place* until the context ends."""
    with place.inside():
        started = subprocess.Popen(argv, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                   env={"PATH": os.environ["PATH"]})  # fmt: skip
    try:
        yield
    finally:
        started.send_signal(signal.SIGKILL)
        started.wait(10)


@contextmanager
def pages(place: Namespace, directory: Path, *ports: int) -> Iterator[None]:
    """A web server of :data:`PAGE` on each of *ports*, on every address of *place*."""
    directory.mkdir(exist_ok=True)
    (directory / "index.html").write_text(PAGE, encoding="ascii")
    with ExitStack() as running:
        for port in ports:
            server = (sys.executable, "-m", "http.server", str(port), "--bind", "::")
            running.enter_context(program(place, directory, *server))
        yield


@contextmanager
def haproxy(place: Namespace, *files: Path) -> Iterator[None]:
    """A haproxy with these files."""
    tool = shutil.which("haproxy")
    assert tool, "haproxy is missing: run 'make prepare'"
    options = [word for file in files for word in ("-f", str(file))]
    with program(place, files[0].parent, tool, "-db", *options):
        yield


def fetch(place: Namespace, address: str, port: int = 80, patience: float = _PATIENCE) -> str:
    """What *place* gets from a web server, or nothing."""
    host = f"[{address}]" if ":" in address else address
    until = time.monotonic() + patience
    while True:
        done = place.run("curl", "-s", "-f", "-g", "--max-time", "3", f"http://{host}:{port}/", check=False)
        if done.returncode == 0 or time.monotonic() > until:
            return done.stdout
        time.sleep(0.2)
