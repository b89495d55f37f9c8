"""The kernel's own word: rule-sets loaded by the real restore programs, in a network namespace of their own."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PREFIX = {"ipv4": "iptables", "ipv6": "ip6tables"}
BACKENDS = ("legacy", "nft")

# Each input is loaded whole (restore flushes each table that it names; the rest is flushed here).
_SCRIPT = """
cd "$1"
for file in in.*; do
  "$2-restore" < "$file" > "err.${file#in.}" 2>&1
  echo $? > "rc.${file#in.}"
  "$2-save" > "out.${file#in.}"
  for table in filter raw mangle nat security; do "$2" -t "$table" -F; "$2" -t "$table" -X; done 2> /dev/null
done
true
"""


@dataclass(frozen=True)
class Loaded:
    """What a restore program said (*error*; its exit code) and what the save program then prints."""

    code: int
    error: str
    saved: str


def load(texts: Iterable[str], family: str, backend: str, timeout: float = 120) -> list[Loaded]:
    """Load each of *texts* into a fresh network namespace, one after another."""
    program = f"{PREFIX[family]}-{backend}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, text in enumerate(texts):
            (folder / f"in.{number:06}").write_bytes(text.encode("utf-8", "surrogateescape"))
        command = ["unshare", "--net", "sh", "-c", _SCRIPT, "sh", name, program]
        # a lock of its own: other tests work in namespaces of theirs, and a legacy restore does not wait
        environment = {"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "XTABLES_LOCKFILE": f"{name}/lock"}
        subprocess.run(command, check=True, timeout=timeout, env=environment)
        return [_loaded(folder, path.suffix) for path in sorted(folder.glob("in.*"))]


def _loaded(folder: Path, suffix: str) -> Loaded:
    def read(kind: str) -> str:
        return (folder / f"{kind}{suffix}").read_bytes().decode("utf-8", "surrogateescape")

    return Loaded(int(read("rc")), read("err"), read("out"))


def rules_of(saved: str) -> list[str]:
    """The lines of a save's text that hold something: no comments, counters or tables left empty."""
    return [line for line in saved.split("\n") if line.startswith("-A")]
