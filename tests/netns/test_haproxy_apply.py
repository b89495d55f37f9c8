"""``flows.haproxy_cfg`` on a balancer with a haproxy, a server and clients: what it serves is tracked no more."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import applying, serving
from .applying import Machine
from .topology import BACKENDS, FAMILIES, Topology, address, topology

pytestmark = pytest.mark.usefixtures("mount_points")

ADMIN = "\nlisten admin\n    bind :8404\n    stats enable\n    stats uri /\n"
PORTS = ("80", "8080")


@pytest.fixture(params=BACKENDS)
def balancer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Topology, Machine]]:
    """A host with haproxy, between a client and a server; all of them run."""
    with topology() as net:
        made = Machine(net.host, request.param, tmp_path)
        made.prepare()
        four = serving.listener("four", "*:80", f"{address('ipv4', 'backend')}:8080")
        six = serving.listener("six", ":::80 v6only", f"[{address('ipv6', 'backend')}]:8080")
        path = tmp_path / "haproxy.cfg"
        path.write_text(serving.TIMEOUTS + four + six + ADMIN, encoding="ascii")
        with serving.pages(net.backend, tmp_path / "pages", 8080), serving.haproxy(net.host, path):
            yield net, made


def _config(machine: Machine, mode: str = "notrack") -> str:
    path = machine.files / "section.yaml"
    flows = {"haproxy_cfg": str(machine.files / "haproxy.cfg")}
    path.write_text(json.dumps({"conntrack": {"mode": mode, "flows": flows}}), encoding="ascii")
    return str(path)


def _served(net: Topology, family: str) -> str:
    """What a client gets over *family*."""
    return serving.fetch(net.client, address(family, "host"))


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
