"""Saved nft files that a boot may load or not: what the plan asks of each, and says of one that cannot be loaded."""

from __future__ import annotations

import pytest

from cloudinit_conntrack.actions import ProveLoading
from cloudinit_conntrack.config import Desired, desired_from_section
from cloudinit_conntrack.plan import Plan, make_plan
from cloudinit_conntrack.planning.nativefiles import loaded_at_boot
from cloudinit_conntrack.state import FileImage, Kernel, NativeFile, NativeRules, State, Surroundings, Units

UNIT = frozenset(("nftables.service",))
NONE: frozenset[str] = frozenset()
KERNEL = Kernel("6.1.0", True, False, "absent", False)
CONF = "/etc/nftables.conf"
PLAIN = "flush ruleset\ntable inet filter { chain input { type filter hook input priority 0; }; }\n"
ASKING = "table inet filter { chain input { type filter hook input priority 0; ct state new accept; }; }\n"
UNSUPPORTED = "Error: Could not process rule: Operation not supported"
NOTRACK = desired_from_section({"mode": "notrack", "flows": {"frontends": [80]}})
UNLOAD = desired_from_section({"mode": "unload"})


def host(units: Units, text: str = PLAIN, problem: str = "") -> State:
    file = NativeFile(CONF, FileImage(text.encode()), text, problem=problem)
    return State(KERNEL, native=NativeRules('{"nftables": []}'), native_saved=(file,), default_backend="",
                 surroundings=Surroundings(units))


def ids(plan: Plan) -> tuple[list[str], list[str]]:
    """The blockers and findings about the file."""
    return [b.id for b in plan.blockers], [f.id for f in plan.findings if CONF in f.id]


@pytest.mark.parametrize(
    "units, loaded",
    [
        (Units(), False),
        (Units(installed=UNIT), False),
        (Units(installed=UNIT, masked=UNIT), False),
        (Units(installed=UNIT, enabled=UNIT), True),
        (Units(installed=UNIT, active=UNIT), True),
        (Units(enabled=frozenset(("netfilter-persistent.service",))), False),
    ],
)
def test_a_boot_loads_it_where_its_service_starts(units: Units, loaded: bool) -> None:
    assert loaded_at_boot(host(units)) is loaded
    proved = [action.where for action in make_plan(UNLOAD, host(units)).actions if isinstance(action, ProveLoading)]
    assert bool(proved) is loaded, "under the block only what a boot loads has to load"


def test_what_this_kernel_cannot_load_and_nobody_loads_is_said_with_its_remedy() -> None:
    plan = make_plan(NOTRACK, host(Units(installed=UNIT), problem=UNSUPPORTED))
    assert ids(plan) == ([], [f"unloadable:{CONF}"])
    (finding,) = [f for f in plan.findings if f.id.startswith("unloadable:")]
    assert UNSUPPORTED in finding.reason and "apply again before nftables.service is enabled" in finding.remedy


@pytest.mark.parametrize(
    "desired, units, text, problem",
    [
        (NOTRACK, Units(enabled=UNIT), PLAIN, UNSUPPORTED),  # a boot loads it
        (NOTRACK, Units(), ASKING, UNSUPPORTED),  # it asks for a state
        (UNLOAD, Units(), ASKING, UNSUPPORTED),
        (NOTRACK, Units(), PLAIN, "syntax error, unexpected newline"),  # it is the file's fault, not the kernel's
    ],
)
def test_otherwise_a_file_that_does_not_load_is_a_blocker(
    desired: Desired, units: Units, text: str, problem: str
) -> None:
    assert ids(make_plan(desired, host(units, text, problem))) == ([f"nftables:{CONF}"], [])


@pytest.mark.parametrize("units", [Units(), Units(enabled=UNIT)])
def test_a_file_without_a_state_is_left_alone_where_conntrack_goes(units: Units) -> None:
    assert ids(make_plan(UNLOAD, host(units, problem=UNSUPPORTED))) == ([], [])
