"""A machine whose processes outlive the command that started them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .applying import BIND, CHECKOUT, ENTER, Machine
from .namespace import Namespace

_PATIENCE = 60.0


@dataclass
class Standing(Machine):
    """One pid and mount namespace for all of its time."""

    first: int = 0  # the process number 1 of that namespace, as seen from here
    ssh: bool = False

    def words(self, *command: str) -> tuple[str, ...]:
        return ("nsenter", "-t", str(self.first), "--mount", "--pid", "--", *command)

    def environment(self) -> dict[str, str]:
        """*ssh*: with what sshd gives its children."""
        env = {**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTHONDONTWRITEBYTECODE": "1", "PATH": self.path}
        return {**env, "SSH_CONNECTION": "10.0.0.9 50022 10.0.0.1 22"} if self.ssh else env

    def run(self, expected: int, verb: str, *options: str) -> subprocess.CompletedProcess[str]:
        words = self.words(sys.executable, "-m", "cloudinit_conntrack", verb, *options)
        done = self.place.run(*words, check=False, env=self.environment())
        said = f"{verb} {options}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr and done.returncode == expected, said
        return done

    def start(self, *command: str, **options: object) -> subprocess.Popen[str]:
        with self.place.inside():
            return subprocess.Popen(self.words(*command), env=self.environment(), text=True, **options)  # type: ignore[call-overload,no-any-return]


@contextmanager
def standing(place: Namespace, backend: str, files: Path) -> Iterator[Standing]:
    """A machine in *place* whose directories :meth:`~.applying.Machine.furnish` has made in *files*."""
    made = Standing(place, backend, files)
    made.prepare()
    with place.inside():
        holder = subprocess.Popen([*ENTER, "sh", "-c", BIND, "sh", str(files), "sh", "-c", "echo up; read end"],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    try:
        assert holder.stdout and holder.stdout.readline() == b"up\n"
        made.first = int(Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text("ascii").split()[0])
        yield made
    finally:
        holder.communicate(b"end\n", timeout=_PATIENCE)
