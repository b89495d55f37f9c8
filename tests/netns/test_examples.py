"""Each file of examples/ as it stands, on a host with real rules, a haproxy, a server and clients.

The host gets the addresses that the files name.  Judged by what clients get and by /proc/net/nf_conntrack.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from . import conversations, serving, usage
from .applying import CHECKOUT, SAVED, STATEFUL, Machine, without_made_tables
from .namespace import Namespace, configure
from .test_cli_apply import built_in as built_in  # a fixture
from .topology import FAMILIES, Topology, address, topology

pytestmark = pytest.mark.usefixtures("mount_points")

EXAMPLES = CHECKOUT / "examples"
SERVERS = {"ipv4": "10.20.0.11", "ipv6": "2001:db8:20::11"}  # behind the host
RESOLVERS = {"ipv4": "10.0.0.2", "ipv6": "2001:db8:53::1"}  # in front of it
LENGTH = {"ipv4": 32, "ipv6": 128}
PATIENCE = 2.0  # seconds for an answer


@dataclass(frozen=True)
class Balancer:
    """A host that is to be changed, and its surroundings."""

    net: Topology
    machine: Machine
    files: Path

    def serve(self, family: str) -> str:
        """What a client gets of port 80."""
        return serving.fetch(self.net.client, address(family, "host"))

    def tracked(self, *ports: int) -> set[tuple[str, int]]:
        """(family, port) of the connections to *ports* that conntrack knows."""
        return {(f, p) for f in FAMILIES for p in ports if self.net.host.tracked(f, f"dport={p}")}

    def apply(self, name: str, code: int = 0) -> str:
        """Apply ``examples/NAME``, and once more: then there is nothing to do.  Gives what it said."""
        said = self.machine.run(code, "apply", "-c", str(EXAMPLES / name)).stdout
        if not code:
            assert self.machine.run(0, "apply", "-c", str(EXAMPLES / name)).stdout.startswith("nothing to do")
            self.machine.run(0, "verify")
        return said

    def put(self, name: str, text: str) -> Path:
        """A file of the host."""
        path = self.files / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
        return path


@contextmanager
def balancer(files: Path, backend: str, rules: str = "balancer-centos") -> Iterator[Balancer]:
    """A host with stateful rules, live and saved, and the addresses of the examples around it."""
    with topology() as net:
        for family in FAMILIES:
            server, resolver, length = SERVERS[family], RESOLVERS[family], LENGTH[family]
            nodad = " nodad" if family == "ipv6" else ""
            configure(net.backend, [f"addr add {server}/{length} dev eth0{nodad}"])
            configure(net.client, [f"addr add {resolver}/{length} dev eth0{nodad}"])
            configure(net.host, [f"route add {server} via {address(family, 'backend')}"], family)
            configure(net.router, [f"route add {server} via {address(family, 'host')}",
                                   f"route add {resolver} via {address(family, 'client')}"], family)  # fmt: skip
        made = Machine(net.host, backend, files)
        made.prepare(rules)
        yield Balancer(net, made, files)


@contextmanager
def serving_balancer(files: Path, backend: str, families: tuple[str, ...] = FAMILIES) -> Iterator[Balancer]:
    """The same with a haproxy on port 80, over each family, before a server on port 8080."""
    binds = {"ipv4": "0.0.0.0:80", "ipv6": ":::80 v6only"}
    with balancer(files, backend) as made:
        sections = [serving.listener(f, binds[f], f"{_bracketed(SERVERS[f])}:8080") for f in families]
        path = made.put("etc/haproxy/haproxy.cfg", serving.TIMEOUTS + "".join(sections))
        with serving.pages(made.net.backend, files / "pages", 8080), serving.haproxy(made.net.host, path):
            yield made


def _bracketed(literal: str) -> str:
    return f"[{literal}]" if ":" in literal else literal


EVERYTHING = {(family, port) for family in FAMILIES for port in (80, 8080)}


def serves(made: Balancer) -> None:
    """Clients of both families get the page."""
    assert [made.serve(family) for family in FAMILIES] == [serving.PAGE] * 2


def reverts(made: Balancer, rules: dict[tuple[str, str], str], files: dict[str, object]) -> None:
    """Everything is as it was, and the page still served."""
    made.machine.run(0, "revert")
    assert without_made_tables(made.machine.rules(), rules) == rules
    assert made.machine.of_others() == files
    serves(made)


def dns(made: Balancer, family: str, server: str) -> str:
    """How a DNS request of the host to a server on the client's side ends."""

    async def ask() -> str:
        async with conversations.world(family) as world:
            world.answer(made.net.client, 53, own=server)
            request = conversations.ask(family, made.net.host, (server, 53))
            return await conversations.outcome(request, PATIENCE)

    return asyncio.run(ask())


# --- notrack -------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["legacy", "nft"])
def test_one_port(tmp_path: Path, backend: str) -> None:
    """NOTRACK in both directions, in each family, and for a connection over loopback."""
    with serving_balancer(tmp_path, backend) as made:
        serves(made)
        assert made.tracked(80, 8080) == EVERYTHING, "nothing is proved by what would not be tracked anyway"
        rules, files = made.machine.rules(), made.machine.of_others()
        made.apply("notrack-one-port.yaml")
        made.net.host.forget_connections()
        serves(made)
        assert made.tracked(80, 8080) == {(family, 8080) for family in FAMILIES}
        for family in FAMILIES:
            lines = [line.split() for line in made.machine.live(family).splitlines() if "--notrack" in line]
            written = {(words[1], words[words.index("80") - 1]) for words in lines if "80" in words}
            assert written == {("PREROUTING", "--dport"), ("OUTPUT", "--sport"), ("OUTPUT", "--dport")}
        reverts(made, rules, files)


def test_everything(tmp_path: Path) -> None:
    with serving_balancer(tmp_path, "nft") as made:
        serves(made)
        assert made.tracked(80, 8080) == EVERYTHING
        assert dns(made, "ipv4", RESOLVERS["ipv4"]) == dns(made, "ipv4", address("ipv4", "client")) == "ok"
        made.apply("notrack-everything.yaml")
        made.net.host.forget_connections()
        serves(made)
        assert dns(made, "ipv4", RESOLVERS["ipv4"]) == "ok"
        assert dns(made, "ipv4", address("ipv4", "client")) == "timeout", "the file says: nobody else's answers"
        made.net.client.run("ping", "-c1", "-W2", address("ipv4", "host"))
        assert made.net.host.tracked() == []


def test_what_haproxy_serves(tmp_path: Path) -> None:
    """Also a server that no file names by its address, and not the page for administrators."""
    with serving_balancer(tmp_path, "nft") as made:
        admin = "listen admin\n    bind :8404\n    mode http\n    stats enable\n    stats uri /\n"
        path = made.put("etc/haproxy/conf.d/admin.cfg", admin)
        with serving.haproxy(made.net.host, path), serving.pages(made.net.backend, tmp_path / "pages", 8443):
            serves(made)
            assert serving.fetch(made.net.host, SERVERS["ipv4"], 8443)
            assert made.tracked(80, 8080) | made.tracked(8443) == EVERYTHING | {("ipv4", 8443)}
            assert serving.fetch(made.net.host, "127.0.0.1", 8404), "it does not even listen"
            made.apply("notrack-haproxy.yaml")
            made.net.host.forget_connections()
            serves(made)
            assert serving.fetch(made.net.host, SERVERS["ipv4"], 8443)
            assert serving.fetch(made.net.client, address("ipv4", "host"), 8404, 0) == ""
            assert made.tracked(80, 8080, 8443) == set()


# --- stateless -----------------------------------------------------------------------


def test_stateless_balancer(tmp_path: Path) -> None:
    """Whatever worked works, but for what the section does not name: UDP replies from a port of our own."""
    with balancer(tmp_path, "legacy") as made:
        before = {family: asyncio.run(usage.use(made.net, family, {})) for family in FAMILIES}
        assert made.net.host.tracked()
        made.apply("stateless-balancer.yaml")
        made.net.host.forget_connections()
        after = {family: asyncio.run(usage.use(made.net, family, before[family])) for family in FAMILIES}
        for family in FAMILIES:
            lost = {name for name, result in after[family].items() if result != before[family].get(name, result)}
            # what was refused still is; how is not this test's matter (nothing answers a fragment)
            lost = {name for name in lost if before[family][name] == "ok"}
            assert not [name for name in after[family] if before[family].get(name, "ok") != "ok" == after[family][name]]
            assert lost == {"udp out 5000"}, {name: (before[family][name], after[family][name]) for name in lost}
        assert made.net.host.tracked() == []
        assert not STATEFUL.search(str(made.machine.rules()))


@pytest.mark.usefixtures("built_in")
def test_a_fleet_settles_for_stateless(tmp_path: Path) -> None:
    """This kernel's conntrack cannot be unloaded (tests/guest: one whose can)."""
    with serving_balancer(tmp_path, "nft") as made:
        serves(made)
        rules, files = made.machine.rules(), made.machine.of_others()
        assert "settled for stateless" in made.apply("unload-with-fallback.yaml")
        made.net.host.forget_connections()
        serves(made)
        assert made.net.host.tracked() == []
        reverts(made, rules, files)


def test_a_host_without_ipv4(tmp_path: Path) -> None:
    """No address of IPv4, not even the loopback's; rules of IPv6 alone; neighbours have to be found anew."""
    with serving_balancer(tmp_path, "nft", ("ipv6",)) as made:
        for place in made.net.all:
            configure(place, ["addr flush dev lo" if place is made.net.host else "addr show lo"], "ipv4")
        configure(made.net.host, [f"addr flush dev {name}" for name in ("eth0", "eth1")], "ipv4")
        (made.files / SAVED["ipv4"]).unlink()
        made.net.host.clear_rules("nft", "ipv4")
        assert not made.net.host.run("ip", "-4", "address").stdout
        assert made.serve("ipv6") == serving.PAGE
        assert made.tracked(80, 8080) == {("ipv6", 80), ("ipv6", 8080)}
        rules = made.machine.rules()
        made.apply("ipv6-only.yaml")
        made.net.host.forget_connections()
        made.net.forget_paths()
        assert made.serve("ipv6") == serving.PAGE
        assert dns(made, "ipv6", RESOLVERS["ipv6"]) == "ok"
        assert dns(made, "ipv6", address("ipv6", "client")) == "timeout"
        big = conversations.outcome(conversations.ping("ipv6", made.net.client, address("ipv6", "host"), 3000), 5.0)
        assert asyncio.run(big) == "ok", "a ping in fragments"
        assert made.net.host.tracked() == []
        made.machine.run(0, "revert")
        assert without_made_tables(made.machine.rules(), rules) == rules


# --- QUIC ----------------------------------------------------------------------------


def test_quic(tmp_path: Path) -> None:
    """Datagrams to port 443 and back, from clients and to servers; what the file gives up; nothing tracked."""
    with balancer(tmp_path, "nft") as made:
        assert [asyncio.run(_quic(made, family)) for family in FAMILIES] == [["ok", "ok", "ok"]] * 2
        assert {(f, 443) for f in FAMILIES} <= made.tracked(443)
        assert [_unasked(made, family) for family in FAMILIES] == [{"server": False, "client": False}] * 2
        said = made.apply("quic.yaml")
        made.net.host.forget_connections()
        assert [asyncio.run(_quic(made, family)) for family in FAMILIES] == [["ok", "ok", "timeout"]] * 2
        assert made.net.host.tracked() == []
        assert [_unasked(made, family) for family in FAMILIES] == [{"server": True, "client": False}] * 2
        assert "UDP datagrams from port 443 to port 32768-60999 from 10.20.0.0/16 in by" in said


async def _quic(made: Balancer, family: str) -> list[str]:
    """How exchanges end: a client's with the host, the host's with its server, the host's with anybody else."""
    async with conversations.world(family) as world:
        world.answer(made.net.host, 443)
        world.answer(made.net.backend, 443, own=SERVERS[family])
        world.answer(made.net.client, 443)
        ends = ((made.net.client, address(family, "host")), (made.net.host, SERVERS[family]),
                (made.net.host, address(family, "client")))  # fmt: skip
        return [await conversations.outcome(conversations.ask(family, place, (to, 443), 1200), PATIENCE)
                for place, to in ends]  # fmt: skip


def _unasked(made: Balancer, family: str) -> dict[str, bool]:
    """Who reaches an open port of the host with a datagram from port 443 that nobody asked for."""
    senders = {"server": (made.net.backend, SERVERS[family]), "client": (made.net.client, address(family, "client"))}
    with _datagrams(made.net.host, family, ("", 40000)) as target:
        for name, (place, source) in senders.items():
            with _datagrams(place, family, (source, 443)) as sender:
                sender.sendto(name.encode(), (address(family, "host"), 40000))
        target.settimeout(0.5)
        got = set()
        for _ in senders:
            try:
                got.add(target.recv(100).decode())
            except OSError:  # nothing comes any more
                break
    return {name: name in got for name in senders}


@contextmanager
def _datagrams(place: Namespace, family: str, own: conversations.Address) -> Iterator[socket.socket]:
    with conversations.open_socket(place, family, socket.SOCK_DGRAM) as made:
        made.bind(own)
        yield made


# --- docker --------------------------------------------------------------------------

# What docker 20.10 to 26 writes for one bridge and one published port (9000 -> 8080), around the host's own rules.
DOCKER_NAT = """\
*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -s 172.17.0.2/32 -d 172.17.0.2/32 -p tcp -m tcp --dport 8080 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 9000 -j DNAT --to-destination 172.17.0.2:8080
COMMIT
"""
DOCKER_FILTER = """\
*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-I FORWARD -i docker0 -o docker0 -j ACCEPT
-I FORWARD -i docker0 ! -o docker0 -j ACCEPT
-I FORWARD -o docker0 -j DOCKER
-I FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-I FORWARD -j DOCKER-ISOLATION-STAGE-1
-I FORWARD -j DOCKER-USER
-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 8080 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
"""
# What it does first when it starts: its chains emptied, its rules deleted.
DOCKER_AGAIN = "".join(
    f"*{table}\n" + "".join(f"-D {rule}\n" for rule in rules) + "".join(f"-F {chain}\n-X {chain}\n" for chain in chains)
    + "COMMIT\n"
    for table, rules, chains in (
        ("nat", ("PREROUTING -m addrtype --dst-type LOCAL -j DOCKER",
                 "OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER",
                 "POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
                 "POSTROUTING -s 172.17.0.2/32 -d 172.17.0.2/32 -p tcp -m tcp --dport 8080 -j MASQUERADE"),
         ("DOCKER",)),
    )
)  # fmt: skip


@contextmanager
def container(net: Topology) -> Iterator[Namespace]:
    """172.17.0.2 behind the bridge docker0 of the host."""
    made = Namespace("container")
    try:
        configure(net.host, ["link add docker0 type bridge", "addr add 172.17.0.1/16 dev docker0",
                             f"link add veth1 type veth peer name eth0 netns {made.path}",
                             "link set veth1 master docker0 up", "link set docker0 up"])  # fmt: skip
        configure(made, ["link set lo up", "addr add 172.17.0.2/16 dev eth0", "link set eth0 up",
                         "route add default via 172.17.0.1"])  # fmt: skip
        yield made
    finally:
        made.close()


def docker_starts(made: Balancer) -> None:
    """docker writes its rules beside those that are there."""
    for text in (DOCKER_NAT, DOCKER_FILTER):
        made.net.host.run("iptables-nft-restore", "--noflush", stdin=text)


def of_docker(rules: str) -> list[str]:
    """The rules of docker's making, in order; beside one that asks for a state stands one of ours."""
    return [line for line in rules.splitlines() if ("docker0" in line or "DOCKER" in line)
            and "--comment cloudinit-conntrack" not in line]  # fmt: skip


def test_docker_is_kept(tmp_path: Path) -> None:
    """A published port and what the container asks are translated as before; the balancer is tracked no more."""
    with serving_balancer(tmp_path, "nft") as made, container(made.net) as inside, \
            serving.pages(inside, tmp_path / "pages", 8080), serving.pages(made.net.client, tmp_path / "pages", 8081):
        docker_starts(made)
        made.put("etc/systemd/system/docker.service", "[Service]\nExecStart=/usr/bin/dockerd\n")
        wants = made.files / "etc/systemd/system/multi-user.target.wants"
        wants.mkdir()
        (wants / "docker.service").symlink_to("../docker.service")
        serves(made)
        _containers_work(made, inside)
        made.net.host.forget_connections()
        _containers_work(made, inside)
        before = of_docker(made.machine.live("ipv4"))
        rules, files = made.machine.rules(), made.machine.of_others()
        refused = made.machine.run(3, "plan", "-c", str(EXAMPLES / "stateless-balancer.yaml")).stdout
        assert "docker writes nat rules at every start" in refused

        made.apply("keep-docker.yaml")
        assert of_docker(made.machine.live("ipv4")) == before
        for _ in range(2):
            made.net.host.forget_connections()
            serves(made)
            assert made.tracked(80, 8080) == set()
            _containers_work(made, inside)
            made.net.host.run("iptables-nft-restore", "--noflush", stdin=DOCKER_AGAIN)
            made.net.host.run("iptables-nft-restore", "--noflush", stdin=DOCKER_NAT)
        made.machine.run(0, "verify")
        reverts(made, rules, files)


def _containers_work(made: Balancer, inside: Namespace) -> None:
    """The published port is reached through the host's address, and the container goes out under it; both tracked."""
    assert serving.fetch(made.net.client, address("ipv4", "host"), 9000, 5) == serving.PAGE
    assert serving.fetch(inside, address("ipv4", "client"), 8081, 5) == serving.PAGE
    assert made.net.host.tracked("ipv4", "dport=9000") and made.net.host.tracked("ipv4", "dport=8081")


@pytest.mark.parametrize("flows", ["{frontends: [9000]}", "{backends: [8080]}"])
def test_a_port_that_docker_translates_is_refused(tmp_path: Path, flows: str) -> None:
    """A published port, and a container's own when no address is named: a reply could not be translated back."""
    with balancer(tmp_path, "nft") as made:
        docker_starts(made)
        rules = made.machine.rules()
        config = made.put("section.yaml", f"conntrack: {{mode: notrack, flows: {flows}}}\n")
        said = made.machine.run(3, "apply", "-c", str(config)).stdout
        assert "an untracked packet is never translated" in " ".join(said.split())
        assert made.machine.rules() == rules
