"""What goes wrong on real hosts: each is told in one message, rolled back whole, exit 1.

Real commands, real file systems, real locks; the host is that of ``crashing``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from .applying import SAVED
from .crashing import Case, Host, State, differ, host
from .topology import FAMILIES

NFT = Case("nft", "stateless", systemd=True)
LEGACY = Case("legacy", "stateless")
NATIVE = Case("native", "stateless")
RESTORE = "cloudinit_conntrack.host.rules._RESTORE_SECONDS"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path


def assert_as_before(made: Host, now: State | None = None) -> None:
    now = (now or made.look()).without_made(made.start)
    assert now == made.start, differ((now.rules, now.files), (made.start.rules, made.start.files))


def failed(made: Host, *says: str, **how: Any) -> str:
    """Apply must fail with one message that says all of *says*, and leave nothing behind."""
    status = made.run(*made.apply(), **how)
    said = (made.work / "stderr").read_text()
    assert status == 1, f"{status}\n{made.said}"
    assert said.startswith("cloudinit-conntrack: ") and said.count("\n") == 1, made.said
    for words in says:
        assert re.search(words, said), said
    return said


def tools(made: Host, *without: str, **stubs: str) -> dict[str, str]:
    """The environment with every command of this machine but *without*, and with *stubs* (shell text) in front.

    In a stub ``$real`` is the command that it stands for.
    """
    place = made.files / f"tools{time.monotonic_ns()}"
    place.mkdir()
    for directory in ("/usr/sbin", "/usr/bin", "/sbin", "/bin"):
        for path in Path(directory).iterdir():
            if path.name not in without and not os.path.lexists(place / path.name):
                (place / path.name).symlink_to(path)
    for key, text in stubs.items():
        name = key.replace("_", "-")
        real = shutil.which(name)
        assert real
        (place / name).unlink()
        (place / name).write_text(f"#!/bin/sh\nreal={real}\n{text}\n")
        (place / name).chmod(0o755)
    return {"PATH": str(place)}


# --- the disk ----------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["/var/lib", "/etc/iptables"])
def test_a_disk_that_is_full(place: Path, where: str) -> None:
    """A file system of its own, with one page more free at each try, until there is enough room."""
    with host(NFT, place) as made:
        for family in FAMILIES:  # nearly a page of memory each, and more than one afterwards
            file = made.files / SAVED[family]
            content = file.read_bytes()
            file.write_bytes(content + b"#" * (4000 - len(content)) + b"\n")
        made.start = made.look()
        done = made.must(*made.apply())
        refused = 0
        for pages in range(1, 60):
            made.lay(made.start.files, made.start.rules)
            made.inside("mount", "-t", "tmpfs", "-o", "size=256k,mode=755", "tmpfs", where)
            try:
                made.inside("cp", "-a", f"{made.files}{where}/.", where)
                filler = made.tree / where[1:] / "filler"
                with filler.open("wb", buffering=0) as room, suppress(OSError):
                    while True:
                        room.write(b"x" * 4096)
                os.truncate(filler, filler.stat().st_size - pages * 4096)
                status = made.run(*made.apply())
                if status == 0:
                    break
                assert status == 1 and "no space left on device; free some space on the file system" in made.said
                assert made.said.count("\n") == 1, made.said
                filler.unlink()
                assert_as_before(made, made.look(made.tree))
                assert made.run("revert") == 0 and "nothing to do" in made.said
                refused += 1
            finally:
                made.inside("umount", where)
        assert status == 0 and refused, (status, refused)
        made.lay(made.start.files, made.start.rules)
        assert made.must(*made.apply()).settled() == done.settled()


@pytest.mark.parametrize("where", ["/etc", "/etc/iptables", "/etc/systemd/system", "/var/lib"])
def test_a_file_system_that_is_read_only(place: Path, where: str) -> None:
    with host(NFT, place) as made:
        made.inside("mount", "--bind", where, where)
        made.inside("mount", "-o", "remount,bind,ro", where)
        failed(made, f"^cloudinit-conntrack: {where}[^ ]*: read-only file system; mount the file system read-write")
        assert_as_before(made)
        made.inside("umount", where)
        made.must(*made.apply())
        made.inside("mount", "--bind", where, where)
        made.inside("mount", "-o", "remount,bind,ro", where)
        left = made.look()
        assert made.run("revert") == 1 and "read-only file system; mount the file system read-write" in made.said
        if where == "/var/lib":
            assert made.look() == left
        made.inside("umount", where)
        made.must("revert")
        assert_as_before(made)


# --- commands ----------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "without", "says"), [
    (NFT, ("iptables-nft-restore", "iptables-restore"), "iptables-nft-restore.* is not there.*install the package"),
    (LEGACY, ("ip6tables-legacy-restore", "ip6tables-restore"), "ip6tables-legacy-restore.* is not there.*install"),
    (LEGACY, ("iptables-legacy-save", "iptables-save"), "no iptables-legacy-save.*install iptables-legacy"),
    (NATIVE, ("nft",), "nft.* install the package nftables"),
], ids=["restore", "restore6", "save", "nft"])  # fmt: skip
def test_a_command_that_is_not_there(place: Path, case: Case, without: tuple[str, ...], says: str) -> None:
    with host(case, place) as made:
        status = made.run(*made.apply(), environment=tools(made, *without))
        assert status in (1, 3), made.said  # before anything is done it is a blocker
        assert re.search(says, made.said.replace("\n", " ")), made.said
        assert_as_before(made)


@pytest.mark.parametrize(("case", "stub"), [(NFT, "ip6tables_nft_restore"), (LEGACY, "ip6tables_legacy_restore"),
                                            (NATIVE, "nft")])
def test_a_command_that_fails(place: Path, case: Case, stub: str) -> None:
    """The last one that loads rules; its test run succeeds."""
    act = '"$1 $2" = "-j -f"' if stub == "nft" else '"$*" != "${*#-c}" ] && [ "$*" = "${*#*--test}"'
    marker = place / "failed"
    text = f'[ -e {marker} ] || if [ {act} ]; then touch {marker}; echo "no buffer space" >&2; exit 4; fi\n' \
           'exec $real "$@"'
    with host(case, place) as made:
        failed(made, "exit status 4: no buffer space", environment=tools(made, **{stub: text}))
        assert marker.exists()
        assert_as_before(made)


@pytest.mark.parametrize(("case", "stub"), [(NFT, "ip6tables_nft_restore"), (LEGACY, "ip6tables_legacy_restore")])
def test_a_command_that_hangs_is_killed_with_its_children(place: Path, case: Case, stub: str) -> None:
    marker = place / "hung"
    text = f'[ -e {marker} ] || [ "$*" = "${{*#-c}}" ] || {{ /bin/sleep 987 & echo $! >{marker}; wait; }}\n' \
           'exec $real "$@"'
    with host(case, place) as made:
        started = time.monotonic()
        failed(made, "did not end within 3 seconds and was killed; find out what it waits for",
               environment=tools(made, **{stub: text}), constants={RESTORE: 3.0})
        assert time.monotonic() - started < 60
        assert marker.exists()
        assert "sleep 987" not in made.inside("ps", "-e", "-o", "args").stdout
        assert_as_before(made)


def test_modprobe_that_is_not_there_or_fails(place: Path) -> None:
    """Without it nobody knows what a name loads: that is said, and what needs no module is done."""
    with host(NFT, place) as made:
        for how in (tools(made, "modprobe"), tools(made, modprobe="echo broken >&2; exit 7")):
            made.lay(made.start.files, made.start.rules)
            assert made.run(*made.apply(), environment=how) == 0, made.said
            assert "whether modules are blocked is not known" in made.said
            made.must("revert")
            assert_as_before(made)


def test_the_lock_of_iptables_is_held_by_another(place: Path) -> None:
    with host(LEGACY, place) as made:
        holder = subprocess.Popen(["nsenter", f"--target={made.server_pid}", "--mount", "--", "flock",
                                   "/run/xtables.lock", "sh", "-c", "echo held; read _"],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
        try:
            assert holder.stdout and holder.stdout.readline() == b"held\n"
            started = time.monotonic()
            failed(made, "[xX]tables lock")
            assert 9 < time.monotonic() - started < 60, "it waits for a while, not for ever"
            assert_as_before(made)
        finally:
            holder.communicate(b"\n", timeout=20)
        made.must(*made.apply())


# --- memory ------------------------------------------------------------------------------


def test_memory_that_runs_out(place: Path) -> None:
    """By a limit of the address space, from hardly any to enough."""
    with host(NFT, place) as made:
        done = made.must(*made.apply()).settled()
        said = set()
        for kilobytes in range(0, 40_000, 1_024):
            made.lay(made.start.files, made.start.rules)
            status = made.run(*made.apply(), memory=kilobytes * 1024)
            if status == 0:
                break
            assert status == 1, f"{kilobytes} kB: {status}\n{made.said}"
            said.add((made.work / "stderr").read_text())
            if "rolling back failed in part" in made.said:
                made.must("revert")
            assert_as_before(made)
        assert status == 0 and made.look().settled() == done
        assert any("memory" in text for text in said), said


# --- somebody else -----------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_rules_that_somebody_changed_after_the_plan_are_not_overwritten(place: Path, family: str) -> None:
    """When the command looks for the second time, there is a rule that was not there before."""
    name = "iptables" if family == "ipv4" else "ip6tables"
    counter = place / "calls"
    theirs = f"{shutil.which(f'{name}-nft')} -A INPUT -p tcp --dport 8443 -j DROP"
    text = f'echo >>{counter}; [ $(wc -l <{counter}) != 2 ] || {theirs}\nexec $real "$@"'
    with host(NFT, place) as made:
        failed(made, f"live rules, iptables-nft {family}: it was changed since the plan was made; run apply again",
               environment=tools(made, **{f"{name}_nft_save": text}))
        now = made.look()
        found = now.rules.pop(f"nft {family}")
        assert "--dport 8443 -j DROP" in found
        now.rules[f"nft {family}"] = found.replace("-A INPUT -p tcp -m tcp --dport 8443 -j DROP\n", "")
        assert_as_before(made, now)


def test_two_at_once(place: Path) -> None:
    """The second is refused at once, whatever the first does, and changes nothing; the first comes to its end."""
    busy, go = place / "busy", place / "go"
    text = f'[ "$*" != "${{*#*--test}}" ] && touch {busy} && until [ -e {go} ]; do sleep 0.05; done\nexec $real "$@"'
    with host(NFT, place) as made:
        environment = tools(made, iptables_nft_restore=text)
        words = (sys.executable, "-m", "cloudinit_conntrack")
        with made.net.inside():
            first = subprocess.Popen(["nsenter", f"--target={made.server_pid}", "--mount", "--pid", "--", *words,
                                      *made.apply()], env={**made.environment, **environment},
                                     stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
        try:
            while not busy.exists():
                assert first.poll() is None, first.communicate()
                time.sleep(0.05)
            half = made.look()
            for argv in (made.apply(), ("revert",)):
                started = time.monotonic()
                done = made.inside(*words, *argv, check=False)
                assert done.returncode == 1 and time.monotonic() - started < 30
                assert "another cloudinit-conntrack is at work; wait for it and try again" in done.stderr
                assert made.look() == half
        finally:
            go.touch()
            said, _ = first.communicate(timeout=60)
        assert first.returncode == 0, said
        made.must("revert")
        assert_as_before(made)
