"""Small guests with Debian's own cloud kernels, in QEMU without KVM.

As a quick guest (``uml.py``): one shell script, the package of this checkout on PYTHONPATH,
``step NAME COMMAND``; but the root is the Debian image of the full guests, and the kernel is any
of ``kernels.py``.  A guest takes ten seconds to boot and has no network but loopback.
A :class:`Machine` says what differs: ``debians.py`` boots systemd and cloud-init with it.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from . import guest_image, initramfs
from .kernels import Kernel
from .outside import Outside
from .uml import CHECKOUT, PRELUDE, GuestError, QuickResult, _result

COMMAND = "qemu-system-x86_64"
ROOM = 128 << 20  # for the results

# The second half of qemu-init, with Debian's own shell and tools.
SECOND = """\
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C TERM=dumb
export PYTHONPATH=/run/guest/share/checkout PYTHONDONTWRITEBYTECODE=1
cd /root
mkdir -p /dev/pts /dev/shm
ip link set lo up
[ -d /run/guest/share/files ] && cp -a /run/guest/share/files/. /
exec sh /run/guest/share/end
"""
# The last of a guest: the script, and the results.
END = """sh /run/guest/share/script </dev/null >/run/guest/share/stdout 2>/run/guest/share/stderr
echo $? >/run/guest/share/status
rm -rf /run/guest/share/checkout /run/guest/share/files
tar --xattrs --xattrs-include='trusted.*' -C /run/guest -cpf /dev/vdd share disk
sync
echo o >/proc/sysrq-trigger
sleep 9
"""


@dataclass(frozen=True)
class Machine:
    """A guest's hardware and root: *second* is what process 1 runs there (sh), *append* for the kernel's command line.

    *memory* is in MB; *initramfs* stands for ours.  *second* or what it starts must run ``/run/guest/share/end``.
    """

    second: str = SECOND
    image: Path | None = None
    append: str = "quiet"
    memory: int = 512
    initramfs: bytes = b""


SMALL = Machine()


def run_qemu(
    script: str,
    kernel: Kernel,
    *,
    timeout: float = 240,
    files: Mapping[str, str] | None = None,
    disk: Path | None = None,
    tree: Path | None = None,
    machine: Machine = SMALL,
    outside: Outside | None = None,
) -> QuickResult:
    """Boot *kernel*, run *script* (sh) as root, power off.

    *tree* is a directory that is laid over the root, *machine* what is booted, *outside* a client of it;
    *files* and *disk* as for :func:`uml.run_quick`: a second call with the same *disk* is the
    same host's next boot, with this *kernel* or another one.  Raises :class:`GuestError`.
    """
    if shutil.which(COMMAND) is None:
        raise GuestError("QEMU is missing: apt-get install qemu-system-x86")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="qemu-guest-") as name:
        work = Path(name)
        scripts = {"script": PRELUDE + script, "second": machine.second, "end": END}
        _pack(work / "given", scripts, files or {}, disk, tree)
        (work / "initramfs").write_bytes(machine.initramfs or initramfs.ours(kernel))
        with (work / "results").open("wb") as results:
            results.truncate(ROOM)
        with outside.asking() if outside else contextlib.nullcontext():
            console = _boot(kernel, work, machine, outside, timeout)
        share = _unpack(work, disk, console)
        if not (share / "status").exists():
            raise GuestError(f"the QEMU guest left no status; its console ends:\n{console[-3000:]}")
        return _result(share, console, time.monotonic() - started)


def _boot(kernel: Kernel, work: Path, machine: Machine, outside: Outside | None, timeout: float) -> str:
    # TCG always: a nested KVM that hangs would be a test that hangs.  It dies with this process.
    # One CPU: with two, QEMU 7.2 now and then lets a kernel run into code that it is patching (Oops: int3).
    command = ["setpriv", "--pdeathsig", "KILL", COMMAND, "-accel", "tcg", "-nodefaults", "-no-reboot"]
    command += ["-m", str(machine.memory), "-smp", "1", "-display", "none"]
    command += ["-serial", f"file:{work / 'console.log'}", "-kernel", str(kernel.vmlinuz)]
    command += ["-initrd", str(work / "initramfs"), "-append", f"console=ttyS0 panic=-1 {machine.append}"]
    command += outside.arguments() if outside else []
    image = machine.image or guest_image.image()
    for path, writable in ((image, False), (kernel.modules, False), (work / "given", False), (work / "results", True)):
        # No lock: a full guest may be using the same image, which nobody writes to.
        command += ["-drive", f"file={path},if=virtio,format=raw,file.locking=off{'' if writable else ',readonly=on'}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
        ended = f"ended with status {done.returncode}: {done.stderr[-1000:]}"
    except subprocess.TimeoutExpired:
        ended = f"was not done after {timeout:.0f} s"
    log = work / "console.log"
    return f"{log.read_text(errors='replace') if log.exists() else ''}\n(QEMU {ended})"


def _pack(
    target: Path, scripts: Mapping[str, str], files: Mapping[str, str], disk: Path | None, tree: Path | None
) -> None:
    with tempfile.TemporaryDirectory(prefix="share-") as name:
        share = Path(name)
        for script, text in scripts.items():
            (share / script).write_text(text)
        if tree:
            shutil.copytree(tree, share / "files", symlinks=True)
        shutil.copytree(CHECKOUT / "cloudinit_conntrack", share / "checkout" / "cloudinit_conntrack",
                        ignore=shutil.ignore_patterns("__pycache__"))  # fmt: skip
        # Compiled here, for the Python of the same Debian: under QEMU that alone takes ten seconds.
        words = ["/usr/bin/python3", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
        subprocess.run([*words, str(share / "checkout")], check=True, timeout=120)
        for path, content in files.items():
            placed = share / "files" / path.lstrip("/")
            placed.parent.mkdir(parents=True, exist_ok=True)
            placed.write_text(content)
        with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as packed:
            packed.add(share, "share")
            if disk and disk.exists():
                with tarfile.open(disk) as earlier:
                    for member in earlier:
                        packed.addfile(member, earlier.extractfile(member) if member.isreg() else None)


def _unpack(work: Path, disk: Path | None, console: str) -> Path:
    """The guest's share directory; what it wrote to its disk goes to *disk*."""
    try:
        with tarfile.open(work / "results") as results:
            members = results.getmembers()
            results.extractall(work, [m for m in members if m.name.startswith("share") and not m.isdev()])
            # One that was ended has written nothing, and zeros are an empty archive: the earlier disk stays.
            if disk and members:
                with tarfile.open(disk, "w", format=tarfile.PAX_FORMAT) as kept:
                    for member in (m for m in members if m.name.startswith("disk")):
                        # busybox reads the field that is rounded otherwise, here or when it is packed again.
                        member.mtime = int(member.mtime)
                        member.pax_headers = {k: v for k, v in member.pax_headers.items() if k != "mtime"}
                        kept.addfile(member, results.extractfile(member) if member.isreg() else None)
    except tarfile.TarError as error:
        raise GuestError(f"the QEMU guest left no results ({error}); its console ends:\n{console[-3000:]}") from None
    return work / "share"
