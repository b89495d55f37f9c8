"""Golden native rule-sets: ``nft/NAME/in.json`` becomes ``out.nft``, or is refused with ``blockers``.

``in.nft`` is what we wrote, ``in.json`` what ``nft -j list ruleset`` makes of it, ``out.nft`` what
the real nft lists after it has loaded our result.

``PYTHONPATH=. .venv/bin/python tests/unit/test_nft_golden.py`` writes what is expected anew, to be read in the diff.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from nft_kernel import load

from cloudinit_conntrack.netfilter.nft_difference import compare_nft
from cloudinit_conntrack.netfilter.nft_ruleset import format_nft, parse_nft
from cloudinit_conntrack.netfilter.nft_stateless import make_stateless_nft
from cloudinit_conntrack.netfilter.nft_words import rule_text
from cloudinit_conntrack.netfilter.nft_work import NftRewritten
from cloudinit_conntrack.netfilter.stateless import Policy

FOLDERS = sorted(path.parent for path in Path(__file__).parent.glob("nft/*/in.json"))
NAMES = [folder.name for folder in FOLDERS]


def policy_of(folder: Path) -> Policy:
    path = folder / "policy"
    given = dict(line.split("=") for line in path.read_text().splitlines()) if path.exists() else {}
    return Policy(stateful=given.get("stateful", "rewrite"), nat=given.get("nat", "refuse"))


def rewritten(folder: Path) -> NftRewritten:
    return make_stateless_nft(parse_nft((folder / "in.json").read_text(), "in.json"), policy_of(folder))


def told(done: NftRewritten) -> dict[str, str]:
    """What the folder's files must hold, beside ``out.nft``."""
    notes = "".join(f"{note}\n" for note in done.notes)
    if done.blockers:
        blockers = "".join(f"{b.line}: {b.rule}\n   {b.reason}; {b.remedy}\n" for b in done.blockers)
        return {"blockers": blockers + notes}
    changes = ""
    for change in done.changes:
        changes += f"{change.line}: {change.rule}\n" + "".join(f"   -> {text}\n" for text in change.becomes)
        changes += f"   {change.reason}\n" + (f"   widens: {change.widens}\n" if change.widens else "")
    return {"changes": changes + notes}


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_golden(folder: Path) -> None:
    expected = {name: (folder / name).read_text() for name in ("changes", "blockers") if (folder / name).exists()}
    assert told(rewritten(folder)) == expected


def test_there_are_golden_folders() -> None:
    assert len(FOLDERS) >= 20


def test_nft_lists_what_we_have_of_it() -> None:
    """``in.json`` is no invention: the real nft prints it, and we write it back byte for byte."""
    for folder, loaded in zip(FOLDERS, load([(f / "in.nft").read_text() for f in FOLDERS], as_json=False)):
        assert (loaded.code, loaded.error) == (0, ""), folder.name
        kept = (folder / "in.json").read_text()
        assert without_handles(loaded.json) == without_handles(kept)
        assert format_nft(parse_nft(kept)) == kept


def test_nft_loads_every_result() -> None:
    """G1 and G5 by the real nft: what it lists after loading has no conntrack, and stays as it is."""
    done = {folder: rewritten(folder) for folder in FOLDERS}
    whole = [folder for folder in FOLDERS if not done[folder].blockers]
    assert len(whole) >= 14
    for folder, loaded in zip(whole, load(format_nft(done[folder].ruleset) for folder in whole)):
        assert (loaded.code, loaded.error) == (0, ""), folder.name
        assert loaded.text == (folder / "out.nft").read_text()
        assert not re.search(r"\bct (state|mark|status)|notrack|type nat", loaded.text)
        listed = parse_nft(loaded.json)
        again = make_stateless_nft(listed, policy_of(folder))
        assert (again.changes, again.blockers) == ((), ()), folder.name
        assert [rule_text(e) for e in listed.of_kind("rule")] == loaded_order(done[folder])


def loaded_order(done: NftRewritten) -> list[str]:
    """The rules as nft prints them after loading: by chain, in its own words for values."""
    (loaded,) = load([format_nft(done.ruleset)])
    return [rule_text(entry) for entry in parse_nft(loaded.json).of_kind("rule")]


def without_handles(text: str) -> object:
    own = ("handle", "version", "release_name")

    def stripped(value: object) -> object:
        if isinstance(value, dict):
            return {key: stripped(inner) for key, inner in value.items() if key not in own}
        return [stripped(item) for item in value] if isinstance(value, list) else value

    return stripped(json.loads(text))


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_no_handshake_is_newly_let_in(folder: Path) -> None:
    """G3 by the computed difference, which knows nothing of what the rewrite meant."""
    done = rewritten(folder)
    if "remove" in (policy_of(folder).stateful, policy_of(folder).nat):
        return  # what a removed rule refused is let in, as asked
    for family, found in compare_nft(parse_nft((folder / "in.json").read_text()), done.ruleset).items():
        assert not found.handshakes, f"{family}: {[str(told) for told in found.handshakes]}"


def write_expected() -> None:
    """Write every expected file anew."""
    sources = sorted(Path(__file__).parent.glob("nft/*/in.nft"))
    for source in sources:
        (listed,) = load([source.read_text()], as_json=False)  # each in a namespace of its own: handles count from 1
        assert listed.code == 0, f"{source}: {listed.error}"
        folder = source.parent
        (folder / "in.json").write_text(listed.json)
        done = rewritten(folder)
        for name in ("changes", "blockers", "out.nft"):
            (folder / name).unlink(missing_ok=True)
        for name, text in told(done).items():
            (folder / name).write_text(text)
        if not done.blockers:
            (loaded,) = load([format_nft(done.ruleset)])
            assert loaded.code == 0, f"{source}: {loaded.error[:2000]}"
            (folder / "out.nft").write_text(loaded.text)


if __name__ == "__main__":
    write_expected()
