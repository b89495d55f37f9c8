"""New connections as fast as one client can make them, for a short window at a time.

wrk with ``Connection: close`` makes a connection for each request.  It is started once, and stopped (SIGSTOP)
between windows: a window of a fifth of a second costs no start.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bench.balancer import FRONTEND, OTHERS, OWN, Program, Site, end, processor_seconds, softirq_threads, start

AT_ONCE = 64  # connections of the client that are open or being opened
SETTLING = 0.06  # seconds of load before a window


@dataclass(frozen=True)
class Window:
    """What one window saw: connections per second, and microseconds of processor time for each connection.

    *balancer* is haproxy's with its softirqs; *whole* is that of the client, the balancer and the server together.
    *busy* is how much of its processor the balancer used (0 to 1).  *bad* answers were not 200; *again* counts
    handshakes that the client had to send again.  Times of a window without a connection are nan.
    """

    rate: float
    balancer: float
    whole: float
    busy: float
    good: int
    bad: int
    again: int


@dataclass(frozen=True)
class _Seen:
    at: float
    good: int
    bad: int
    again: int
    balancer: float
    others: float


class Client:
    """A wrk of *site*, stopped unless inside a window."""

    def __init__(self, site: Site, wrk: Program) -> None:
        self.site = site
        self.wrk = wrk
        threads = softirq_threads()
        self._balancer = (site.haproxies["balancer"].pid, threads[OWN])
        self._others = (wrk.pid, site.haproxies["server"].pid, threads[OTHERS])

    def window(self, seconds: float, settling: float = SETTLING) -> Window:
        """Load for *settling* seconds, then look for *seconds*."""
        os.kill(self.wrk.pid, signal.SIGCONT)
        try:
            time.sleep(settling)
            before = self._look()
            time.sleep(seconds)
            after = self._look()
        finally:
            os.kill(self.wrk.pid, signal.SIGSTOP)
        return _between(before, after)

    def _look(self) -> _Seen:
        again = self.site.handshakes_sent_again()
        answers = self.site.answers()
        return _Seen(time.monotonic(), answers.good, answers.bad, again,
                     processor_seconds(self._balancer), processor_seconds(self._others))  # fmt: skip


def _between(before: _Seen, after: _Seen) -> Window:
    seconds, good = after.at - before.at, after.good - before.good
    balancer, others = after.balancer - before.balancer, after.others - before.others
    each = 1e6 / good if good else float("nan")
    return Window(good / seconds, balancer * each, (balancer + others) * each, balancer / seconds, good,
                  after.bad - before.bad, after.again - before.again)  # fmt: skip


@contextmanager
def client(site: Site, family: str) -> Iterator[Client]:
    """A client that calls over IPv4 or IPv6."""
    words = ("wrk", "-t1", f"-c{AT_ONCE}", "-d1h", "-H", "Connection: close", FRONTEND[family])
    wrk = start(site.client, OTHERS, *words)
    try:
        time.sleep(0.2)  # let it begin
        os.kill(wrk.pid, signal.SIGSTOP)
        yield Client(site, wrk)
    finally:
        end(wrk)
