"""Commands: what is passed on, what a failure says, and that nothing outlives its time."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from fakehost import FakeHost, fake_host

from cloudinit_conntrack.errors import CommandError, HostError
from cloudinit_conntrack.host.process import find, held_by_commands, private_namespace, quoted, run
from cloudinit_conntrack.host.root import Root

__all__ = ["fake_host"]


def gone(pid: int) -> bool:
    """Whether *pid* ends within two seconds; a zombie has ended."""
    for _ in range(200):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.01)
    return False


def test_words_stay_words_and_the_environment_is_bare(fake_host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODPROBE_OPTIONS", "--force")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    fake_host.stub("nft", script='/usr/bin/env; echo "$1"')
    done = run(["nft", "; rm -rf $HOME `id` *"])
    assert done.stdout.splitlines()[-1] == "; rm -rf $HOME `id` *"
    assert "LC_ALL=C" in done.stdout
    assert "MODPROBE_OPTIONS" not in done.stdout
    assert fake_host.calls() == [("nft", "; rm -rf $HOME `id` *")]


def test_a_command_holds_the_lock_of_a_killed_process(fake_host: FakeHost, tmp_path: Path) -> None:
    """What it had begun to load must not arrive after the next apply or revert has undone it."""
    (tmp_path / "run").mkdir()
    root, started = Root(str(tmp_path)), tmp_path / "started"
    fake_host.stub("nft", script=f"echo $$ >{started}; exec /bin/sleep 60")
    child = os.fork()
    if child == 0:
        try:
            with root.lock("/run/lock") as opened:
                assert opened is not None
                with held_by_commands(opened):
                    run(["nft"])
        finally:
            os._exit(1)
    try:
        while not (started.exists() and started.read_text()):
            time.sleep(0.01)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    command = int(started.read_text())
    with root.lock("/run/lock") as while_it_runs:
        os.kill(command, signal.SIGKILL)
    assert while_it_runs is None and gone(command)
    with root.lock("/run/lock") as afterwards:
        assert afterwards is not None


def test_a_failure_says_command_status_and_stderr(fake_host: FakeHost) -> None:
    fake_host.stub("nft", stderr="Error: no\n  such thing\a\n", status=3)
    with pytest.raises(CommandError) as caught:
        run(["nft", "-f", "a file"])
    assert str(caught.value) == "nft -f 'a file': exit status 3: Error: no; such thing?"
    assert run(["nft"], check=False).status == 3


def test_a_signal_is_named(fake_host: FakeHost) -> None:
    fake_host.stub("nft", script="kill -SEGV $$")
    with pytest.raises(CommandError, match="killed by signal 11"):
        run(["nft"])


def test_long_messages_are_cut_to_their_end(fake_host: FakeHost) -> None:
    fake_host.stub("nft", stderr="x" * 50_000 + " the end", status=1)
    with pytest.raises(CommandError) as caught:
        run(["nft"])
    assert len(str(caught.value)) < 2000
    assert str(caught.value).endswith("the end")


@pytest.mark.parametrize(("name", "package"), [
    ("ip6tables-nft-restore", "iptables"), ("modprobe", "kmod"), ("nft", "nftables"), ("nsenter", "util-linux"),
])
def test_a_missing_command_names_its_package(fake_host: FakeHost, name: str, package: str) -> None:
    fake_host.without(name)
    assert find(name) is None
    with pytest.raises(HostError, match=f"{name} is not there; install the package {package}"):
        run([name])


def test_a_file_that_cannot_be_executed_is_an_error_of_ours(fake_host: FakeHost) -> None:
    Path(fake_host.path, "nft").write_bytes(b"\x7fELF nonsense")
    with pytest.raises(HostError, match="cannot be started"):
        run(["nft"])


def test_sbin_beside_a_bin_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bin", "sbin"):
        (tmp_path / name).mkdir()
    tool = tmp_path / "sbin" / "xtool"
    tool.write_text("#!/bin/sh\necho sbin\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert run(["xtool"]).stdout == "sbin\n"
    monkeypatch.delenv("PATH")
    assert find("rmmod") is not None


def test_input_and_output_of_any_size_and_bytes(fake_host: FakeHost) -> None:
    Path(fake_host.path, "cat").write_text("#!/bin/sh\nexec /bin/cat\n")
    content = bytes(range(256)) * 20_000
    assert run(["cat"], stdin=content).stdout.encode("utf-8", "surrogateescape") == content


def test_a_command_that_does_not_read_its_input_is_no_error(fake_host: FakeHost) -> None:
    Path(fake_host.path, "cat").write_text("#!/bin/sh\nexec <&-\necho done\n")
    assert run(["cat"], stdin=b"x" * 1_000_000).stdout == "done\n"


def test_a_hang_is_ended_with_its_children(fake_host: FakeHost) -> None:
    pids = fake_host.tree / "pids"
    Path(fake_host.path, "nft").write_text(f"#!/bin/sh\n/bin/sleep 600 &\necho $! $$ >{pids}\nwait\n")
    start = time.monotonic()
    with pytest.raises(CommandError, match=r"did not end within 0\.5 seconds and was killed"):
        run(["nft"], timeout=0.5)
    assert time.monotonic() - start < 5
    assert all(gone(int(pid)) for pid in pids.read_text().split())


def test_a_hang_with_closed_outputs_is_ended_too(fake_host: FakeHost) -> None:
    Path(fake_host.path, "nft").write_text("#!/bin/sh\nexec >&- 2>&- /bin/sleep 600\n")
    with pytest.raises(CommandError, match="did not end within"):
        run(["nft"], timeout=0.5)


def test_a_child_left_behind_does_not_hold_us_up(fake_host: FakeHost) -> None:
    Path(fake_host.path, "nft").write_text("#!/bin/sh\n/bin/sleep 8 &\necho ready\n")
    start = time.monotonic()
    assert run(["nft"], timeout=20).stdout == "ready\n"
    assert time.monotonic() - start < 5


def test_output_without_end_is_cut_off(fake_host: FakeHost) -> None:
    Path(fake_host.path, "nft").write_text("#!/bin/sh\nwhile :; do echo yyyyyyyyyyyyyyyy; done\n")
    with pytest.raises(CommandError, match="printed more than 100000 bytes"):
        run(["nft"], most=100_000)


def test_commands_can_be_pasted() -> None:
    assert quoted(["a b", "c'd", "--x=y"]) == "'a b' 'c'\"'\"'d' --x=y"


def test_a_private_namespace_is_another_one_and_ends() -> None:
    own = os.readlink("/proc/self/ns/net")
    with private_namespace() as path:
        assert os.readlink(path) != own
        assert run(["readlink", "/proc/self/ns/net"], netns=path).stdout.strip() == os.readlink(path)
        pid = int(path.split("/")[2])
    assert gone(pid)


def test_where_namespaces_are_refused_it_is_said(fake_host: FakeHost) -> None:
    Path(fake_host.path, "unshare").write_text("#!/bin/sh\necho 'unshare: Operation not permitted' >&2\nexit 1\n")
    with pytest.raises(CommandError, match=r"Operation not permitted.*run as root"), private_namespace():
        pytest.fail("there is no such namespace")
