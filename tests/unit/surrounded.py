"""Plans for small trees: what a test writes into a fake host, and what becomes of it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from fakehost import FakeHost

from cloudinit_conntrack import perform
from cloudinit_conntrack.actions import WriteFile, inverse
from cloudinit_conntrack.config import desired_from_text
from cloudinit_conntrack.host.saved import find_saved
from cloudinit_conntrack.host.surroundings import find_surroundings, restored
from cloudinit_conntrack.plan import Item, Plan, make_plan
from cloudinit_conntrack.state import Kernel, Module, State

LIB, ETC = "/usr/lib/systemd/system", "/etc/systemd/system"
SECTIONS = {
    "notrack": "conntrack: {mode: notrack, flows: {frontends: [80]}, persist: true}",
    "stateless": "conntrack: {mode: stateless}",
    "unload": "conntrack: {mode: unload}",
}
LOADED = Kernel("6.1.0-fake", True, False, "loaded", True, (Module("nf_conntrack", 0, ()),))
ABSENT = Kernel("6.1.0-fake", True, False, "absent", False)


@dataclass(frozen=True)
class Surrounded:
    """A fake host that plans can be made for."""

    host: FakeHost

    def enable(self, *units: str, target: str = "multi-user.target") -> None:
        for unit in units:
            self.host.write(f"{LIB}/{unit}")
            place = self.host.tree / ETC.lstrip("/") / f"{target}.wants"
            place.mkdir(parents=True, exist_ok=True)
            if not (place / unit).is_symlink():
                os.symlink(f"{LIB}/{unit}", place / unit)

    def state(self, kernel: Kernel | None = ABSENT, command_line: str = "") -> State:
        root = self.host.root
        if command_line:
            self.host.write("/proc/cmdline", command_line)
        around = find_surroundings(root, live=kernel is not None)
        return State(kernel, saved=find_saved(root) + restored(root, around), surroundings=around)

    def plan(self, mode: str, kernel: Kernel | None = ABSENT, command_line: str = "") -> Plan:
        desired = desired_from_text(SECTIONS.get(mode, mode).encode(), "test")
        return make_plan(desired, self.state(kernel, command_line))

    def mend(self, plan: Plan, *paths: str) -> dict[str, str]:
        """Write the files of *plan*, and give those of *paths* as they are then."""
        assert plan.blockers == ()
        for action in plan.actions:
            if isinstance(action, WriteFile) and not action.path.startswith("/etc/modprobe.d/00-"):
                perform.check(action, self.host.root)
                perform.perform(action, self.host.root)
        return {path: self.host.read(path) for path in paths}

    def undo(self, plan: Plan) -> None:
        for action in reversed(plan.actions):
            back = inverse(action)
            if isinstance(back, WriteFile) and not back.path.startswith("/etc/modprobe.d/00-"):
                assert perform.undo(back, self.host.root) == ()


def ids(items: tuple[Item, ...]) -> set[str]:
    return {item.id for item in items}
