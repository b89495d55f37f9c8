"""cloud-init's boot stages in a machine, run as that version's systemd units run them.

Up to 24.2 each stage is a process.  From 24.3 on Debian runs one process for all of them,
and each stage's unit only tells it to start, in a way that differs between versions: so
the units' own ``ExecStart`` lines are run.
"""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass

from machines import Boot, MachineError

SEED = "/var/lib/cloud/seed/nocloud"
LOG = "/var/log/cloud-init.log"

SEPARATE = (
    ("cloud-init", "init", "--local"),
    ("cloud-init", "init"),
    ("cloud-init", "modules", "--mode=config"),
    ("cloud-init", "modules", "--mode=final"),
)
UNITS = "/usr/lib/systemd/system"
MAIN_UNIT = "cloud-init-main"
STAGE_UNITS = ("cloud-init-local", "cloud-init-network", "cloud-config", "cloud-final")
LAST_SOCKET = "/run/cloud-init/share/final.sock"

# Switches off cloud-init's own work that a machine without disks and locales cannot do.
QUIET = """\
datasource_list: [NoCloud]
network: {config: disabled}
growpart: {mode: 'off'}
resize_rootfs: false
locale: C.UTF-8
ssh_genkeytypes: [ed25519]
"""

LOG_LINE = re.compile(r"^\S+ \S+ - (?P<source>\S+)\[(?P<level>[A-Z]+)\]: (?P<text>.*)")
QUIET_LEVELS = ("DEBUG", "INFO")


@dataclass(frozen=True)
class LogLine:
    """One record of cloud-init.log; *source* is the Python file that wrote it."""

    source: str
    level: str
    text: str


@dataclass(frozen=True)
class Outcome:
    """How a boot ended, in cloud-init's own words.

    *codes* are the exit statuses of the four stages, *errors* are those of result.json,
    *recoverable* those of status.json as (level, text): a set, since one process counts a
    stage's warnings to the stage after it as well.  Before 23.4 there are none.
    """

    codes: tuple[int, ...]
    errors: tuple[str, ...]
    recoverable: frozenset[tuple[str, str]]
    status: str
    status_code: int
    log: tuple[LogLine, ...]

    @property
    def warnings(self) -> tuple[LogLine, ...]:
        """What the log has above INFO.

        20.4 warns where a machine has no DMI tables; that is none of our business.
        """
        return tuple(line for line in self.log if line.level not in QUIET_LEVELS and line.source != "dmi.py")

    @property
    def ours(self) -> tuple[LogLine, ...]:
        """What our module logged."""
        return tuple(line for line in self.log if line.source == "cc_conntrack.py")

    @property
    def said(self) -> str:
        """The log's texts, to look something up in."""
        return "\n".join(line.text for line in self.log)


def seed(boot: Boot, user_data: str = "#cloud-config\n{}\n", vendor_data: str = "") -> None:
    """Give the machine its instance: NoCloud data, always of the same instance-id."""
    boot.write("/etc/default/locale", "LANG=C.UTF-8\n")
    boot.write("/etc/cloud/cloud.cfg.d/90_test.cfg", QUIET)
    boot.write(f"{SEED}/meta-data", "instance-id: i-conntrack\nlocal-hostname: machine\n")
    boot.write(f"{SEED}/user-data", user_data)
    boot.write(f"{SEED}/vendor-data", vendor_data)


def run_stages(boot: Boot, single_process: bool) -> Outcome:
    """Run the four stages, and read how they ended."""
    before = len(_log(boot))
    codes = _one_process(boot) if single_process else _separate(boot)
    status = boot.attempt("cloud-init", "status", "--long")
    result = json.loads(boot.read("/run/cloud-init/result.json"))["v1"]
    return Outcome(
        codes=codes,
        errors=tuple(result["errors"]),
        recoverable=_recoverable(json.loads(boot.read("/run/cloud-init/status.json"))["v1"]),
        status=status.stdout,
        status_code=status.returncode,
        log=parse_log(_log(boot)[before:]),
    )


def parse_log(text: str) -> tuple[LogLine, ...]:
    """The records of cloud-init.log; lines of tracebacks are left out."""
    found = (LOG_LINE.match(line) for line in text.splitlines())
    return tuple(LogLine(**match.groupdict()) for match in found if match)


def _separate(boot: Boot) -> tuple[int, ...]:
    return tuple(boot.attempt(*stage).returncode for stage in SEPARATE)


def _one_process(boot: Boot) -> tuple[int, ...]:
    stages = [_exec_start(boot, unit) for unit in STAGE_UNITS]
    with boot.spawn(_exec_start(boot, MAIN_UNIT)) as process:
        try:
            _wait_for(boot, LAST_SOCKET)
            codes = tuple(boot.attempt(*stage).returncode for stage in stages)
            process.wait(timeout=20)
        finally:
            process.kill()
    return codes


def _exec_start(boot: Boot, unit: str) -> list[str]:
    found = re.search(r"^ExecStart=(.*)$", boot.read(f"{UNITS}/{unit}.service"), re.MULTILINE)
    if found is None:
        raise MachineError(f"{unit}.service starts nothing")
    return shlex.split(found[1])


def _wait_for(boot: Boot, path: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not (boot.root / path.lstrip("/")).exists():
        if time.monotonic() > deadline:
            raise MachineError(f"{path} did not appear in {seconds} s")
        time.sleep(0.02)


def _log(boot: Boot) -> str:
    return boot.attempt("cat", LOG).stdout


def _recoverable(status: Mapping[str, object]) -> frozenset[tuple[str, str]]:
    stages = [stage.get("recoverable_errors", {}) for stage in status.values() if isinstance(stage, dict)]
    return frozenset((level, text) for found in stages for level, texts in found.items() for text in texts)
