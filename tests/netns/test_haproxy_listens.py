"""The kernel as the judge of the listeners that we derive: haproxy is started, and ss says where it listens."""

from __future__ import annotations

import ipaddress
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cloudinit_conntrack.config import Flow
from cloudinit_conntrack.errors import HaproxyError
from cloudinit_conntrack.haproxy.flows import HaproxyFlows, haproxy_flows
from cloudinit_conntrack.host.haproxy import haproxy_files
from cloudinit_conntrack.host.root import Root

from .namespace import Namespace

GOLDEN = Path(__file__).resolve().parents[1] / "unit" / "haproxy"
EVERY = ("0.0.0.0", "::")
EPHEMERAL = (40000, 60999)  # what logs are sent from
Sockets = set[tuple[str, str, int]]
# Of a name we take every address; a peers section without this host's name is dropped by haproxy; a program
# section wants a master process.
OTHERWISE = {"names", "peers-without-a-name", "other-sections"}


def derived(case: Path) -> HaproxyFlows:
    try:
        files = haproxy_files([f"/{case.name}"], Root(str(case.parent)))
        return haproxy_flows([(file.path, file.content or b"") for file in files])
    except HaproxyError:  # the golden tests look at those
        return HaproxyFlows()


CASES = [case for case in sorted(GOLDEN.iterdir())
         if case.name not in OTHERWISE and not (case / "refused").exists() and derived(case).frontends]  # fmt: skip


def expected(flows: tuple[Flow, ...]) -> Sockets:
    """(protocol, address, port) of each listener; both families of a flow without an address."""
    found: Sockets = set()
    for flow in flows:
        networks = ["0.0.0.0/0", "::/0"] if flow.address is None else [flow.address]
        for port in range(flow.ports[0], flow.ports[1] + 1):
            found |= {(flow.protocol, network.partition("/")[0], port) for network in networks}
    return found


def listening(place: Namespace) -> Sockets:
    """What ss shows; a socket on ``*`` is one for both families."""
    found: Sockets = set()
    for line in place.run("ss", "-H", "-l", "-t", "-u", "-n").stdout.splitlines():
        protocol, _, _, _, local = line.split()[:5]
        address, _, port = local.rpartition(":")
        if protocol == "udp" and EPHEMERAL[0] <= int(port) <= EPHEMERAL[1]:
            continue
        addresses = ["0.0.0.0", "::"] if address == "*" else [address.strip("[]").partition("%")[0]]
        found |= {(protocol, one, int(port)) for one in addresses}
    # haproxy shares ports: beside a socket for every address one for some address says nothing new
    return {(p, a, n) for p, a, n in found if a in EVERY or (p, EVERY[":" in a], n) not in found}


@contextmanager
def running(place: Namespace, case: Path, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """haproxy with the configuration *case*."""
    program = shutil.which("haproxy")
    assert program, "haproxy is missing: run 'make prepare'"
    with place.inside(), (cwd / "said").open("w") as said:
        started = subprocess.Popen([program, "-db", "-f", str(case)], cwd=cwd, stdout=said, stderr=said, text=True,
                                   env={"PATH": os.environ["PATH"]})  # fmt: skip
    try:
        yield started
    finally:
        started.send_signal(signal.SIGKILL)
        started.wait(10)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    made = tmp_path_factory.mktemp("certificate")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test",
                    "-keyout", "key.pem", "-out", "cert.pem"], cwd=made, check=True, capture_output=True,
                   timeout=60)  # fmt: skip
    return (made / "cert.pem").read_bytes() + (made / "key.pem").read_bytes()


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_haproxy_listens_where_we_say(case: Path, tmp_path: Path, certificate: bytes) -> None:
    (tmp_path / "site.pem").write_bytes(certificate)
    flows = derived(case).frontends
    wanted = expected(flows)
    place = Namespace("balancer")
    try:
        place.run("ip", "link", "set", "lo", "up")
        place.sysctl({"net.ipv4.ip_local_port_range": f"{EPHEMERAL[0]} {EPHEMERAL[1]}"})
        for address in {address for _, address, _ in wanted} - set(EVERY):
            if not ipaddress.ip_address(address).is_loopback:
                place.run("ip", "address", "add", address, "dev", "lo", *(["nodad"] if ":" in address else []))
        with running(place, case, tmp_path) as started:
            until = time.monotonic() + 10
            while listening(place) != wanted and time.monotonic() < until and started.poll() is None:
                time.sleep(0.05)
            assert started.poll() is None, (tmp_path / "said").read_text()
            assert listening(place) == wanted
    finally:
        place.close()


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 25
