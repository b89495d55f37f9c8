"""The last good rules of saved files that do not load under the block, on a host with a kernel of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stubs import LiveHost

from cloudinit_conntrack import kmod, lastgood
from cloudinit_conntrack.actions import LoadRules
from cloudinit_conntrack.boot import apply_section
from cloudinit_conntrack.config import desired_from_section
from cloudinit_conntrack.errors import ConntrackError
from cloudinit_conntrack.host import goodrules, journalfile
from cloudinit_conntrack.plan import make_plan
from cloudinit_conntrack.state import BootService, FileImage, Kernel, LiveRules, SavedFile, State
from cloudinit_conntrack.transaction import revert
from tests import reports

FILE = "/etc/sysconfig/iptables"
MANGLE = "*mangle\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p tcp -j MARK --set-mark 1\nCOMMIT\n"
FILTER = "*filter\n:INPUT DROP [0:0]\n-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\nCOMMIT\n"
GOOD = MANGLE + FILTER
LIMITED = GOOD.replace(
    "-A INPUT", "-A INPUT -m conntrack --ctstate NEW -m connlimit --connlimit-above 3 -j DROP\n-A INPUT")
STATEFUL = GOOD.replace("-A INPUT", "-A INPUT -m state --state ESTABLISHED -j ACCEPT\n-A INPUT")
BROKEN = GOOD.replace("-A INPUT", "-A INPUT -m broken -j DROP\n-A INPUT")  # a match that this kernel does not have
OPEN = "*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n"


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LiveHost:
    """A host with the block, whose service loads :data:`FILE` at boot."""
    found = LiveHost(tmp_path / "host")
    monkeypatch.setenv("PATH", found.path)
    (found.tree / "run/systemd/system").mkdir(parents=True)
    wants = found.tree / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True)
    (wants / "iptables.service").symlink_to("/lib/systemd/system/iptables.service")
    found.write("/etc/systemd/system/cloudinit-conntrack.service", "# the administrator's own")
    (found.tree / "etc/systemd/system/sysinit.target.wants").mkdir()
    link = found.tree / "etc/systemd/system/sysinit.target.wants/cloudinit-conntrack.service"
    link.symlink_to("/etc/systemd/system/cloudinit-conntrack.service")
    found.write(FILE, GOOD)
    found.rules("legacy", "ipv4", GOOD)
    assert apply(found)[0] == "mode unload: done"
    return found


def apply(host: LiveHost) -> list[str]:
    return list(apply_section({"mode": "unload"}, host.root))


def reboot(host: LiveHost, content: str, loaded: str) -> None:
    """*content* is what somebody made of the file; *loaded* what its service got into the kernel."""
    host.write(FILE, content)
    for table in (host.kernel / "rules/legacy-ipv4").iterdir():
        table.unlink()
    host.rules("legacy", "ipv4", loaded)


def kept(host: LiveHost) -> str:
    good = goodrules.read(FILE, host.root)
    return good.text if good else ""


def test_the_first_apply_keeps_each_file_that_boots_load(host: LiveHost) -> None:
    assert kept(host) == GOOD
    place = host.tree / "var/lib/cloudinit-conntrack/good"
    assert [(p.name, p.stat().st_mode & 0o777) for p in place.iterdir()] == [("etc_sysconfig_iptables", 0o600)]
    assert place.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("loaded", [OPEN, MANGLE + OPEN, MANGLE])
def test_what_is_missing_is_loaded_and_nothing_else(host: LiveHost, loaded: str) -> None:
    """A restore stops at the table that it cannot load: those before it are there."""
    reboot(host, LIMITED, loaded)
    said = r"its last good rules are loaded instead.*; blocked too: .*connlimit"
    with pytest.raises(ConntrackError, match=said) as caught:
        apply(host)
    assert caught.value.exit_code == 1
    assert ":INPUT DROP" in host.live("legacy", "ipv4") and "--dport 22" in host.live("legacy", "ipv4")
    assert host.live("legacy", "ipv4").count("--set-mark") == 1
    assert host.read(FILE) == LIMITED and kept(host) == GOOD
    report = reports.read(host.read(journalfile.RESULT))
    assert report["outcome"] == "failed" and "connlimit" in report["blockers"][0]["reason"]
    with pytest.raises(ConntrackError, match=r"^.*blocked: .*the rules that are live stay"):
        apply(host)  # from here on nothing is changed any more
    assert reports.read(host.read(journalfile.RESULT))["outcome"] == "blocked"


def test_a_file_that_the_kernel_refuses_for_another_reason_fails_too(host: LiveHost) -> None:
    reboot(host, BROKEN, MANGLE)
    with pytest.raises(ConntrackError, match=r"does not load at boot .*line 7.*: its last good rules are loaded"):
        apply(host)
    assert "--dport 22" in host.live("legacy", "ipv4")
    report = reports.read(host.read(journalfile.RESULT))
    assert report["outcome"] == "failed"
    assert [item["where"] for item in report["findings"] if item["id"].startswith("unloadable:")] == [FILE]


def test_a_file_that_cannot_be_parsed_fails_too(host: LiveHost) -> None:
    reboot(host, GOOD.replace("COMMIT\n", "", 1) + "-A INPUT -m broken\n", OPEN)
    with pytest.raises(ConntrackError, match=f"{FILE}:.*its last good rules are loaded instead"):
        apply(host)
    assert "--dport 22" in host.live("legacy", "ipv4")


def test_live_rules_are_left_alone(host: LiveHost) -> None:
    reboot(host, LIMITED, GOOD.replace("22", "23"))
    with pytest.raises(ConntrackError, match="the rules that are live stay"):
        apply(host)
    assert "--dport 23" in host.live("legacy", "ipv4") and "--dport 22" not in host.live("legacy", "ipv4")


def test_rules_that_somebody_took_away_stay_away_while_the_file_loads(host: LiveHost) -> None:
    reboot(host, GOOD.replace("22", "24"), OPEN)
    assert apply(host) == ["mode unload: nothing to do"]
    assert "--dport" not in host.live("legacy", "ipv4")
    assert "--dport 24" in kept(host)  # it was seen to load: now this is the last good one


def test_with_nothing_kept_it_says_so(host: LiveHost) -> None:
    for name in host.root.listdir(goodrules.DIRECTORY):
        host.write(f"{goodrules.DIRECTORY}/{name}", "{")
    reboot(host, LIMITED, OPEN)
    with pytest.raises(ConntrackError, match="no version of it that did is kept"):
        apply(host)
    assert "--dport" not in host.live("legacy", "ipv4")


def test_it_stands_until_the_file_is_another(host: LiveHost) -> None:
    assert lastgood.standing(host.root) == ()
    reboot(host, LIMITED, OPEN)
    with pytest.raises(ConntrackError):
        apply(host)
    assert [item.where for item in lastgood.standing(host.root)] == [FILE]
    host.write(FILE, GOOD)
    assert lastgood.standing(host.root) == ()
    assert apply(host) == ["mode unload: nothing to do"]
    assert goodrules.noted(host.root) == ()


def test_revert_forgets_them(host: LiveHost) -> None:
    reboot(host, LIMITED, OPEN)
    with pytest.raises(ConntrackError):
        apply(host)
    host.write(FILE, GOOD)
    revert(host.root, lambda line: None)
    assert not host.root.exists(goodrules.DIRECTORY) and not host.root.exists(goodrules.REFUSED)


def test_without_the_block_nothing_is_kept(host: LiveHost) -> None:
    (host.tree / kmod.BLOCK_PATH.lstrip("/")).unlink()
    assert lastgood.settle(host.root, True) == ((), False)
    assert kept(host) == ""


# --- the plan: a file that can be mended ----------------------------------------------------


@pytest.mark.parametrize(("live", "tables"), [
    (MANGLE, ["*filter"]),  # the restore stopped behind its first table
    (OPEN, ["*filter", "*mangle"]),
    (GOOD, []),
])
def test_a_mended_file_is_loaded_where_a_table_of_it_is_missing(live: str, tables: list[str]) -> None:
    saved = SavedFile(FILE, "rules", "ipv4", FileImage(STATEFUL.encode()))
    block = FileImage(kmod.modprobe_conf().encode())
    state = State(Kernel("6.1.0-fake", True, False, "absent", False), (LiveRules("legacy", "ipv4", live),), (saved,),
                  block, boot=BootService(loaded=(FILE,)))
    actions: Any = make_plan(desired_from_section({"mode": "unload"}), state).actions
    loads = [action for action in actions if isinstance(action, LoadRules)]
    assert [line for action in loads for line in action.after.splitlines() if line[0] == "*"] == tables


def test_to_look_when_the_memory_has_run_out_fails_no_apply(host: LiveHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is done by then."""

    def settle(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(lastgood, "settle", settle)
    assert any("whether each saved file loads at boot is not known: out of memory" in line for line in apply(host))
