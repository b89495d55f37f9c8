"""An initramfs that would load conntrack before the root file system, and our block with it, is there.

It loads what its configuration names: initramfs.conf(5) "modules", dracut.conf(5) "add_drivers",
"force_drivers".  Both tools copy /etc/modprobe.d into the image, so writing it again is enough.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..kmod import BLOCK_PATH, is_conntrack_module, normal
from ..state import Initramfs
from .process import find
from .root import HOST, Root

_PLAIN = ("/etc/initramfs-tools/modules", "/usr/share/initramfs-tools/modules.d")  # a file; a directory of them
_DRACUT = ("/etc/dracut.conf", "/etc/dracut.conf.d", "/usr/lib/dracut/dracut.conf.d")
_DRIVERS = ("add_drivers", "force_drivers")
_IMAGES = ("/boot/initrd.img-{}", "/boot/initramfs-{}.img")
_COARSE = 2_000_000_000  # ns: FAT, on which some hosts have /boot, counts two seconds at a time


def observe_initramfs(root: Root = HOST, live: bool = True) -> Initramfs | None:
    """The initramfs of the running kernel, where something in it asks for conntrack; else ``None``.

    In an image tree: those of all its kernels, and the tree's own tool.
    """
    names = tuple(_named(root))
    if not names:
        return None
    if not live:
        images = tuple(_images(root))
        stale = not images or any(_is_stale(root, image) for image in images)
        return Initramfs(_tool_of_tree(root) if images else (), ", ".join(images), names, stale)
    release = (root.read_text("/proc/sys/kernel/osrelease") or "").strip() if live else ""
    image = next(filter(root.exists, (place.format(release) for place in _IMAGES)), "") if release else ""
    return Initramfs(_tool(release, image) if image else (), image, names, _is_stale(root, image))


def _images(root: Root) -> Iterator[str]:
    """The images in /boot of the kernels whose modules are there: not the one that rescues."""
    for release in root.listdir("/lib/modules"):
        yield from filter(root.exists, (place.format(release) for place in _IMAGES))


def _tool_of_tree(root: Root) -> tuple[str, ...]:
    """Both write the images of all kernels again; dracut leaves host-only mode by itself, since no /sys is there."""
    for argv in (("update-initramfs", "-u", "-k", "all"), ("dracut", "--force", "--regenerate-all")):
        if any(root.exists(f"{place}/{argv[0]}") for place in ("/usr/sbin", "/usr/bin", "/sbin")):
            return argv
    return ()


def _named(root: Root) -> Iterator[tuple[str, str]]:
    for path in _files(root, _PLAIN):
        for line in _lines(root, path):
            word = line.split()[0]
            if is_conntrack_module(word):
                yield normal(word), path
    for path in _files(root, _DRACUT):
        for line in _lines(root, path):
            key, _, value = line.replace("+=", "=").partition("=")
            words = value.strip("\"' ").split() if key.strip() in _DRIVERS else ()
            yield from ((normal(word), path) for word in words if is_conntrack_module(word))


def _files(root: Root, places: tuple[str, ...]) -> Iterator[str]:
    for place in places:
        if root.is_directory(place):
            yield from (f"{place}/{name}" for name in root.listdir(place))
        elif root.exists(place):
            yield place


def _lines(root: Root, path: str) -> Iterator[str]:
    for line in (root.read_text(path) or "").splitlines():
        text = line.partition("#")[0].strip()
        if text:
            yield text


def _is_stale(root: Root, image: str) -> bool:
    made, block = root.modified(image) if image else None, root.modified(BLOCK_PATH)
    return made is None or block is None or made + _COARSE < block


def _tool(release: str, image: str) -> tuple[str, ...]:
    if find("update-initramfs"):
        # All: the next boot may be another kernel's, and what undoes it must not ask for one that was removed since.
        return ("update-initramfs", "-u", "-k", "all")
    return ("dracut", "--force", image, release) if find("dracut") else ()
