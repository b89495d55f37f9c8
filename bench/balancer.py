"""A client, a balancer with a real haproxy, and a server: three network namespaces in a row.

::

    client ------------ balancer ------------ server
    10.77.1.2   10.77.1.1    10.77.2.1   10.77.2.2        and fd77:N::x

The balancer's packets, received and sent, are handled on a processor of its own (the last one): haproxy is bound to
it, and receive packet steering brings there what arrives on its links (Documentation/networking/scaling.rst).  Client
and server share the first one.  So the processor time of the balancer is that of haproxy, in which the kernel counts
the softirqs that interrupt it, and of that processor's ksoftirqd.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.netns.namespace import Namespace, configure

PROCESSORS = sorted(os.sched_getaffinity(0))
OTHERS, OWN = PROCESSORS[0], PROCESSORS[-1]  # of client and server, of the balancer
PATIENCE = 20.0  # seconds for a program to be there
SYSCTLS: dict[str, object] = {
    "net.ipv6.conf.all.accept_dad": 0, "net.ipv6.conf.default.accept_dad": 0,
    # thousands of connections a second between two addresses: ports must come back at once
    "net.ipv4.ip_local_port_range": "1025 65535", "net.ipv4.tcp_tw_reuse": 1,
    "net.ipv4.tcp_max_syn_backlog": 8192, "net.core.somaxconn": 8192,
}  # fmt: skip
DEFAULTS = """\
global
    nbthread 1
    maxconn 2000
    stats socket {socket}
defaults
    mode http
    timeout connect 600s
    timeout client 600s
    timeout server 600s
"""
BALANCER = """\
frontend web
    bind 10.77.1.1:80
    bind fd77:1::1:80
    use_backend six if {{ dst fd77:1::1 }}
    default_backend four
backend four
    server app 10.77.2.2:8080
backend six
    server app fd77:2::2:8080
"""
SERVER = """\
frontend app
    bind 10.77.2.2:8080
    bind fd77:2::2:8080
    http-request return status 200 content-type text/plain string served
"""
FRONTEND = {"ipv4": "http://10.77.1.1/", "ipv6": "http://[fd77:1::1]/"}
CLIENT = {"ipv4": "10.77.1.2", "ipv6": "fd77:0001:0000:0000:0000:0000:0000:0002"}  # as /proc/net/nf_conntrack has it
Program = subprocess.Popen[str]


@dataclass(frozen=True)
class Answers:
    """What haproxy counted on its frontend so far: answers of 200, and all others."""

    good: int
    bad: int


@dataclass(frozen=True)
class Site:
    """The three namespaces and the two haproxies; *files* is a directory of its own."""

    client: Namespace
    balancer: Namespace
    server: Namespace
    files: Path
    haproxies: dict[str, Program] = field(default_factory=dict)

    def answers(self) -> Answers:
        """Ask haproxy; OSError if it does not answer (its management guide, "show stat")."""
        with socket.socket(socket.AF_UNIX) as asked:
            asked.settimeout(PATIENCE)
            asked.connect(str(self.files / "balancer.socket"))
            asked.sendall(b"show stat -1 1 -1\n")
            heard = b"".join(iter(lambda: asked.recv(1 << 16), b""))
        names, values, *_ = (line.lstrip("# ").split(",") for line in heard.decode().splitlines())
        row = dict(zip(names, values))
        bad = ("hrsp_1xx", "hrsp_3xx", "hrsp_4xx", "hrsp_5xx", "hrsp_other")
        return Answers(int(row["hrsp_2xx"]), sum(int(row[name]) for name in bad))

    def handshakes_sent_again(self) -> int:
        """How often the client's kernel sent a SYN again, so far (include/uapi/linux/snmp.h)."""
        lines = [line.split() for line in self.client.read("netstat").splitlines() if line.startswith("TcpExt:")]
        return int(dict(zip(*lines))["TCPSynRetrans"])


def start(place: Namespace, processor: int, *argv: str, out: int = subprocess.DEVNULL) -> Program:
    """Start a program in *place*, bound to one processor."""
    with place.inside():
        return subprocess.Popen(("taskset", "-c", str(processor), *argv), stdout=out, stderr=subprocess.DEVNULL,
                                text=True)  # fmt: skip


def end(program: Program) -> None:
    """End a program that we started."""
    program.kill()
    program.communicate(timeout=PATIENCE)


@contextmanager
def site(files: Path) -> Iterator[Site]:
    """Make the namespaces and start both haproxies; *files* must not exist yet."""
    files.mkdir()
    with ExitStack() as kept:
        made = Site(Namespace("client"), Namespace("balancer"), Namespace("server"), files)
        for place in (made.client, made.balancer, made.server):
            kept.callback(place.close)
        _link(made)
        for name, place, processor, text in (("balancer", made.balancer, OWN, BALANCER),
                                             ("server", made.server, OTHERS, SERVER)):  # fmt: skip
            config = files / f"{name}.cfg"
            config.write_text((DEFAULTS + text).format(socket=files / f"{name}.socket"), encoding="ascii")
            made.haproxies[name] = start(place, processor, "haproxy", "-db", "-f", str(config))
            kept.callback(end, made.haproxies[name])
        for name in made.haproxies:
            _wait_for(files / f"{name}.socket")
        yield made


def _link(made: Site) -> None:
    places = (made.client, made.balancer, made.server)
    for place in places:
        place.sysctl(SYSCTLS)
    links = ((made.balancer, "toclient", 1, 1), (made.client, "eth0", 1, 2),
             (made.balancer, "toserver", 2, 1), (made.server, "eth0", 2, 2))  # fmt: skip
    for (left, left_name, _, _), (right, right_name, _, _) in (links[:2], links[2:]):
        configure(left, [f"link add {left_name} type veth peer name {right_name} netns {right.path}"])
    for place in places:
        configure(place, ["link set lo up"])
    for place, name, network, last in links:
        configure(place, [f"link set {name} up", f"addr add 10.77.{network}.{last}/24 dev {name}",
                          f"addr add fd77:{network}::{last}/64 dev {name} nodad"])  # fmt: skip
    for place, processor in zip(places, (OTHERS, OWN, OTHERS)):
        _steer(place, processor)


def _steer(place: Namespace, processor: int) -> None:
    """What the links of *place* receive is handled on *processor*."""
    words = f"mount -t sysfs none /sys && for queue in /sys/class/net/*/queues/rx-*/rps_cpus; do " \
            f"echo {1 << processor:x} > $queue || exit; done"
    place.run("unshare", "--mount", "sh", "-c", words)


def _wait_for(path: Path) -> None:
    until = time.monotonic() + PATIENCE
    with socket.socket(socket.AF_UNIX) as tried:
        while time.monotonic() < until:
            with suppress(OSError):
                return tried.connect(str(path))
            time.sleep(0.02)
    raise TimeoutError(f"no haproxy behind {path} after {PATIENCE:.0f} s")


def processor_seconds(programs: Sequence[int]) -> float:
    """Processor time that these processes used so far, in nanoseconds' precision (clock_getcpuclockid(3))."""
    return sum(time.clock_gettime((~number << 3) | 2) for number in programs)


def softirq_threads() -> dict[int, int]:
    """The process number of each processor's ksoftirqd."""
    found: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/comm"):
        with suppress(OSError):
            name = path.read_text(encoding="utf-8").strip()
            if name.startswith("ksoftirqd/"):
                found[int(name.partition("/")[2])] = int(path.parent.name)
    return found
