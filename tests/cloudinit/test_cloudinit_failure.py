"""A failing apply: told as an error, nothing else of the boot suffers, tried again next time."""

from __future__ import annotations

from chroots import Suite
from installation import DIST_PACKAGES
from machines import Boot, Machine
from stages import Outcome, run_stages, seed
from stateful_host import (
    RULES_V4,
    SAVED_V4,
    SAVED_V6,
    SECTION,
    Firewall,
    files_below,
    firewall,
    load_rules,
    tracked,
)

# runcmd is of our stage and comes after us; what it writes runs in the final stage.
USER_DATA = "#cloud-config\nruncmd: [[touch, /the-others-ran]]\n"
DROP_IN = "/etc/cloud/cloud.cfg.d/95_conntrack.cfg"

# The second: 26.2's unit may miss its stage's answer (the process closes the socket with
# the unit's newline unread, which nc takes for an error) and then ends with 0.
FAILED_CODES = ((0, 0, 1, 0), (0, 0, 0, 0))

# Nobody asked for its removal, and stateless is what it cannot be.
NAT = """\
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
-A POSTROUTING -o lo -s 192.0.2.0/24 -j MASQUERADE
COMMIT
"""

OURS_IN_ETC = ("iptables", "modprobe.d", "default", "systemd")


def give(boot: Boot, section: str = SECTION) -> None:
    seed(boot, USER_DATA)
    boot.write(DROP_IN, section)


def assert_failed(outcome: Outcome, *words: str) -> None:
    """One error, ours, in result.json and in the status; the stage's other modules ran."""
    (error,) = outcome.errors
    assert error.startswith("('conntrack', ")
    assert [word for word in words if word not in error] == []
    assert outcome.status.startswith("status: error\n")
    assert error in outcome.status
    assert outcome.status_code == 1
    assert outcome.codes in FAILED_CODES
    assert "SUCCESS: config-runcmd ran successfully" in outcome.said


def test_a_failed_apply_is_undone_told_and_tried_again(suite: Suite, installed: Machine) -> None:
    with installed.boot() as boot:
        give(boot)
        load_rules(boot)
        before = _looks(boot)
        # A mount point cannot be renamed over: writing the second family's file fails.
        boot.run("mount", "--bind", SAVED_V6, SAVED_V6)
        outcome = run_stages(boot, suite.single_process)
        assert_failed(outcome, SAVED_V6)
        assert "RollbackError" not in outcome.errors[0]  # the one file it could not write is as it was
        boot.run("ls", "/the-others-ran")
        assert _looks(boot) == before
        assert tracked(boot)

    with installed.boot() as boot:  # the mount is gone with the boot, and so is the cause
        load_rules(boot)
        outcome = run_stages(boot, suite.single_process)
        assert (outcome.errors, outcome.status_code) == ((), 0)
        assert outcome.warnings == ()
        assert firewall(boot).stateful == []
        assert not tracked(boot)


def test_a_blocked_plan_is_an_error_and_changes_nothing(suite: Suite, installed: Machine) -> None:
    with installed.boot() as boot:
        give(boot)
        boot.write(SAVED_V4, RULES_V4 + NAT)
        load_rules(boot)
        before = _looks(boot)
        outcome = run_stages(boot, suite.single_process)
        assert_failed(outcome, "nat", "POSTROUTING")
        assert _looks(boot) == before
        assert tracked(boot)


def test_without_the_package_only_the_module_fails(suite: Suite, installed: Machine) -> None:
    """What a dist-upgrade of Python or a half-removed package leaves."""
    with installed.boot() as boot:
        boot.run("rm", "-r", f"{DIST_PACKAGES}/cloudinit_conntrack")
        give(boot)
        outcome = run_stages(boot, suite.single_process)
        assert_failed(outcome, "cloudinit_conntrack")
        boot.run("ls", "/the-others-ran")


def _looks(boot: Boot) -> tuple[Firewall, list[dict[str, str]]]:
    return firewall(boot), [files_below(boot.root / "etc" / name, times=False) for name in OURS_IN_ETC]
