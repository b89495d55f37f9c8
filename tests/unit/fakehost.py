"""A fake host for unit tests: a root in a temporary directory and stub commands on PATH.

PATH holds nothing but the stubs.  A command that the test has not stubbed is logged and
fails the test when it ends, so nothing ever reaches the machine that runs the tests.
Use it by ``from fakehost import FakeHost, fake_host`` (the second is the pytest fixture).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudinit_conntrack.host.root import Root

FAMILIES = ("iptables", "ip6tables")
KNOWN = (
    *(f"{family}{variant}{verb}" for family in FAMILIES for variant in ("", "-legacy", "-nft")
      for verb in ("", "-save", "-restore")),
    "nft", "modprobe", "rmmod", "nsenter", "unshare", "cat", "ipset", "conntrack", "sysctl", "systemctl", "ip",
)
RELEASE = "6.1.0-fake"


class FakeHost:
    """One fake host.  ``root`` is what the code under test gets."""

    def __init__(self, base: Path) -> None:
        self.tree = base / "root"
        self.root = Root(str(self.tree))
        self._bin = base / "bin"
        self._log = base / "calls"
        self._fed = base / "fed"
        self._unstubbed = base / "unstubbed"
        for directory in (self.tree, self._bin, self._fed):
            directory.mkdir()
        for name in KNOWN:
            self._script(name, f'printf "%s " {name} "$@" >>{self._unstubbed}; echo >>{self._unstubbed}; exit 127')

    @property
    def path(self) -> str:
        """What PATH must be for the stubs to be found."""
        return str(self._bin)

    # --- files -----------------------------------------------------------------------

    def write(self, path: str, content: str | bytes = "", mode: int = 0o644) -> Path:
        """Make the file *path* of the tree, directories included."""
        place = self.tree / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content if isinstance(content, bytes) else content.encode())
        place.chmod(mode)
        return place

    def read(self, path: str) -> str:
        """The text of the file *path* of the tree."""
        return (self.tree / path.lstrip("/")).read_text()

    def boot(self, modules: str | None = "", locked: bool = False, conntrack_builtin: bool = False) -> None:
        """Give the tree a running kernel: *modules* is ``/proc/modules``, ``None`` for a kernel without modules."""
        self.write("/proc/sys/kernel/osrelease", RELEASE + "\n")
        self.write("/proc/sys/kernel/modules_disabled", f"{int(locked)}\n")
        self.write("/proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n")
        if modules is not None:
            self.write("/proc/modules", modules)
        if conntrack_builtin:
            self.write("/sys/module/nf_conntrack/parameters/hashsize", "65536\n")
        for line in (modules or "").splitlines():
            self.write(f"/sys/module/{line.split()[0]}/initstate", "live\n")
        if conntrack_builtin or "nf_conntrack " in (modules or ""):
            self.write("/proc/net/nf_conntrack", "")
            self.write("/proc/sys/net/netfilter/nf_conntrack_count", "0\n")
            self.write("/proc/sys/net/netfilter/nf_conntrack_max", "65536\n")

    # --- commands --------------------------------------------------------------------

    def stub(self, name: str, stdout: str = "", stderr: str = "", status: int = 0, script: str = "") -> None:
        """A command that logs how it was called, keeps what it is fed, prints and ends with *status*.

        *script* is shell run in between, with the tree as ``$ROOT``; it may exit by itself.
        """
        said = self._bin.parent / f"said-{name}"
        said.write_text(stdout, encoding="utf-8", errors="surrogateescape")
        self._script(name, f"""\
ROOT={shlex.quote(str(self.tree))}
{{ printf '%s\\037' {name} "$@"; printf '\\n'; }} >>{self._log}
/bin/cat >{self._fed}/{name}.$$
{script}
/bin/cat {said}
printf '%s' {shlex.quote(stderr)} >&2
exit {status}""")

    def without(self, *names: str) -> None:
        """Take commands off the host altogether."""
        for name in names:
            (self._bin / name).unlink(missing_ok=True)

    def calls(self, name: str = "") -> list[tuple[str, ...]]:
        """How the stubs were called, in order; only those of *name* if given."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        found = [tuple(line.split("\037")[:-1]) for line in lines]
        return [call for call in found if name in ("", call[0])]

    def fed(self, name: str) -> list[str]:
        """What the calls of *name* got on their standard input, oldest first."""
        files = sorted(self._fed.glob(f"{name}.*"), key=lambda file: file.stat().st_mtime_ns)
        return [file.read_text() for file in files]

    def unstubbed(self) -> str:
        """The calls of commands that nobody stubbed, one a line."""
        return self._unstubbed.read_text() if self._unstubbed.exists() else ""

    def _script(self, name: str, text: str) -> None:
        place = self._bin / name
        place.write_text(f"#!/bin/sh\n{text}\n")
        place.chmod(0o755)


@pytest.fixture
def fake_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHost]:
    """A fake host whose stubs are all there is on PATH."""
    (tmp_path / "fake").mkdir()
    host = FakeHost(tmp_path / "fake")
    monkeypatch.setenv("PATH", host.path)
    yield host
    assert host.unstubbed() == "", "commands were called that this test did not stub"
