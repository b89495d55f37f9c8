"""The guard's fresh connections: what took one before apply must take one after it, or all is rolled back."""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from .applying import SAVED, Machine, without_made_tables
from .namespace import Namespace
from .topology import BACKENDS, FAMILIES

pytestmark = pytest.mark.usefixtures("mount_points")

OWN = {"ipv4": "10.9.0.1", "ipv6": "fd09::1"}
RULES = {
    family: f"""*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p {icmp} -j ACCEPT
-A INPUT -p tcp -m state --state NEW -m tcp --dport 22 -d {OWN[family]} -j ACCEPT
-A INPUT -p tcp -m state --state NEW -m tcp --dport 80 -j ACCEPT
COMMIT
"""
    for family, icmp in (("ipv4", "icmp"), ("ipv6", "ipv6-icmp"))
}
CLOSED = 8443  # listened on, and refused by the rules
SPECIFIC = 80  # listened on at one address only


@pytest.fixture(params=BACKENDS)
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    """A host with an address in both families, a default route, and nobody on the other side."""
    place = Namespace("host")
    try:
        for words in ("link set lo up", "link add eth0 type veth peer name far", "link set far up",
                      f"addr add {OWN['ipv4']}/24 dev eth0", f"-6 addr add {OWN['ipv6']}/64 dev eth0 nodad",
                      "link set eth0 up", "route add default via 10.9.0.254",
                      "-6 route add default via fd09::fe"):  # fmt: skip
            place.run("ip", *words.split())
        made = Machine(place, request.param, tmp_path)
        made.furnish()
        for family in FAMILIES:
            place.load_rules(RULES[family], made.backend, family)
            made.put(SAVED[family], RULES[family])
        yield made
    finally:
        place.close()


@contextmanager
def listening(machine: Machine, *ports: int) -> Iterator[None]:
    """Sockets on *ports*, as sshd's and haproxy's; that of SPECIFIC on the host's own address."""
    with ExitStack() as stack, machine.place.inside():
        for port in ports:
            for domain, everywhere, own in ((socket.AF_INET, "0.0.0.0", OWN["ipv4"]),
                                            (socket.AF_INET6, "::", OWN["ipv6"])):  # fmt: skip
                opened = stack.enter_context(socket.socket(domain, socket.SOCK_STREAM))
                if domain == socket.AF_INET6:
                    opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                opened.bind((own if port == SPECIFIC else everywhere, port))
                opened.listen(64)
        yield


def links(machine: Machine) -> list[str]:
    return re.findall(r"^\d+: ([^:@]+)", machine.place.run("ip", "link").stdout, re.MULTILINE)


def outside(report: dict[str, object]) -> dict[str, object]:
    evidence = report["evidence"]
    assert isinstance(evidence, list)
    return {e["id"]: e["holds"] for e in evidence if e["id"].startswith("outside")}


def stubbed(machine: Machine, name: str, text: str) -> None:
    """A program *name* of ours before the real one."""
    place = machine.files / "bin"
    place.mkdir(exist_ok=True)
    (place / name).write_text(f"#!/bin/sh\n{text}\n", encoding="ascii")
    (place / name).chmod(0o755)
    machine.path = f"{place}:{machine.path}"


GUARD = {"keep": [22, CLOSED]}


def test_what_answered_is_asked_again(machine: Machine) -> None:
    """From outside, by the rules that ask for the address too; what the rules refuse is not missed."""
    before = links(machine)
    with listening(machine, 22, 80, CLOSED):
        found = machine.report(0, "apply", "-c", machine.config("stateless", guard=GUARD))
    asked = {f"outside:{OWN[family]}:{port}": True for family in FAMILIES for port in (22, 80)}
    assert outside(found) == asked
    assert links(machine) == before


def test_nobody_listens_and_nothing_is_asked(machine: Machine) -> None:
    stubbed(machine, "ip", "touch " + str(machine.files / "asked"))
    assert outside(machine.report(0, "apply", "-c", machine.config("stateless", guard=GUARD))) == {}
    assert not (machine.files / "asked").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_port_that_fell_silent_rolls_everything_back(machine: Machine, family: str) -> None:
    """Another program closes the port beside us, in one family, by a rule without state: nothing is left to do."""
    rules, files = machine.rules(), machine.of_others()
    restore = shutil.which({"ipv4": "iptables", "ipv6": "ip6tables"}[family] + f"-{machine.backend}-restore")
    assert restore
    command = restore[: -len("-restore")]
    marker = machine.files / "closed"
    # Once, and only in the host's own namespace: the same program proves saved files in others.
    stubbed(machine, Path(restore).name, f'{restore} "$@" || exit; [ -e {marker} ] && exit; '
            f"ip link show eth0 >/dev/null 2>&1 && {command} -w 20 -S INPUT | grep -q tcp-flags && touch {marker} && "
            f"{command} -w 20 -t raw -I PREROUTING -p tcp --dport 22 -j DROP; exit 0")  # fmt: skip
    with listening(machine, 22, 80):
        done = machine.run(1, "apply", "-c", machine.config("stateless", guard=GUARD))
    assert marker.exists()
    told = "port 22 took a fresh TCP connection from outside before apply and does not now"
    assert f"{OWN[family]} {told}" in done.stderr
    assert machine.of_others() == files
    left = without_made_tables(machine.rules(), rules)
    other = next(name for name in FAMILIES if name != family)
    assert left[machine.backend, other] == rules[machine.backend, other]
    assert "-m state" in machine.live(family) or "-m conntrack" in machine.live(family)


def test_where_no_link_can_be_made_it_is_said(machine: Machine) -> None:
    stubbed(machine, "ip", "echo 'RTNETLINK answers: Operation not permitted' >&2; exit 2")
    with listening(machine, 22):
        found = machine.report(0, "apply", "-c", machine.config("stateless", guard=GUARD))
    assert outside(found) == {"outside": None}
    told = next(e["what"] for e in found["evidence"] if e["id"] == "outside")
    assert "no connection from outside could be tried" in told and "Operation not permitted" in told
