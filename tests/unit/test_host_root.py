"""Files below a root, on the real file system: whole round trips, and nothing that leads out."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloudinit_conntrack.errors import HostError
from cloudinit_conntrack.host.root import HOST, Root
from cloudinit_conntrack.state import FileImage

Act = Callable[[], object]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A root, with a secret beside it that must stay unread."""
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "root" / "etc").mkdir(parents=True)
    return tmp_path / "root"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], check=True, timeout=20)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True, timeout=20)


def leftovers(directory: Path) -> list[str]:
    return [name for name in os.listdir(directory) if "cloudinit-conntrack" in name]


# --- round trips -------------------------------------------------------------------------


def test_a_file_comes_back_byte_for_byte_with_mode_owner_times_and_xattrs(tree: Path) -> None:
    file = tree / "etc" / "rules"
    file.write_bytes(b"\x00\xff*filter\r\n")
    os.chown(file, 123, 456)
    file.chmod(0o640)
    os.setxattr(file, "user.note", b"kept")
    os.setxattr(file, "security.selinux", b"system_u:object_r:etc_t:s0\x00")
    os.utime(file, ns=(1_000_000_000_123_456_789, 1_100_000_000_987_654_321))
    root = Root(str(tree))
    before = root.read_image("/etc/rules")
    assert before is not None
    root.write_image("/etc/rules", FileImage(b"new", 0o600))
    assert file.read_bytes() == b"new"
    root.write_image("/etc/rules", before)
    assert root.read_image("/etc/rules") == before
    found = file.stat()
    assert file.read_bytes() == b"\x00\xff*filter\r\n"
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (123, 456, 0o640)
    assert (found.st_atime_ns, found.st_mtime_ns) == (1_000_000_000_123_456_789, 1_100_000_000_987_654_321)
    assert os.getxattr(file, "user.note") == b"kept"
    assert os.getxattr(file, "security.selinux") == b"system_u:object_r:etc_t:s0\x00"
    assert leftovers(tree / "etc") == []


def test_a_new_file_has_the_time_of_now(tree: Path) -> None:
    Root(str(tree)).write_image("/etc/new", FileImage(b"x"))
    assert (tree / "etc" / "new").stat().st_mtime > 1_600_000_000
    assert stat.S_IMODE((tree / "etc" / "new").stat().st_mode) == 0o644


def test_set_id_bits_survive_the_change_of_owner(tree: Path) -> None:
    Root(str(tree)).write_image("/etc/new", FileImage(b"x", 0o4750, 12, 34))
    assert stat.S_IMODE((tree / "etc" / "new").stat().st_mode) == 0o4750


def test_an_empty_file_is_not_a_missing_file(tree: Path) -> None:
    (tree / "etc" / "empty").touch()
    root = Root(str(tree))
    image = root.read_image("/etc/empty")
    assert image is not None
    assert image.content == b""
    assert root.read_image("/etc/missing") is None
    assert root.read_image("/etc/empty/below") is None
    assert root.read_text("/no/such/place") is None


def test_removing_is_done_once_and_may_be_repeated(tree: Path) -> None:
    (tree / "etc" / "gone").touch()
    for _ in range(2):
        Root(str(tree)).remove("/etc/gone")
        assert not (tree / "etc" / "gone").exists()
    Root(str(tree)).remove("/no/such/directory/file")


def test_appending_adds_and_needs_the_file(tree: Path) -> None:
    root = Root(str(tree))
    root.write_image("/etc/journal", FileImage(b"one\n", 0o600))
    root.append("/etc/journal", b"two\n")
    assert (tree / "etc" / "journal").read_bytes() == b"one\ntwo\n"
    with pytest.raises(HostError):
        root.append("/etc/other", b"x")


# --- links and other traps ---------------------------------------------------------------


def test_links_are_taken_relative_to_the_root(tree: Path) -> None:
    (tree / "usr" / "lib").mkdir(parents=True)
    (tree / "usr" / "lib" / "file").write_text("inside")
    (tree / "lib").symlink_to("/usr/lib")
    (tree / "again").symlink_to("../../../../lib/../lib/file")
    root = Root(str(tree))
    assert root.read_text("/lib/file") == "inside"
    assert root.read_text("/again") == "inside"
    image = root.read_image("/lib/file")
    assert image is not None
    assert image.content == b"inside"
    assert root.listdir("/lib") == ("file",)


@pytest.mark.parametrize("target", ["{base}/secret", "../../secret", "../../../../../../../../{base}/secret"])
def test_no_link_leads_out(tree: Path, target: str) -> None:
    (tree / "etc" / "link").symlink_to(target.format(base=tree.parent))
    root = Root(str(tree))
    assert root.read_text("/etc/link") is None
    assert root.read_text("/etc/../../secret") is None
    acts: tuple[Act, ...] = (lambda: root.read_image("/etc/link"), lambda: root.remove("/etc/link"),
                             lambda: root.write_image("/etc/link", FileImage(b"x")))
    for act in acts:
        with pytest.raises(HostError, match="symbolic link"):
            act()
    assert (tree.parent / "secret").read_text() == "secret"


def test_a_linked_directory_does_not_lead_writes_out(tree: Path) -> None:
    (tree.parent / "outside").mkdir()
    (tree / "etc" / "iptables").symlink_to(tree.parent / "outside")
    with pytest.raises(HostError):
        Root(str(tree)).write_image("/etc/iptables/rules.v4", FileImage(b"x"))
    assert os.listdir(tree.parent / "outside") == []


def test_a_hard_link_keeps_its_other_name_as_it_was(tree: Path) -> None:
    os.link(tree.parent / "secret", tree / "etc" / "hard")
    Root(str(tree)).write_image("/etc/hard", FileImage(b"changed"))
    assert (tree.parent / "secret").read_text() == "secret"


def test_a_loop_of_links_is_an_error(tree: Path) -> None:
    (tree / "a").symlink_to("/b")
    (tree / "b").symlink_to("/a")
    with pytest.raises(HostError, match="symbolic link"):
        Root(str(tree)).read_text("/a")


@pytest.mark.parametrize("kind", ["FIFO", "device", "directory", "socket"])
def test_only_regular_files_are_read_or_replaced(tree: Path, kind: str) -> None:
    place = tree / "etc" / "trap"
    if kind == "directory":
        place.mkdir()
    else:
        types = {"FIFO": stat.S_IFIFO, "device": stat.S_IFCHR, "socket": stat.S_IFSOCK}
        os.mknod(place, types[kind] | 0o644, os.makedev(1, 3))
    root = Root(str(tree))
    acts: tuple[Act, ...] = (lambda: root.read_image("/etc/trap"), lambda: root.read_text("/etc/trap"),
                             lambda: root.remove("/etc/trap"), lambda: root.write_image("/etc/trap", FileImage(b"x")))
    for act in acts:
        with pytest.raises(HostError, match=kind):
            act()
    assert stat.S_IFMT(place.lstat().st_mode) != stat.S_IFREG


@pytest.mark.parametrize("path", ["etc/rules", "", "/etc/a\0b"])
def test_paths_are_absolute(tree: Path, path: str) -> None:
    with pytest.raises(HostError, match="absolute"):
        Root(str(tree)).read_text(path)


def test_a_huge_file_is_refused(tree: Path) -> None:
    with (tree / "etc" / "huge").open("wb") as file:
        file.truncate(1 << 31)
    with pytest.raises(HostError, match="larger than"):
        Root(str(tree)).read_image("/etc/huge")


# --- a disk that fails -------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_file_and_nothing_else(small_disk: Path) -> None:
    root = Root(str(small_disk))
    root.write_image("/rules", FileImage(b"old"))
    with pytest.raises(HostError, match=r"/rules.*[Nn]o space left.*free some space"):
        root.write_image("/rules", FileImage(b"x" * 200_000))
    assert (small_disk / "rules").read_bytes() == b"old"
    assert os.listdir(small_disk) == ["rules"]


def test_a_read_only_disk_says_so(small_disk: Path) -> None:
    (small_disk / "rules").write_bytes(b"old")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True, timeout=20)
    root = Root(str(small_disk))
    acts: tuple[Act, ...] = (lambda: root.write_image("/rules", FileImage(b"x")), lambda: root.remove("/rules"),
                             lambda: root.make_private_dir("/private"))
    for act in acts:
        with pytest.raises(HostError, match=r"[Rr]ead-only.*mount the file system read-write"):
            act()
    assert (small_disk / "rules").read_bytes() == b"old"


def test_what_an_interrupted_write_left_is_swept(tree: Path) -> None:
    left = tree / "etc" / ".rules.cloudinit-conntrack-0123456789abcdef"
    other = tree / "etc" / ".rules2.cloudinit-conntrack-0123456789abcdef"
    for file in (left, other):
        file.touch()
    Root(str(tree)).sweep("/etc/rules")
    assert not left.exists()
    assert other.exists()
    Root(str(tree)).write_image("/etc/rules2", FileImage(b"x"))
    assert leftovers(tree / "etc") == []


# --- directories -------------------------------------------------------------------------


def test_a_private_directory_is_private_even_if_it_was_not(tree: Path) -> None:
    root = Root(str(tree))
    root.make_private_dir("/var/lib/cloudinit-conntrack")
    place = tree / "var/lib/cloudinit-conntrack"
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert stat.S_IMODE(place.parent.stat().st_mode) == 0o755
    place.chmod(0o777)
    root.make_private_dir("/var/lib/cloudinit-conntrack")
    assert stat.S_IMODE(place.stat().st_mode) == 0o700


def test_a_private_directory_of_somebody_else_is_refused(tree: Path) -> None:
    (tree / "var").mkdir()
    os.chown(tree / "var", 1234, 1234)
    with pytest.raises(HostError, match="belongs to user 1234"):
        Root(str(tree)).make_private_dir("/var")
    (tree / "link").symlink_to("etc")
    with pytest.raises(HostError):
        Root(str(tree)).make_private_dir("/link")


def test_directories_are_made_and_unmade(tree: Path) -> None:
    root = Root(str(tree))
    assert root.make_directory("/etc/modprobe.d")
    assert not root.make_directory("/etc/modprobe.d")
    assert root.is_directory("/etc/modprobe.d")
    assert root.remove_directory("/etc/modprobe.d")
    (tree / "etc" / "file").touch()
    assert not root.remove_directory("/etc")
    assert root.exists("/etc/file")


def test_a_lock_is_held_once(tree: Path) -> None:
    root = Root(str(tree))
    with root.lock("/etc/lock") as first, root.lock("/etc/lock") as second:
        assert first
        assert not second
    with root.lock("/etc/lock") as third:
        assert third


def test_the_running_host_is_the_root_too() -> None:
    assert HOST.is_host
    assert not Root("/etc").is_host
    assert HOST.read_text("/proc/sys/kernel/osrelease") == os.uname().release + "\n"
    assert HOST.is_directory("/proc/self/fd")  # a link in /proc, followed
    assert HOST.link_text("/proc/self") == str(os.getpid())
