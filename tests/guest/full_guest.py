"""A full guest: Debian with systemd and cloud-init on a disk of its own, and a network.

The outside of the guest is a network namespace with one tap device: 10.93.0.1 and
fd93::1; the guest has 10.93.0.2 and fd93::2.  Nothing leaves that namespace.  Commands
reach the guest over a serial line (``image/guest-agent``), so no firewall is in the way.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from .uml import GuestError, Process, Ran, require_uml

OUTSIDE = {4: "10.93.0.1", 6: "fd93::1"}
ADDRESS = {4: "10.93.0.2", 6: "fd93::2"}
_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_CLONE_NEWNET = 0x40000000  # <linux/sched.h>

_TAP = f"""\
ip link set lo up
ip tuntap add dev tap0 mode tap
ip address add {OUTSIDE[4]}/24 dev tap0
ip address add {OUTSIDE[6]}/64 dev tap0 nodad
ip link set tap0 up
"""

NETWORK_CONFIG = f"""\
version: 2
ethernets:
  vec0:
    addresses: [{ADDRESS[4]}/24, "{ADDRESS[6]}/64"]
"""

# Without these systemd-networkd-wait-online waits 12 s for a router and 1 s for a duplicate of
# our address; cloud-init 22.4 does not hand "accept-ra: false" on to systemd-networkd.
NO_WAITING = "[Network]\nIPv6AcceptRA=no\nIPv6DuplicateAddressDetection=0\n"


class FullGuest:
    """One guest: a disk that lives as long as the object, booted once or several times.

    *image* is the base (never written to); *user_data* what cloud-init's NoCloud source
    gives out; *layer* a tree that is laid over the disk at the first boot.  Use it in a
    ``with`` statement: leaving that ends the guest and frees everything.
    """

    def __init__(self, image: Path, work: Path, user_data: str, layer: Path | None = None) -> None:
        require_uml()
        self.image = image
        self.work = work
        self.share = work / "share"
        self.layer = work / "layer"
        self.share.mkdir(parents=True)
        if layer:
            shutil.copytree(layer, self.layer, symlinks=True)
        self.boots = 0
        self._count = 0
        self._process: Process | None = None
        self._line: socket.socket | None = None
        self._unread = b""
        self.put("/var/lib/cloud/seed/nocloud/user-data", user_data)
        self.put("/var/lib/cloud/seed/nocloud/meta-data", "instance-id: guest-1\nlocal-hostname: guest\n")
        self.put("/var/lib/cloud/seed/nocloud/network-config", NETWORK_CONFIG)
        self.put("/etc/systemd/network/10-cloud-init-vec0.network.d/guest.conf", NO_WAITING)

    def __enter__(self) -> FullGuest:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.kill()

    def put(self, path: str, content: str, mode: int = 0o644) -> None:
        """Add a file to the layer, before the first boot."""
        target = self.layer / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)
        target.chmod(mode)

    # -- life ----------------------------------------------------------------------------

    def boot(self, timeout: float = 120, memory: str = "512M") -> None:
        """Start the guest and wait until its serial line answers (early in the boot)."""
        ours, theirs = socket.socketpair()
        arguments = [f"mem={memory}", f"ubda={self.work / 'disk.cow'},{self.image}", "root=/dev/ubda"]
        arguments += ["rw", "rootfstype=ext4", "init=/usr/sbin/guest-init", "selinux=0"]
        arguments += ["vec0:transport=tap,ifname=tap0,depth=64", f"ssl0=fd:{theirs.fileno()},fd:{theirs.fileno()}"]
        arguments += ["ssl=null", f"guest.share={self.share}"]
        if not self.boots:
            arguments.append(f"guest.layer={self.layer}")
        self.boots += 1
        self._process = Process(arguments, self.work, _TAP, (theirs.fileno(),))
        theirs.close()
        self._line = ours
        self._unread = b""
        if self._read_line(timeout) != "ready":
            raise self._trouble("the guest's serial line said something unexpected")

    def run(self, command: str, timeout: float = 60) -> Ran:
        """Run *command* (sh, as root) in the guest; raises :class:`GuestError` on a timeout."""
        base = self._send(command)
        deadline = time.monotonic() + timeout
        number, status = "", ""
        while number != str(self._count):  # older numbers: commands that we gave up waiting for
            number, _, status = self._read_line(deadline - time.monotonic()).partition(" ")
        texts = [base.with_suffix(end).read_text(errors="replace") for end in (".out", ".err")]
        return Ran(int(status), *texts)

    def check(self, command: str, timeout: float = 60) -> str:
        """Like :meth:`run`, gives stdout; raises :class:`GuestError` unless the status is 0."""
        ran = self.run(command, timeout)
        if not ran.ok:
            raise GuestError(f"in the guest, status {ran.status} of: {command}\n{ran.output}")
        return ran.stdout

    def power_off(self, timeout: float = 60) -> None:
        """Shut the guest down in order; its disk stays for the next :meth:`boot`."""
        self._send("systemctl --no-block poweroff")  # its answer may be lost in the shutdown
        ended = self._process is not None and self._process.wait(timeout)
        trouble = None if ended else self._trouble(f"the guest did not power off in {timeout:.0f} s")
        self.kill()
        if trouble:
            raise trouble

    def kill(self) -> None:
        """End the guest at once; harmless when it is not running."""
        if self._process:
            self._process.kill()
        if self._line:
            self._line.close()
        self._process = self._line = None

    # -- from the outside ------------------------------------------------------------------

    @contextlib.contextmanager
    def outside(self) -> Iterator[None]:
        """Within it, this thread's new sockets are in the namespace at the guest's other end."""
        if self._process is None:
            raise GuestError("the guest is not running")
        libc = ctypes.CDLL(None, use_errno=True)
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        there = os.open(f"/proc/{self._process.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if libc.setns(there, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
            yield
        finally:
            libc.setns(home, _CLONE_NEWNET)
            os.close(home)
            os.close(there)

    def connect(self, port: int, version: int, timeout: float = 3) -> socket.socket:
        """A TCP connection from outside to the guest's *port*, over IP *version* 4 or 6."""
        with self.outside():
            sock = socket.socket(_FAMILY[version], socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout)
            sock.connect((ADDRESS[version], port))
        except OSError:
            sock.close()
            raise
        return sock

    def http(self, port: int, version: int, timeout: float = 5) -> str:
        """The whole answer to ``GET /``, from outside."""
        with self.connect(port, version, timeout) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\nHost: guest\r\n\r\n")
            answer = b""
            while len(answer) < 65536:
                more = sock.recv(4096)
                if not more:
                    break
                answer += more
        return answer.decode(errors="replace")

    def banner(self, port: int, version: int, timeout: float = 5) -> str:
        """The first line that a server sends by itself (sshd does), from outside."""
        with self.connect(port, version, timeout) as sock:
            return sock.recv(256).decode(errors="replace").partition("\n")[0].strip()

    # -- the serial line ---------------------------------------------------------------------

    def _send(self, command: str) -> Path:
        """Hand *command* to the guest; gives the stem of the files of its outcome."""
        if self._line is None:
            raise GuestError("the guest is not running")
        self._count += 1
        base = self.share / str(self._count)
        base.with_suffix(".sh").write_text(command + "\n")
        self._line.sendall(f"{self._count}\n".encode())
        return base

    def _read_line(self, timeout: float) -> str:
        deadline = time.monotonic() + timeout
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._trouble("the guest did not answer in time")
            if self._process is None or self._line is None:
                raise GuestError("the guest is not running")
            if select.select([self._line], [], [], min(left, 1.0))[0]:
                more = self._line.recv(4096)
                if not more:
                    raise self._trouble("the guest closed its serial line")
                self._unread += more
            elif not self._process.running():
                raise self._trouble("the guest ended by itself")
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode(errors="replace").strip()

    def _trouble(self, what: str) -> GuestError:
        tail = self._process.tail() if self._process else ""
        return GuestError(f"{what}; its console ends:\n{tail}")


NewGuest = Callable[[str], FullGuest]  # the fixture: from user-data to a guest that is not booted yet
