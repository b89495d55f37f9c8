"""The lockout campaign: generated rule-sets in which ssh works, each applied and reverted by the command itself.

``python -m tests.netns.lockout COUNT [FIRST]`` tries so many and prints the counts (``make lockout``).
Each number is a rule-set; the same number gives the same one again.
"""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from . import applying
from .applying import SAVED
from .standing import Standing, standing
from .topology import BACKENDS, FAMILIES, Topology, address, topology

SSH = 22
SERVED = (80, 8080)
DOMAIN = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
SECONDS = 1.5  # for a connection: one more SYN after a second
PATIENCE = (SECONDS, 5.0, 20.0)  # for one that worked before: a machine that others starve is no lockout

# A command of ours for each line of standard input, in a process of its own that has everything imported.
SERVER = """
import json, os, sys, traceback
from cloudinit_conntrack import cli, transaction, plan, rehearsal, verify
from cloudinit_conntrack.netfilter import difference, nft_difference, nft_bypass, nft_notrack
for line in sys.stdin:
    words = json.loads(line)
    child = os.fork()
    if not child:
        said = os.open(words[0], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(said, 1), os.dup2(said, 2)
        sys.stdin = open(os.devnull)
        code = 70
        try:
            code = cli.main(words[1:])
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    status = os.waitpid(child, 0)[1]
    print(os.waitstatus_to_exitcode(status), flush=True)
"""

STATES = ("NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED", "NEW,ESTABLISHED", "RELATED,ESTABLISHED",
          "INVALID,UNTRACKED", "NEW,INVALID")  # fmt: skip
PROTOCOLS = ("", "", "-p tcp", "-p tcp -m tcp --dport 22", "-p tcp -m tcp --dport 80", "-p udp", "-p ICMP",
             "-p tcp -m tcp --sport 22", "-p tcp -m tcp --dport 1024:65535", "-p tcp -m multiport --dports 22,80",
             "-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN", "-p udp -m udp --sport 53")  # fmt: skip
PLACES = ("", "", "", "-i eth0", "-i lo", "-s CLIENT", "! -s CLIENT", "-m addrtype --dst-type LOCAL")
BESIDE = ("", "", "", "-m limit --limit 100/sec --limit-burst 200", "-m mark --mark 0x1",
          '-m comment --comment "so it is"')  # fmt: skip
ADMITTING = ("-p tcp -m state --state NEW -m tcp --dport 22 -j ACCEPT", "-p tcp -m tcp --dport 22 -j ACCEPT",
             "-m conntrack --ctstate NEW -p tcp -m multiport --dports 22,443 -j ACCEPT",
             "-s CLIENT -p tcp -m tcp --dport 22 -m state --state NEW,ESTABLISHED -j ACCEPT",
             "-m state --state NEW,RELATED,ESTABLISHED -j ACCEPT")  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Rules by family, and the mode to be applied to them."""

    number: int
    mode: str
    rules: dict[str, str]


def case(number: int) -> Case:
    """The rule-set *number*: the same shape in both families, as hosts have it."""
    chance = random.Random(number)
    lines = [_rule(chance, chain, chain == "INPUT") for chain in ("INPUT", "OUTPUT", "U1")
             for _ in range(chance.randint(0, 5))]  # fmt: skip
    inputs = [line for line in lines if line.startswith("-A INPUT")]
    others = [line for line in lines if not line.startswith("-A INPUT")]
    inputs.insert(chance.randint(0, len(inputs)), "-A INPUT " + chance.choice(ADMITTING))
    if chance.random() < 0.8:
        inputs.insert(chance.randint(0, len(inputs)), "-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT")
    if chance.random() < 0.7:
        others.insert(0, "-A OUTPUT -m state --state RELATED,ESTABLISHED -j ACCEPT")
    if chance.random() < 0.5:
        inputs.append("-A INPUT -j REJECT")
    policies = chance.choice(("DROP", "ACCEPT")), chance.choice(("DROP", "ACCEPT", "ACCEPT"))
    mode = chance.choice(("stateless", "stateless", "notrack"))
    text = (f"*filter\n:INPUT {policies[0]} [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT {policies[1]} [0:0]\n:U1 - [0:0]\n"
            + "".join(f"{line}\n" for line in inputs + others) + "COMMIT\n")  # fmt: skip
    return Case(number, mode, {family: _in_family(text, family) for family in FAMILIES})


def _rule(chance: random.Random, chain: str, jumps: bool) -> str:
    state = ""
    if chance.random() < 0.6:
        form = chance.choice(("-m state --state", "-m conntrack --ctstate", "-m conntrack ! --ctstate"))
        state = f"{form} {chance.choice(STATES)}"
    place = chance.choice(PLACES)
    if chain != "INPUT":
        place = place.replace("-i ", "-o ") if chain == "OUTPUT" else ""
    targets = ["ACCEPT", "ACCEPT", "DROP", "REJECT", "RETURN", "LOG"] + ["U1"] * jumps
    words = (f"-A {chain}", place, chance.choice(PROTOCOLS), state, chance.choice(BESIDE),
             f"-j {chance.choice(targets)}")  # fmt: skip
    return " ".join(word for word in words if word)


def _in_family(text: str, family: str) -> str:
    icmp = "icmp" if family == "ipv4" else "ipv6-icmp"
    return text.replace("CLIENT", address(family, "client")).replace("ICMP", icmp)


# --- ssh, as far as the rules see it ------------------------------------------------------


@contextmanager
def servers(net: Topology) -> Iterator[None]:
    """What answers every byte with itself, on ssh's port and those served, in both families."""
    with ExitStack() as stack, net.host.inside():
        for domain in DOMAIN.values():
            for port in (SSH, *SERVED):
                opened = stack.enter_context(socket.socket(domain, socket.SOCK_STREAM))
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if domain == socket.AF_INET6:
                    opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                opened.bind(("", port))
                opened.listen(64)
                threading.Thread(target=_serve, args=(opened,), daemon=True).start()
        yield


def _serve(listening: socket.socket) -> None:
    with suppress(OSError):  # it was closed: the end
        while True:
            taken = listening.accept()[0]
            threading.Thread(target=_echo, args=(taken,), daemon=True).start()


def _echo(taken: socket.socket) -> None:
    with suppress(OSError), taken:
        while heard := taken.recv(1):
            taken.sendall(heard)


def connected(net: Topology, family: str, seconds: float = SECONDS) -> socket.socket | None:
    """A fresh connection to ssh's port that has carried a byte there and back, or ``None``."""
    with net.client.inside():
        opened = socket.socket(DOMAIN[family], socket.SOCK_STREAM)
    opened.settimeout(seconds)
    try:
        opened.connect((address(family, "host"), SSH))
        if works(opened):
            return opened
    except OSError:
        pass
    opened.close()
    return None


def works(opened: socket.socket) -> bool:
    """Whether a byte comes back."""
    try:
        opened.sendall(b"x")
        return opened.recv(1) == b"x"
    except OSError:
        return False


# --- the campaign ---------------------------------------------------------------------------


class Campaign:
    """One host, its client, and a process that runs the command."""

    def __init__(self, net: Topology, machine: Standing) -> None:
        self.net, self.machine = net, machine
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.server = machine.start(sys.executable, "-c", SERVER, **pipes)

    def run(self, *words: str) -> tuple[int, str]:
        """Exit code and output of one command."""
        said = self.machine.files / "said"
        assert self.server.stdin and self.server.stdout
        self.server.stdin.write(json.dumps([str(said), *words]) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline()), said.read_text("utf-8", "replace")

    def close(self) -> None:
        self.server.communicate(timeout=30)

    def judge(self, tried: Case) -> str:
        """What became of one rule-set: ``shut`` (ssh did not work before), ``applied`` or ``refused``.

        AssertionError where ssh works no more, or the command did neither.
        """
        for family in FAMILIES:
            self.net.host.clear_rules(self.machine.backend, family)
            self.net.host.load_rules(tried.rules[family], self.machine.backend, family)
            self.machine.put(SAVED[family], tried.rules[family])
        held = {family: connected(self.net, family) for family in FAMILIES}
        open_families = [family for family in FAMILIES if held[family]]
        try:
            return self._applied(tried, held) if open_families else "shut"
        finally:
            for opened in filter(None, held.values()):
                opened.close()

    def _applied(self, tried: Case, held: dict[str, socket.socket | None]) -> str:
        config = self.machine.files / "case.yaml"
        flows = {"frontends": [80], "backends": [8080]} if tried.mode == "notrack" else {}
        config.write_text(json.dumps({"conntrack": {"mode": tried.mode, "flows": flows}}), "ascii")
        code, said = self.run("apply", "-c", str(config))
        where = f"rule-set {tried.number}, {self.machine.backend}, {tried.mode}: apply gave {code}\n{said}"
        assert code in (0, 3) and "Traceback" not in said, where
        self._still(held, where)
        if code == 0:
            assert self.run("revert")[0] == 0, where
            self._still(held, f"after revert: {where}", False)
        return "applied" if code == 0 else "refused"

    def _still(self, held: dict[str, socket.socket | None], where: str, old_too: bool = True) -> None:
        for family, opened in held.items():
            if opened is None:
                continue
            tries = (connected(self.net, family, seconds) for seconds in PATIENCE)
            fresh = next(filter(None, tries), None)
            assert fresh is not None, f"no fresh connection over {family}: {where}"
            fresh.close()
            assert not old_too or works(opened), f"the open connection over {family} is dead: {where}"


@contextmanager
def campaign(backend: str, files: Path) -> Iterator[Campaign]:
    """A campaign on a new host."""
    with topology() as net, applying.mount_points(), standing(net.host, backend, files) as machine, servers(net):
        made = Campaign(net, machine)
        try:
            yield made
        finally:
            made.close()


def main(count: int, first: int = 0) -> int:
    """Try *count* rule-sets, half on each back end; prints the counts (interrupted, too), and every lockout."""
    told: Counter[str] = Counter()
    began = time.monotonic()
    with suppress(KeyboardInterrupt):
        for backend in BACKENDS:
            with tempfile.TemporaryDirectory(prefix="lockout-") as name, campaign(backend, Path(name)) as made:
                for number in range(first + BACKENDS.index(backend), first + count, len(BACKENDS)):
                    _count(made, number, told)
    tried, what = sum(told.values()), ", ".join(f"{n} {w}" for w, n in told.items())
    print(f"{tried} of {count} rule-sets in {time.monotonic() - began:.0f} s: {what}")
    return 1 if told["LOCKED OUT"] else 0


def _count(made: Campaign, number: int, told: Counter[str]) -> None:
    try:
        told[made.judge(case(number))] += 1
    except AssertionError as error:
        told["LOCKED OUT"] += 1
        print(f"{error}\n", flush=True)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
