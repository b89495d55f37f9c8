"""The kernel's own word on native rules: loaded by the real nft, in a network namespace of their own."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_SCRIPT = """
cd "$1"
ip link set lo up
for file in in.*; do
  number=${file#in.}
  nft $2 -f "$file" > "err.$number" 2>&1
  echo $? > "rc.$number"
  nft -j list ruleset > "json.$number"
  nft list ruleset > "text.$number"
  nft flush ruleset
done
"""


@dataclass(frozen=True)
class Loaded:
    """What nft said (*error*; its exit code), and what it then lists as *json* and as *text*."""

    code: int
    error: str
    json: str
    text: str


def load(texts: Iterable[str], as_json: bool = True, timeout: float = 120) -> list[Loaded]:
    """Load each of *texts* into the same empty rule-set, one after another."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, text in enumerate(texts):
            (folder / f"in.{number:06}").write_text(text, encoding="utf-8")
        command = ["unshare", "--net", "sh", "-c", _SCRIPT, "sh", name, "-j" if as_json else ""]
        where = {"LC_ALL": "C.UTF-8", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        subprocess.run(command, check=True, timeout=timeout, env=where)
        return [_loaded(folder, path.suffix) for path in sorted(folder.glob("in.*"))]


def _loaded(folder: Path, suffix: str) -> Loaded:
    def read(kind: str) -> str:
        return (folder / f"{kind}{suffix}").read_text(encoding="utf-8")

    return Loaded(int(read("rc")), read("err"), read("json"), read("text"))
