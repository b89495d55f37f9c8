"""The undo log: every action comes back as it was, and damage is refused, never guessed at."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudinit_conntrack import journal
from cloudinit_conntrack.actions import (
    Action,
    DeleteEntries,
    LoadModule,
    LoadNative,
    LoadRules,
    NativeImage,
    ProveLoading,
    UnloadModule,
    WriteFile,
    from_json,
    inverse,
    to_json,
)
from cloudinit_conntrack.errors import JournalError
from cloudinit_conntrack.journal import Entry
from cloudinit_conntrack.state import FileImage

# Texts as they are read from files: any Unicode, and bytes that are none as surrogates.
TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF))
NUMBER = st.integers(0, 2**63)
XATTRS = st.lists(st.tuples(TEXT, st.binary(max_size=8)), max_size=2).map(tuple)
IMAGE = st.builds(FileImage, st.binary(max_size=40), st.integers(0, 0o7777), NUMBER, NUMBER, NUMBER, NUMBER, XATTRS)
PAIRS = st.lists(st.tuples(TEXT, TEXT), max_size=2).map(tuple)
NAMES = st.lists(TEXT, max_size=2).map(tuple)
FLOWS = st.lists(st.tuples(TEXT, NUMBER, NUMBER, TEXT), max_size=2).map(tuple)
NATIVE = st.builds(NativeImage, TEXT, TEXT, TEXT)
ACTIONS: st.SearchStrategy[Action] = st.one_of(
    st.builds(WriteFile, TEXT, st.none() | IMAGE, st.none() | IMAGE, TEXT),
    st.builds(LoadRules, TEXT, TEXT, TEXT, TEXT, TEXT, NAMES, NAMES),
    st.builds(LoadNative, NATIVE, NATIVE, TEXT),
    st.builds(UnloadModule, TEXT, TEXT, PAIRS, PAIRS, st.booleans()),
    st.builds(LoadModule, TEXT, TEXT, PAIRS, PAIRS, st.booleans()),
    st.builds(DeleteEntries, FLOWS, TEXT),
    st.builds(ProveLoading, TEXT, TEXT, TEXT, TEXT),
)

FILE = WriteFile("/etc/sysconfig/iptables", FileImage(b"old\n"), FileImage(b"new\n", 0o600), "it changes")
RULES = LoadRules("nft", "ipv6", "*filter\nCOMMIT\n", "*filter\nCOMMIT\n", "they change", ("nat",), ("raw",))
MODULE = UnloadModule("nf_conntrack", "it is conntrack", (("hashsize", "4096"),), (("a.b", "1"),), True)
WHOLE = b"".join(
    (
        journal.begin(1, "boot", "unload", ("nf_conntrack",), (FILE, RULES)),
        journal.intent(1, 0),
        journal.intent(1, 1),
        journal.commit(1, ("x_tables",)),
        journal.begin(2, "boot", "stateless", (), (MODULE, RULES)),
        journal.intent(2, 0),
    )
)
FIRST = Entry(1, "boot", "unload", ("nf_conntrack",), (FILE, RULES), True, ("x_tables",),
              planned=(FILE, RULES))
SECOND = Entry(2, "boot", "stateless", (), (MODULE,), planned=(MODULE, RULES))


def checked(text: str) -> bytes:
    """*text* as a line with its checksum."""
    return f"{text}\t{hashlib.sha256(text.encode()).hexdigest()[:16]}\n".encode()


@settings(max_examples=60)
@given(st.lists(ACTIONS, max_size=3))
def test_every_action_comes_back(actions: list[Action]) -> None:
    all_ = tuple(actions)
    lines = [journal.begin(7, "b", "unload", ("m",), all_), *(journal.intent(7, at) for at in range(len(all_)))]
    assert journal.parse(b"".join(lines)) == (Entry(7, "b", "unload", ("m",), all_, planned=all_),)


@settings(max_examples=60)
@given(ACTIONS)
def test_json_of_an_action_is_plain(action: Action) -> None:
    assert from_json(json.loads(json.dumps(to_json(action)))) == action


@settings(max_examples=60)
@given(ACTIONS)
def test_undoing_twice_is_doing(action: Action) -> None:
    back = inverse(action)
    if back is None:
        assert isinstance(action, (DeleteEntries, ProveLoading))
        return
    again = inverse(back)
    assert again is not None and back.id == action.id
    plain = to_json(again)
    plain["reason"], plain["force"] = action.reason, getattr(action, "force", False)
    assert plain == {"force": False, **to_json(action)}


def test_a_whole_journal() -> None:
    assert journal.parse(WHOLE) == (FIRST, SECOND)
    assert journal.open_entry(journal.parse(WHOLE)) == SECOND
    assert journal.parse(WHOLE + journal.undone(2)) == (FIRST,)
    assert journal.open_entry((FIRST,)) is None
    assert journal.parse(WHOLE + journal.undone(2) + journal.undone(1)) == ()
    assert journal.parse(b"") == ()
    assert WHOLE.isascii()


def test_a_whole_apply_that_is_being_undone_is_open_again() -> None:
    half = WHOLE + journal.undone(2) + journal.undoing(1)
    found = journal.parse(half)
    assert found == (replace(FIRST, undoing=True),)
    assert journal.open_entry(found) == found[0]
    assert journal.parse(half + journal.undone(1)) == ()


def test_a_number_is_used_again_after_undoing() -> None:
    again = journal.begin(1, "c", "notrack", (), (FILE,)) + journal.intent(1, 0)
    first = journal.begin(1, "b", "unload", (), (RULES,)) + journal.intent(1, 0) + journal.undone(1)
    assert journal.parse(first + again) == (Entry(1, "c", "notrack", (), (FILE,), planned=(FILE,)),)


def test_a_later_boot_undoes_what_saved_files_brought_about() -> None:
    half = Entry(1, "boot", "unload", (), (FILE,), planned=(FILE, RULES, FILE, MODULE))
    assert journal.to_undo(half, "boot") == (FILE,)
    assert journal.to_undo(half, "later") == (FILE, RULES, MODULE)
    assert journal.to_undo(replace(half, actions=()), "later") == ()
    assert journal.to_undo(replace(half, actions=half.planned, closed=True), "later") == half.planned


def test_a_line_torn_at_any_byte_was_never_acted_on() -> None:
    start = WHOLE.rindex(b"\n", 0, -1) + 1
    for end in range(start, len(WHOLE)):
        assert journal.parse(WHOLE[:end]) == (FIRST, replace(SECOND, actions=())), end


def test_a_last_line_with_holes_was_never_acted_on() -> None:
    """Its size was on disk, and not all of its blocks."""
    start = WHOLE.rindex(b"\n", 0, -1) + 1
    end = len(WHOLE)
    for first, last in ((start, end), (start, end - 1), (start + 4, end), (start + 4, start + 9), (end - 1, end)):
        torn = WHOLE[:first] + bytes(last - first) + WHOLE[last:]
        assert journal.parse(torn) == (FIRST, replace(SECOND, actions=())), (first, last)
        assert journal.whole(torn) == WHOLE[:start]
    assert journal.whole(WHOLE) == WHOLE and journal.whole(b"") == b"" == journal.whole(bytes(5) + b"\n")
    with pytest.raises(JournalError, match="damaged here"):  # a line that was synced before the next was written
        journal.parse(WHOLE[: start - 20] + bytes(4) + WHOLE[start - 16:])


@pytest.mark.parametrize("change", [0x01, 0x80, ord("\n") ^ ord("\t")])
def test_a_flipped_byte_anywhere_is_refused_by_its_line(change: int) -> None:
    for place in range(len(WHOLE)):
        damaged = bytearray(WHOLE)
        damaged[place] ^= change
        with pytest.raises(JournalError) as caught:
            journal.parse(bytes(damaged))
        # a newline that is one no more makes one line of two
        assert caught.value.where == f"{journal.PATH}:{WHOLE.count(bytes([10]), 0, place) + 1}"
        assert caught.value.remedy


@settings(max_examples=150)
@given(st.binary(max_size=60) | st.builds(lambda a, b: WHOLE[:a] + b + WHOLE[a:], st.integers(0, 900), st.binary()))
def test_arbitrary_bytes_are_read_or_refused(content: bytes) -> None:
    try:
        found = journal.parse(content)
    except JournalError as error:
        assert error.where.startswith(f"{journal.PATH}:")
    else:
        assert all(isinstance(entry, Entry) for entry in found)


@pytest.mark.parametrize("version", [0, 1, 99, "1", None])
def test_another_version_is_refused(version: object) -> None:
    text = json.dumps({"journal": version, "kind": "begin"})
    with pytest.raises(JournalError, match=r"not of version 2.*the release that wrote it"):
        journal.parse(checked(text))


@pytest.mark.parametrize("text", ["", "{", "[]", "1", "null", '{"journal": 2', "[" * 100_000, "NaN"])
def test_a_checked_line_that_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(JournalError):
        journal.parse(checked(text))


FOREIGN: list[dict[str, object]] = [
    {"kind": "strange", "number": 1},
    {"number": 1},
    {"kind": "begin"},
    {"kind": "begin", "number": "x"},
    {"kind": "begin", "number": None, "boot": "", "mode": "", "modules": []},
    {"kind": "begin", "number": 1, "boot": "", "mode": "", "modules": 5},
    {"kind": "commit", "number": 1, "loaded": []},
    {"kind": "act", "number": 1, "at": 0},
    {"kind": "undone", "number": 1},
]
ACTS: list[object] = [
    None,
    {},
    {"action": "Format"},
    {"action": "WriteFile"},
    {**to_json(FILE), "extra": 1},
    {**to_json(FILE), "before": "text"},
    {**to_json(FILE), "before": {"content": "not base64!"}},
    {**to_json(FILE), "after": {**to_json(FILE)["after"], "xattrs": [["a"]]}},
]


@pytest.mark.parametrize("fields", FOREIGN)
def test_foreign_records_are_refused(fields: dict[str, object]) -> None:
    kind = str(fields.get("kind", ""))
    line = journal.record(**{"kind": kind, **fields})  # type: ignore[arg-type]
    with pytest.raises(JournalError, match="a record that we did not write"):
        journal.parse(line)


@pytest.mark.parametrize("act", ACTS)
def test_foreign_actions_are_refused(act: object) -> None:
    with pytest.raises(JournalError, match="a record that we did not write") as caught:
        journal.parse(journal.record("begin", number=1, boot="", mode="unload", modules=[], plan=[to_json(FILE), act]))
    assert caught.value.where == f"{journal.PATH}:1"


@pytest.mark.parametrize("at", [1, 2, -1, "0", None, [], 0.5])
def test_an_act_out_of_its_turn_is_refused(at: object) -> None:
    with pytest.raises(JournalError, match="a record that we did not write") as caught:
        journal.parse(journal.begin(1, "", "unload", (), (FILE, RULES)) + journal.record("act", number=1, at=at))
    assert caught.value.where == f"{journal.PATH}:2"
