"""Below the host's own root the kernel walks; it comes out where our own walk does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloudinit_conntrack.errors import HostError
from cloudinit_conntrack.host.root import HOST, Root

BY_OURSELVES = Root("/.")  # the same tree, which the shortcut does not know
PLACES = ("file", "dir", "dir/file", "dir/file/below", "dir/", "dir/.", "dir/..", "dir/../file", "to-file", "to-file/x",
          "to-dir", "to-dir/file", "to-dir/../file", "absolute", "absolute/file", "chain/file", "dangling",
          "dangling/x",
          "loop", "loop/x", "missing", "missing/x", "fifo", "fifo/x",
          "dir//file")
READING = ("read_image", "read_bytes", "exists", "is_directory", "link_text", "modified", "listdir", "links")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "dir").mkdir()
    for name in ("file", "dir/file"):
        (tmp_path / name).write_text(name)
    os.mkfifo(tmp_path / "fifo")
    links = {"to-file": "dir/file", "to-dir": "dir", "absolute": str(tmp_path / "dir"), "chain": "absolute",
             "dangling": "nowhere", "loop": "loop"}
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    return tmp_path


def answer(root: Root, verb: str, path: str) -> object:
    try:
        return getattr(root, verb)(path)
    except HostError as error:
        return error.what, error.where


@pytest.mark.parametrize("verb", READING)
def test_it_reads_alike(tree: Path, verb: str) -> None:
    for place in PLACES:
        path = f"{tree}/{place}"
        assert answer(HOST, verb, path) == answer(BY_OURSELVES, verb, path), path


def test_a_link_is_never_written_through(tree: Path) -> None:
    image = HOST.read_image(f"{tree}/file")
    assert image is not None
    for root in (HOST, BY_OURSELVES):
        with pytest.raises(HostError, match="symbolic link"):
            root.write_image(f"{tree}/to-file", image)
        root.write_image(f"{tree}/to-dir/new", image)
        assert (tree / "dir/new").read_text() == "file"
        root.remove(f"{tree}/absolute/new")
        assert not (tree / "dir/new").exists()


def test_links_of_processes_do_not_lead_into_their_roots() -> None:
    """/proc/PID/root is what its process sees as root; as a path it says '/'."""
    assert answer(HOST, "exists", "/proc/self/root/proc/self/root/etc") is True
    assert HOST.link_text("/proc/self/root") == "/"
