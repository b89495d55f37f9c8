"""A fork server: our command in a child process each time, without Python's start.

Process 1 of a test host's PID namespace, so that orphans are its own.  Each request comes with the
network namespace to run in; the answer comes when the child and every process that it
left behind have ended.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import socket
import sys
from pathlib import Path

from cloudinit_conntrack import cli, document, rewriting

from .injector import Injector

__all__ = ["document", "rewriting"]  # imported so that a child need not

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Serve until the other end closes."""
    with socket.socket(fileno=int(sys.argv[1])) as calls:
        calls.send(b"ready")
        while True:
            message, descriptors, _, _ = socket.recv_fds(calls, 1 << 16, 1)
            if not message:
                return
            calls.send(json.dumps(serve(json.loads(message), descriptors[0])).encode())


def serve(request: dict[str, object], namespace: int) -> dict[str, object]:
    """Run one command; its wait status, and how many processes outlived it."""
    # all that is in this PID namespace is in the same network: the command must see no other
    assert _libc.setns(namespace, CLONE_NEWNET) == 0
    os.close(namespace)
    child = os.fork()
    if child == 0:
        run(request)
    _, status = os.waitpid(child, 0)
    orphans = 0
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return {"status": os.waitstatus_to_exitcode(status), "orphans": orphans}
        orphans += 1


def prepare(request: dict[str, object]) -> None:
    """What else the request says: the environment, constants of our modules, the memory that there is."""
    environment, constants, memory = (request.get(name) for name in ("environment", "constants", "memory"))
    if isinstance(environment, dict):
        os.environ.update(environment)
    if isinstance(constants, dict):
        for name, value in constants.items():
            module, _, constant = name.rpartition(".")
            assert hasattr(sys.modules[module], constant)
            setattr(sys.modules[module], constant, value)
    if isinstance(memory, int):
        used = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))


def run(request: dict[str, object]) -> None:
    """The child: never returns."""
    code = 99
    try:
        for number, name in ((0, "/dev/null"), (1, f"{request['work']}/stdout"), (2, f"{request['work']}/stderr")):
            opened = os.open(name, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(opened, number)
            os.close(opened)
        if request.get("count"):
            log = os.open(f"{request['work']}/points", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
            point = request.get("point")
            assert point is None or isinstance(point, int)
            Injector(log, point, bool(request.get("half")), str(request.get("error", ""))).install()
        prepare(request)
        words = request["argv"]
        assert isinstance(words, list)
        code = cli.main(words)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
