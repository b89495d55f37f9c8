"""Thousands of connections through haproxy, held open; standard library only, for guests as well.

``python3 -m tests.netns.many COUNT HOST...`` opens COUNT connections to port 80 of each HOST, says ``N open``, and
then, for each line that it reads, how many of them still carry a byte to the server and back.
"""

from __future__ import annotations

import resource
import selectors
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

FILES = 16384  # in one process; two haproxies need half of that each
SECONDS = 120.0  # for all of them, on a busy machine
DOMAIN = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
HAPROXY = """\
global
    maxconn {most}
defaults
    mode tcp
    timeout connect 60s
    timeout client 10m
    timeout server 10m
listen one
    bind {bind}
    server app {server}:8080 maxconn {most}
"""
BIND = {"ipv4": "*:80", "ipv6": ":::80 v6only"}
ECHO = """
import asyncio
async def echo(reader, writer):
    while heard := await reader.read(64):
        writer.write(heard)
        await writer.drain()
async def main():
    server = await asyncio.start_server(echo, None, 8080, backlog=4096)
    print("up", flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


def configuration(family: str, server: str, each: int) -> str:
    """haproxy's for *each* connections of *family* to *server*."""
    name = f"[{server}]" if family == "ipv6" else server
    return HAPROXY.format(most=each + 100, bind=BIND[family], server=name)


def opened(
    made: Callable[[str], socket.socket], targets: dict[str, str], each: int, stack: ExitStack
) -> list[socket.socket]:
    """*each* connections to each of *targets* (family: address), by sockets that *made* makes of a family.

    A few hundred at a time: haproxy's queue of new ones is not endless.
    """
    held: list[socket.socket] = []
    for family, target in targets.items():
        _wait_for(made, family, target)
        for _ in range(each):
            held.append(stack.enter_context(made(family)))
            held[-1].setblocking(False)
            with suppress(BlockingIOError):
                held[-1].connect((target, 80))
            if len(held) % 200 == 0:
                assert talking(held[-200:]) == 200
    return held


def _wait_for(made: Callable[[str], socket.socket], family: str, target: str) -> None:
    """Until haproxy listens."""
    until = time.monotonic() + SECONDS
    while True:
        with made(family) as tried:
            if tried.connect_ex((target, 80)) == 0 or time.monotonic() > until:
                return
        time.sleep(0.2)


def talking(held: list[socket.socket]) -> int:
    """How many of *held* carry a byte to the server and back."""
    heard = 0
    until = time.monotonic() + SECONDS
    with selectors.DefaultSelector() as selector:
        for one in held:
            selector.register(one, selectors.EVENT_WRITE)
        while selector.get_map() and time.monotonic() < until:
            for key, what in selector.select(1.0):
                assert isinstance(key.fileobj, socket.socket)
                one = key.fileobj
                try:
                    if what & selectors.EVENT_WRITE:
                        one.send(b"x")
                        selector.modify(one, selectors.EVENT_READ)
                        continue
                    heard += one.recv(8) == b"x"
                except OSError:
                    pass
                selector.unregister(one)
    return heard


def main() -> None:
    """As the module says."""
    each, hosts = int(sys.argv[1]), sys.argv[2:]
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))
    targets = {"ipv6" if ":" in host else "ipv4": host for host in hosts}
    with ExitStack() as stack:
        held = opened(lambda family: socket.socket(DOMAIN[family]), targets, each, stack)
        print(len(held), "open", flush=True)
        for _ in sys.stdin:
            print(talking(held), "talk", flush=True)


if __name__ == "__main__":
    main()
