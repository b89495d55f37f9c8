"""A host that is started from an image: a copy-on-write view of its disk, user-data, and this machine outside of it."""

from __future__ import annotations

import contextlib
import http.client
import io
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .outside import Outside
from .qemu import COMMAND
from .uml import PRELUDE, GuestError, QuickResult, _result

SECONDS = 1800.0  # four minutes on an idle machine
PAUSE = 3.0
USER = "debian"
# What is told comes back over the same connection, behind this line.
MARK = b"\n-- the clone's share --\n"


@dataclass
class Clone:
    """One host: *name* is its host name and *page* what it serves; what was seen of it is filled in by its boot."""

    name: str
    page: str
    mac: str
    # sshd is not asked once a second: each greeting is a new process, and an emulated guest would do little else.
    outside: Outside = field(default_factory=lambda: Outside((80,), (22,)))
    pages: list[str] = field(default_factory=list)
    host_key: str = ""
    seen: QuickResult | None = None

    def user_data(self, key: str) -> str:
        """That of a person who wants a balancer: a name, a key, a page."""
        return (
            f"#cloud-config\nhostname: {self.name}\nssh_authorized_keys:\n  - {key}\n"
            f"write_files:\n  - path: /srv/index.html\n    content: {self.page}\n"
        )

    def live(self, disk: Path, work: Path, script: str) -> None:
        """Boot from *disk*, ask for the page, run *script* (sh) as root, power off.  Raises :class:`GuestError`."""
        work.mkdir()
        keys = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.name, "-f", str(work / "key")]
        subprocess.run(keys, check=True, timeout=60)
        (work / "seed").mkdir()
        (work / "seed" / "user-data").write_text(self.user_data((work / "key.pub").read_text().strip()))
        (work / "seed" / "meta-data").write_text(f"instance-id: {self.name}\n")
        with self._running(disk, work), self.outside.asking():
            self._ask_for_pages(work)
            self.seen = self._told(work, script)
        self.host_key = (work / "known").read_text().split()[-1]

    @contextlib.contextmanager
    def _running(self, disk: Path, work: Path) -> Iterator[None]:
        overlay = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(disk), str(work / "disk")]
        subprocess.run(overlay, check=True, timeout=60)
        command = ["setpriv", "--pdeathsig", "KILL", COMMAND, "-accel", "tcg", "-nodefaults", "-no-reboot"]
        command += ["-m", "1024", "-smp", "1", "-display", "none", "-serial", f"file:{work / 'console.log'}"]
        command += ["-drive", f"file={work / 'disk'},if=virtio,format=qcow2"]
        # QEMU shows the directory as a FAT disk: NoCloud looks for one with this label.
        command += ["-drive", f"if=virtio,format=raw,readonly=on,file.driver=vvfat,file.dir={work / 'seed'},"
                    "file.label=cidata"]  # fmt: skip
        card = self.outside.arguments()
        command += [*card[:-1], f"{card[-1]},mac={self.mac}"]
        with (work / "qemu.log").open("w") as log:
            # A session of its own, so that the scheduler gives each guest a share.
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                       start_new_session=True)  # fmt: skip
        try:
            yield
            process.wait(120)
        except subprocess.TimeoutExpired:
            raise GuestError(f"{self.name} does not power off; {_end(work)}") from None
        finally:
            process.kill()
            process.wait()

    def _ask_for_pages(self, work: Path) -> None:
        """Three whole answers, as soon as haproxy gives them."""
        until = time.monotonic() + SECONDS
        while len(self.pages) < 3:
            if time.monotonic() > until:
                raise GuestError(f"{self.name} serves no page; {_end(work)}")
            connection = http.client.HTTPConnection("127.0.0.1", self.outside.here(80), timeout=30)
            with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
                connection.request("GET", "/")
                answer = connection.getresponse()
                self.pages.append(f"{answer.status} {answer.getheader('server')} {answer.read().decode()}")
            time.sleep(1)

    def _told(self, work: Path, script: str) -> QuickResult:
        started = time.monotonic()
        words = ["ssh", "-i", str(work / "key"), "-p", str(self.outside.here(22)), "-o", "BatchMode=yes"]
        words += ["-o", "StrictHostKeyChecking=accept-new", "-o", f"UserKnownHostsFile={work / 'known'}"]
        words += ["-o", "ConnectTimeout=60", "-o", "HashKnownHosts=no", f"{USER}@127.0.0.1", "sudo sh -s"]
        whole = f"{PRELUDE}{_MEASURED.format(script=script)}"
        while True:
            # The account gets its key in cloud-init's network stage, and sshd may be there before that.
            done = subprocess.run(words, input=whole.encode(), capture_output=True, timeout=SECONDS, check=False)
            if done.returncode != 255:
                break
            if time.monotonic() > started + SECONDS:
                raise GuestError(f"ssh into {self.name}: {done.stderr.decode()[-1000:]}\n{_end(work)}")
            time.sleep(PAUSE)
        head, mark, packed = done.stdout.partition(MARK)
        if not mark:
            raise GuestError(f"{self.name} told nothing: {head.decode()[-1000:]}{done.stderr.decode()[-1000:]}")
        with tempfile.TemporaryDirectory(prefix="clone-") as name, tarfile.open(fileobj=io.BytesIO(packed)) as share:
            share.extractall(name, [member for member in share if not member.isdev()])
            return _result(Path(name), (work / "console.log").read_text(errors="replace"), time.monotonic() - started)


_MEASURED = """
(
{script}
) </dev/null >$SHARE/stdout 2>$SHARE/stderr
echo $? >$SHARE/status
systemd-run --quiet --on-active=3s systemctl poweroff # when all has been told
printf '\\n-- the clone%ss share --\\n' "'"
tar -C $SHARE -c .
"""


def _end(work: Path) -> str:
    log = work / "console.log"
    return f"its console ends:\n{log.read_text(errors='replace')[-3000:]}"
