"""A client on this machine, outside of a QEMU guest, for as long as that runs.

QEMU's own network forwards ports of loopback to the guest at 10.0.2.15, and lets nothing else in or out.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Sequence

ADDRESS = "10.0.2.15"
SECONDS = 20.0  # QEMU takes the connection at once; an emulated guest under load takes its time
PAUSE = 1.0


class Outside:
    """Asks each of the guest's *ports* for its first line, about once a second; *others* are only forwarded."""

    def __init__(self, ports: Sequence[int], others: Sequence[int] = ()) -> None:
        self._forwards = {port: _free_port() for port in (*ports, *others)}
        self._over = threading.Event()
        self.lines: dict[int, list[str]] = {port: [] for port in ports}  # "" for no answer

    def here(self, port: int) -> int:
        """The port of loopback that is the guest's *port*."""
        return self._forwards[port]

    def arguments(self) -> list[str]:
        """QEMU's: a network card, and the forwarded ports."""
        forwards = "".join(f",hostfwd=tcp:127.0.0.1:{here}-{ADDRESS}:{port}" for port, here in self._forwards.items())
        card = "virtio-net-pci,netdev=outside,romfile="
        return ["-netdev", f"user,id=outside,restrict=on{forwards}", "-device", card]

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """Asks until the block ends."""
        threads = [threading.Thread(target=self._ask, args=(port,), daemon=True) for port in self.lines]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join(SECONDS + PAUSE)

    def _ask(self, port: int) -> None:
        """Thread body."""
        while not self._over.wait(PAUSE):
            self.lines[port].append(self._first_line(port))

    def _first_line(self, port: int) -> str:
        try:
            with socket.create_connection(("127.0.0.1", self._forwards[port]), SECONDS) as connection:
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                return connection.recv(1000).decode(errors="replace").partition("\r\n")[0]
        except OSError:
            return ""


def between(lines: Sequence[str], right: str) -> list[str]:
    """*lines* from the first that begins with *right* to the last: around those the guest comes up or goes down."""
    answered = [number for number, line in enumerate(lines) if line.startswith(right)]
    return list(lines[answered[0] : answered[-1] + 1]) if answered else []


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port
