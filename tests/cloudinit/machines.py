"""A throw-away machine: a chroot under a copy-on-write layer, booted in private namespaces.

A :class:`Machine` is the disk: an overlay on a cached chroot whose upper layer is a
tmpfs, mounted in a mount namespace that one ``cat`` keeps alive.  A :class:`Boot` is the
machine running: its own mounts, network, processes and host name, an empty ``/run`` and
no rules, as after a power cycle.  When the test process goes, by whatever way, the cats
read end-of-file and the kernel takes everything away; nothing is ever mounted or changed
outside.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

DISK = """
set -e
mount -t tmpfs -o mode=0755 disk "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"
echo ready
exec cat
"""

# /sys is read-only and /dev holds no disk: cloud-init grows and formats what it finds.
BOOT = """
set -e
cd "$1/root"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=0755 run run
mount -t tmpfs -o mode=0755 dev dev
mknod -m 666 dev/null c 1 3
mknod -m 666 dev/zero c 1 5
mknod -m 666 dev/full c 1 7
mknod -m 666 dev/random c 1 8
mknod -m 666 dev/urandom c 1 9
mknod -m 666 dev/tty c 5 0
ln -s /proc/self/fd dev/fd
mkdir dev/pts dev/shm run/lock
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
mount -t tmpfs shm dev/shm
hostname machine
ip link set lo up
exec chroot . sh -c 'echo ready; exec cat'
"""

# What a systemd service finds.
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
}


class MachineError(Exception):
    """A machine does not come up, or a command in it failed; the message holds its output."""


@dataclass(frozen=True)
class Boot:
    """A running machine; *pid* is its first process, seen from outside."""

    pid: int

    @property
    def root(self) -> Path:
        """Its file tree, as it sees it.  An absolute link in there leads out again."""
        return Path(f"/proc/{self.pid}/root")

    def spawn(self, command: Sequence[str]) -> subprocess.Popen[str]:
        """Start *command* in the machine; its output is read by nobody."""
        return subprocess.Popen(
            self._enter(command), env=ENVIRONMENT, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )

    def attempt(
        self, *command: str, stdin: str = "", timeout: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        """Run *command* in the machine, whatever its exit status will be."""
        return subprocess.run(
            self._enter(command), env=ENVIRONMENT, input=stdin, capture_output=True, text=True,
            timeout=timeout, check=False,
        )

    def run(self, *command: str, stdin: str = "", timeout: float = 300) -> str:
        """Standard output of *command*, which must succeed."""
        done = self.attempt(*command, stdin=stdin, timeout=timeout)
        if done.returncode != 0:
            raise MachineError(f"{' '.join(command)}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def read(self, path: str) -> str:
        """The text of *path*; links are followed inside the machine."""
        return self.run("cat", path)

    def write(self, path: str, text: str) -> None:
        """Make *path*, and the directories above it, hold *text*."""
        self.run("sh", "-c", 'mkdir -p "${1%/*}" && cat > "$1"', "write", path, stdin=text)

    def _enter(self, command: Sequence[str]) -> list[str]:
        return [
            "/usr/bin/nsenter", f"--target={self.pid}", "--mount", "--net", "--pid", "--uts", "--ipc",
            "--root", "--wd", "--", *command,
        ]


@dataclass(frozen=True)
class Machine:
    """A machine's disk; *keeper* is the process that keeps it mounted at *mount_point*."""

    keeper: int
    mount_point: Path

    @property
    def root(self) -> Path:
        """Its file tree, whether it runs or not."""
        return Path(f"/proc/{self.keeper}/root{self.mount_point}/root")

    @property
    def changed(self) -> Path:
        """The upper layer: whatever is in there differs from the layers it was made with."""
        return Path(f"/proc/{self.keeper}/root{self.mount_point}/upper")

    @contextmanager
    def boot(self) -> Iterator[Boot]:
        """Switch on; off again at the end of the block.  What is on the disk stays."""
        command = [
            "nsenter", f"--target={self.keeper}", "--mount", "--",
            "unshare", "--mount", "--propagation", "private", "--net", "--pid", "--uts", "--ipc",
            "--fork", "--kill-child",
            "sh", "-c", BOOT, "boot", str(self.mount_point),
        ]
        with _kept(command) as unshare:
            children = Path(f"/proc/{unshare}/task/{unshare}/children").read_text()
            yield Boot(int(children))


@contextmanager
def machine(*layers: Path) -> Iterator[Machine]:
    """A new machine with *layers* on its disk, gone at the end of the block.

    The last layer is the chroot, those before it lie on top.
    """
    mount_point = layers[-1].parent / "machine"
    mount_point.mkdir(exist_ok=True)
    command = [
        "unshare", "--mount", "--propagation", "private",
        "sh", "-c", DISK, "disk", str(mount_point), ":".join(map(str, layers)),
    ]
    with _kept(command) as keeper:
        yield Machine(keeper, mount_point)


@contextmanager
def _kept(command: Sequence[str]) -> Iterator[int]:
    # The process says "ready" when all is in place and lives until its standard input ends.
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        if process.stdout.readline() != "ready\n":
            raise MachineError(f"{' '.join(command[:2])}: {process.stderr.read()}")
        try:
            yield process.pid
        finally:
            process.stdin.close()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
