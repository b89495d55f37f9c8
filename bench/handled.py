"""Runs inside a machine: ``cloud-init single --name conntrack`` with our handle() timed, or a shell script timed.

Standard input: JSON, either ``{"user_data": text}`` or ``{"script": text}``.  Standard output: JSON with the exit
status, and the wall and processor seconds (this process and the children that it has waited for).
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path

USER_DATA = Path("/var/lib/cloud/instance/cloud-config.txt")
COMMAND = ["cloud-init", "single", "--name", "conntrack", "--frequency", "always"]


def clocks() -> list[float]:
    """Wall and processor seconds up to now."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return [time.perf_counter(), sum(one.ru_utime + one.ru_stime for one in used)]


def handled(text: str) -> tuple[int, list[list[float]]]:
    """cloud-init itself reads, merges and calls; the clocks are looked at around its call of our module."""
    from cloudinit.cmd import main

    import cc_conntrack  # cloud-init finds the same one

    USER_DATA.write_text(text)
    seen = []
    handle = cc_conntrack.handle

    def between(*words: object, **named: object) -> None:
        seen.append(clocks())
        handle(*words, **named)
        seen.append(clocks())

    cc_conntrack.handle = between
    return main.main(COMMAND) or 0, seen


def scripted(text: str) -> tuple[int, list[list[float]]]:
    """The script, by a shell of its own."""
    Path("/run/recipe").write_text(text)
    before = clocks()
    child = os.posix_spawn("/bin/sh", ["sh", "-e", "/run/recipe"], os.environ)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, [before, clocks()]


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    answer = os.dup(1)
    os.dup2(2, 1)  # what cloud-init and the script say is not the answer
    code, (began, ended) = handled(asked["user_data"]) if "user_data" in asked else scripted(asked["script"])
    wall, cpu = (late - early for early, late in zip(began, ended))
    os.write(answer, json.dumps({"code": code, "wall": wall, "cpu": cpu}).encode())
