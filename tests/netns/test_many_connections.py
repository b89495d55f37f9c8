"""10,000 open connections through a real haproxy while apply and revert run: none is cut, and all can still talk."""

from __future__ import annotations

import json
import os
import resource
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from .applying import Machine
from .namespace import Namespace
from .topology import BACKENDS, FAMILIES, Topology, address, topology

pytestmark = pytest.mark.usefixtures("mount_points")

EACH = 5000  # connections of one family
FILES = 16384  # in one process; two haproxies need half of that each
SECONDS = 120.0  # for all of them, on a busy machine
DOMAIN = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
HAPROXY = """\
global
    maxconn {most}
defaults
    mode tcp
    timeout connect 60s
    timeout client 10m
    timeout server 10m
listen one
    bind {bind}
    server app {server}:8080 maxconn {most}
"""
BIND = {"ipv4": "*:80", "ipv6": ":::80 v6only"}
ECHO = """
import asyncio
async def echo(reader, writer):
    while heard := await reader.read(64):
        writer.write(heard)
        await writer.drain()
async def main():
    server = await asyncio.start_server(echo, None, 8080, backlog=4096)
    print("up", flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


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
            server = f"[{address(family, 'backend')}]" if family == "ipv6" else address(family, "backend")
            text = HAPROXY.format(most=EACH + 100, bind=BIND[family], server=server)
            (tmp_path / f"{family}.cfg").write_text(text, encoding="ascii")
            running.enter_context(_program(net.host, tmp_path, haproxy, "-db", "-f", f"{family}.cfg"))
        yield net, machine


def _opened(net: Topology, stack: ExitStack) -> list[socket.socket]:
    """The connections, a few hundred at a time: haproxy's queue of new ones is not endless."""
    made: list[socket.socket] = []
    for family in FAMILIES:
        target = (address(family, "host"), 80)
        _answers(net, target)
        for _ in range(EACH):
            with net.client.inside():
                opened = stack.enter_context(socket.socket(DOMAIN[family], socket.SOCK_STREAM))
            opened.setblocking(False)
            with suppress(BlockingIOError):
                opened.connect(target)
            made.append(opened)
            if len(made) % 200 == 0:
                assert talking(made[-200:]) == 200
    return made


def _answers(net: Topology, target: tuple[str, int]) -> None:
    """Wait until haproxy listens."""
    until = time.monotonic() + SECONDS
    while True:
        with net.client.inside():
            opened = socket.socket(socket.AF_INET6 if ":" in target[0] else socket.AF_INET, socket.SOCK_STREAM)
        with opened:
            if opened.connect_ex(target) == 0 or time.monotonic() > until:
                return
        time.sleep(0.2)


def talking(held: list[socket.socket]) -> int:
    """How many of *held* carry a byte to the server and back."""
    heard = 0
    until = time.monotonic() + SECONDS
    with selectors.DefaultSelector() as selector:
        for opened in held:
            selector.register(opened, selectors.EVENT_WRITE)
        while selector.get_map() and time.monotonic() < until:
            for key, what in selector.select(1.0):
                opened = held_socket(key)
                try:
                    if what & selectors.EVENT_WRITE:
                        opened.send(b"x")
                        selector.modify(opened, selectors.EVENT_READ)
                        continue
                    heard += opened.recv(8) == b"x"
                except OSError:
                    pass
                selector.unregister(opened)
    return heard


def held_socket(key: selectors.SelectorKey) -> socket.socket:
    assert isinstance(key.fileobj, socket.socket)
    return key.fileobj


def test_no_connection_is_cut(balancer: tuple[Topology, Machine]) -> None:
    net, machine = balancer
    config = machine.files / "section.yaml"
    config.write_text(json.dumps({"conntrack": {"mode": "stateless"}}), "ascii")
    with ExitStack() as stack:
        held = _opened(net, stack)
        assert talking(held) == len(held) == EACH * len(FAMILIES)
        assert sum("dport=80 " in line for line in net.host.tracked("tcp", "ESTABLISHED")) >= len(held)
        machine.run(0, "apply", "-c", str(config))
        assert talking(held) == len(held)
        machine.run(0, "revert")
        assert talking(held) == len(held)
