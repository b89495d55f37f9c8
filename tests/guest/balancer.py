"""A quick guest that is a CentOS-style balancer: stateful rules, live and saved, in both families.

:func:`run_balancer` runs a script in one and gives what it saw.  The script's words:

| word | does |
|---|---|
| ``load`` | loads the saved rules, as the distribution does at boot |
| ``config LINE...`` | writes ``/root/desired.yaml``, a ``conntrack:`` section of these lines |
| ``cc VERB ...`` | runs our command with ``--format json``; add ``-c $DESIRED`` where it is to read that file |
| ``step NAME cc ...`` | the same, recorded: :meth:`Story.answer` |
| ``outside_up``, ``outside_down`` | make the outside (10.9.0.2, fd09::2; here 10.9.0.1, fd09::1), take it away |
| ``out COMMAND`` | runs it there |
| ``look NAME`` | records what the kernel and the disk show: :meth:`Story.seen` |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import reports

from .seed_case import SETTINGS, is_stateful, without_counters
from .uml import QuickResult, Ran, run_quick

RULES = """\
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p {icmp} -j ACCEPT
-A INPUT -i lo -j ACCEPT
-A INPUT -p tcp -m state --state NEW -m tcp --dport 22 -j ACCEPT
-A INPUT -j REJECT --reject-with {prohibited}
-A FORWARD -j REJECT --reject-with {prohibited}
COMMIT
"""
RULES4 = RULES.format(icmp="icmp", prohibited="icmp-host-prohibited")
RULES6 = RULES.format(icmp="ipv6-icmp", prohibited="icmp6-adm-prohibited")
SAVED = {"/etc/sysconfig/iptables": RULES4, "/etc/sysconfig/ip6tables": RULES6}

WEB = "-A INPUT -p tcp -m state --state NEW -m tcp --dport 80 -j ACCEPT\n"
SHUT = "-A INPUT -j REJECT"


def with_web(rules: str) -> str:
    """*rules* with port 80 open to new connections."""
    return rules.replace(SHUT, WEB + SHUT, 1)


# Answers whoever connects to one of the ports with a word, on both families.
SERVER = """\
import selectors, socket, sys
ready = selectors.DefaultSelector()
for port in map(int, sys.argv[1:]):
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((address, port))
        listener.listen()
        ready.register(listener, selectors.EVENT_READ)
print("listening", flush=True)
while True:
    for key, _ in ready.select():
        with key.fileobj.accept()[0] as connection:
            connection.sendall(b"hello")
"""

# Says for each ADDRESS-PORT what a client there meets: hello, or the error.
CLIENT = """\
import socket, sys
for name in sys.argv[1:]:
    address, _, port = name.rpartition("-")
    try:
        with socket.create_connection((address, int(port)), 3) as connection:
            print(name, connection.recv(100).decode())
    except OSError as error:
        print(name, error.strerror or error)
"""

WORDS = """\
# User-mode Linux has nf_tables without an address family: legacy is what plain iptables is here.
for tool in iptables ip6tables; do
    ln -sf /usr/sbin/$tool-legacy /etc/alternatives/$tool
    for verb in save restore; do ln -sf /usr/sbin/$tool-legacy-$verb /etc/alternatives/$tool-$verb; done
done
# Directories of the guest's own: other tests make and remove those of this machine, of which the guest has a view.
for place in /etc/sysconfig /etc/iptables /etc/modprobe.d; do
    mkdir -p $place; cp -a $place $place.own; rm -rf $place; mv $place.own $place
done
DESIRED=/root/desired.yaml
DIRECTORIES="/etc/sysconfig /etc/iptables /etc/modprobe.d /etc/default /var/lib/cloudinit-conntrack"

load() { iptables-restore </etc/sysconfig/iptables && ip6tables-restore </etc/sysconfig/ip6tables; }
config() { echo conntrack: >$DESIRED; printf '  %s\\n' "$@" >>$DESIRED; }
cc() { verb=$1; shift; /usr/bin/python3 -m cloudinit_conntrack $verb --format json "$@"; }
rules() { # only where there are tables: the command itself loads ip_tables
    [ ! -e /proc/net/ip_tables_names ] || iptables-save
    [ ! -e /proc/net/ip6_tables_names ] || ip6tables-save
}
files() {
    find $DIRECTORIES -type f -printf '%p mode=%m owner=%U:%G mtime=%T@\\n' | sort
    find $DIRECTORIES -type f -exec sha256sum {} + | sort
}
look() {
    step "$1,modules" cat /proc/modules
    step "$1,rules" rules
    step "$1,files" files
    step "$1,settings" settings
}
# The host at the other end of a link, in a network namespace: out() runs a command there.
out() { ip netns exec outside "$@"; }
outside_up() {
    modprobe veth
    ip netns add outside
    ip link add inside type veth peer name outside netns outside
    ip address add 10.9.0.1/24 dev inside
    ip address add fd09::1/64 dev inside nodad
    ip -n outside link set lo up
    ip -n outside address add 10.9.0.2/24 dev outside
    ip -n outside address add fd09::2/64 dev outside nodad
    ip link set inside up
    ip -n outside link set outside up
}
outside_down() { ip link del inside; ip netns del outside; rmmod veth; }
# A command of our own in front of rmmod: `before_rmmod NAME COMMANDS` runs them before NAME is removed.
before_rmmod() {
    mkdir -p /root/bin
    printf '#!/bin/sh\\ncase " $* " in *" %s "*) %s;; esac\\nexec /sbin/rmmod "$@"\\n' "$1" "$2" >/root/bin/rmmod
    chmod 755 /root/bin/rmmod
    case $PATH in /root/bin:*) ;; *) PATH=/root/bin:$PATH;; esac
}
"""


@dataclass(frozen=True)
class Seen:
    """The guest at one moment, by the kernel's and the system's own tools.

    *modules* is /proc/modules byte for byte; *rules* what iptables-save prints for both
    families, without comments and counters; *files* path, mode, owner, time and content's
    hash of everything that we could have written; *settings* conntrack's module parameters
    and sysctls.
    """

    modules: str
    rules: tuple[str, ...]
    files: tuple[str, ...]
    settings: tuple[str, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Reference count by module; without ipv6, which counts every socket."""
        rows = (line.split() for line in self.modules.splitlines())
        return {row[0]: int(row[2]) for row in rows if row[0] != "ipv6"}

    @property
    def conntrack(self) -> tuple[str, ...]:
        """The loaded modules that need conntrack, by name."""
        found = (line.split() for line in self.modules.splitlines())
        needs = {row[0]: row[3].rstrip(",").split(",") for row in found}
        names, todo = set(), ["nf_conntrack"]
        while todo:
            name = todo.pop()
            if name in needs and name not in names:
                names.add(name)
                todo += needs[name]
        return tuple(sorted(names))

    @property
    def stateful(self) -> tuple[str, ...]:
        """The rules that ask for a connection's state."""
        return tuple(row for row in self.rules if is_stateful(row))

    def without(self, path: str) -> tuple[str, ...]:
        """*files* but for *path*, or what is under it."""
        return tuple(line for line in self.files if path not in line)


@dataclass(frozen=True)
class Story:
    """What the script of a balancer saw."""

    result: QuickResult

    def step(self, name: str) -> Ran:
        """A recorded command; the whole output of the script when it was never reached."""
        assert name in self.result.steps, f"no step {name}:\n{self.result.output}\n{self.result.console[-3000:]}"
        return self.result.steps[name]

    def answer(self, name: str, status: int) -> Any:
        """The JSON answer of a recorded ``cc``, which must have ended with *status*."""
        ran = self.step(name)
        assert ran.status == status, f"{name}: status {ran.status}\n{ran.output}"
        return reports.read(ran.stdout)

    def seen(self, name: str) -> Seen:
        """What ``look NAME`` recorded."""
        modules, rules, files, settings = (self.step(f"{name},{kind}").stdout for kind in _KINDS)
        rows = without_counters(rules)
        return Seen(modules, tuple(rows), tuple(files.splitlines()), tuple(settings.splitlines()))


_KINDS = ("modules", "rules", "files", "settings")


def run_balancer(
    script: str, files: Mapping[str, str] = SAVED, *, disk: Path | None = None, timeout: float = 1800,
    memory: str = "384M",
) -> Story:
    """Boot a balancer with *files*, run *script* on it."""
    placed = {**files, "/root/server.py": SERVER, "/root/client.py": CLIENT}
    words = f"settings() {{\n{SETTINGS}}}\n{WORDS}{script}"
    return Story(run_quick(words, timeout=timeout, files=placed, disk=disk, memory=memory))


def assert_same(now: Seen, before: Seen) -> None:
    """The host is as it was: rules, files, modules with their use counts, settings."""
    assert now.rules == before.rules
    assert now.files == before.files
    assert now.counts == before.counts
    assert now.settings == before.settings


def assert_unloaded(now: Seen) -> None:
    """No conntrack module, no stateful rule, and a firewall."""
    assert now.conntrack == ()
    assert not now.stateful
    for last in ("icmp-host-prohibited", "icmp6-adm-prohibited"):
        assert f"-A INPUT -j REJECT --reject-with {last}" in now.rules, now.rules
