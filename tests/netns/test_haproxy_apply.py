"""``flows.haproxy_cfg`` on a balancer with a haproxy, a server and clients: what it serves is tracked no more."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from . import applying
from .applying import Machine
from .namespace import Namespace
from .topology import BACKENDS, FAMILIES, Topology, address, topology

pytestmark = pytest.mark.usefixtures("mount_points")

CONFIGURATION = """\
defaults
    mode http
    timeout connect 5s
    timeout client 5s
    timeout server 5s

listen four
    bind *:80
    server app {four}:8080 check inter 300ms

listen six
    bind :::80 v6only
    server app [{six}]:8080 check inter 300ms

listen admin
    bind :8404
    stats enable
    stats uri /
"""
PORTS = ("80", "8080")


@pytest.fixture(params=BACKENDS)
def balancer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Topology, Machine]]:
    """A host with haproxy, between a client and a server; all of them run."""
    with topology() as net, ExitStack() as running:
        made = Machine(net.host, request.param, tmp_path)
        made.prepare()
        text = CONFIGURATION.format(four=address("ipv4", "backend"), six=address("ipv6", "backend"))
        (tmp_path / "haproxy.cfg").write_text(text, encoding="ascii")
        pages = tmp_path / "pages"
        pages.mkdir()
        (pages / "index.html").write_text("served", encoding="ascii")
        running.enter_context(_program(net.backend, pages, sys.executable, "-m", "http.server", "8080", "--bind", "::"))
        haproxy = shutil.which("haproxy")
        assert haproxy, "haproxy is missing: run 'make prepare'"
        running.enter_context(_program(net.host, tmp_path, haproxy, "-db", "-f", "haproxy.cfg"))
        yield net, made


@contextmanager
def _program(place: Namespace, cwd: Path, *argv: str) -> Iterator[None]:
    with place.inside():
        started = subprocess.Popen(argv, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                   env={"PATH": os.environ["PATH"]})  # fmt: skip
    try:
        yield
    finally:
        started.send_signal(signal.SIGKILL)
        started.wait(10)


def _config(machine: Machine, mode: str = "notrack") -> str:
    path = machine.files / "section.yaml"
    flows = {"haproxy_cfg": str(machine.files / "haproxy.cfg")}
    path.write_text(json.dumps({"conntrack": {"mode": mode, "flows": flows}}), encoding="ascii")
    return str(path)


def _served(net: Topology, family: str) -> str:
    """What a client gets over *family*; a server that haproxy has not yet found alive is waited for."""
    host = address(family, "host")
    url = f"http://[{host}]/" if family == "ipv6" else f"http://{host}/"
    until = time.monotonic() + 15
    while True:
        done = net.client.run("curl", "-s", "-f", "-g", "--max-time", "3", url, check=False)
        if done.returncode == 0 or time.monotonic() > until:
            return done.stdout
        time.sleep(0.2)


def _tracked(net: Topology) -> set[tuple[str, str]]:
    """(family, port) of those of the flows that conntrack has."""
    return {(family, port) for family in FAMILIES for port in PORTS if net.host.tracked(f"dport={port}", family)}


def test_what_haproxy_serves_and_asks_is_tracked_no_more(balancer: tuple[Topology, Machine]) -> None:
    net, machine = balancer
    everything = {(family, port) for family in FAMILIES for port in PORTS}
    assert [_served(net, family) for family in FAMILIES] == ["served", "served"]
    assert _tracked(net) == everything, "conntrack would not have tracked the flows anyway"
    rules = machine.rules()

    done = machine.run(0, "apply", "-c", _config(machine))
    assert f"haproxy's flows: frontends 80/tcp, 0.0.0.0/0:8404/tcp; backends {address('ipv4', 'backend')}/32:8080" in (
        done.stdout.replace("\n", " ")
    )
    time.sleep(1.0)  # a few health checks
    for family in FAMILIES:
        assert [_served(net, family) for _ in range(5)] == ["served"] * 5
    assert _tracked(net) == set()
    net.client.run("ping", "-c1", "-W2", address("ipv4", "host"))
    assert net.host.tracked("ipv4", "icmp"), "the rest of the host is tracked as before"
    machine.run(0, "verify")
    assert machine.run(0, "apply", "-c", _config(machine)).stdout.startswith("nothing to do")

    machine.run(0, "revert")
    assert applying.without_made_tables(machine.rules(), rules) == rules
    assert [_served(net, family) for family in FAMILIES] == ["served", "served"]
    assert _tracked(net) == everything


def test_a_port_that_the_rules_refuse_stays_closed(balancer: tuple[Topology, Machine]) -> None:
    """haproxy's page for administrators listens, and no rule lets anybody in."""
    net, machine = balancer
    assert _served(net, "ipv4") == "served"
    url = f"http://{address('ipv4', 'host')}:8404/"
    get = ("curl", "-s", "-o", "/dev/null", "--max-time", "3", url)
    assert net.host.run(*get, check=False).returncode == 0, "it does not even listen"
    assert net.client.run(*get, check=False).returncode != 0
    done = machine.run(0, "apply", "-c", _config(machine))
    assert "the rules refuse haproxy's 0.0.0.0/0:8404/tcp: left as it is" in done.stdout
    assert "8404" not in machine.live("ipv4")
    assert net.client.run(*get, check=False).returncode != 0
    assert net.host.run(*get, check=False).returncode == 0


def test_a_changed_configuration_is_drift(balancer: tuple[Topology, Machine]) -> None:
    _, machine = balancer
    machine.run(0, "apply", "-c", _config(machine))
    path = machine.files / "haproxy.cfg"
    text = path.read_text(encoding="ascii")
    path.write_text(text + "listen more\n    bind :443\n    server app 192.0.2.77:8443\n", encoding="ascii")
    machine.run(4, "verify")
    assert "192.0.2.77" in machine.run(4, "plan").stdout
    path.write_text(text + "listen more\n    bind \":${PORT}\"\n", encoding="ascii")
    done = machine.run(3, "plan")
    line = text.count("\n") + 2
    assert f"{path}:{line}" in done.stdout and "PORT" in done.stdout
    path.unlink()
    assert "there is no such file" in machine.run(3, "apply").stdout
