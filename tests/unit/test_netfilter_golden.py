"""Golden rule-sets: ``rewrite/NAME/in.v4`` becomes ``out``, or is refused with ``blockers``.

``python3 tests/unit/test_netfilter_golden.py`` writes what is expected anew, to be read in the diff.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from netfilter_kernel import BACKENDS, load

from cloudinit_conntrack.netfilter.iptables import parse_ruleset
from cloudinit_conntrack.netfilter.ruleset import format_ruleset
from cloudinit_conntrack.netfilter.stateless import Policy, Rewritten, make_stateless

FOLDERS = sorted(path.parent for path in Path(__file__).parent.glob("rewrite/*/in.v?"))
FAMILY = {".v4": "ipv4", ".v6": "ipv6"}


def source_of(folder: Path) -> Path:
    (path,) = folder.glob("in.v?")
    return path


def family_of(folder: Path) -> str:
    return FAMILY[source_of(folder).suffix]


def policy_of(folder: Path) -> Policy:
    path = folder / "policy"
    given = dict(line.split("=") for line in path.read_text().splitlines()) if path.exists() else {}
    return Policy(stateful=given.get("stateful", "rewrite"), nat=given.get("nat", "refuse"))


def rewritten(folder: Path) -> Rewritten:
    text = source_of(folder).read_text()
    return make_stateless(parse_ruleset(text, family_of(folder), source_of(folder).name), policy_of(folder))


def told(done: Rewritten) -> dict[str, str]:
    """What the folder's files must hold."""
    if done.blockers:
        return {"blockers": "".join(f"{b.line}: {b.reason}; {b.remedy}\n" for b in done.blockers)}
    changes = "".join(
        f"{c.line}: {c.reason}\n" + (f"   widens: {c.widens}\n" if c.widens else "") for c in done.changes
    )
    return {"out": format_ruleset(done.ruleset), "changes": changes + "".join(f"{note}\n" for note in done.notes)}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_golden(folder: Path) -> None:
    expected = {
        name: (folder / name).read_text() for name in ("out", "changes", "blockers") if (folder / name).exists()
    }
    assert told(rewritten(folder)) == expected


def test_there_are_golden_folders() -> None:
    assert len(FOLDERS) >= 20


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_kernel_loads_every_golden_output(family: str, backend: str) -> None:
    outputs = {
        folder.name: folder / "out"
        for folder in FOLDERS
        if family_of(folder) == family and (folder / "out").exists()
    }
    assert outputs
    for name, loaded in zip(outputs, load((path.read_text() for path in outputs.values()), family, backend)):
        assert loaded.code == 0, f"{name}: {loaded.error}"


def write() -> None:
    for folder in FOLDERS:
        for name in ("out", "changes", "blockers"):
            (folder / name).unlink(missing_ok=True)
        for name, text in told(rewritten(folder)).items():
            (folder / name).write_text(text)


if __name__ == "__main__":
    write()
