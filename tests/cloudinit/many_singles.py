"""Runs inside a machine: ``cloud-init single --name conntrack`` once per user-data, quickly.

Standard input: a JSON list of cloud-config texts.  Each in turn becomes the instance's
merged user-data, and a forked child of this process, which has cloud-init imported already,
is ``cloud-init single``.  Standard output: a JSON list of ``{"code": int, "log": str}``,
the exit status and what cloud-init.log grew by.
"""

import json
import os
import sys
from pathlib import Path

import yaml  # noqa: F401  (imported before the forks, for speed)
from cloudinit import stages  # noqa: F401
from cloudinit.cmd import main

USER_DATA = Path("/var/lib/cloud/instance/cloud-config.txt")
LOG = Path("/var/log/cloud-init.log")
COMMAND = ["cloud-init", "single", "--name", "conntrack", "--frequency", "always"]


def run(text: str) -> "dict[str, object]":
    """One run; the answer is what the module of that name says."""
    USER_DATA.write_text(text)
    before = LOG.stat().st_size
    child = os.fork()
    if child == 0:
        _become_single()
    _, status = os.waitpid(child, 0)
    return {"code": os.waitstatus_to_exitcode(status), "log": LOG.read_text()[before:]}


def _become_single() -> None:
    nowhere = os.open("/dev/null", os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nowhere, descriptor)
    code = 70
    try:
        code = main.main(COMMAND) or 0
    finally:
        os._exit(code)


if __name__ == "__main__":
    print(json.dumps([run(text) for text in json.load(sys.stdin)]))
