"""docs/reference/files.md: files on the host, units, environment; paths and texts come from the sources."""

from __future__ import annotations

from cloudinit_conntrack import cloudcfg, journal, kmod, perform, service
from cloudinit_conntrack.host import goodrules, journalfile, pending
from cloudinit_conntrack.state import Program
from website import schemas

_STATE = journalfile.DIRECTORY
_OURS = (
    (journal.PATH, "undo log: each act with what it found and what it leaves, synced before it is done", "`apply`",
     "`revert`"),
    (journalfile.DESIRED, "the section of the last `apply`, for `plan`, `verify` and each boot without `-c`",
     "`apply` with `persist: true`", "`revert`"),
    (journalfile.UNCONFIRMED, "an `apply --confirm-within` that waits", "`apply`",
     "`confirm`, `revert`, the end of its time"),
    (journalfile.SEEN, "what earlier boots found with nothing to do; worth no more than time", "a boot", "`revert`"),
    (f"{goodrules.DIRECTORY}/", "the last good rules of each saved file", "`apply` in mode unload", "`revert`"),
    (f"{perform.KEPT}/", "what somebody else had changed, kept aside when it was replaced", "`revert`, `disable`",
     "you take it away"),
    (f"{_STATE}/off", "keeps the program that user-data carries from applying again", "you", "you take it away"),
    (journalfile.RESULT, "the report of the last run, as JSON", "`apply`, `confirm`, a boot", "a reboot"),
    (goodrules.REFUSED, "saved files that did not load in this boot", "a boot", "a reboot"),
    (kmod.BLOCK_PATH, "the block: nothing loads the modules again", "`apply` in mode unload", "`revert`"),
    (service.UNIT, "the boot service, and its link in `sysinit.target.wants`", "`apply` with `persist: true`",
     "`revert`"),
    (cloudcfg.DROP_IN, "cloud-init's module list, with ours last", "`enable`", "`disable`"),
    (cloudcfg.CLEAN, "what `cloud-init clean` runs, so that a clone inherits nothing of this host", "`enable`",
     "`disable`"),
    ("/usr/local/sbin/cloudinit-conntrack", "the reduced program", "user-data made by `userdata`", "you take it away"),
)  # fmt: skip


def page() -> str:
    """The page."""
    ours = schemas.table(("path", "what", "written by", "gone after"), [(f"`{path}`", *rest) for path, *rest in _OURS])
    return schemas.filled("files.md", {
        "OURS": ours,
        "UNIT": service.unit_text(Program("/usr/bin/python3", "/usr/bin/cloudinit-conntrack"), service.FIREWALLS[:2]),
        "BLOCK": _shortened(kmod.modprobe_conf()),
        "PENDING": pending.UNIT,
        "NAME": service.NAME,
    })  # fmt: skip


def _shortened(block: str) -> str:
    lines = block.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("blacklist"))
    return "\n".join((*lines[: first + 3], f"# ... and {len(lines) - first - 3} more of these")) + "\n"
