"""The verb ``metrics``: valid by Prometheus' own tool whatever was found, and honest about what was not."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from promtool import asked
from stubs import LiveHost, forked
from test_cli import call

from cloudinit_conntrack import measuring, metrics
from cloudinit_conntrack.boot import apply_section
from cloudinit_conntrack.host import journalfile
from cloudinit_conntrack.metrics import LastRun, Measured, Standing, exposition
from cloudinit_conntrack.state import Kernel
from cloudinit_conntrack.tracking import Counters

RULES = """\
*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -p tcp -m state --state ESTABLISHED -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
COMMIT
"""
COLUMNS = tuple((column, number) for number, (column, _, _) in enumerate(metrics.COUNTERS, 1))
FULL = Measured(
    "0.1.0", 1795751742.25, 0.25, True, "unload", Kernel("6.1.0", True, False, "loaded", True, entries=12),
    Counters(12, 262144, 65536, COLUMNS), Standing("stateless", 3, 1, (True, False, None, True), False),
    unconfirmed=True, unloadable=2, last=LastRun("failed", 1795751700.5, 1.5), boot_enabled=True, boot_failed=False,
)
UNKNOWN = Measured("0.1.0", 1795751742.0, 0.0, False)
SAMPLE = re.compile(r'^(\w+)(?:\{(.*)\})? (\S+)$')


def values(text: str) -> dict[str, float]:
    """Each sample by its name and labels, as they are written."""
    found = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name.removeprefix("cloudinit_conntrack_"): float(value) for name, _, value in found}


def assert_valid(text: str) -> None:
    """Prometheus' own tool reads it and has nothing to say."""
    assert asked("check", "metrics", stdin=text) == (0, "")


# --- the text ----------------------------------------------------------------------------


def test_everything_that_can_be_known() -> None:
    text = exposition(FULL)
    assert_valid(text)
    assert values(text) == {
        'info{version="0.1.0",mode="unload",conntrack="loaded"}': 1,
        'mode_desired{mode="notrack"}': 0, 'mode_desired{mode="stateless"}': 0, 'mode_desired{mode="unload"}': 1,
        'mode_effective{mode="notrack"}': 0, 'mode_effective{mode="stateless"}': 1, 'mode_effective{mode="unload"}': 0,
        "verified": 0, "drift_actions": 3, "blockers": 1,
        'evidence_checks{result="agrees"}': 2, 'evidence_checks{result="disagrees"}': 1,
        'evidence_checks{result="unknown"}': 1,
        "unconfirmed": 1, "unloadable_saved_files": 2, "entries": 12, "entries_limit": 262144,
        "inserts_total": 1, "insert_failures_total": 2, "drops_total": 3, "early_drops_total": 4,
        "invalid_packets_total": 5,
        'last_run_outcome{outcome="done"}': 0, 'last_run_outcome{outcome="nothing-to-do"}': 0,
        'last_run_outcome{outcome="unconfirmed"}': 0, 'last_run_outcome{outcome="confirmed"}': 0,
        'last_run_outcome{outcome="reverted"}': 0, 'last_run_outcome{outcome="failed"}': 1,
        'last_run_outcome{outcome="blocked"}': 0,
        "last_run_exit_code": 1, "last_run_timestamp_seconds": 1795751700.5, "last_run_duration_seconds": 1.5,
        "boot_service_enabled": 1, "boot_service_failed": 0, "scrape_error": 0,
        "scrape_timestamp_seconds": 1795751742.25, "scrape_duration_seconds": 0.25,
    }  # fmt: skip


def test_what_is_not_known_has_no_sample_and_no_zero() -> None:
    text = exposition(UNKNOWN)
    assert_valid(text)
    assert values(text) == {
        'info{version="0.1.0",mode="none",conntrack="unknown"}': 1,
        'mode_desired{mode="notrack"}': 0, 'mode_desired{mode="stateless"}': 0, 'mode_desired{mode="unload"}': 0,
        "scrape_error": 1, "scrape_timestamp_seconds": 1795751742, "scrape_duration_seconds": 0,
    }  # fmt: skip
    assert "verified" not in text and "HELP cloudinit_conntrack_entries" not in text


def test_the_tool_finds_what_is_wrong() -> None:
    """What judges here can refuse."""
    for wrong in (exposition(FULL).replace('"} 1', '} 1', 1), exposition(FULL).rstrip("\n"),
                  exposition(FULL).replace("_total", "")):
        assert asked("check", "metrics", stdin=wrong) != (0, "")


def unescaped(text: str) -> str:
    return re.sub(r"\\(.)", lambda found: {"n": "\n"}.get(found[1], found[1]), text)


@settings(max_examples=200)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_label_is_escaped(word: str) -> None:
    """The format's own rule, backwards: one line, and what was meant comes out."""
    (line,) = [line for line in exposition(Measured(word, 1.0, 0.0, True)).split("\n") if line.startswith(
        "cloudinit_conntrack_info")]
    found = re.fullmatch(r'cloudinit_conntrack_info\{version="((?:[^"\\\n]|\\["\\n])*)",mode="none",.*\} 1', line)
    assert found and unescaped(found[1]) == word


def test_the_strangest_label_is_valid() -> None:
    for word in ('a"b\\c\nd', "\\", '"', "\ud800x", "ü\u202e\x1b[31m", "{}=,#"):
        assert_valid(exposition(Measured(word, 1.0, 0.0, True, last=LastRun(word, 2.0))))


# --- on a host ---------------------------------------------------------------------------


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LiveHost:
    found = LiveHost(tmp_path / "host", ("xt_conntrack", "nf_conntrack", "nf_defrag_ipv4"))
    found.rules("legacy", "ipv4", RULES)
    found.write("/proc/sys/net/netfilter/nf_conntrack_count", "7\n")
    monkeypatch.setenv("PATH", found.path)
    return found


def measured(host: LiveHost, section: Any = None) -> dict[str, float]:
    """What is measured, valid, with nothing changed and nothing loaded."""
    before, loaded = host.snapshot(), host.loaded()
    text = exposition(measuring.measured(host.root, section))
    assert_valid(text)
    assert (host.snapshot(), host.loaded()) == (before, loaded)
    return values(text)


def test_nothing_was_ever_applied(host: LiveHost) -> None:
    found = measured(host)
    assert found['info{version="0.1.0",mode="none",conntrack="loaded"}'] == 1
    assert (found["entries"], found["scrape_error"], found["unconfirmed"]) == (7, 0, 0)
    assert not {"verified", "drift_actions", "last_run_exit_code", "boot_service_failed"} & set(found)


def test_a_section_that_was_not_applied_is_drift(host: LiveHost) -> None:
    found = measured(host, {"mode": "unload"})
    assert (found["verified"], found['mode_desired{mode="unload"}']) == (0, 1)
    assert found["drift_actions"] > 3 and found['evidence_checks{result="disagrees"}'] > 0


def test_from_apply_to_drift_and_back(host: LiveHost) -> None:
    list(apply_section({"mode": "unload"}, host.root))
    found = measured(host)
    assert (found["verified"], found["drift_actions"], found["blockers"], found["scrape_error"]) == (1, 0, 0, 0)
    assert (found['info{version="0.1.0",mode="unload",conntrack="absent"}'], found["entries"]) == (1, 0)
    assert (found['last_run_outcome{outcome="done"}'], found["last_run_exit_code"]) == (1, 0)
    assert 0 <= found["scrape_timestamp_seconds"] - found["last_run_timestamp_seconds"] < 60
    assert 0 < found["last_run_duration_seconds"] < 60
    assert "entries_limit" not in found
    (host.tree / "etc/modprobe.d/00-cloudinit-conntrack.conf").unlink()
    found = measured(host)
    assert (found["verified"], found["drift_actions"]) == (0, 1)


def test_what_is_damaged_is_an_error_and_hides_nothing_else(host: LiveHost, capsys: pytest.CaptureFixture[str]) -> None:
    list(apply_section({"mode": "unload"}, host.root))
    for path, gone in ((journalfile.DESIRED, "verified"), (journalfile.RESULT, "last_run_exit_code"),
                       (journalfile.UNCONFIRMED, "unconfirmed")):  # fmt: skip
        kept = host.tree / path.lstrip("/")
        before = kept.read_text() if kept.exists() else None
        odd = ('{"outcome": 1, "run": 5}', '{"outcome": "", "run": {"seconds": []}}')
        for damage in ("{", "[" * 100_000, "\0", *(odd if path != journalfile.DESIRED else ())):
            kept.write_text(damage)
            found = measured(host)
            assert found["scrape_error"] == 1 and gone not in found, (path, damage)
            assert found["entries"] == 0
            assert capsys.readouterr().err.startswith("cloudinit-conntrack: ")
        if before is None:
            kept.unlink()
        else:
            kept.write_text(before)
    assert measured(host)["scrape_error"] == 0


def test_rules_that_cannot_be_read_are_an_error(host: LiveHost, capsys: pytest.CaptureFixture[str]) -> None:
    list(apply_section({"mode": "stateless"}, host.root))
    host.rules("legacy", "ipv4", "*filter\n-A INPUT \"\nCOMMIT\n")
    found = measured(host)
    assert (found["scrape_error"], "verified" in found, found['mode_desired{mode="stateless"}']) == (1, False, 1)
    assert "iptables" in capsys.readouterr().err


# --- the file ----------------------------------------------------------------------------


def test_the_file_is_replaced_at_once(tmp_path: Path) -> None:
    place = tmp_path / "a.prom"
    place.write_text("old")
    place.chmod(0o600)
    old = place.open()
    done = call("metrics", "-o", place)
    assert (done.code, done.out, done.err) == (0, b"", b"")
    assert old.read() == "old"  # whoever was reading it reads it to the end
    assert_valid(place.read_text())
    assert stat.S_IMODE(place.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["a.prom"]
    assert_valid(call("metrics", "-o", "-").out.decode())


def test_every_moment_shows_a_whole_file(tmp_path: Path) -> None:
    """The collector reads whatever ends with .prom: it must never see another such name, nor half."""
    place = tmp_path / "a.prom"
    seen: set[tuple[str, bool]] = set()
    child = os.fork()
    if child == 0:
        for _ in range(3):
            call("metrics", "-o", place)
        os._exit(0)
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        for name in os.listdir(tmp_path):
            if name.endswith(".prom"):
                text = (tmp_path / name).read_text()
                seen.add((name, text.endswith("\n") and "scrape_duration_seconds" in text))
    assert seen == {("a.prom", True)}
    assert_valid(place.read_text())


@pytest.mark.parametrize("path", ["there/is/none.prom", "link.prom", "directory"])
def test_a_file_that_cannot_be_written_is_a_failure(path: str, tmp_path: Path) -> None:
    (tmp_path / "link.prom").symlink_to("/etc/passwd")
    (tmp_path / "directory").mkdir()
    done = call("metrics", "-o", tmp_path / path)
    assert (done.code, done.out) == (1, b"")
    assert str(tmp_path) in done.message


def test_usage() -> None:
    assert call("metrics", "--root", "/tmp").code == 2
    assert call("metrics", "--format", "json").code == 2
    assert call("metrics", "-c", "/dev/null").code == 2

    def nobody() -> tuple[int, str]:
        os.setuid(65534)
        done = call("metrics")
        return done.code, done.message

    code, message = forked(nobody)
    assert code == 2 and "root" in message


def test_the_kept_report_says_who_made_it(host: LiveHost) -> None:
    host.write("/proc/sys/kernel/hostname", "lb-1\n")
    list(apply_section({"mode": "unload"}, host.root))
    run = json.loads(host.read(journalfile.RESULT))["run"]
    assert (run["version"], run["host"]) == ("0.1.0", "lb-1")
