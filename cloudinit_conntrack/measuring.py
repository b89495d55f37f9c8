"""The verb ``metrics``: look at the running host as verify does, and tell monitoring.

Nothing is changed but the file that the caller names, and no module is loaded.  One thing that
cannot be looked at hides no other: it is said on stderr, and ``scrape_error`` is 1.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Callable, TypeVar

from . import __version__, lastgood, unchanged, verify
from .config import Desired, desired_from_section
from .errors import ConntrackError
from .host import inputs, journalfile, pending, service, stamp, tracking
from .host.kernel import observe_kernel
from .host.root import Root
from .metrics import LastRun, Measured, Standing, exposition

Found = TypeVar("Found")


def measure(root: Root, section: object, output: str | None) -> int:
    """Measure the host against *section*, or else the kept one; gives the exit code.

    The text goes to stdout, or replaces the file *output* at once.  HostError when it cannot be written.
    """
    text = exposition(measured(root, section))
    if output in (None, "-"):
        sys.stdout.write(text)
    else:
        inputs.replace_output(str(output), text.encode())
    return 0


def measured(root: Root, section: object = None) -> Measured:
    """One look at the running host, in the tree *root*."""
    began = stamp.clock()
    looks = _Looks()
    desired = looks.at(lambda: _desired(root, section))
    found = Measured(
        __version__, stamp.wall_clock(), 0.0, True, desired.mode if desired else "",
        kernel=looks.at(lambda: observe_kernel(root)),
        standing=looks.at(lambda: _standing(desired, section is None, root)) if desired else None,
        unconfirmed=looks.at(lambda: pending.read(root) is not None),
        unloadable=looks.at(lambda: len(lastgood.standing(root))),
        last=looks.at(lambda: _last(root)),
        boot_failed=looks.at(lambda: service.has_failed(root)),
        boot_enabled=looks.at(lambda: _enabled(root)),
    )  # fmt: skip
    if found.kernel and found.kernel.conntrack != "absent":
        found = replace(found, counters=looks.at(lambda: tracking.counters(root)))
    return replace(found, seconds=round(stamp.clock() - began, 4), complete=not looks.failed)


class _Looks:
    """Looks that may fail one by one."""

    def __init__(self) -> None:
        self.failed = False

    def at(self, look: Callable[[], Found]) -> Found | None:
        """What *look* gives; ``None`` where it fails, and that is said."""
        try:
            return look()
        except ConntrackError as error:
            self.failed = True
            print(f"cloudinit-conntrack: {error}", file=sys.stderr)
            return None


def _desired(root: Root, section: object) -> Desired | None:
    known = section if section is not None else journalfile.kept_desired(root)
    return None if known is None else desired_from_section(known)


def _standing(desired: Desired, kept: bool, root: Root) -> Standing:
    known = unchanged.verified(root) if kept else None  # as verify does it
    if known is not None:
        return Standing(known.mode, 0, 0, tuple(e.holds for e in known.evidence), True)
    found = verify.look(desired, root, True)
    plan = found.plan
    verified = found.holds and not lastgood.standing(root)
    return Standing(plan.mode, len(plan.actions), len(plan.blockers), tuple(e.holds for e in found.evidence), verified)


def _last(root: Root) -> LastRun | None:
    """The last report of this boot; ``None`` where there is none, or none that can be read."""
    image = root.read_image(journalfile.RESULT)
    if image is None:
        return None
    try:
        found = json.loads(image.content)
        seconds = found.get("run", {}).get("seconds")
        return LastRun(str(found["outcome"]), image.mtime_ns / 1e9, None if seconds is None else float(seconds))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConntrackError(f"it is damaged ({error})", journalfile.RESULT, "apply again") from None


def _enabled(root: Root) -> bool | None:
    boot = service.observe_service(root)
    return bool(boot.link and (boot.unit or boot.packaged) and not boot.taken) if boot.systemd else None
