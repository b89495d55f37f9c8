"""Kills this process, or fails an act, at one boundary of what it does, and says what the boundaries were.

A boundary is the moment before an act that somebody else could see: a file opened for
writing, written (also: half written), synced, renamed, removed, linked, given a mode, an
owner, times or attributes; a directory made or removed; a command about to start, started,
fed, ended; a packet sent.  "After" an act is before the next one.  Python's own audit events
(PEP 578) stand before most acts and cannot be gone round; the few without one are wrapped.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import signal
import socket
import subprocess
import sys
from typing import Any, Callable

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# event -> where in its arguments are a path (or descriptor) and the directory that it is seen from
EVENTS = {
    "os.remove": ((0, 1),), "os.rename": ((0, 2), (1, 3)), "os.link": ((0, 2), (1, 3)), "os.symlink": ((1, 2),),
    "os.mkdir": ((0, 2),), "os.rmdir": ((0, 1),), "os.chmod": ((0, 2),), "os.chown": ((0, 3),), "os.utime": ((0, 3),),
    "os.truncate": ((0, None),), "os.setxattr": ((0, None),), "os.removexattr": ((0, None),),
}  # fmt: skip
_write = os.write


class Injector:
    """Counts boundaries from 1, writes each into the file *log*, and at number *point* is killed.

    With *half* the boundary is in the middle of a write.  With *error*, a name of errno or
    ``MemoryError``, the act fails by it instead.
    """

    def __init__(self, log: int, point: int | None, half: bool = False, error: str = "") -> None:
        self.count = 0
        self._log = log
        self._point = point
        self._half = half
        self._error = error
        self._own = False

    def install(self) -> None:
        """From here on until the end of the process."""
        os.open = self._opening(os.open)
        os.write = self._writing(os.write)
        os.fsync = self._syncing("fsync")
        os.fdatasync = self._syncing("fdatasync")
        socket.socket.sendall = self._sending(socket.socket.sendall)  # type: ignore[method-assign]
        socket.socket.sendto = self._sending(socket.socket.sendto)  # type: ignore[method-assign]
        subprocess.Popen = self._popen()  # type: ignore[misc]
        sys.addaudithook(self._hear)

    def reach(self, kind: str, *places: str, **more: Any) -> bool:
        """Stand at a boundary; whether it is the one, and half of it is to be done yet."""
        self.count += 1
        line = json.dumps({"at": self.count, "kind": kind, "places": places, **more})
        _write(self._log, line.encode() + b"\n")
        if self.count != self._point:
            return False
        if self._half:
            return True
        if self._error:
            raise MemoryError if self._error == "MemoryError" else OSError(getattr(errno, self._error), "injected")
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("alive after SIGKILL")

    # --- acts with an audit event --------------------------------------------------------

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not self._own and isinstance(path, (str, bytes)) and isinstance(flags, int) and flags & WRITING:
                self.reach("open by a way of its own", os.fsdecode(path))
        elif event == "subprocess.Popen":
            self.reach(event, command=[str(word) for word in arguments[1]])
        elif event in EVENTS:
            places = [_place(arguments[at], arguments[seen] if seen else -1) for at, seen in EVENTS[event]]
            plain = [a if isinstance(a, (int, str)) else repr(a) for a in arguments]
            self.reach(event, *places, arguments=plain)

    # --- acts without one ----------------------------------------------------------------

    def _opening(self, real: Callable[..., int]) -> Callable[..., int]:
        def opening(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            if flags & WRITING and path != os.devnull:
                place = _place(path, -1 if dir_fd is None else dir_fd)
                if flags & os.O_CREAT and not os.path.lexists(place):
                    self.reach("create", place, mode=mode)
                else:
                    self.reach("open", place)
            self._own = True
            try:
                return real(path, flags, mode, dir_fd=dir_fd)
            finally:
                self._own = False

        return opening

    def _writing(self, real: Callable[..., int]) -> Callable[..., int]:
        def writing(opened: int, content: Any) -> int:
            told = base64.b64encode(bytes(content)).decode()
            if self.reach("write", _place(opened, -1), content=told):
                real(opened, bytes(content)[: len(content) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(opened, content)

        return writing

    def _syncing(self, name: str) -> Any:
        def syncing(opened: Any) -> None:
            """Nothing more: what would be lost by a power cut is computed from the record."""
            self.reach(name, _place(opened, -1))

        return syncing

    def _sending(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def sending(sock: Any, *arguments: Any) -> Any:
            self.reach("send", f"family {sock.family}")
            return real(sock, *arguments)

        return sending

    def _popen(self) -> Any:
        injector = self

        class Counted(subprocess.Popen):  # type: ignore[type-arg]
            """Says when a command has started and when its end has been seen."""

            _told = False

            def __init__(self, argv: Any, *rest: Any, **options: Any) -> None:
                super().__init__(argv, *rest, **options)
                self._words = [str(word) for word in argv]
                injector.reach("started", command=self._words)

            def poll(self) -> Any:
                return self._end(super().poll())

            def wait(self, timeout: float | None = None) -> Any:
                return self._end(super().wait(timeout))

            def _end(self, status: Any) -> Any:
                if status is not None and not self._told:
                    self._told = True
                    injector.reach("ended", command=self._words)
                return status

        return Counted


def _place(path: Any, seen_from: int) -> str:
    """The absolute path of a name seen from a directory, or of a descriptor."""
    if isinstance(path, int):
        return os.readlink(f"/proc/self/fd/{path}")
    name = os.fsdecode(path)
    if name.startswith("/") or seen_from is None or seen_from < 0:
        return name
    return os.path.join(os.readlink(f"/proc/self/fd/{seen_from}"), name)
