"""Whichever way the section comes to a machine, a boot makes it stateless, and quietly."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from operator import attrgetter

import pytest
from chroots import SUITES, Suite
from machines import Boot, Machine
from stages import Outcome, run_stages, seed
from stateful_host import SECTION, Firewall, files_below, firewall, load_rules, tracked

SINGLE_PROCESS = [suite for suite in SUITES if suite.single_process]
DROP_IN = "/etc/cloud/cloud.cfg.d/95_conntrack.cfg"
OUR_FILES = (
    "etc/modprobe.d/00-cloudinit-conntrack.conf",
    "var/lib/cloudinit-conntrack",
    "run/cloudinit-conntrack",
)
ACCEPTED_PORTS = re.compile(r"^-A INPUT -p tcp .*--dport (\d+) .*-j ACCEPT$", re.MULTILINE)
SCHEMA_WARNING = "cloud-config failed schema validation!"


def by_user_data(boot: Boot) -> None:
    seed(boot, user_data="#cloud-config\n" + SECTION)


def by_vendor_data(boot: Boot) -> None:
    seed(boot, vendor_data="#cloud-config\n" + SECTION)


def by_drop_in(boot: Boot) -> None:
    seed(boot)
    boot.write(DROP_IN, SECTION)


def by_write_files(boot: Boot) -> None:
    content = "".join(f"    {line}\n" for line in SECTION.splitlines())
    seed(boot, user_data=f"#cloud-config\nwrite_files:\n- path: {DROP_IN}\n  content: |\n{content}")


def assert_stateless(before: Firewall, after: Firewall) -> None:
    """The rules no longer ask for state, and still filter; the files hold what is live."""
    assert before.stateful and before.filters
    assert after.stateful == []
    assert after.filters
    assert [set(ACCEPTED_PORTS.findall(text)) for text in after.texts] == [{"22", "80"}] * 4


def assert_ran(outcome: Outcome) -> None:
    """Our module was found by its name, run by cloud-init's own Modules, and told of it at INFO."""
    assert "<module 'cc_conntrack' from '/usr/lib/python3/dist-packages/cc_conntrack.py'>" in outcome.said
    assert "SUCCESS: config-conntrack ran successfully" in outcome.said
    assert {line.level for line in outcome.ours} == {"INFO"}
    assert outcome.codes == (0, 0, 0, 0)
    assert outcome.errors == ()


def assert_clean(outcome: Outcome) -> None:
    """Nobody has anything to say: no WARNING, no DEPRECATED, status done."""
    assert outcome.warnings == ()
    assert not outcome.recoverable
    assert outcome.status.startswith("status: done\n")
    assert outcome.status_code == 0


def boot_stateful(boot: Boot, suite: Suite) -> tuple[Firewall, Outcome, Firewall]:
    """One boot of a host whose firewall is stateful and at work before cloud-init comes."""
    load_rules(boot)
    before = firewall(boot)
    assert tracked(boot)
    outcome = run_stages(boot, suite.single_process)
    return before, outcome, firewall(boot)


@pytest.mark.parametrize("give", [by_vendor_data, by_drop_in, by_write_files])
def test_a_channel_without_schema_leaves_a_clean_status(
    suite: Suite, installed: Machine, give: Callable[[Boot], None]
) -> None:
    with installed.boot() as boot:
        give(boot)
        before, outcome, after = boot_stateful(boot, suite)
        assert_ran(outcome)
        assert_clean(outcome)
        assert_stateless(before, after)
        assert not tracked(boot)


def test_user_data_works_and_only_cloud_inits_schema_complains(suite: Suite, installed: Machine) -> None:
    with installed.boot() as boot:
        by_user_data(boot)
        before, outcome, after = boot_stateful(boot, suite)
        assert_ran(outcome)
        assert_stateless(before, after)
        assert not tracked(boot)
    if not suite.rejects_unknown_keys:
        assert_clean(outcome)
        return
    (warning,) = outcome.warnings
    assert (warning.source, warning.level) == ("schema.py", "WARNING")
    assert warning.text.startswith(SCHEMA_WARNING)
    assert outcome.recoverable == {("WARNING", warning.text)}
    assert "extended_status: degraded done\n" in outcome.status
    assert outcome.status_code == 2


@pytest.mark.parametrize("version", SINGLE_PROCESS, ids=attrgetter("version"))
def test_four_processes_do_the_same(
    version: Suite, installed_on: Callable[[Suite], AbstractContextManager[Machine]]
) -> None:
    """Ubuntu LTS patches the one process out of versions that have it."""
    with installed_on(version) as machine, machine.boot() as boot:
        by_drop_in(boot)
        load_rules(boot)
        before = firewall(boot)
        outcome = run_stages(boot, single_process=False)
        assert_ran(outcome)
        assert_clean(outcome)
        assert_stateless(before, firewall(boot))


def test_the_next_boot_has_nothing_to_do(suite: Suite, installed: Machine) -> None:
    with installed.boot() as boot:
        by_drop_in(boot)
        _, _, first = boot_stateful(boot, suite)
    with installed.boot() as boot:
        load_rules(boot)
        outcome = run_stages(boot, suite.single_process)
        second = firewall(boot)
        assert not tracked(boot)
    assert_ran(outcome)
    assert_clean(outcome)
    assert "nothing to do" in outcome.said
    assert second == first


def test_without_the_section_nothing_happens(suite: Suite, installed: Machine) -> None:
    with installed.boot() as boot:
        seed(boot)
        before, outcome, after = boot_stateful(boot, suite)
        assert_clean(outcome)
        assert [line for line in outcome.ours if line.level != "DEBUG"] == []
        assert after == before
        assert tracked(boot)
        assert [path for path in OUR_FILES if (boot.root / path).exists()] == []


def test_a_run_without_the_section_writes_no_file(suite: Suite, installed: Machine) -> None:
    """What of cloud-init's own work cannot hide: the module alone, on a machine already booted."""
    with installed.boot() as boot:
        seed(boot)
        boot_stateful(boot, suite)
        before = files_below(installed.changed, "var/log", "var/lib/cloud")
        done = boot.attempt("cloud-init", "single", "--name", "conntrack", "--frequency", "always")
        assert done.returncode == 0, done.stderr
        assert files_below(installed.changed, "var/log", "var/lib/cloud") == before
        assert "etc/cloud/cloud.cfg.d/90_test.cfg" in before
