"""apply and revert on a fake host whose kernel is kept in files: whole, or undone whole.

What counts is what the host shows afterwards (files, rules, modules), never what we say.
Failures come from the commands (they fail, they lie), from the file system (full at every
single touch, once and for good) and from being killed at every single touch.
"""

from __future__ import annotations

import json
import os
import re
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Callable

import pytest
from fakehost import FakeHost
from stubs import LiveHost, Snapshot, fail_at, forked, killed_at, snapshot, touches

from cloudinit_conntrack import journal, transaction
from cloudinit_conntrack.actions import WriteFile
from cloudinit_conntrack.config import desired_from_section
from cloudinit_conntrack.errors import BusyError, ConntrackError, HostError, JournalError, RollbackError
from cloudinit_conntrack.host import journalfile, pending
from cloudinit_conntrack.host.root import Root
from cloudinit_conntrack.kmod import modprobe_conf
from cloudinit_conntrack.transaction import Applied, Reverted

CASES = Path(__file__).parent / "plan"
SEED = CASES / "seed/host"
RULES = "/etc/sysconfig/iptables"
CONFIG = "/etc/sysconfig/iptables-config"
BLOCK = "/etc/modprobe.d/00-cloudinit-conntrack.conf"
STATE = "/var/lib/cloudinit-conntrack"
OLD = 1_000_000_000 * 10**9  # a time long ago, in nanoseconds
SMALL = """\
*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -p tcp -m state --state ESTABLISHED -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
COMMIT
"""


def quiet(_: str) -> None:
    """Progress that nobody sees."""


def apply(host: LiveHost, mode: str = "unload", progress: Callable[[str], None] = quiet, **more: Any) -> Applied:
    section = {"mode": mode, **more}
    return transaction.apply(desired_from_section(section), section, host.root, True, progress)


def outcome(host: LiveHost, mode: str = "unload", **more: Any) -> str:
    return apply(host, mode, **more).outcome


def revert(host: LiveHost) -> Reverted:
    return transaction.revert(host.root, quiet)


def kept(host: FakeHost) -> object:
    """The section that is kept for later boots."""
    file = host.tree / STATE.strip("/") / "desired.json"
    return json.loads(file.read_text()) if file.exists() else None


def journal_is_empty(host: FakeHost) -> bool:
    return not (host.tree / journal.PATH.strip("/")).exists()


def entries(host: FakeHost) -> tuple[journal.Entry, ...]:
    """What the journal would undo."""
    return journal.parse((host.tree / journal.PATH.strip("/")).read_bytes())


def make_small(base: Path) -> LiveHost:
    """One table, one saved file, two modules: enough for every kind of action."""
    host = LiveHost(base, ("xt_conntrack", "nf_conntrack", "nf_defrag_ipv4"))
    host.rules("legacy", "ipv4", SMALL)
    host.write(RULES, SMALL, 0o600)
    os.utime(host.tree / RULES.strip("/"), ns=(OLD, OLD))
    return host


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LiveHost:
    host = make_small(tmp_path / "host")
    monkeypatch.setenv("PATH", host.path)
    return host


@pytest.fixture
def seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LiveHost:
    """The seed's own host: stateful rules in both families, saved too, and a helper in IPTABLES_MODULES."""
    loaded = ("xt_conntrack", "nf_conntrack_netbios_ns", "nf_conntrack_broadcast", "nf_conntrack", "nf_defrag_ipv4")
    host = LiveHost(tmp_path / "host", loaded)
    for name in ("iptables", "ip6tables", "iptables-config", "ip6tables-config"):
        file = host.write(f"/etc/sysconfig/{name}", (SEED / "etc/sysconfig" / name).read_text(), 0o600)
        os.chown(file, 12, 34)
        os.setxattr(file, "user.label", b"system_u:object_r")
        os.utime(file, ns=(OLD, OLD))
    for family in ("ipv4", "ipv6"):
        host.rules("legacy", family, (SEED / "live" / f"legacy-{family}").read_text())
    monkeypatch.setenv("PATH", host.path)
    return host


# --- the main job ----------------------------------------------------------------------


def test_the_seeds_case(seed: LiveHost) -> None:
    seed.write("/proc/sys/net/netfilter/nf_conntrack_max", "42424\n")
    before = seed.snapshot()
    assert seed.run("rmmod", "nf_conntrack") != 0  # "in use"
    seed.clear_changes()

    assert apply(seed).outcome == "done"
    assert seed.loaded() == {"nf_defrag_ipv4"}
    assert not (seed.tree / "proc/net/nf_conntrack").exists()
    for text in (seed.live("legacy", "ipv4"), seed.live("legacy", "ipv6"), seed.read(RULES)):
        assert "--state" not in text
        assert "--dport 22 --tcp-flags FIN,SYN,RST,ACK SYN -j ACCEPT" in text
        assert "-j REJECT" in text
    assert 'IPTABLES_MODULES=""\nIPTABLES_SAVE_ON_STOP="no"\n' in seed.read(CONFIG)
    assert seed.read(BLOCK) == modprobe_conf()
    assert (seed.tree / STATE.strip("/")).stat().st_mode & 0o777 == 0o700
    assert kept(seed) == {"mode": "unload"}
    done = seed.snapshot()
    for name in (RULES, CONFIG):
        assert done[name][:3] == before[name][:3]  # mode and owner stay, and so does the label
        assert done[name][5] == before[name][5] == (("user.label", b"system_u:object_r"),)
        assert done[name][4] != OLD  # a backup must see that it changed
    assert seed.changes() == [
        "iptables-legacy-restore -c -w 10",
        "ip6tables-legacy-restore -c -w 10",
        "rmmod xt_conntrack",
        "rmmod nf_conntrack_netbios_ns",
        "rmmod nf_conntrack_broadcast",
        "rmmod nf_conntrack",
        "iptables-restore -w 10",  # the proofs, each in a namespace of its own
        "ip6tables-restore -w 10",
    ]

    seed.clear_changes()
    assert apply(seed).outcome == "nothing-to-do"
    assert (seed.snapshot(), seed.changes()) == (done, [])

    found = revert(seed)
    assert (found.problems, found.notes) == ((), ())
    assert seed.snapshot() == before
    assert "modprobe nf_conntrack hashsize=4096" in seed.changes()
    assert seed.read("/proc/sys/net/netfilter/nf_conntrack_max") == "42424\n"
    assert journal_is_empty(seed)
    assert kept(seed) is None
    assert revert(seed) == Reverted(())
    assert seed.strange() == ""


def test_the_next_boot_is_the_same(seed: LiveHost) -> None:
    """After a reboot the saved rules load under the block, and nothing is left to do."""
    before = seed.snapshot()
    apply(seed)
    (seed.kernel / "loaded").write_text("")
    for file in (seed.kernel / "rules").glob("*-*/*"):
        file.unlink()
    seed.write("/proc/sys/kernel/random/boot_id", "boot-2\n")
    for command, name in (("iptables-restore", "iptables"), ("ip6tables-restore", "ip6tables")):
        assert seed.run(command, stdin=seed.read(f"/etc/sysconfig/{name}")) == 0
    assert seed.run("modprobe", "nf_conntrack") != 0
    seed.clear_changes()
    assert apply(seed).outcome == "nothing-to-do"
    assert (seed.changes(), seed.loaded()) == ([], set())
    assert revert(seed).problems == ()
    assert seed.snapshot() == before


def test_in_a_later_boot_revert_makes_no_table_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with ufw on Debian 13: its files need no mangle table, and without nft none can be deleted."""
    host = LiveHost(tmp_path / "host", ("nf_tables", "xt_conntrack", "nf_conntrack", "nf_defrag_ipv4"), "nft")
    monkeypatch.setenv("PATH", host.path)
    host.rules("nft", "ipv6", SMALL)
    host.without("nft")
    found = apply(host, "stateless")
    assert found.outcome == "done", found.plan.blockers
    (host.kernel / "rules/nft-ipv6/mangle").unlink()
    host.write("/proc/sys/kernel/random/boot_id", "boot-2\n")
    assert revert(host).problems == ()
    assert not (host.kernel / "rules/nft-ipv6/mangle").exists()
    assert "--state ESTABLISHED" in (host.kernel / "rules/nft-ipv6/filter").read_text()


def test_a_host_that_never_had_conntrack_gets_the_block_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = LiveHost(tmp_path / "host", ("nf_defrag_ipv4",))
    monkeypatch.setenv("PATH", host.path)
    before = host.snapshot()
    assert [action.id for action in apply(host).plan.actions] == [f"file:{BLOCK}"]
    assert host.changes() == []
    revert(host)
    assert host.snapshot() == before


def test_a_blocked_plan_changes_nothing(small: LiveHost) -> None:
    small.rules("legacy", "ipv4", SMALL.replace("COMMIT", "-A INPUT -m connmark --mark 1 -j ACCEPT\nCOMMIT"))
    before = small.snapshot()
    found = apply(small)
    assert (found.outcome, [b.id for b in found.plan.blockers]) == ("blocked", ["rule:legacy:ipv4:7"])
    assert (small.snapshot(), small.changes(), kept(small)) == (before, [], None)
    assert journal_is_empty(small)


def test_extra_modules_come_back_with_their_parameters(small: LiveHost) -> None:
    (small.kernel / "loaded").write_text("ip_set\nxt_conntrack\nnf_conntrack\nnf_defrag_ipv4\n")
    small.rules("legacy", "ipv4", SMALL)
    small.write("/sys/module/ip_set/initstate", "live\n")
    small.write("/sys/module/ip_set/parameters/max_sets", "512\n")
    before = small.snapshot()
    apply(small, modules={"extra": ["ip-set"]})
    assert "ip_set" not in small.loaded()
    assert "install ip_set /bin/false" in small.read(BLOCK)
    assert revert(small).problems == ()
    assert small.snapshot() == before
    assert "modprobe ip_set max_sets=512" in small.changes()


def test_force_is_the_last_resort(small: LiveHost) -> None:
    """A user that cannot be seen holds the module; ``rmmod -f`` works where the kernel allows it."""
    small.hold("xt_conntrack")
    before = small.snapshot()
    with pytest.raises(HostError, match="module xt_conntrack is in use"):
        apply(small, modules={"force": True})
    assert small.snapshot() == before
    (small.kernel / "force").touch()
    assert apply(small, modules={"force": True}).outcome == "done"
    assert small.loaded() == {"nf_defrag_ipv4"}


def test_notrack_takes_its_modules_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NOTRACK loads conntrack; what was not there before apply goes with revert."""
    host = LiveHost(tmp_path / "host", ("nf_tables",), "nft")
    host.rules("nft", "ipv4", SMALL.replace("-m state --state ESTABLISHED ", "-m tcp --tcp-flags ACK ACK "))
    monkeypatch.setenv("PATH", host.path)
    before = host.snapshot()
    bypass = partial(outcome, host, "notrack", flows={"frontends": [80]})
    assert forked(bypass, network=True) == "done"
    assert host.loaded() == {"nf_tables", "xt_CT", "nf_conntrack", "nf_defrag_ipv4"}
    for family in ("ipv4", "ipv6"):
        raw = host.live("nft", family).partition("*raw")[2]
        assert raw.count("-j CT --notrack") == (6 if family == "ipv4" else 7)
    assert forked(bypass, network=True) == "nothing-to-do"
    assert revert(host).problems == ()
    assert host.snapshot() == before


def test_modes_one_after_the_other_and_all_the_way_back(small: LiveHost) -> None:
    before = small.snapshot()
    flows = {"frontends": [80]}
    for mode in ("stateless", "notrack", "unload"):
        switch = partial(outcome, small, mode, flows=flows)
        assert [forked(switch, network=True) for _ in range(2)] == ["done", "nothing-to-do"]
    assert "notrack" not in small.live("legacy", "ipv4") + small.read(RULES)
    assert small.loaded() == {"nf_defrag_ipv4"}
    assert revert(small).problems == ()
    assert small.snapshot() == before


# --- somebody else is at work ----------------------------------------------------------


def test_a_file_changed_after_the_plan_is_left_alone(small: LiveHost) -> None:
    before = small.snapshot()

    def edit(line: str) -> None:
        if line == f"rewrite {RULES}":
            small.write(RULES, "# mine\n", 0o600)

    with pytest.raises(HostError, match=r"/etc/sysconfig/iptables: it was changed since the plan was made"):
        apply(small, progress=edit)
    assert small.read(RULES) == "# mine\n"
    small.write(RULES, SMALL, 0o600)
    os.utime(small.tree / RULES.strip("/"), ns=(OLD, OLD))
    assert small.snapshot() == before
    assert journal_is_empty(small)


def test_a_mode_or_owner_changed_after_the_plan_is_noticed(small: LiveHost) -> None:
    place = small.tree / RULES.strip("/")
    for change in (partial(place.chmod, 0o640), partial(os.chown, place, 12, 0)):

        def edit(_: str, change: Callable[[], object] = change) -> None:
            change()

        with pytest.raises(HostError, match="it was changed since the plan was made"):
            apply(small, progress=edit)
        assert small.read(RULES) == SMALL
        assert journal_is_empty(small)


def test_rules_changed_after_the_plan_are_left_alone(small: LiveHost) -> None:
    before = small.snapshot()
    theirs = SMALL.replace("COMMIT", "-A INPUT -s 192.0.2.1/32 -j DROP\nCOMMIT")

    def edit(line: str) -> None:
        if line == "load live rules, iptables-legacy ipv4":
            small.rules("legacy", "ipv4", theirs)

    with pytest.raises(HostError, match=r"live rules, iptables-legacy ipv4: it was changed since"):
        apply(small, progress=edit)
    assert "192.0.2.1" in small.live("legacy", "ipv4")
    after = small.snapshot()
    after["legacy-ipv4"] = before["legacy-ipv4"]
    assert after == before


def test_counters_and_order_of_options_are_no_change(small: LiveHost) -> None:
    def count(line: str) -> None:
        if line == "load live rules, iptables-legacy ipv4":
            text = small.live("legacy", "ipv4").replace("[0:0] -A", "[9:900] -A")
            small.rules("legacy", "ipv4", text.replace("-p tcp -m tcp --dport 22", "-m tcp -p tcp --dport 22"))

    assert apply(small, progress=count).outcome == "done"


def test_a_file_changed_after_apply_is_kept_aside(small: LiveHost) -> None:
    before = small.snapshot()
    apply(small)
    small.write(RULES, "# mine\n", 0o640)
    found = revert(small)
    aside = f"{STATE}/kept/etc_sysconfig_iptables"
    assert found.problems == ()
    assert found.notes == (f"{RULES} was changed since; that version is kept as {aside}",)
    assert small.read(aside) == "# mine\n"
    assert small.snapshot() == before


def test_a_file_removed_after_apply_comes_back(small: LiveHost) -> None:
    before = small.snapshot()
    apply(small)
    for path in (RULES, BLOCK):
        (small.tree / path.strip("/")).unlink()
    found = revert(small)
    assert (found.problems, found.notes, small.snapshot()) == ((), (), before)


def test_rules_changed_after_apply_are_told(small: LiveHost) -> None:
    before = small.snapshot()
    apply(small)
    theirs = [f"-A INPUT -s 192.0.2.{number}/32 -j DROP" for number in range(9)]
    small.rules("legacy", "ipv4", re.sub("-A .* --state .*|COMMIT", "", SMALL) + "\n".join((*theirs, "COMMIT\n")))
    found = revert(small)
    told = "; ".join(f"-t filter {rule}" for rule in theirs[:8])
    assert found.notes == (
        "live rules, iptables-legacy ipv4 are not as apply left them; the rules from before are loaded again, "
        f"and these are gone: {told}; and 1 more",
    )
    assert (found.problems, small.snapshot()) == ((), before)


def test_only_one_at_a_time(small: LiveHost) -> None:
    said: list[str] = []

    def second(line: str) -> None:
        for attempt in (lambda: apply(small), lambda: revert(small)):
            with pytest.raises(HostError, match="another cloudinit-conntrack is at work"):
                attempt()
            said.append(line)

    assert apply(small, progress=second).outcome == "done"
    assert len(said) == 2 * 6


class Killed(BaseException):
    """Nothing runs any more."""


@pytest.mark.parametrize("removals", range(6))
def test_a_revert_killed_at_its_end_brings_no_older_section_back(
    small: LiveHost, removals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The section of the first apply waits in what is kept of the second, unconfirmed one."""
    before = small.snapshot()
    apply(small, "stateless")
    section = {"mode": "unload"}
    monkeypatch.setattr(pending, "watch", lambda: None)
    transaction.apply(desired_from_section(section), section, small.root, True, quiet, 1000.0)
    remove, told = Root.remove, []

    def killed(root: Root, path: str) -> None:
        if path.startswith(STATE):
            told.append(path)
            if len(told) > removals:
                raise Killed
        remove(root, path)

    with monkeypatch.context() as patched:
        patched.setattr(Root, "remove", killed)
        with suppress(Killed):
            revert(small)
    assert len(told) == min(removals + 1, 4)
    left = kept(small)
    assert left == (section if removals < 2 else None)
    with suppress(ConntrackError):  # it may still be confirmed
        transaction.settle(small.root, quiet)
    # Before it has forgotten anything the first section holds again, as if only the unconfirmed one were undone.
    assert kept(small) == (left if removals else {"mode": "stateless"})
    found = revert(small)
    assert (found.problems, kept(small), small.snapshot()) == ((), None, before)


# --- failures --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fail", "lie", "grumble"])
def test_a_command_that_fails_or_lies(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each change of the kernel: either it holds all the same, or everything is as it was."""
    outcomes: list[str] = []
    for at in range(1, 6):
        host = make_small(tmp_path / f"host{at}")
        monkeypatch.setenv("PATH", host.path)
        before = host.snapshot()
        host.fault(at, kind)
        try:
            outcomes.append(apply(host).outcome)
        except RollbackError as error:
            raise AssertionError(f"{kind} at {at}") from error
        except HostError:
            outcomes.append("failed")
            assert host.snapshot() == before, (kind, at)
            assert journal_is_empty(host)
            assert kept(host) is None
        else:
            assert host.loaded() == {"nf_defrag_ipv4"}
            assert "--state" not in host.live("legacy", "ipv4")
            host.clear_changes()
            assert revert(host).problems == ()
            assert host.snapshot() == before, (kind, at)
    # restore, rmmod, rmmod, proof, none.  rmmod is tried again, and judged by what is loaded.
    assert (
        outcomes
        == {
            "fail": ["failed", "done", "done", "failed", "done"],
            "lie": ["failed", "done", "done", "done", "done"],
            "grumble": ["failed", "done", "done", "failed", "done"],
        }[kind]
    )


def test_a_saved_file_that_does_not_load_is_found_before_the_block(small: LiveHost) -> None:
    small.write(RULES, SMALL.replace("COMMIT", "-A INPUT -m broken -j ACCEPT\nCOMMIT"), 0o600)
    before = small.snapshot()
    with pytest.raises(HostError, match=r"does not load.*-m broken") as caught:
        apply(small)
    assert caught.value.where == RULES
    assert small.snapshot() == before


def image(base: Path) -> FakeHost:
    """The small host's files alone, as an image tree."""
    base.mkdir()
    host = FakeHost(base)
    host.write(RULES, SMALL, 0o600)
    host.write(CONFIG, 'IPTABLES_MODULES="nf_conntrack_ftp"\n')
    for path in (RULES, CONFIG):
        os.utime(host.tree / path.strip("/"), ns=(OLD, OLD))
    for directory in ("etc/modprobe.d", "var/lib"):
        (host.tree / directory).mkdir(parents=True)
    return host


def bake(host: FakeHost) -> str:
    section = {"mode": "unload"}
    return transaction.apply(desired_from_section(section), section, host.root, False, quiet).outcome


def files(host: FakeHost) -> Snapshot:
    return snapshot(host.tree, STATE)


def plain(found: Snapshot) -> Snapshot:
    """Without the times of files: those that apply writes are written at another moment."""
    return {name: tuple(f for i, f in enumerate(facts) if i != 4) for name, facts in found.items()}


def failing(act: Callable[[], str], number: int, for_good: bool) -> str:
    """What *act* comes to on a disk that is full at its *number*-th touch."""

    def attempt() -> str:
        fail_at(number, for_good)
        try:
            return act()
        except ConntrackError as error:
            return f"{type(error).__name__}: {error}"

    found = forked(attempt)
    assert isinstance(found, str)
    return found


def test_a_full_disk_at_any_moment_of_baking(tmp_path: Path) -> None:
    reference = image(tmp_path / "reference")
    number = touches(partial(bake, reference))
    for at in range(1, number + 1):
        host = image(tmp_path / f"once{at}")
        before = files(host)
        said = failing(partial(bake, host), at, False)
        if said == "done":
            assert plain(files(host)) == plain(files(reference)), at
        else:
            assert said.startswith("HostError: "), (at, said)
            assert "no space left" in said
            assert files(host) == before, (at, said)
            assert kept(host) is None, at
        host = image(tmp_path / f"good{at}")
        assert "no space left" in failing(partial(bake, host), at, True), at
        assert transaction.revert(host.root, quiet).problems == ()
        assert files(host) == before, at
        assert journal_is_empty(host)


def test_killed_at_any_moment_of_baking(tmp_path: Path) -> None:
    reference = image(tmp_path / "reference")
    number = touches(partial(bake, reference))
    for at in range(1, number + 1):
        for then in ("apply", "revert"):
            host = image(tmp_path / f"{then}{at}")
            before = files(host)
            killed_at(at, partial(bake, host))
            if then == "apply":
                assert bake(host) in ("done", "nothing-to-do"), at
                assert plain(files(host)) == plain(files(reference)), at
            assert transaction.revert(host.root, quiet).problems == ()
            assert files(host) == before, (at, then)
            assert journal_is_empty(host)


def test_a_revert_that_was_cut_off_is_finished_by_the_next_apply(small: LiveHost) -> None:
    """Half undone looked whole to the next plan: what a restore had lost, nothing brought back."""
    before = small.snapshot()
    apply(small, "stateless")
    done = plain(small.snapshot())
    journalfile.append(small.root, journal.undoing(1))
    small.rules("legacy", "ipv4", re.sub("(?m)^.*--dport 22 .*\n", "", small.live("legacy", "ipv4")))
    found = apply(small, "stateless")
    assert found.outcome == "done" and found.notes[0] == "a revert was cut off and was finished first"
    assert plain(small.snapshot()) == done
    assert revert(small).problems == ()
    assert small.snapshot() == before and journal_is_empty(small)


def test_killed_while_reverting(tmp_path: Path) -> None:
    reference = image(tmp_path / "reference")
    bake(reference)
    number = touches(partial(transaction.revert, reference.root, quiet))
    for at in range(1, number + 1):
        host = image(tmp_path / f"host{at}")
        before = files(host)
        bake(host)
        killed_at(at, partial(transaction.revert, host.root, quiet))
        found = transaction.revert(host.root, quiet)
        assert (found.problems, found.notes) == ((), ()), at
        assert files(host) == before, at


def wait_for_its_commands(host: LiveHost, seconds: float = 20) -> None:
    """A command that the killed process had started holds the lock until it ends."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with journalfile.alone(host.root):
                return
        except BusyError:
            assert time.monotonic() < deadline, "the lock is never free again"
            time.sleep(0.02)


def test_killed_during_a_live_apply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every second touch; then the next apply recovers and completes, or revert restores."""
    reference = make_small(tmp_path / "reference")
    monkeypatch.setenv("PATH", reference.path)
    number = touches(partial(apply, reference))
    done = plain(reference.snapshot())
    for at in range(2, number + 1, 2):
        host = make_small(tmp_path / f"host{at}")
        monkeypatch.setenv("PATH", host.path)
        before = host.snapshot()
        killed_at(at, partial(apply, host))
        wait_for_its_commands(host)
        if at % 4:
            assert apply(host).outcome in ("done", "nothing-to-do"), at
            assert plain(host.snapshot()) == done, at
            assert [entry.closed for entry in entries(host)] == [True], at
        assert revert(host).problems == (), at
        assert host.snapshot() == before, at
        assert journal_is_empty(host)


def test_a_full_disk_during_a_live_apply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every second touch (baking tries them all), once and for good in turn."""
    reference = make_small(tmp_path / "reference")
    monkeypatch.setenv("PATH", reference.path)
    number = touches(partial(apply, reference))
    for at in range(1, number + 1, 2):
        host = make_small(tmp_path / f"host{at}")
        monkeypatch.setenv("PATH", host.path)
        before = host.snapshot()
        for_good = at % 4 == 1
        said = failing(partial(outcome, host), at, for_good)
        if said == "done":
            assert host.loaded() == {"nf_defrag_ipv4"} and not for_good
            continue
        assert "no space left" in said.lower(), (at, said)
        if for_good:
            assert revert(host).problems == (), at
        assert host.snapshot() == before, (at, said)


def test_interrupted_is_rolled_back(small: LiveHost) -> None:
    before = small.snapshot()

    def interrupt(line: str) -> None:
        if line.startswith("unload module nf_conntrack"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apply(small, progress=interrupt)
    assert small.snapshot() == before
    assert journal_is_empty(small)


def test_a_probe_that_does_not_answer_rolls_back(small: LiveHost) -> None:
    before = small.snapshot()
    with pytest.raises(HostError, match=r"guard\.probes: 127\.0\.0\.1:1 does not answer"):
        apply(small, guard={"probes": ["127.0.0.1:1"]})
    assert small.snapshot() == before


def test_on_failure_keep_leaves_what_was_done_and_can_be_reverted(small: LiveHost) -> None:
    before = small.snapshot()
    small.hold("xt_conntrack")
    held = small.snapshot()
    with pytest.raises(HostError, match="in use"):
        apply(small, on_failure="keep")
    assert "--state" not in small.read(RULES) + small.live("legacy", "ipv4")
    assert kept(small) is None
    assert revert(small).problems == ()
    assert small.snapshot() == held
    (small.kernel / "users").write_text("")
    small.rules("legacy", "ipv4", SMALL)
    assert small.snapshot() == before


def test_rolling_back_in_part_says_so_and_revert_finishes(small: LiveHost) -> None:
    """The module cannot be loaded again for a while: the rest is undone all the same."""
    before = small.snapshot()
    foreign = small.write("/etc/modprobe.d/theirs.conf")

    def forbid(line: str) -> None:
        if line.startswith("prove"):
            foreign.write_text("install nf_conntrack /bin/false\n")
            raise HostError("enough", "here")

    with pytest.raises(RollbackError, match=r"here: enough; and rolling back failed in part: .*modprobe") as caught:
        apply(small, progress=forbid)
    assert "cloudinit-conntrack revert" in caught.value.remedy
    assert small.read(RULES) == SMALL
    assert [entry.number for entry in entries(small)] == [1]
    with pytest.raises(RollbackError, match="an earlier apply was cut off, and undoing it failed"):
        apply(small)
    assert revert(small).problems != ()
    foreign.unlink()
    assert revert(small).problems == ()
    assert small.snapshot() == before


def test_a_revert_that_failed_in_part_comes_out_right_the_second_time(small: LiveHost) -> None:
    """Two applies; the newer cannot be undone at first.  The older must not be forgotten meanwhile."""
    before = small.snapshot()
    apply(small, "stateless")
    flows = {"frontends": [80]}
    assert forked(partial(outcome, small, "notrack", flows=flows), network=True) == "done"
    small.fault(1, "fail")
    found = revert(small)
    assert (len(found.problems), found.actions) == (1, ())
    assert [entry.number for entry in entries(small)] == [1, 2]
    assert revert(small).problems == ()
    assert small.snapshot() == before
    assert journal_is_empty(small)


# --- what is kept, and what is damaged -------------------------------------------------


def test_the_kept_section(small: LiveHost) -> None:
    apply(small, "stateless", persist=False)
    assert kept(small) is None
    apply(small, "stateless")
    assert kept(small) == {"mode": "stateless"}
    apply(small)
    assert kept(small) == {"mode": "unload"}
    mode = (small.tree / STATE.strip("/") / "desired.json").stat().st_mode & 0o777
    assert mode == 0o600


def test_a_failed_apply_does_not_touch_the_kept_section(small: LiveHost) -> None:
    apply(small, "stateless")
    small.hold("xt_conntrack")
    with pytest.raises(HostError):
        apply(small)
    assert kept(small) == {"mode": "stateless"}


def test_a_damaged_kept_section_is_written_anew(small: LiveHost) -> None:
    small.write(f"{STATE}/desired.json", "{")
    assert apply(small).outcome == "done"
    assert kept(small) == {"mode": "unload"}


def test_a_damaged_journal_stops_everything(small: LiveHost) -> None:
    apply(small)
    file = small.tree / journal.PATH.strip("/")
    file.write_bytes(file.read_bytes().replace(b"unload", b"umload", 1))
    before = small.snapshot()
    for act in (lambda: apply(small, "stateless"), lambda: revert(small)):
        with pytest.raises(JournalError, match=rf"{journal.PATH}:1: the journal is damaged here"):
            act()
    assert small.snapshot() == before


def test_what_a_cut_off_apply_left_is_told(small: LiveHost) -> None:
    assert (
        forked(lambda: apply(small, progress=lambda line: os.kill(os.getpid(), 9) if "prove" in line else None)) == -9
    )
    small.write(RULES, "# mine\n", 0o600)
    found = apply(small)
    assert found.notes == (
        "an earlier apply was cut off and was rolled back first",
        f"{RULES} was changed since; that version is kept as {STATE}/kept/etc_sysconfig_iptables",
    )


def test_an_image_made_of_an_applied_host_does_not_reach_this_kernel(small: LiveHost) -> None:
    """Its journal names rules and modules, but the kernel that runs is another one's."""
    apply(small)
    small.clear_changes()
    found = transaction.revert(Root(str(small.tree)), quiet)
    assert small.changes() == []
    assert found.problems == ()
    assert [note.partition(":")[0] for note in found.notes] == [
        "module nf_conntrack", "module xt_conntrack", "live rules, iptables-legacy ipv4"]  # fmt: skip
    assert small.read(RULES) == SMALL
    assert not (small.tree / BLOCK.strip("/")).exists()


def test_a_baked_image_is_reverted_on_the_host_that_it_became(small: LiveHost) -> None:
    before = small.snapshot()
    section = {"mode": "unload"}
    image = Root(str(small.tree))
    assert transaction.apply(desired_from_section(section), section, image, False, quiet).outcome == "done"
    assert small.changes() == []
    assert revert(small).problems == ()
    assert (small.snapshot(), small.changes()) == (before, [])


def test_reverted_actions_are_told_in_their_order(small: LiveHost) -> None:
    apply(small)
    actions = revert(small).actions
    assert [action.id for action in actions] == [
        f"file:{BLOCK}",
        "module:nf_conntrack",
        "module:xt_conntrack",
        "rules:legacy:ipv4",
        f"file:{RULES}",
    ]
    first = actions[0]
    assert isinstance(first, WriteFile) and first.after is None
