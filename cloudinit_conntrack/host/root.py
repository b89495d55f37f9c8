"""Files below one root: ``/`` for the running host, a directory for an image tree.

A path is walked one component at a time, as if in a chroot: a symbolic link is taken
relative to the root and ``..`` never leaves it.  The last component of a file that we keep
or write is not followed at all, and anything but a regular file there is refused.  A hard
link cannot lead out either: files are replaced, never written in place.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from ..errors import HostError
from ..state import FileImage
from .regular import (
    fill,
    image_of,
    name_beside,
    read_bounded,
    refuse_irregular,
    sweep_beside,
    write_all,
)

_MOST_LINKS = 40  # as the kernel: MAXSYMLINKS
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_REMEDIES = {
    errno.ENOENT: "make its directory first",
    errno.EROFS: "mount the file system read-write",
    errno.ENOSPC: "free some space on the file system",
    errno.EDQUOT: "free some space, the quota is used up",
    errno.EACCES: "run as root",
    errno.EPERM: "run as root, and see lsattr whether the file is immutable",
    errno.ELOOP: "replace the loop of symbolic links by a file",
    errno.EBUSY: "the file is a mount point: change it where it is mounted from",
}


@dataclass(frozen=True)
class Root:
    """The tree below *path*.  Every path given to a method is absolute, as seen inside it."""

    path: str = "/"

    @property
    def is_host(self) -> bool:
        """Whether this is the running host's own tree."""
        return os.path.realpath(self.path) == "/"

    # --- reading ---------------------------------------------------------------------

    def read_image(self, path: str) -> FileImage | None:
        """The regular file *path*, whole; ``None`` when there is none.

        :class:`HostError` for a symbolic link, a FIFO, a device or a directory in its place.
        """
        with _told(path):
            opened = self._open_regular(path, follow=False)
            if opened is None:
                return None
            with os.fdopen(opened, "rb"):
                return image_of(opened, path)

    def read_bytes(self, path: str) -> bytes | None:
        """The content of *path*, links inside the root followed; ``None`` when there is none."""
        with _told(path):
            opened = self._open_regular(path, follow=True)
            if opened is None:
                return None
            with os.fdopen(opened, "rb"):
                return read_bounded(opened, path)

    def read_text(self, path: str) -> str | None:
        """Like :meth:`read_bytes`, as text; bytes that are not UTF-8 are replaced."""
        content = self.read_bytes(path)
        return None if content is None else content.decode("utf-8", "replace")

    def lines(self, path: str) -> Iterator[str]:
        """The lines of *path*, read one after another: a table of the kernel may be larger than our memory."""
        with _told(path):
            opened = self._open_regular(path, follow=True)
            if opened is not None:
                with os.fdopen(opened, encoding="utf-8", errors="replace") as file:
                    yield from file

    def exists(self, path: str) -> bool:
        """Whether *path* leads to anything inside the root."""
        return self._stat(path) is not None

    def is_directory(self, path: str) -> bool:
        """Whether *path* leads to a directory inside the root."""
        found = self._stat(path)
        return found is not None and stat.S_ISDIR(found.st_mode)

    def link_text(self, path: str) -> str:
        """What the symbolic link *path* says, not followed; empty when it is none."""
        with _told(path):
            try:
                with self._at(path, follow=False) as (parent, name):
                    return _link_target(parent, name) or ""
            except (FileNotFoundError, NotADirectoryError):
                return ""

    def modified(self, path: str) -> int | None:
        """When the content of *path* changed last, in nanoseconds since the epoch; ``None`` when it is not there."""
        found = self._stat(path)
        return None if found is None else found.st_mtime_ns

    def listdir(self, path: str) -> tuple[str, ...]:
        """The sorted names in the directory *path*; none when there is no such directory."""
        with _told(path):
            try:
                with self._at(path + "/.", follow=True) as (parent, _):
                    return tuple(sorted(os.listdir(parent)))
            except (FileNotFoundError, NotADirectoryError):
                return ()

    def links(self, path: str) -> dict[str, str]:
        """The sorted names in the directory *path*; with each what it says if it is a symbolic link, else nothing."""
        with _told(path):
            try:
                with self._at(path + "/.", follow=True) as (parent, _), os.scandir(parent) as found:
                    links = {entry.name: entry.is_symlink() for entry in found}
                    return {name: os.readlink(name, dir_fd=parent) if links[name] else "" for name in sorted(links)}
            except (FileNotFoundError, NotADirectoryError):
                return {}

    # --- writing ---------------------------------------------------------------------

    def write_image(self, path: str, image: FileImage) -> None:
        """Make *path* the file *image*: written beside it, synced, renamed, directory synced.

        Mode, owner, times and extended attributes are those of the image; an image whose two
        times are 0 is a new file, written now.  The directory must be there.
        """
        with _told(path), self._at(path, follow=False) as (parent, name):
            refuse_irregular(parent, name, path)
            sweep_beside(parent, name)
            beside = name_beside(name)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            opened = os.open(beside, flags, 0o600, dir_fd=parent)
            try:
                try:
                    fill(opened, image)
                finally:
                    os.close(opened)
                os.rename(beside, name, src_dir_fd=parent, dst_dir_fd=parent)
            except BaseException:
                with suppress(OSError):
                    os.unlink(beside, dir_fd=parent)
                raise
            os.fsync(parent)

    def put_link(self, path: str, target: str) -> None:
        """Make *path* a symbolic link that says *target*, or remove the link when that is empty.

        HostError for anything but a link in its place.  The link is never followed.
        """
        with _told(path), self._at(path, follow=False) as (parent, name):
            found = _link_target(parent, name)
            if found is None and _is_there(parent, name):
                raise HostError("is not a symbolic link", path, "look at what it is, and move it away")
            sweep_beside(parent, name)
            if target and found != target:
                beside = name_beside(name)
                os.symlink(target, beside, dir_fd=parent)
                os.rename(beside, name, src_dir_fd=parent, dst_dir_fd=parent)
            elif not target and found is not None:
                os.unlink(name, dir_fd=parent)
            os.fsync(parent)

    def append(self, path: str, content: bytes) -> None:
        """Add *content* to the regular file *path*, which must be there, and sync it."""
        with _told(path), self._at(path, follow=False) as (parent, name):
            refuse_irregular(parent, name, path)
            opened = os.open(name, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                write_all(opened, content)
                os.fsync(opened)
            finally:
                os.close(opened)

    def remove(self, path: str) -> None:
        """Remove the regular file *path*; nothing happens when there is none."""
        with _told(path):
            try:
                with self._at(path, follow=False) as (parent, name):
                    refuse_irregular(parent, name, path)
                    sweep_beside(parent, name)
                    os.unlink(name, dir_fd=parent)
                    os.fsync(parent)
            except (FileNotFoundError, NotADirectoryError):
                return

    def sweep(self, path: str) -> None:
        """Remove what an interrupted :meth:`write_image` or :meth:`put_link` of *path* left beside it."""
        with _told(path):
            try:
                with self._at(path, follow=False) as (parent, name):
                    sweep_beside(parent, name)
            except (FileNotFoundError, NotADirectoryError):
                return

    def make_directory(self, path: str, mode: int = 0o755) -> bool:
        """Make the directory *path*, parents included; whether it was not there before."""
        made = False
        parts = [p for p in path.split("/") if p]
        for depth in range(1, len(parts) + 1):
            step = "/" + "/".join(parts[:depth])
            if self.is_directory(step):
                continue
            with _told(step), self._at(step, follow=False) as (parent, name):
                wanted = mode if depth == len(parts) else 0o755
                os.mkdir(name, wanted, dir_fd=parent)
                os.chmod(name, wanted, dir_fd=parent)  # whatever the umask
                os.fsync(parent)
            made = True
        return made

    def make_private_dir(self, path: str) -> None:
        """Make sure that *path* is a directory that only its owner, this user, can enter."""
        self.make_directory(path, 0o700)
        with _told(path), self._at(path, follow=False) as (parent, name):
            opened = os.open(name, _DIRECTORY, dir_fd=parent)  # a symbolic link is refused here
            try:
                found = os.fstat(opened)
                if found.st_uid != os.geteuid():
                    raise HostError(f"belongs to user {found.st_uid}", path, "remove it, or give it to root")
                if stat.S_IMODE(found.st_mode) != 0o700:
                    os.fchmod(opened, 0o700)
            finally:
                os.close(opened)

    def remove_directory(self, path: str) -> bool:
        """Remove *path* if it is an empty directory; whether it is gone."""
        try:
            with self._at(path, follow=False) as (parent, name):
                os.rmdir(name, dir_fd=parent)
                os.fsync(parent)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    def write_kernel(self, path: str, text: str) -> None:
        """Write *text* to a file of ``/proc/sys`` or ``/sys``, in place: there is no other way."""
        with _told(path), self._at(path, follow=False) as (parent, name):
            opened = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                os.write(opened, text.encode())
            finally:
                os.close(opened)

    @contextmanager
    def lock(self, path: str) -> Iterator[int | None]:
        """Hold the lock file *path* for a while; gives its descriptor, ``None`` when it was not free.

        The kernel frees it once the last process that has it open has ended.
        """
        with _told(path), self._at(path, follow=False) as (parent, name):
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            opened = os.open(name, flags, 0o600, dir_fd=parent)
        try:
            try:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
            else:
                yield opened
        finally:
            os.close(opened)

    # --- walking ---------------------------------------------------------------------

    def _stat(self, path: str) -> os.stat_result | None:
        with _told(path):
            try:
                with self._at(path, follow=True) as (parent, name):
                    return os.stat(name, dir_fd=parent, follow_symlinks=False)
            except (FileNotFoundError, NotADirectoryError):
                return None

    def _open_regular(self, path: str, follow: bool) -> int | None:
        try:
            with self._at(path, follow) as (parent, name):
                if not refuse_irregular(parent, name, path):
                    return None
                # O_NONBLOCK: should a FIFO have taken its place meanwhile, opening it must not wait.
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
                try:
                    return os.open(name, flags | os.O_NOATIME, dir_fd=parent)  # looking leaves no trace
                except PermissionError:
                    return os.open(name, flags, dir_fd=parent)  # the file is not ours
        except (FileNotFoundError, NotADirectoryError):
            return None

    @contextmanager
    def _at(self, path: str, follow: bool) -> Iterator[tuple[int, str]]:
        """The directory that holds *path*, open, and the last name; ``.`` when it is a directory itself."""
        if not path.startswith("/") or "\0" in path:
            raise HostError("is not an absolute path", repr(path))
        opened: list[int] = []
        try:
            if self.path != "/" or not _walked_by_kernel(opened, path, follow):
                opened.append(os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
                yield _walk(opened, path, follow)
            else:
                yield opened[0], path.rpartition("/")[2]
        finally:
            for directory in opened:
                os.close(directory)


def _walked_by_kernel(opened: list[int], path: str, follow: bool) -> bool:
    """Open the directory that holds *path* at once; whether that came out where :func:`_walk` would.

    Below the host's own root it does, and takes a quarter of the system calls.  Not in /proc, whose links may lead
    into another process's root, and not where the last name is a link to follow.
    """
    parent, _, name = path.rpartition("/")
    if name in ("", "..") or path.startswith("/proc"):
        return False
    opened.append(os.open(parent or "/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    if follow and name != "." and _link_target(opened[0], name) is not None:
        os.close(opened.pop())
        return False
    return True


def _walk(opened: list[int], path: str, follow: bool) -> tuple[int, str]:
    """Walk *path* from ``opened[0]``, the root; *opened* is the chain of directories held."""
    todo = _parts(path)
    links = 0
    while todo:
        name = todo.pop(0)
        if name == ".":
            continue
        if name == "..":
            if len(opened) > 1:
                os.close(opened.pop())
            continue
        target = _link_target(opened[-1], name) if todo or follow else None
        if target is not None:
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            while target.startswith("/") and len(opened) > 1:
                os.close(opened.pop())
            todo = _parts(target) + todo
        elif todo:
            opened.append(os.open(name, _DIRECTORY, dir_fd=opened[-1]))
        else:
            return opened[-1], name
    return opened[-1], "."


def _parts(path: str) -> list[str]:
    return [p for p in path.split("/") if p]


def _link_target(parent: int, name: str) -> str | None:
    try:
        return os.readlink(name, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):  # no link; nothing there
            return None
        raise


def _is_there(parent: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


@contextmanager
def _told(path: str) -> Iterator[None]:
    """Turn an OSError into one that says which file, and what to do."""
    try:
        yield
    except OSError as error:
        what = os.strerror(error.errno) if error.errno else str(error)
        raise HostError(what[0].lower() + what[1:], path, _REMEDIES.get(error.errno or 0, "")) from error


HOST = Root("/")
