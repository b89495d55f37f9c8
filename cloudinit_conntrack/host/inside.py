"""Programs of an image tree, run inside of that tree: they see nothing else, and change nothing of this kernel.

A chroot in mount, network, process, IPC and host-name namespaces of its own, with a /proc of these and a /dev that
holds no disk; without the capabilities to load modules, to set clocks and to restart the machine.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import CommandError, HostError
from .process import Completed, failure, private_mounts, run
from .root import Root

_DEVICES = (("null", "1", "3"), ("zero", "1", "5"), ("full", "1", "7"), ("random", "1", "8"), ("urandom", "1", "9"))
_LINKS = (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2"))
_LOST = ("sys_module", "sys_rawio", "sys_time", "sys_boot", "syslog")
_CANNOT = (126, 127)  # chroot(1): not to be run, not there


def run_inside(root: Root, argv: Sequence[str], timeout: float) -> Completed:
    """Run *argv*, a program of the tree *root*, in it.  CommandError when it fails or cannot run on this machine."""
    for place in ("/dev", "/proc"):
        if root.link_text(place) or not root.is_directory(place):
            raise HostError("is no directory", f"{root.path}{place}", "give the root of a whole system")
    with private_mounts() as mounts:
        within = ("nsenter", f"--mount={mounts}", "--")
        _devices(f"{root.path}/dev", within)
        lost = ",".join(f"-{name}" for name in _LOST)
        own = ("unshare", "--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child",
               f"--mount-proc={root.path}/proc", "--")
        words = (*within, *own, "setpriv", f"--bounding-set={lost}", "--", "chroot", root.path, *argv)
        done = run(words, timeout=timeout, check=False)
    if done.status != 0:
        raise failure(done, "run it in the image itself, or on a machine of the same kind" if done.status in _CANNOT
                      else "see that it works in a chroot of the image")
    return done


def starts_inside(root: Root, argv: Sequence[str], timeout: float) -> None:
    """See that the programs of the tree run here at all.  CommandError where they do not."""
    try:
        run_inside(root, ("true",), timeout)
    except CommandError as error:
        raise CommandError(f"programs of {root.path} do not run here: {error.what}", " ".join(argv),
                           "apply on a machine of the same kind, or in the image itself") from None


def _devices(place: str, within: tuple[str, ...]) -> None:
    run((*within, "mount", "-t", "tmpfs", "-o", "mode=0755,nosuid,noexec", "dev", place))
    for name, major, minor in _DEVICES:
        run((*within, "mknod", "-m", "666", f"{place}/{name}", "c", major, minor))
    for name, target in _LINKS:
        run((*within, "ln", "-s", target, f"{place}/{name}"))
