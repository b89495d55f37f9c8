"""cloud-init's way in: lines for the log on success, an error when it is blocked, wrong or fails."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from stubs import LiveHost, forked, killed_at

from cloudinit_conntrack import boot, journal
from cloudinit_conntrack.boot import Conclusion, apply_section
from cloudinit_conntrack.errors import ConfigError, ConntrackError
from cloudinit_conntrack.host import journalfile
from tests import reports

RULES = """\
*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -p tcp -m state --state ESTABLISHED -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
COMMIT
"""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LiveHost:
    found = LiveHost(tmp_path / "host", ("xt_conntrack", "nf_conntrack", "nf_defrag_ipv4"))
    found.rules("legacy", "ipv4", RULES)
    found.write("/etc/sysconfig/iptables-config", 'IPTABLES_MODULES="nf_conntrack_ftp"\n')
    monkeypatch.setenv("PATH", found.path)
    return found


def lines(host: LiveHost, **section: Any) -> list[str]:
    return list(apply_section(section, host.root))


def result(host: LiveHost) -> dict[str, Any]:
    return reports.read(host.read("/run/cloudinit-conntrack/result.json"))


def test_lines_on_success(host: LiveHost) -> None:
    said = lines(host, mode="unload")
    assert said[0] == "mode unload: done"
    assert "unload module nf_conntrack: it is conntrack" in said
    assert [line.partition(": ")[0] for line in said[1:]] == [
        "rewrite /etc/sysconfig/iptables-config",
        "load live rules, iptables-legacy ipv4",
        "unload module xt_conntrack",
        "unload module nf_conntrack",
        "write /etc/modprobe.d/00-cloudinit-conntrack.conf",
        "accepted now and not before",
        "good to know",  # a helper of conntrack
        "good to know",  # no systemd
    ]
    assert all("\n" not in line for line in said)
    assert host.loaded() == {"nf_defrag_ipv4"}
    assert (result(host)["outcome"], result(host)["mode"]) == ("done", "unload")
    assert lines(host, mode="unload") == ["mode unload: nothing to do"]
    assert result(host)["outcome"] == "nothing-to-do"


def concluded(host: LiveHost, **section: Any) -> Conclusion:
    """What cloud-init's reporting is told, whatever came of it: once."""
    told: list[Conclusion] = []
    with suppress(ConntrackError):
        list(apply_section(section, host.root, told.append))
    (found,) = told
    assert "\n" not in found.description and len(found.description) <= 900
    return found


def test_what_reporting_is_told(host: LiveHost) -> None:
    assert concluded(host, mode="strange") == Conclusion(
        "FAIL", "failed: conntrack.mode: is 'strange'; must be notrack, stateless or unload")
    found = concluded(host, mode="unload")
    assert (found.result, found.files) == ("SUCCESS", (journalfile.RESULT,))
    assert found.description == "mode unload: done, 5 actions, 1 widening, 2 findings"
    assert concluded(host, mode="unload") == Conclusion("SUCCESS", "mode unload: nothing to do", (journalfile.RESULT,))
    host.write("/etc/sysconfig/iptables", RULES.replace("COMMIT", "-A INPUT -m connmark --mark 1 -j DROP\nCOMMIT"))
    found = concluded(host, mode="unload")
    assert found.result == "FAIL" and "connmark" in found.description
    assert found.description.startswith("blocked: /etc/sysconfig/iptables: table filter, chain INPUT, rule 3: ")
    assert found.description.count("blocked") == 1


def test_a_large_report_is_not_attached(host: LiveHost) -> None:
    many = "".join(f"-A INPUT -m connmark --mark {n} -j DROP\n" for n in range(400))
    host.rules("legacy", "ipv4", RULES.replace("COMMIT", f"{many}COMMIT"))
    found = concluded(host, mode="unload")
    assert (found.result, found.files) == ("FAIL", ())
    assert len(host.read(journalfile.RESULT)) > 65536


def test_a_long_reason_is_one_line_and_cut() -> None:
    """A command's stderr may be long, and have lines and colours."""
    assert boot._one_line("a\n  b\x1b[31m\tc") == "a b [31m c"
    assert boot._one_line("x" * 1000) == "x" * 899 + "…"


def test_a_fallback_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = LiveHost(tmp_path / "host", None)
    host.rules("legacy", "ipv4", RULES)
    monkeypatch.setenv("PATH", host.path)
    found = forked(lambda: concluded(host, mode="unload", fallback="stateless"), network=True)
    assert (found.result, found.files) == ("WARN", (journalfile.RESULT,))
    assert found.description.startswith("mode stateless (unload was asked for): done, ")


def test_a_fallback_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = LiveHost(tmp_path / "host", None)
    host.rules("legacy", "ipv4", RULES)
    monkeypatch.setenv("PATH", host.path)
    said = forked(lambda: lines(host, mode="unload", fallback="stateless"), network=True)
    assert said[0] == "mode stateless: done"
    assert any("built into this kernel" in line and "settled for stateless" in line for line in said)


@pytest.mark.parametrize("section", [None, {}, [], "unload", {"mode": "strange"}, {"mode": "unload", "extra": 1}])
def test_a_bad_section_raises_and_changes_nothing(section: object, host: LiveHost) -> None:
    before = host.snapshot()
    with pytest.raises(ConfigError) as caught:
        list(apply_section(section, host.root))
    assert caught.value.where.startswith("conntrack")
    assert (host.snapshot(), host.calls()) == (before, [])


def test_blocked_raises_and_changes_nothing(host: LiveHost) -> None:
    for limit in (3, 4):
        host.rules(
            "legacy",
            "ipv4",
            RULES.replace("COMMIT", f"-A INPUT -m connlimit --connlimit-above {limit} -j DROP\nCOMMIT"),
        )
    host.write("/etc/sysconfig/iptables", RULES.replace("COMMIT", "-A INPUT -m connmark --mark 1 -j DROP\nCOMMIT"))
    before = host.snapshot()
    with pytest.raises(ConntrackError, match="blocked: ") as caught:
        lines(host, mode="unload")
    assert caught.value.where == "/etc/sysconfig/iptables: table filter, chain INPUT, rule 3"
    assert caught.value.what.endswith("(and 1 more)")
    assert caught.value.remedy
    assert host.snapshot() == before
    assert result(host)["outcome"] == "blocked"


def test_a_failure_raises_and_is_rolled_back(host: LiveHost) -> None:
    host.hold("xt_conntrack")
    before = host.snapshot()
    with pytest.raises(ConntrackError, match="module xt_conntrack is in use"):
        lines(host, mode="unload")
    assert host.snapshot() == before
    assert result(host)["outcome"] == "failed"
    assert "in use" in result(host)["message"]


def test_the_next_boot_tries_again_what_a_power_cut_ended(host: LiveHost) -> None:
    killed_at(16, partial(lines, host, mode="unload"))
    assert "unload" in host.read(journal.PATH)  # it had begun
    said = lines(host, mode="unload")
    assert said[0] == "mode unload: done"
    assert "good to know: an earlier apply was cut off and was rolled back first (apply)" in said
    assert host.loaded() == {"nf_defrag_ipv4"}


def test_a_report_that_cannot_be_kept_is_no_failure(host: LiveHost) -> None:
    (host.tree / "run/cloudinit-conntrack/result.json").mkdir(parents=True)
    said = lines(host, mode="unload")
    assert said[0] == "mode unload: done"
    assert said[-1].startswith(
        "good to know: this report is not kept for others: /run/cloudinit-conntrack/result.json: "
    )
    assert host.loaded() == {"nf_defrag_ipv4"}


def test_only_root_may(host: LiveHost) -> None:
    def act() -> str:
        os.setuid(65534)
        try:
            lines(host, mode="unload")
        except ConntrackError as error:
            return str(error)
        return "it did"

    assert forked(act) == "cloudinit-conntrack: it must run as root; use sudo"
    assert host.calls() == []
