"""Network namespaces without names: they live as long as this process holds them.

A namespace is a file descriptor.  Nothing has to be cleaned up: when the process ends, by
whatever cause, the kernel takes the namespace and its links away.  Sockets stay in the
namespace that they were opened in, so one thread can hold sockets of all of them; a
command runs in the namespace that its parent thread was in when it was started.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

CLONE_NEWNET = 0x40000000
OWN = "/proc/thread-self/ns/net"
COMMAND_SECONDS = 180.0  # apply on a busy machine, with half a million entries in the table
RESTORE = {
    ("legacy", "ipv4"): "iptables-legacy", ("legacy", "ipv6"): "ip6tables-legacy",
    ("nft", "ipv4"): "iptables-nft", ("nft", "ipv6"): "ip6tables-nft",
}  # fmt: skip
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Namespace:
    """One network namespace, open until :meth:`close`; *name* is for messages."""

    def __init__(self, name: str) -> None:
        self.name = name
        home = os.open(OWN, os.O_RDONLY)
        try:
            _check(_libc.unshare(CLONE_NEWNET))
            self.fd = os.open(OWN, os.O_RDONLY)
        finally:
            _check(_libc.setns(home, CLONE_NEWNET))
            os.close(home)

    @property
    def path(self) -> str:
        """A path by which other programs can find the namespace."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def close(self) -> None:
        """Let go of the namespace; the kernel removes it with its last socket."""
        os.close(self.fd)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """This thread is in the namespace as long as the context lasts."""
        home = os.open(OWN, os.O_RDONLY)
        try:
            _check(_libc.setns(self.fd, CLONE_NEWNET))
            yield
        finally:
            _check(_libc.setns(home, CLONE_NEWNET))
            os.close(home)

    def run(
        self, *argv: str, stdin: str = "", check: bool = True, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the namespace; a failure shows what it said."""
        with self.inside():
            done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=COMMAND_SECONDS,
                                  check=False, env=env)  # fmt: skip
        assert not check or done.returncode == 0, f"{argv} in {self.name}: {done.returncode} {done.stderr}\n{stdin}"
        return done

    def sysctl(self, values: dict[str, object], missing_ok: bool = False) -> None:
        """Set kernel parameters of the namespace."""
        with self.inside():
            for name, value in values.items():
                path = Path("/proc/sys", name.replace(".", "/"))
                if path.exists() or not missing_ok:
                    path.write_text(str(value), encoding="ascii")

    def read(self, path: str) -> str:
        """A file below ``/proc/net`` as the namespace sees it (``nf_conntrack``, ``snmp``)."""
        with self.inside():
            return Path("/proc/thread-self/net", path).read_text(encoding="ascii")

    # --- rules ---------------------------------------------------------------------------

    def load_rules(self, text: str, backend: str, family: str) -> None:
        """Load a saved rule-set by the restore program; *backend* is ``legacy`` or ``nft``."""
        wait = ("-w", "20") if backend == "legacy" else ()
        self.run(RESTORE[backend, family] + "-restore", *wait, stdin=text)

    def save_rules(self, backend: str, family: str, counters: bool = False) -> str:
        """What the save program prints, without its comments."""
        extra = ("-c",) if counters else ()
        done = self.run(RESTORE[backend, family] + "-save", *extra)
        return "".join(line for line in done.stdout.splitlines(True) if not line.startswith("#"))

    def clear_rules(self, backend: str, family: str) -> None:
        """Back to no rules, everything accepted, in each table that exists."""
        saved = self.save_rules(backend, family)
        tables = [line[1:].strip() for line in saved.splitlines() if line.startswith("*")]
        text = "".join(f"*{table}\n{_open_policies(saved, table)}COMMIT\n" for table in tables)
        if text:
            self.load_rules(text, backend, family)

    # --- what conntrack knows ------------------------------------------------------------

    def tracked(self, *needles: str) -> list[str]:
        """Lines of ``/proc/net/nf_conntrack`` that hold every one of *needles*."""
        lines = self.read("nf_conntrack").splitlines()
        return [line for line in lines if all(f" {needle} " in f" {line} " for needle in needles)]

    def forget_connections(self) -> None:
        """Delete every conntrack entry of the namespace."""
        self.run("conntrack", "-F")


def _open_policies(saved: str, table: str) -> str:
    body = saved.split(f"*{table}\n", 1)[1].split("COMMIT", 1)[0]
    return "".join(f":{chain} ACCEPT [0:0]\n" for chain in re.findall(r"^:([A-Z]+) (?!-)", body, re.M))


def configure(namespace: Namespace, commands: Sequence[str], family: str = "") -> None:
    """Run ``ip`` commands (without the word ip) in the namespace, all in one process."""
    dash = [f"-{family[-1]}"] if family else []
    namespace.run("ip", *dash, "-batch", "-", stdin="".join(f"{command}\n" for command in commands))
