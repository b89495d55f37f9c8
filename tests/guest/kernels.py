"""Debian's cloud kernels of several suites, each with what QEMU needs to boot it; cached.

For each suite: ``vmlinuz``, ``initramfs`` (busybox and the drivers of the disks, no init) and
``modules.ext4``, the whole module tree.  The packages come from the mirror that this machine's
own apt uses, checked against Debian's keys, through an apt of its own that knows that one suite.
"""

from __future__ import annotations

import fcntl
import hashlib
import lzma
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .guest_image import SUITE as OWN_SUITE
from .guest_image import cache_directory
from .uml import HERE, GuestError

SUITES = ("bullseye", "bookworm", "trixie", "sid")  # 5.10, 6.1, 6.12 and the newest
PACKAGE = "linux-image-cloud-amd64"
# One package up to Debian 13, several from 14 on.
PARTS = ("linux-image-", "linux-binary-", "linux-modules-", "linux-base-")
DRIVERS = ("virtio_pci", "virtio_blk", "overlay")  # what a cloud kernel has as modules and the guest needs first
BUSYBOX = Path("/bin/busybox")
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
SECONDS = 600

APT = """\
Dir "{place}";
Dir::State "{place}";
Dir::State::status "/dev/null";
Dir::Cache "{place}";
Dir::Etc "{place}";
Dir::Etc::sourceparts "-";
Dir::Etc::trustedparts "-";
Acquire::Languages "none";
Acquire::Check-Valid-Until "false";
APT::Sandbox::User "root";
"""


@dataclass(frozen=True)
class Kernel:
    """One kernel, ready to boot; *release* is its ``uname -r``."""

    release: str
    vmlinuz: Path
    initramfs: Path
    modules: Path


def kernel(suite: str) -> Kernel:
    """The cloud kernel of *suite*, made now unless it is cached.  Raises :class:`GuestError`."""
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    place = cache_directory() / "kernels" / f"{suite}-{recipe}"
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            with tempfile.TemporaryDirectory(prefix="build-", dir=place.parent) as name:
                (Path(name) / "kernel").mkdir()
                _build(suite, Path(name), Path(name) / "kernel")
                os.rename(Path(name) / "kernel", place)
    release = (place / "release").read_text()
    return Kernel(release, place / "vmlinuz", place / "initramfs", place / "modules.ext4")


def _build(suite: str, work: Path, made: Path) -> None:
    root = work / "root"
    for package in _download(suite, work):
        _run(["dpkg-deb", "-x", str(package), str(root)])
    modules = next(path for path in (root / "usr/lib/modules", root / "lib/modules") if path.is_dir())
    tree = next(modules.iterdir())
    release = tree.name
    vmlinuz = next(path for path in (root / f"boot/vmlinuz-{release}", tree / "vmlinuz") if path.exists())
    os.rename(vmlinuz, made / "vmlinuz")
    base = modules.parents[1]
    _run(["depmod", "-b", str(base), release])
    (made / "release").write_text(release)
    (made / "initramfs").write_bytes(_initramfs(base, release))
    size = sum(path.stat().st_size + 4096 for path in tree.rglob("*") if path.is_file()) // (1 << 20) + 24
    _run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-m", "0", "-d", str(tree), str(made / "modules.ext4"),
          f"{size}M"])  # fmt: skip


def _download(suite: str, work: Path) -> list[Path]:
    """The kernel's packages, by an apt that knows nothing but *suite*."""
    place = work / "apt"
    for directory in ("lists/partial", "archives/partial", "apt.conf.d", "preferences.d"):
        (place / directory).mkdir(parents=True)
    (place / "apt.conf").write_text(APT.format(place=place))
    (place / "sources.list").write_text(f"deb [signed-by={KEYS}] {_mirror()} {suite} main\n")
    environment = {**os.environ, "APT_CONFIG": str(place / "apt.conf")}
    _run(["apt-get", "update", "-q"], environment)
    listed = _run(["apt-get", "install", "--print-uris", "-qy", "--no-install-recommends", PACKAGE], environment)
    names = re.findall(rf"^'\S+' ((?:{'|'.join(PARTS)})[^_ ]+)_", listed, re.MULTILINE)
    _run(["apt-get", "download", "-q", *(name for name in names if name != PACKAGE)], environment, place)
    return sorted(place.glob("*.deb"))


def _mirror() -> str:
    """The mirror in this machine's own sources; apt itself is asked, as they come in two forms."""
    asked = _run(["apt-get", "update", "--print-uris"])
    found = re.search(rf"^'(\S+)/dists/{OWN_SUITE}/", asked, re.MULTILINE)
    if found is None:
        raise GuestError(f"apt names no mirror for {OWN_SUITE}: {asked[:400]!r}")
    return found[1]


# -- the initramfs: initramfs(5), a "newc" archive of cpio ---------------------------------------


def _initramfs(base: Path, release: str) -> bytes:
    if not BUSYBOX.exists():
        raise GuestError("busybox is missing: apt-get install busybox-static")
    found = [_entry(name, 0o040755, b"") for name in ("bin", "dev", "proc", "modules", "root")]
    found += [_entry("bin/busybox", 0o100755, BUSYBOX.read_bytes()), _entry("bin/sh", 0o120777, b"busybox")]
    for number, path in enumerate(_drivers(base, release), 10):
        content = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        found.append(_entry(f"modules/{number}.ko", 0o100644, content))
    return archive(*found)


def with_init(kernel: Kernel) -> bytes:
    """The whole initramfs: the kernel reads archives that follow one another.  Ours changes more often than kernels."""
    return kernel.initramfs.read_bytes() + archive(_entry("init", 0o100755, (HERE / "qemu-init").read_bytes()))


def archive(*entries: bytes) -> bytes:
    """The members *entries*, and the one that ends an archive."""
    return b"".join(entries) + _entry("TRAILER!!!", 0, b"")


def _drivers(base: Path, release: str) -> list[Path]:
    """The files of the drivers, each behind those it needs; what is built in has none."""
    asked = (_run(["modprobe", "-d", str(base), "-S", release, "--show-depends", name]) for name in DRIVERS)
    lines = (line.split() for text in asked for line in text.splitlines())
    return list(dict.fromkeys(Path(words[1]) for words in lines if words[0] == "insmod"))


def _entry(name: str, mode: int, content: bytes) -> bytes:
    """One member: ino, mode, uid, gid, nlink, mtime, size, two devices, length of the name, no sum."""
    numbers = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % number for number in numbers) + name.encode() + b"\0"
    return _padded(head) + _padded(content)


def _padded(content: bytes) -> bytes:
    return content + b"\0" * (-len(content) % 4)


def _run(command: list[str], environment: dict[str, str] | None = None, directory: Path | None = None) -> str:
    try:
        done = subprocess.run(command, env=environment, cwd=directory, capture_output=True, text=True,
                              timeout=SECONDS, check=False)  # fmt: skip
    except FileNotFoundError:
        raise GuestError(f"{command[0]} is missing: run tests/prepare") from None
    if done.returncode:
        raise GuestError(f"{' '.join(command)}: status {done.returncode}\n{done.stderr[-3000:]}")
    return done.stdout
