"""Which of many rules a real restore program accepts, and what the save program prints for each.

Rules are loaded together, in a network namespace of their own; where one of them is refused
the rest is tried again in halves, so that a thousand rules need some hundred starts of the
program and not thousands.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .extension_rules import Candidate

PREFIX = {"ipv4": "iptables", "ipv6": "ip6tables"}
TABLES = ("raw", "mangle", "nat", "filter", "security")
# $1 is a folder of inputs named NUMBER.TABLE, $2 the program's name.
_SCRIPT = """
cd "$1"
for file in in.*; do
  number=${file#in.}
  "$2-restore" < "$file" > "err.$number" 2>&1
  echo $? > "rc.$number"
  "$2-save" -t "${number#*.}" > "out.$number"
done
"""


class Loaded(NamedTuple):
    """What became of one file: the rules that the save program prints, the error of the restore program."""

    accepted: bool
    saved: tuple[str, ...]
    error: str


@dataclass(frozen=True)
class Outcome:
    """What became of one rule: the lines of the save program, or the error of the restore program."""

    candidate: Candidate
    accepted: bool
    saved: tuple[str, ...] = ()
    error: str = ""


def file_of(table: str, texts: Sequence[str]) -> str:
    """A restore program's whole input."""
    return "\n".join([f"*{table}", *texts, "COMMIT", ""])


def outcomes(all_candidates: Sequence[Candidate], family: str, backend: str) -> list[Outcome]:
    """What became of each of *all_candidates* (of one *family*), in their order."""
    found: dict[Candidate, Outcome] = {}
    # an inserted rule would stand before its neighbours
    alone = [c for c in all_candidates if c.refused or not c.text.startswith("-A ")]
    groups = [[c] for c in alone]
    for table in TABLES:
        # few in one file: a refused rule costs its neighbours
        mine = [c for c in all_candidates if c.table == table and c not in alone]
        groups += [mine[at : at + 24] for at in range(0, len(mine), 24)]
    while groups:
        halves: list[list[Candidate]] = []
        for group, loaded in zip(groups, _tried(groups, PREFIX[family] + "-" + backend)):
            if len(group) == 1:
                found[group[0]] = Outcome(group[0], *loaded)
            elif loaded.accepted and len(loaded.saved) == len(group):
                found.update(zip(group, _each(group, loaded.saved)))
            else:
                halves += [group[: len(group) // 2], group[len(group) // 2 :]]
        groups = halves
    return [found[c] for c in all_candidates]


def _each(group: Sequence[Candidate], saved: Sequence[str]) -> list[Outcome]:
    """Pair rules with what was printed: a save prints chain after chain, each in its order."""
    left = list(saved)
    paired: list[Outcome] = []
    for candidate in group:
        chain = candidate.text.split()[1]
        line = next((x for x in left if x.split()[1] == chain), "")
        if line:
            left.remove(line)
        paired.append(Outcome(candidate, True, (line,) if line else ()))
    return paired


def _tried(groups: Sequence[Sequence[Candidate]], program: str) -> list[Loaded]:
    return load([(group[0].table, file_of(group[0].table, [c.text for c in group])) for group in groups], program)


def load(files: Sequence[tuple[str, str]], program: str) -> list[Loaded]:
    """Restore each (table, text) into one network namespace, and save its table.

    *program* is ``iptables-legacy``, ``ip6tables-nft`` ...
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        names = [f"{number:05}.{table}" for number, (table, _) in enumerate(files)]
        for end, (_, text) in zip(names, files):
            (folder / f"in.{end}").write_text(text)
        command = ["unshare", "--net", "sh", "-c", _SCRIPT, "sh", name, program]
        # a lock of its own: other tests work in namespaces of theirs, and a legacy restore does not wait
        environment = {"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "XTABLES_LOCKFILE": f"{name}/lock"}
        # what the programs say on stderr beside a restore's own error: a missing /etc/xtables/connlabel.conf
        subprocess.run(command, check=True, timeout=300, env=environment, stderr=subprocess.DEVNULL)
        return [_read(folder, end) for end in names]


def _read(folder: Path, end: str) -> Loaded:
    saved = (folder / f"out.{end}").read_text().split("\n")
    accepted = (folder / f"rc.{end}").read_text().strip() == "0"
    error = (folder / f"err.{end}").read_text()
    return Loaded(accepted, tuple(x for x in saved if x.startswith("-A")), error)
