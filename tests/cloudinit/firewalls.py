"""Firewall packages of each Debian suite, put on a machine, and a neighbour to send packets from.

The packages are fetched by the host's apt with lists of its own, signed as ever, and kept;
the machines themselves have no network.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from chroots import Suite, cache, mirror
from machines import Boot, Machine

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
FETCH_SECONDS = 300


def package(suite: Suite, name: str) -> Path:
    """The ``.deb`` of *name* in *suite*, fetched now if it is not in the cache."""
    place = cache().parent / "packages" / suite.name
    found = sorted(place.glob(f"{name}_*.deb"))
    if not found:
        apt = place / "apt"
        (apt / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        (apt / "archives" / "partial").mkdir(parents=True, exist_ok=True)
        (apt / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror()} {suite.name} main\n")
        # old suites outlive the dates in their Release files
        options = [f"Dir::Etc::SourceList={apt}/sources.list", "Dir::Etc::SourceParts=/dev/null",
                   f"Dir::State::Lists={apt}/lists", f"Dir::Cache={apt}", "Acquire::Check-Valid-Until=false",
                   "APT::Sandbox::User=root"]  # fmt: skip
        apt_get = ["apt-get", "-q", *(word for option in options for word in ("-o", option))]
        for words in (["update"], ["download", name]):
            subprocess.run([*apt_get, *words], cwd=place, check=True, capture_output=True, timeout=FETCH_SECONDS)
        found = sorted(place.glob(f"{name}_*.deb"))
    return found[-1]


def unpack(machine: Machine, suite: Suite, *names: str) -> None:
    """Put the files of packages on the machine's disk; /lib may be a link there, and stays one."""
    for name in names:
        archive = subprocess.run(["dpkg", "--fsys-tarfile", package(suite, name)], check=True, capture_output=True)
        subprocess.run(["tar", "-x", "--keep-directory-symlink", "-C", machine.root], input=archive.stdout, check=True)


def enable(machine: Machine, unit: str) -> None:
    """As ``systemctl enable`` does, which a package's postinst calls."""
    wants = machine.root / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True, exist_ok=True)
    (wants / unit).symlink_to(f"/lib/systemd/system/{unit}")


def install_ufw(machine: Machine, suite: Suite) -> None:
    """ufw as its postinst leaves it: the templates copied, not enabled yet."""
    unpack(machine, suite, "ufw")
    templates, place = machine.root / "usr/share/ufw", machine.root / "etc/ufw"
    for file in [*(templates / "iptables").glob("*.rules"), templates / "ufw.conf", *templates.glob("*.init")]:
        (place / file.name).write_bytes(file.read_bytes())
    for file in place.glob("*.rules"):
        file.chmod(0o640)
    enable(machine, "ufw.service")


# --- a neighbour -----------------------------------------------------------------------

NEIGHBOUR = """
set -e
ip netns add neighbour
ip link add here type veth peer name there netns neighbour
ip addr add 192.0.2.1/24 dev here
ip addr add 2001:db8::1/64 dev here nodad
ip link set here up
ip -n neighbour addr add 192.0.2.2/24 dev there
ip -n neighbour addr add 2001:db8::2/64 dev there nodad
ip -n neighbour link set there up
ip -n neighbour link set lo up
"""
SERVER = """
import socket, select
tcp, udp = [], []
for port in PORTS:
    s = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    tcp.append(s)
    u = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    u.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    u.bind(("::", port))
    udp.append(u)
while True:
    for s in select.select(tcp + udp, [], [])[0]:
        if s in tcp:
            c, _ = s.accept()
            c.sendall(b"hello")
            c.close()
        else:
            _, peer = s.recvfrom(99)
            s.sendto(b"hello", peer)
"""
ASK = """
import socket, sys
kind, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET,
                  socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
s.settimeout(1.5)
try:
    s.connect((host, port))
    if kind == "udp":
        s.send(b"?" * int(sys.argv[4]))
    print(s.recv(9).decode())
except OSError as error:
    print("no answer")
"""
HERE = {"ipv4": "192.0.2.1", "ipv6": "2001:db8::1"}
THERE = {"ipv4": "192.0.2.2", "ipv6": "2001:db8::2"}
IN_NEIGHBOUR = ("ip", "netns", "exec", "neighbour")


def connect_neighbour(boot: Boot, *ports: int) -> None:
    """A second host beside the machine; both serve *ports*, TCP and UDP."""
    boot.run("sh", "-c", NEIGHBOUR)
    server = SERVER.replace("PORTS", repr(ports))
    boot.spawn(["python3", "-c", server])
    boot.spawn([*IN_NEIGHBOUR, "python3", "-c", server])
    for prefix, host in (((), "127.0.0.1"), (IN_NEIGHBOUR, "127.0.0.1")):
        for _ in range(40):
            if boot.run(*prefix, "python3", "-c", ASK, "tcp", host, str(ports[-1]), "1") == "hello\n":
                break
        else:
            raise AssertionError("the servers do not come up")


def answers(boot: Boot, kind: str, port: int, family: str, outgoing: bool = False, size: int = 1) -> bool:
    """Whether *port* answers: asked by the neighbour, or (*outgoing*) by the machine; in UDP by *size* bytes."""
    prefix, host = ((), THERE[family]) if outgoing else (IN_NEIGHBOUR, HERE[family])
    return boot.run(*prefix, "python3", "-c", ASK, kind, host, str(port), str(size)) == "hello\n"
