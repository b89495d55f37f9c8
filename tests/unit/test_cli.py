"""The command line: exit codes, JSON, messages, image trees, hostile input, and the README's commands."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import pytest
import yaml
from fakehost import FakeHost
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from stubs import LiveHost, Snapshot, forked, snapshot

import cloudinit_conntrack
from cloudinit_conntrack import cli, journal
from cloudinit_conntrack.host.process import find
from tests import reports

REPOSITORY = Path(__file__).resolve().parents[2]
UNLOAD = b"conntrack: {mode: unload}\n"
STATEFUL = """\
*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -p tcp -m state --state ESTABLISHED -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
COMMIT
"""
STATELESS = STATEFUL.replace(
    "-A INPUT -p tcp -m state --state ESTABLISHED -j ACCEPT\n",
    "-A INPUT -p tcp -m tcp --tcp-flags ACK ACK -j ACCEPT\n-A INPUT -p tcp -m tcp --tcp-flags RST,ACK RST -j ACCEPT\n",
)
BLOCKED = STATEFUL.replace("COMMIT", "-A INPUT -p tcp -m connlimit --connlimit-above 9 -j DROP\nCOMMIT")
NOBODY = 65534


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it said."""

    code: int
    out: bytes
    err: bytes

    @property
    def message(self) -> str:
        """The one line that it said on stderr."""
        text = self.err.decode("utf-8", "surrogateescape")
        assert text.startswith("cloudinit-conntrack: ") and text.find("\n") == len(text) - 1, text
        return text.strip().partition(": ")[2]

    @property
    def json(self) -> dict[str, Any]:
        return reports.read(self.out)


def call(*words: str | Path, stdin: bytes = b"") -> Done:
    """Run the command in this process."""
    streams = [io.TextIOWrapper(io.BytesIO(content)) for content in (stdin, b"", b"")]
    before, sys.stdin = sys.stdin, streams[0]
    try:
        with redirect_stdout(streams[1]), redirect_stderr(streams[2]):
            try:
                code = cli.main([str(word) for word in words])
            except SystemExit as ended:  # argparse, after --help and --version
                code = int(ended.code or 0)
        for stream in streams[1:]:
            stream.flush()
        return Done(code, *(stream.buffer.getvalue() for stream in streams[1:]))
    finally:
        sys.stdin = before


def started(*words: str | Path, **more: Any) -> subprocess.Popen[bytes]:
    """Start the command as a user does: without PYTHONUNBUFFERED and its like."""
    argv = [sys.executable, "-m", "cloudinit_conntrack", *map(str, words)]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.Popen(argv, cwd=REPOSITORY, env=env, stderr=subprocess.PIPE, **more)


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHost:
    """An image tree, with stubs alone on PATH: whoever calls a command on it is found out."""
    (tmp_path / "image").mkdir()
    host = FakeHost(tmp_path / "image")
    host.write("/etc/sysconfig/iptables", STATEFUL, 0o600)
    host.write("/etc/sysconfig/iptables-config", 'IPTABLES_MODULES="nf_conntrack_ftp"\n')
    (host.tree / "etc/modprobe.d").mkdir()
    monkeypatch.setenv("PATH", host.path)
    return host


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A file with a section."""
    file = tmp_path / "conntrack.yaml"
    file.write_bytes(UNLOAD)
    return file


# --- usage -----------------------------------------------------------------------------


def test_help_and_version() -> None:
    assert call("--version") == Done(0, f"cloudinit-conntrack {cloudinit_conntrack.__version__}\n".encode(), b"")
    shown = call("--help")
    assert (shown.code, shown.err) == (0, b"")
    for verb in cli.VERBS:
        assert f"    {verb} ".encode() in shown.out
        told = call(verb, "--help")
        assert told.code == 0 and b"exit codes: 0 done" in told.out
    assert set(cli.VERBS) >= {"status", "plan", "apply", "verify", "revert", "rewrite"}


@pytest.mark.parametrize(
    "words, said",
    [
        ((), "no verb given; expected one of status, plan"),
        (("nonsense",), "invalid choice: 'nonsense'"),
        (("plan", "--nonsense"), "unrecognized arguments: --nonsense"),
        (("plan", "--conf", "x"), "unrecognized arguments: --conf x"),  # no abbreviations
        (("plan", "--format", "xml"), "invalid choice: 'xml'"),
        (("plan", "-c"), "expected one argument"),
        (("rewrite", "--family", "ipv5"), "invalid choice: 'ipv5'"),
        (("rewrite", "a", "b"), "unrecognized arguments: b"),
        (("rewrite", "-c", "-", "-"), "both the configuration and the rules are standard input"),
        (("plan", "--root", "/no/such"), "/no/such: no such directory"),
        (("plan", "--root", ""), "no such directory"),
        (("plan", "--root", "/etc/passwd"), "/etc/passwd: no such directory"),
    ],
)
def test_wrong_usage(words: tuple[str, ...], said: str) -> None:
    done = call(*words)
    assert (done.code, done.out) == (2, b"")
    assert said in done.message


# --- rewrite ---------------------------------------------------------------------------


def test_rewrite_is_a_filter(tmp_path: Path, config: Path) -> None:
    file = tmp_path / "rules.v4"
    file.write_text(STATEFUL)
    for words, stdin in (((), STATEFUL), (("-",), STATEFUL), ((file,), ""), (("-c", config, file), "")):
        done = call("rewrite", *words, stdin=stdin.encode())
        assert (done.code, done.out.decode()) == (0, STATELESS)
        assert b"accepted now and not before: INPUT: TCP segments with ACK or RST set to any port but 22" in done.err
    assert call("rewrite", stdin=STATELESS.encode()) == Done(0, STATELESS.encode(), b"")
    assert call("rewrite") == Done(0, b"", b"")
    assert file.read_text() == STATEFUL


def test_rewrite_json() -> None:
    done = call("rewrite", "--format", "json", stdin=STATEFUL.encode())
    assert done.code == 0
    assert done.json == {
        "ruleset": STATELESS,
        "changes": [
            {
                "line": 5,
                "rule": "-A INPUT -p tcp -m state --state ESTABLISHED -j ACCEPT",
                "becomes": [
                    "-A INPUT -p tcp -m tcp --tcp-flags ACK ACK -j ACCEPT",
                    "-A INPUT -p tcp -m tcp --tcp-flags RST,ACK RST -j ACCEPT",
                ],
                "reason": "ESTABLISHED: TCP segments with ACK or RST set",
                "widens": "TCP segments with ACK or RST set that belong to no connection are accepted",
            }
        ],
        "blockers": [],
        "widened": ["INPUT: TCP segments with ACK or RST set to any port but 22 from anywhere"],
        "narrowed": [],
    }


def test_a_blocked_rewrite_writes_no_rule() -> None:
    done = call("rewrite", stdin=BLOCKED.encode())
    assert (done.code, done.out) == (3, b"")
    assert done.err.decode().startswith(
        "<stdin>:7: blocked: -A INPUT -p tcp -m connlimit --connlimit-above 9 -j DROP: "
    )
    found = call("rewrite", "--format", "json", stdin=BLOCKED.encode())
    assert (found.code, found.json["ruleset"], found.json["changes"]) == (3, "", [])
    blocker = found.json["blockers"][0]
    assert sorted(blocker) == ["line", "reason", "remedy", "rule"]
    assert blocker["line"] == 7 and blocker["reason"] and blocker["remedy"]


def test_rewrite_follows_the_configuration(config: Path) -> None:
    config.write_text("conntrack: {mode: stateless, rules: {stateful: refuse}}")
    assert call("rewrite", "-c", config, stdin=STATEFUL.encode()).code == 3
    config.write_text("conntrack: {mode: stateless, rules: {stateful: remove}}")
    done = call("rewrite", "-c", "-", REPOSITORY / "tests/unit/plan/stateless/host/etc/iptables/rules.v4",
                stdin=config.read_bytes())  # fmt: skip
    assert done.code == 0 and b"--dport 22" in done.out and b"tcp-flags" not in done.out


def test_rewrite_reads_no_haproxy_cfg_and_says_so(config: Path) -> None:
    config.write_text("conntrack: {mode: stateless, flows: {haproxy_cfg: /no/such.cfg}}")
    done = call("rewrite", "-c", config, stdin=STATEFUL.encode())
    assert done.code == 0 and done.out
    assert b"/no/such.cfg: not read, since 'rewrite' touches no host; name " in done.err


def test_haproxy_cfg_is_read_below_the_root(image: FakeHost, config: Path) -> None:
    config.write_text("conntrack: {mode: stateless, flows: {haproxy_cfg: /etc/haproxy/haproxy.cfg}}")
    plan = ("plan", "--root", image.tree, "-c", config, "--format", "json")
    done = call(*plan)
    assert done.code == 3 and [b["where"] for b in done.json["blockers"]] == ["/etc/haproxy/haproxy.cfg"]
    image.write("/etc/haproxy/haproxy.cfg", "frontend web\n bind :80\n")
    assert "frontends 0.0.0.0/0:80/tcp" in str(call(*plan).json["findings"])
    image.write("/etc/haproxy/haproxy.cfg", "frontend web\n bind :$PORT\n")
    done = call(*plan)
    assert done.code == 3 and done.json["blockers"][0]["where"] == "/etc/haproxy/haproxy.cfg:2"
    assert done.err == b""


@pytest.mark.parametrize(
    "text, where, said",
    [
        ("*filter\r\nCOMMIT\r\n", 1, "a carriage return at the end of the line"),
        ("*filter\n-A INPUT -j ACCEPT\0\nCOMMIT\n", 2, "a NUL byte"),
        ('*filter\n:INPUT ACCEPT\n-A INPUT -m comment --comment "a\nCOMMIT\n', 3, "an open quote"),
        ("*strange\nCOMMIT\n", 1, "unknown table 'strange'"),
        ("*filter\nINPUT -j ACCEPT\nCOMMIT\n", 2, "unknown command"),
        ("*filter\n-A INPUT -j ACCEPT\n", 2, "table filter has no COMMIT"),
        ("-A INPUT -j ACCEPT\n", 1, "stands outside a table"),
        ("*filter\n" + "-A INPUT -s " + "9" * 20000 + "\nCOMMIT\n", 2, "a line longer than"),
    ],
)
def test_a_rule_set_that_cannot_be_read(text: str, where: int, said: str, tmp_path: Path) -> None:
    file = tmp_path / "rules"
    file.write_bytes(text.encode())
    for done, name in ((call("rewrite", file), file), (call("rewrite", stdin=text.encode()), "<stdin>")):
        assert (done.code, done.out) == (1, b"")
        assert done.message.startswith(f"{name}:{where}: ") and said in done.message


def test_bytes_that_are_no_text_go_through() -> None:
    """A comment in Latin-1, as old files have them."""
    rule = b'-A INPUT -m comment --comment "caf\xe9" -j ACCEPT\n'
    text = STATELESS.encode().replace(b"COMMIT", rule + b"COMMIT")
    assert call("rewrite", stdin=text) == Done(0, text, b"")
    found = call("rewrite", "--format", "json", stdin=text).json["ruleset"]
    assert found.encode("utf-8", "surrogateescape") == text


@pytest.mark.parametrize("path", ["/no/such/file", "/", "/etc/passwd/x"])
def test_a_file_that_cannot_be_read(path: str) -> None:
    assert call("rewrite", path).message.startswith(f"{path}: cannot be read (")
    assert call("plan", "--root", "/etc", "-c", path).message.startswith(f"{path}: cannot be read (")
    assert call("rewrite", path).code == 1


# --- an image tree ---------------------------------------------------------------------


def test_every_verb_on_an_image(image: FakeHost, config: Path) -> None:
    tree = ("--root", image.tree)
    before = snapshot(image.tree, "/var", "/run")
    status = call("status", *tree, "--format", "json")
    assert (status.code, status.json["outcome"], status.json["mode"]) == (0, "image", "")
    assert call("plan", *tree).message.endswith("give one with -c FILE (nothing was applied here before)")
    assert call("plan", *tree).code == 2

    plan = call("plan", *tree, "-c", config, "--format", "json")
    assert (plan.code, plan.json["outcome"], plan.json["mode"], plan.json["schema"]) == (4, "changes", "unload", 1)
    assert [a["id"] for a in plan.json["actions"]] == [
        "file:/etc/sysconfig/iptables",
        "file:/etc/sysconfig/iptables-config",
        "file:/etc/modprobe.d/00-cloudinit-conntrack.conf",
    ]
    for kind in ("actions", "blockers", "widenings", "findings"):
        assert all(item["id"] and item["reason"] and item["where"] for item in plan.json[kind])
    assert [w["id"] for w in plan.json["widenings"]] == ["widening:/etc/sysconfig/iptables:1"]
    assert [f["id"] for f in plan.json["findings"]] == ["helper:/etc/sysconfig/iptables-config", "boot:init"]
    drift = call("verify", *tree, "-c", config, "--format", "json")
    assert (drift.code, drift.json["outcome"]) == (4, "drift")
    assert snapshot(image.tree, "/var", "/run") == before
    assert not (image.tree / "var").exists()

    applied = call("apply", *tree, "-c", config, "--format", "json")
    done = [{key: value for key, value in action.items() if key != "diff"} for action in plan.json["actions"]]
    assert (applied.code, applied.json["outcome"], applied.json["actions"]) == (0, "done", done)
    assert image.read("/etc/sysconfig/iptables") == STATELESS
    assert 'IPTABLES_MODULES=""' in image.read("/etc/sysconfig/iptables-config")
    for verb, outcome in (("apply", "nothing-to-do"), ("plan", "nothing-to-do"), ("verify", "verified")):
        again = call(verb, *tree, "--format", "json")
        assert (again.code, again.json["outcome"], again.json["actions"]) == (0, outcome, [])
    assert call("status", *tree, "--format", "json").json["mode"] == "unload"
    assert not (image.tree / "run").exists()

    image.write("/etc/sysconfig/iptables", STATEFUL, 0o600)
    assert (call("verify", *tree).code, call("plan", *tree).code) == (4, 4)
    image.write("/etc/sysconfig/iptables", STATELESS, 0o600)

    reverted = call("revert", *tree, "--format", "json")
    assert (reverted.code, reverted.json["outcome"], len(reverted.json["actions"])) == (0, "reverted", 3)
    assert snapshot(image.tree, "/var", "/run") == before
    assert call("revert", *tree).out == b"nothing to do  mode -\n"
    assert (image.calls(), image.unstubbed()) == ([], "")


def test_text_of_a_plan(image: FakeHost, config: Path) -> None:
    said, _, diff = call("plan", "--root", image.tree, "-c", config).out.decode().partition("\nwhat changes\n")
    assert (
        said
        == """\
changes  mode unload

actions, in this order
   1  rewrite /etc/sysconfig/iptables
      1 rule that depends on conntrack is rewritten
   2  rewrite /etc/sysconfig/iptables-config
      it loads nf_conntrack_ftp at every start of the firewall
   3  write /etc/modprobe.d/00-cloudinit-conntrack.conf
      no rule, service or program loads conntrack again

accepted now and not before
  /etc/sysconfig/iptables
      INPUT: TCP segments with ACK or RST set to any port but 22 from anywhere

good to know
  /etc/sysconfig/iptables-config
      nf_conntrack_ftp helped connections that its rules called RELATED; without conntrack they are not recognised
      -> allow their ports by rules
  cloudinit-conntrack.service
      no systemd runs here, so nothing applies this again at the next boot
      -> let your init system run 'cloudinit-conntrack apply' before it starts the network
"""
    )
    assert diff.startswith("diff --git a/etc/sysconfig/iptables b/etc/sysconfig/iptables\n--- a/etc/sysconfig/")
    assert '\n-IPTABLES_MODULES="nf_conntrack_ftp"\n+IPTABLES_MODULES=""\n' in diff
    assert diff.endswith(" more lines; -v shows all\n")


def test_a_blocked_image(image: FakeHost, config: Path) -> None:
    image.write("/etc/sysconfig/iptables", BLOCKED)
    before = snapshot(image.tree, "/var")
    for verb, code, outcome in (("plan", 3, "blocked"), ("apply", 3, "blocked"), ("verify", 4, "drift")):
        done = call(verb, "--root", image.tree, "-c", config, "--format", "json")
        assert (done.code, done.json["outcome"], done.json["actions"]) == (code, outcome, [])
        assert [b["id"] for b in done.json["blockers"]] == ["rule:/etc/sysconfig/iptables:7"]
        assert done.json["blockers"][0]["remedy"]
    assert b"blocked by\n  /etc/sysconfig/iptables: table filter, chain INPUT, rule 3\n" in call(
        "plan", "--root", image.tree, "-c", config).out  # fmt: skip
    assert snapshot(image.tree, "/var") == before


def test_a_saved_file_that_cannot_be_parsed(image: FakeHost, config: Path) -> None:
    image.write("/etc/sysconfig/iptables", STATEFUL.replace("\n", "\r\n"))
    for verb in ("plan", "apply", "verify"):
        done = call(verb, "--root", image.tree, "-c", config)
        assert (done.code, done.out) == (1, b"")
        assert done.message.startswith("/etc/sysconfig/iptables:1: a carriage return")


def test_a_failed_apply_says_so_in_json_too(image: FakeHost, config: Path) -> None:
    image.write("/var/lib/cloudinit-conntrack", "in the way")
    done = call("apply", "--root", image.tree, "-c", config, "--format", "json")
    assert (done.code, done.json["outcome"], done.json["schema"]) == (1, "failed", 1)
    assert done.json["message"] in done.message


def test_a_configuration_error_names_the_path(image: FakeHost, config: Path) -> None:
    before = snapshot(image.tree)
    config.write_text("conntrack: {mode: notrack, flows: {frontends: [80, 70000]}}")
    for verb in ("plan", "apply", "verify"):
        done = call(verb, "--root", image.tree, "-c", config)
        assert (done.code, done.out) == (2, b"")
        assert done.message.startswith("conntrack.flows.frontends[1]: ")
    done = call("plan", "--root", image.tree, "-c", "-", stdin=b"mode: unload\n")
    assert done.code == 2 and done.message.startswith("<stdin>: has no conntrack: section")
    assert call("rewrite", "-c", "-", "/dev/null", stdin=b"a: [").message.startswith("<stdin>:1: is not YAML")
    assert snapshot(image.tree) == before


@pytest.mark.parametrize("content", ["{", "[]", "null", "5", '{"mode": "strange"}', "\x00", '{"\\ud800": 1}'])
def test_a_damaged_kept_section_is_told(content: str, image: FakeHost, config: Path) -> None:
    image.write("/var/lib/cloudinit-conntrack/desired.json", content)
    for verb in ("plan", "verify", "apply"):
        done = call(verb, "--root", image.tree)
        assert done.code in (1, 2) and done.out == b""
        assert done.message
    assert call("apply", "--root", image.tree, "-c", config).code == 0


def test_status_tells_of_what_is_damaged_or_cut_off(image: FakeHost) -> None:
    def findings() -> list[dict[str, str]]:
        done = call("status", "--root", image.tree, "--format", "json")
        found: list[dict[str, str]] = done.json["findings"]
        assert done.code == 0
        return found

    assert findings() == []
    image.write("/var/lib/cloudinit-conntrack/journal", journal.begin(1, "", "unload", (), ()))
    assert findings() == [
        {
            "id": "journal",
            "where": "/var/lib/cloudinit-conntrack/journal",
            "reason": "an apply was cut off, and is not rolled back yet",
            "remedy": "run 'cloudinit-conntrack apply', or 'cloudinit-conntrack revert'",
        }
    ]
    image.write("/var/lib/cloudinit-conntrack/journal", "strange\n")
    assert findings()[0]["where"] == "/var/lib/cloudinit-conntrack/journal:1"
    image.write("/var/lib/cloudinit-conntrack/desired.json", "{")
    assert findings()[0]["where"] == "/var/lib/cloudinit-conntrack/desired.json"


@pytest.mark.parametrize("name", ["journal", "desired.json", "lock"])
def test_odd_things_in_place_of_our_files(name: str, image: FakeHost, config: Path) -> None:
    place = image.tree / "var/lib/cloudinit-conntrack" / name
    place.mkdir(parents=True)
    done = call("apply", "--root", image.tree, "-c", config)
    assert done.code == 1 and f"/var/lib/cloudinit-conntrack/{name}" in done.message
    assert image.read("/etc/sysconfig/iptables") == STATEFUL


# --- nothing outside of the root is touched ----------------------------------------------


def outside_of(image: FakeHost) -> tuple[Path, Snapshot]:
    """A directory beside the image that links could lead to."""
    place = image.tree.parent / "outside"
    place.mkdir()
    (place / "iptables").write_text(STATEFUL)
    (place / "00-cloudinit-conntrack.conf").write_text("# theirs\n")
    return place, snapshot(place)


def test_a_link_in_place_of_a_file_is_refused(image: FakeHost, config: Path) -> None:
    place, before = outside_of(image)
    saved = image.tree / "etc/sysconfig/iptables"
    saved.unlink()
    saved.symlink_to(place / "iptables")
    for verb in ("plan", "apply", "verify"):
        done = call(verb, "--root", image.tree, "-c", config)
        assert (done.code, done.message) == (
            1, "/etc/sysconfig/iptables: is a symbolic link, not a regular file; put a regular file there, or remove it"
        )  # fmt: skip
    assert snapshot(place) == before


@pytest.mark.parametrize("target", ["{outside}", "../../../../../../../../../../../..{outside}"])
def test_a_link_in_place_of_a_directory_stays_inside(target: str, image: FakeHost, config: Path) -> None:
    """An absolute link, and one with many ``..``, mean a place inside the image, as in a chroot."""
    place, before = outside_of(image)
    inside = image.tree / str(place).strip("/")
    inside.mkdir(parents=True)
    for path in ("etc/modprobe.d", "var/lib"):
        if (image.tree / path).exists():
            (image.tree / path).rmdir()
        (image.tree / path).parent.mkdir(exist_ok=True)
        (image.tree / path).symlink_to(target.format(outside=place))
    assert call("apply", "--root", image.tree, "-c", config).code == 0
    assert call("verify", "--root", image.tree).code == 0
    assert snapshot(place) == before
    assert {path.name for path in inside.iterdir()} == {"00-cloudinit-conntrack.conf", "cloudinit-conntrack"}
    assert call("revert", "--root", image.tree).code == 0
    assert snapshot(place) == before
    assert not (inside / "00-cloudinit-conntrack.conf").exists()


def test_a_link_in_place_of_our_own_directory_is_refused(image: FakeHost, config: Path) -> None:
    place, before = outside_of(image)
    (image.tree / "var/lib").mkdir(parents=True)
    (image.tree / "var/lib/cloudinit-conntrack").symlink_to(place)
    done = call("apply", "--root", image.tree, "-c", config)
    assert done.code == 1 and done.message.startswith("/var/lib/cloudinit-conntrack: ")
    assert snapshot(place) == before
    assert image.read("/etc/sysconfig/iptables") == STATEFUL


# --- a user without rights, streams that end ----------------------------------------------


def as_nobody(*words: str | Path) -> Done:
    def act() -> Done:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        return call(*words)

    found = forked(act)
    assert isinstance(found, Done)
    return found


def opened_up(path: Path) -> None:
    """Let everybody look at *path*: pytest's directories are private."""
    for directory in path.parents:
        if str(directory).startswith("/tmp/"):
            directory.chmod(0o755)


def test_a_user_without_rights(image: FakeHost, config: Path) -> None:
    opened_up(image.tree / "x")
    for verb in ("status", "plan", "apply", "verify", "revert"):
        done = as_nobody(verb, "-c", config)
        assert (done.code, done.out) == (2, b"")
        assert done.message == f"cloudinit-conntrack {verb}: only root can read the kernel's rules; use sudo"
    done = as_nobody("status", "--root", image.tree)
    assert (done.code, done.message) == (1, "/etc/sysconfig/iptables: permission denied; run as root")
    image.write("/etc/sysconfig/iptables", STATELESS)  # one that everybody can read
    before = snapshot(image.tree)
    assert as_nobody("status", "--root", image.tree).code == 0
    assert as_nobody("plan", "--root", image.tree, "-c", config).code == 4
    done = as_nobody("apply", "--root", image.tree, "-c", config)
    assert (done.code, done.message) == (1, "/var: permission denied; run as root")
    assert snapshot(image.tree) == before


def test_a_reader_that_goes_away() -> None:
    for size in (1, 20_000):
        text = "*filter\n" + "-A INPUT -s 192.0.2.1/32 -j DROP\n" * size + "COMMIT\n"
        process = started("rewrite", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        _, err = process.communicate(text.encode(), timeout=60)
        assert (process.returncode, err) == (1, b"")


def test_an_output_without_room() -> None:
    with open("/dev/full", "wb") as full:
        process = started("rewrite", stdin=subprocess.PIPE, stdout=full)
        _, err = process.communicate(STATELESS.encode(), timeout=60)
    assert (process.returncode, err) == (1, b"cloudinit-conntrack: [Errno 28] No space left on device\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed(closed: str) -> None:
    """Notes must not land among the rules, nor a traceback anywhere."""
    line = f'"$0" -m cloudinit_conntrack rewrite /dev/null {closed}'
    done = subprocess.run(["/bin/sh", "-c", line, sys.executable], cwd=REPOSITORY, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (2, b"", b"")


# --- hostile input -----------------------------------------------------------------------

WORDS = st.sampled_from(
    """*filter|*nat|*raw|COMMIT|:INPUT ACCEPT [0:0]|:X - [0:0]|-A INPUT|-A X|-I INPUT 1|-D INPUT|-P INPUT DROP|-N Y|-j
    |-g|-m state --state|-m conntrack --ctstate|NEW|ESTABLISHED,RELATED|INVALID|UNTRACKED|!|-p|tcp|udp|icmp|--dport|22
    |\\|--tcp-flags|SYN|ACK|--syn|-m|comment --comment|"|[1:2]|-s 10.0.0.0/8|ACCEPT|DROP|CT --notrack|X|--|-|,|é|\x00
    """.replace("\n    ", "").split("|")
)
LINES = st.lists(st.lists(WORDS, max_size=9).map(" ".join), max_size=9).map("\n".join).map(str.encode)
RULES = st.binary(max_size=80) | LINES | LINES.map(lambda x: b"*filter\n" + x + b"\nCOMMIT\n")
KEYS = """conntrack mode flows frontends backends outbound port protocol address rules stateful nat guard keep
    probes""".split()
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["unload", "80-90", "::1"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(), inner, max_size=4),
    max_leaves=12,
)
SECTIONS = (
    st.binary(max_size=80)
    | VALUES.map(lambda value: json.dumps({"conntrack": value}).encode())
    | st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5).map(
        lambda value: json.dumps({"conntrack": {"mode": "unload", **value}}).encode()
    )
)
FUZZ = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(RULES, st.sampled_from(["ipv4", "ipv6"]), st.sampled_from(["text", "json"]))
@example(b"*filter\n-A \nCOMMIT\n", "ipv4", "text")
@example(b"*filter\n:\nCOMMIT\n", "ipv4", "text")
@example(b"\xff\xfe*filter", "ipv6", "json")
def test_no_rule_set_gives_a_traceback(text: bytes, family: str, form: str) -> None:
    done = call("rewrite", "--family", family, "--format", form, stdin=text)
    assert done.code in (0, 1, 3)
    if done.code == 1:
        assert re.search(rb"<stdin>:\d+: ", done.err) and not done.out
    if form == "text" and done.code:
        assert done.out == b"" and done.err


@FUZZ
@given(SECTIONS)
def test_no_configuration_gives_a_traceback(image: FakeHost, text: bytes) -> None:
    done = call("plan", "--root", image.tree, "-c", "-", stdin=text)
    assert done.code in (0, 2, 3, 4)
    if done.code == 2:
        assert done.message and not done.out


@FUZZ
@given(RULES, st.binary(max_size=60))
def test_no_file_of_an_image_gives_a_traceback(image: FakeHost, rules: bytes, names: bytes) -> None:
    image.write("/etc/sysconfig/iptables", rules)
    image.write("/etc/sysconfig/iptables-config", b"IPTABLES_MODULES=" + names)
    image.write("/etc/ssh/sshd_config", names + b"\nPort " + names)
    done = call("plan", "--root", image.tree, "-c", "-", stdin=UNLOAD)
    assert done.code in (0, 1, 3, 4)
    assert done.code != 1 or done.message


# --- the running host --------------------------------------------------------------------

MOUNTS = ("etc", "sys", "run", "var/lib", "proc")


def on_host(host: LiveHost, line: str, directory: Path) -> Done:
    """Run the shell *line* where *host* is the running host: in mount and network namespaces of its own."""
    binds = " && ".join(f"/bin/mount -n --bind {host.tree}/{place} /{place}" for place in MOUNTS)
    word = Path(host.path) / "cloudinit-conntrack"
    word.write_text(f'#!/bin/sh\nPYTHONPATH={REPOSITORY} exec {sys.executable} -m cloudinit_conntrack "$@"\n')
    word.chmod(0o755)
    argv = ["/usr/bin/unshare", "--mount", "--net", "/bin/sh", "-c", f"{binds} && cd {directory} && {line}"]
    done = subprocess.run(argv, env={"PATH": host.path}, capture_output=True, timeout=60)
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def live(tmp_path: Path) -> LiveHost:
    host = LiveHost(tmp_path / "host", ("xt_conntrack", "nf_conntrack", "nf_defrag_ipv4"))
    host.rules("legacy", "ipv4", STATEFUL)
    return host


def test_every_verb_on_the_running_host(live: LiveHost, tmp_path: Path, config: Path) -> None:
    def run(words: str) -> Done:
        return on_host(live, f"cloudinit-conntrack {words} --format json", tmp_path)

    before = live.snapshot()
    status = run("status")
    assert (status.code, status.json["outcome"]) == (0, "conntrack-loaded")
    assert status.json["findings"][-1]["where"] == "iptables-legacy ipv4, table filter, chain INPUT, rule 1"
    assert run("plan").code == 2
    plan = run("plan -c conntrack.yaml")
    assert (plan.code, plan.json["outcome"]) == (4, "changes")
    assert run("verify -c conntrack.yaml").code == 4
    assert live.snapshot() == before

    assert (run("apply -c conntrack.yaml").json["outcome"], live.loaded()) == ("done", {"nf_defrag_ipv4"})
    result = reports.read(live.read("/run/cloudinit-conntrack/result.json"))
    assert (result["schema"], result["outcome"], result["mode"]) == (1, "done", "unload")
    assert run("apply").json["outcome"] == "nothing-to-do"
    verified = run("verify")
    assert (verified.code, verified.json["outcome"]) == (0, "verified")
    assert all(fact["holds"] for fact in verified.json["evidence"])
    assert live.run("iptables-legacy-restore", "-c", stdin=STATELESS + "*nat\nCOMMIT\n") == 1  # it is blocked
    (live.tree / "etc/modprobe.d/00-cloudinit-conntrack.conf").unlink()
    assert (run("verify").code, run("plan").code) == (4, 4)
    assert run("revert").json["outcome"] == "reverted"
    assert live.snapshot() == before
    assert run("revert").json["outcome"] == "nothing-to-do"


def test_blocked_and_failed_on_the_running_host(live: LiveHost, tmp_path: Path, config: Path) -> None:
    live.hold("xt_conntrack")
    before = live.snapshot()
    failed = on_host(live, "cloudinit-conntrack apply -v -c conntrack.yaml", tmp_path)
    assert (failed.code, failed.out) == (1, b"")
    progress, _, message = failed.err.decode().rpartition("cloudinit-conntrack: ")
    assert progress.splitlines()[0] == "  load live rules, iptables-legacy ipv4 ..."
    assert "  it failed: rolling back ..." in progress.splitlines()
    assert message.startswith("module xt_conntrack: module xt_conntrack is in use; ")
    assert live.snapshot() == before
    assert reports.read(live.read("/run/cloudinit-conntrack/result.json"))["outcome"] == "failed"
    live.rules("legacy", "ipv4", BLOCKED)
    before = live.snapshot()
    for verb in ("plan", "apply"):
        blocked = on_host(live, f"cloudinit-conntrack {verb} -c conntrack.yaml", tmp_path)
        assert blocked.code == 3 and blocked.out.startswith(b"blocked  mode unload\n")
    assert live.snapshot() == before


def test_the_commands_of_the_readme(live: LiveHost, tmp_path: Path) -> None:
    """In their order, on the README's own section: each does what its comment promises."""
    text = (REPOSITORY / "README.md").read_text()
    sections = re.findall(r"^```yaml\n(.*?)^```", text, re.M | re.S)
    section = next(block for block in sections if "\nconntrack:" in f"\n{block}")
    (tmp_path / "conntrack.yaml").write_text(section)
    (tmp_path / "rules.v4").write_text(STATEFUL)
    (tmp_path / "web.yaml").write_text("#cloud-config\npackages: [haproxy]\n")
    lines = [
        line.partition("#")[0].strip()
        for block in re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
        for line in block.splitlines()
        if line.startswith("cloudinit-conntrack ")
    ]
    assert {line.split()[1] for line in lines} >= {"status", "plan", "apply", "verify", "revert", "rewrite"}
    before = live.snapshot()
    for line in lines:
        done = on_host(live, line, tmp_path)
        assert done.code == (4 if line.split()[1] == "plan" else 0), (line, done)
        assert done.out
        if "rewrite" in line:
            assert done.out.decode() == STATELESS
    assert live.snapshot() == before
    assert isinstance(yaml.safe_load(section)["conntrack"], dict)


def test_the_stubs_are_what_is_found(live: LiveHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """No command of this machine is in reach of the tests above."""
    monkeypatch.setenv("PATH", live.path)
    names: Callable[[str], str | None] = find
    assert {name: names(name) for name in ("iptables-legacy-restore", "rmmod", "modprobe")} == {
        name: f"{live.path}/{name}" for name in ("iptables-legacy-restore", "rmmod", "modprobe")
    }
    assert names("true") is None
