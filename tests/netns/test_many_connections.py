"""10,000 open connections through a real haproxy while apply and revert run: none is cut, and all can still talk."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from .applying import Machine
from .many import DOMAIN, ECHO, FILES, configuration, opened, talking
from .namespace import Namespace
from .topology import BACKENDS, FAMILIES, Topology, address, topology

pytestmark = pytest.mark.usefixtures("mount_points")

EACH = 5000  # connections of one family
@contextmanager
def _program(place: Namespace, cwd: Path, *argv: str) -> Iterator[subprocess.Popen[str]]:
    with place.inside():
        started = subprocess.Popen(argv, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                                   env={"PATH": os.environ["PATH"]})  # fmt: skip
    try:
        yield started
    finally:
        started.send_signal(signal.SIGKILL)
        started.communicate(timeout=10)


@contextmanager
def _many_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture(params=BACKENDS)
def balancer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Topology, Machine]]:
    with topology() as net, ExitStack() as running:
        running.enter_context(_many_files())
        machine = Machine(net.host, request.param, tmp_path)
        machine.prepare()
        net.host.sysctl({"net.core.somaxconn": 4096})
        net.backend.sysctl({"net.core.somaxconn": 4096})
        echo = running.enter_context(_program(net.backend, tmp_path, sys.executable, "-c", ECHO))
        assert echo.stdout and echo.stdout.readline() == "up\n"
        haproxy = shutil.which("haproxy")
        assert haproxy, "haproxy is missing: run 'make prepare'"
        for family in FAMILIES:
            text = configuration(family, address(family, "backend"), EACH)
            (tmp_path / f"{family}.cfg").write_text(text, encoding="ascii")
            running.enter_context(_program(net.host, tmp_path, haproxy, "-db", "-f", f"{family}.cfg"))
        yield net, machine


def test_no_connection_is_cut(balancer: tuple[Topology, Machine]) -> None:
    net, machine = balancer
    config = machine.files / "section.yaml"
    config.write_text(json.dumps({"conntrack": {"mode": "stateless"}}), "ascii")

    def made(family: str) -> socket.socket:
        with net.client.inside():
            return socket.socket(DOMAIN[family])

    with ExitStack() as stack:
        held = opened(made, {family: address(family, "host") for family in FAMILIES}, EACH, stack)
        assert talking(held) == len(held) == EACH * len(FAMILIES)
        assert sum("dport=80 " in line for line in net.host.tracked("tcp", "ESTABLISHED")) >= len(held)
        machine.run(0, "apply", "-c", str(config))
        assert talking(held) == len(held)
        machine.run(0, "revert")
        assert talking(held) == len(held)
