"""What the initramfs of a QEMU guest is made of, beside the kernel's drivers."""

from __future__ import annotations

from .kernels import BUSYBOX, Kernel, _entry, archive, with_init
from .uml import HERE


def ours(kernel: Kernel) -> bytes:
    """The small one: busybox, drivers, ``qemu-init``."""
    return with_init(kernel) + archive(_file("qemu-root"))


def debians(initramfs: bytes) -> bytes:
    """Debian's own *initramfs*, and what ``boot=guest`` needs in it; it is not unpacked, the kernel reads both."""
    place, busybox = _entry("guest", 0o040755, b""), _entry("guest/busybox", 0o100755, BUSYBOX.read_bytes())
    script = _entry("scripts/guest", 0o100644, (HERE / "debian-boot").read_bytes())
    return initramfs + b"\0" * (-len(initramfs) % 4) + archive(_file("qemu-root"), script, place, busybox)


def _file(name: str) -> bytes:
    return _entry(name, 0o100644, (HERE / name).read_bytes())
