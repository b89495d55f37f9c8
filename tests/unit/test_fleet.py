"""The verb ``fleet-report``: which nodes differ and why, the worst first, whatever lies in the files."""

from __future__ import annotations

import copy
import json
import os
import resource
import subprocess
import sys
import time
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stubs import LiveHost
from test_cli import Done, call

from cloudinit_conntrack import comparing, fleet
from cloudinit_conntrack.boot import apply_section
from cloudinit_conntrack.errors import ConntrackError
from cloudinit_conntrack.fleet import Gathering
from cloudinit_conntrack.host import journalfile
from cloudinit_conntrack.host import reports as files
from tests import reports

RULES = "*filter\n:INPUT DROP [0:0]\n-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\nCOMMIT\n"
RUN = {"version": "0.1.0", "host": "h", "time": "2026-01-02T03:04:05Z", "seconds": 1.5}
KNOWN = {"id": "f", "where": "haproxy.cfg", "reason": "flows: 80", "remedy": ""}
WIDER = {"id": "w", "where": "INPUT", "reason": "TCP with ACK to any port", "remedy": ""}
NOTHING: dict[str, Any] = {
    "schema": 1, "mode": "unload", "outcome": "nothing-to-do", "actions": [], "blockers": [], "widenings": [],
    "findings": [KNOWN], "evidence": [{"id": "modules", "holds": True, "what": "no module is loaded"}], "facts": {},
    "run": RUN,
}  # fmt: skip
ACTION = {"id": "module:nf_nat", "verb": "unload", "where": "module nf_nat", "reason": "it is conntrack's",
          "kind": "unload_module", "name": "nf_nat", "parameters": {}, "sysctls": {}, "force": False, "diff": ""}
CARRIED = {"schema": 1, "mode": "unload", "outcome": "done", "actions": [], "blockers": [], "widenings": [],
           "findings": [], "message": ""}  # fmt: skip


def report(**changes: Any) -> dict[str, Any]:
    return {**NOTHING, **changes}


DONE = report(outcome="done", actions=[ACTION], widenings=[WIDER], findings=[])
FAILED = report(outcome="failed", message="nsenter --net=/proc/812/ns/net -- nft: exit status 1", findings=[],
                evidence=[])  # fmt: skip


def lay(place: Path, **nodes: Any) -> Path:
    for name, value in nodes.items():
        text = value if isinstance(value, str) else json.dumps(value)
        (place / f"{name.replace('_', '-')}.json").write_text(text)
    return place


def compared(*paths: str | Path, code: int) -> dict[str, Any]:
    """What is said for programs, as its schema has it."""
    done = call("fleet-report", "--format", "json", *paths)
    assert done.code == code, done
    return reports.valid(json.loads(done.out), reports.FLEET)


def groups(found: dict[str, Any]) -> list[tuple[str, list[str], list[str]]]:
    return [(group["verdict"], group["nodes"], group["differs"]) for group in found["groups"]]


# --- alike, and not ----------------------------------------------------------------------


def test_nodes_that_are_alike_are_one_group(tmp_path: Path) -> None:
    """Those that changed something at this boot too; and a digit does not come before its number."""
    found = compared(lay(tmp_path, lb_1=NOTHING, lb_2=DONE, lb_10=NOTHING), code=0)
    assert found["alike"] and found["nodes"] == 3
    assert groups(found) == [("alike", ["lb-1", "lb-2", "lb-10"], [])]
    assert found["groups"][0]["outcomes"] == {"done": 1, "nothing-to-do": 2}
    said = call("fleet-report", tmp_path).out.decode()
    assert said == ("3 nodes: 3 as desired and alike\n\ndone, nothing to do  mode unload  version 0.1.0  3 nodes\n"
                    "  lb-1 lb-2 lb-10\n")


@pytest.mark.parametrize(
    "axis, change",
    [
        ("mode", {"mode": "stateless"}),
        ("version", {"run": {**RUN, "version": "0.0.9"}}),
        ("version", {"run": {}}),
        ("findings", {"findings": [KNOWN, {**KNOWN, "reason": "more"}]}),
        ("findings", {"findings": []}),
        ("evidence", {"evidence": [{"id": "probe", "holds": None, "what": "could not be sent"}]}),
    ],
)
def test_one_that_is_as_desired_and_differs(axis: str, change: dict[str, Any], tmp_path: Path) -> None:
    found = compared(lay(tmp_path, a=NOTHING, b=NOTHING, c=report(**change)), code=4)
    assert groups(found) == [("differs", ["c"], [axis]), ("alike", ["a", "b"], [])]


@pytest.mark.parametrize("axis", ["widenings", "actions"])
def test_what_only_some_let_in_or_did(axis: str, tmp_path: Path) -> None:
    """Compared among those that changed something: the others could not say."""
    odd = copy.deepcopy(DONE)
    odd[axis].append({**(WIDER if axis == "widenings" else ACTION), "where": "elsewhere"})
    found = compared(lay(tmp_path, a=NOTHING, b=NOTHING, c=DONE, d=DONE, e=odd), code=4)
    assert groups(found) == [("differs", ["e"], [axis]), ("alike", ["a", "b", "c", "d"], [])]
    said = call("fleet-report", tmp_path).out.decode()
    assert f"  only here, {comparing._TITLES[axis]}\n    elsewhere: " in said


def test_the_order_in_a_list_and_the_number_of_a_process_make_no_difference(tmp_path: Path) -> None:
    two = [KNOWN, {**KNOWN, "where": "/proc/12/ns/net/x"}]
    other = [{**KNOWN, "where": "/proc/12/ns/net/x"}, KNOWN]
    more = {**FAILED, "message": FAILED["message"].replace("812", "77")}
    lay(tmp_path, a=report(findings=two), b=report(findings=other), c=FAILED, d=more)
    assert groups(compared(tmp_path, code=4)) == [("not-as-desired", ["c", "d"], []), ("alike", ["a", "b"], [])]


def test_the_worst_comes_first(tmp_path: Path) -> None:
    against = [{"id": "proc", "holds": False, "what": "/proc/net/nf_conntrack is there"}]
    blocker = {"id": "b", "where": "rules.v4", "reason": "connlimit", "remedy": "take it out"}
    lay(tmp_path, a=NOTHING, b=NOTHING, c=report(mode="stateless"), d=report(outcome="unconfirmed"), e=FAILED,
        f=report(outcome="blocked", blockers=[blocker]), g=report(outcome="drift", actions=[ACTION]),
        h=report(outcome="reverted"), i=report(outcome="verified", evidence=against), j=report(outcome="odd"), k=FAILED)
    found = compared(tmp_path, code=4)
    assert [group["nodes"] for group in found["groups"]] == [
        ["e", "k"], ["f"], ["g"], ["d"], ["h"], ["i"], ["j"], ["c"], ["a", "b"]]
    assert [group["verdict"] for group in found["groups"]] == ["not-as-desired"] * 7 + ["differs", "alike"]
    said = call("fleet-report", tmp_path).out.decode()
    assert said.startswith("11 nodes: 2 as desired and alike, 1 as desired but unlike most, 8 not as desired\n\nfailed")
    for words in ("blocked by\n    rules.v4: connlimit", "actions\n    module nf_nat: it is conntrack's",
                  "cannot tell\n    proc: /proc/net/nf_conntrack is there", "exit status 1", "mode: most have unload"):
        assert words in said


def test_a_node_whose_program_came_by_user_data(tmp_path: Path) -> None:
    found = compared(lay(tmp_path, a=CARRIED, b=CARRIED), code=0)
    assert (found["groups"][0]["version"], groups(found)) == ("", [("alike", ["a", "b"], [])])
    assert "version carried by user-data, or not told" in call("fleet-report", tmp_path).out.decode()


def test_what_an_apply_leaves_can_be_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hosts, one of which has booted again; then one of them is changed by hand."""
    place = tmp_path / "reports"
    place.mkdir()
    one, other = (LiveHost(tmp_path / name, ("nf_conntrack",)) for name in "ab")
    for host, name in ((one, "a"), (other, "b"), (other, "b")):
        host.rules("legacy", "ipv4", RULES)
        monkeypatch.setenv("PATH", host.path)
        list(apply_section({"mode": "unload"}, host.root))
        (place / f"{name}.json").write_text(host.read(journalfile.RESULT))
    found = compared(place, code=0)
    assert found["groups"][0]["outcomes"] == {"done": 1, "nothing-to-do": 1}
    other.rules("legacy", "ipv4", RULES.replace("COMMIT", "-A INPUT -m connmark --mark 1 -j DROP\nCOMMIT"))
    with pytest.raises(ConntrackError, match="connmark"):
        list(apply_section({"mode": "unload"}, other.root))
    (place / "b.json").write_text(other.read(journalfile.RESULT))
    assert groups(compared(place, code=4)) == [("not-as-desired", ["b"], []), ("alike", ["a"], [])]


# --- files and names ---------------------------------------------------------------------


def test_the_name_of_a_file_tells_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("d/a.json", "d/b/result.json", "d/c/run/cloudinit-conntrack/result.json", "d/eu/e.json", "f.json",
                 "g/result.json", "h/run/cloudinit-conntrack/result.json"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(json.dumps(NOTHING))
    (tmp_path / "d/notes.txt").write_text("no report")
    os.mkfifo(tmp_path / "d/pipe.json")
    monkeypatch.chdir(tmp_path)
    found = compared("d", "f.json", "g/result.json", "h/run/cloudinit-conntrack/result.json", code=0)
    assert found["groups"][0]["nodes"] == ["a", "b", "c", "eu/e", "f", "g", "h"]
    monkeypatch.chdir(tmp_path / "g")
    assert compared("result.json", code=0)["groups"][0]["nodes"] == ["g"]


def test_standard_input_is_named_by_its_report() -> None:
    done = call("fleet-report", "--format", "json", "-", stdin=json.dumps(NOTHING).encode())
    assert (done.code, json.loads(done.out)["groups"][0]["nodes"]) == (0, ["h"])
    assert call("fleet-report", "-", "-").code == 2


def test_two_files_of_one_node_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    one, two = lay(tmp_path, a=NOTHING) / "a.json", lay(tmp_path / "x", a=FAILED) / "a.json"
    assert [nodes for _, nodes, _ in groups(compared(one, two, code=4))] == [[str(two)], ["a"]]


def test_usage(tmp_path: Path) -> None:
    assert call("fleet-report").code == 2
    assert call("fleet-report", "--root", "/tmp", tmp_path).code == 2
    assert call("fleet-report", "-c", "x", tmp_path).code == 2
    empty = call("fleet-report", tmp_path)
    assert (empty.code, "there is no report" in empty.message) == (1, True)


def test_anybody_may(tmp_path: Path) -> None:
    """It looks at no host, so it needs no root."""
    place = lay(tmp_path, a=NOTHING) / "a.json"
    words = [sys.executable, "-c", "import os, sys; from cloudinit_conntrack import cli; os.setuid(65534); "
             "sys.exit(cli.main(['fleet-report', '-']))"]
    done = subprocess.run(words, stdin=place.open(), capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


# --- bad files ---------------------------------------------------------------------------

BAD = {
    "": "is no JSON: Expecting value",
    "{": "is no JSON: Expecting property name",
    '{"schema": 1}': "outcome: expected text, found nothing",
    "[]": "expected a mapping, found a list",
    '{"schema": 2, "outcome": "done", "mode": ""}': "is no report of ours",
    '{"schema": true, "outcome": "done", "mode": ""}': "is no report of ours",
    '{"schema": 1, "outcome": "conntrack-loaded", "mode": ""}': "is a report of another verb",
    "[" * 200_000: "is nested too deep",
    '{"schema": ' + "9" * 5000 + "}": "holds a number that is too long" if sys.version_info >= (3, 11) else "no report",
    '{"schema": 1, "outcome": "done", "mode": NaN}': "mode: expected text, found a number",
    '{"schema": 1, "outcome": "done", "mode": "", "blockers": {}}': "blockers: expected a list, found a mapping",
    '{"schema": 1, "outcome": "done", "mode": "", "blockers": [{"where": "", "reason": null}]}':
        "reason: expected text, found null",
    '{"schema": 1, "outcome": "done", "mode": "", "evidence": [{"id": "", "what": "", "holds": 1}]}':
        "holds: expected true, false or null, found a number",
    '{"schema": 1, "outcome": "done", "mode": "", "run": []}': "expected a mapping, found a list",
    '{"schema": 1, "outcome": "done", "mode": "", "run": {"version": 1}}': "version: expected text, found a number",
    '{"schema": 1, "outcome": "do\0ne", "mode": ""}': "is no JSON: Invalid control character",
}  # fmt: skip


@pytest.mark.parametrize("text", BAD, ids=[text[:40] for text in BAD])
def test_a_bad_file_is_told_with_its_place_and_hides_no_other(text: str, tmp_path: Path) -> None:
    lay(tmp_path, a=NOTHING, bad=text, c=FAILED)
    found = compared(tmp_path, code=1)
    (wrong,) = found["unreadable"]
    assert wrong["where"].startswith(str(tmp_path / "bad.json")) and BAD[text] in wrong["what"]
    assert not found["alike"] and [nodes for _, nodes, _ in groups(found)] == [["c"], ["a"]]
    done = call("fleet-report", tmp_path)
    assert (done.code, done.err) == (1, b"")
    assert done.out.decode().splitlines()[2:4] == ["unreadable", f"  {wrong['where']}: {wrong['what']}"]


def test_the_place_is_a_line_or_a_key(tmp_path: Path) -> None:
    lay(tmp_path, a='{\n "schema": 1,\n oops', b=report(blockers=[{"where": 1, "reason": ""}]))
    where = [wrong["where"] for wrong in compared(tmp_path, code=1)["unreadable"]]
    assert where == [f"{tmp_path}/a.json:3:2", f"{tmp_path}/b.json: blockers[0]"]


def test_what_is_no_file_or_too_large(tmp_path: Path) -> None:
    (tmp_path / "large.json").write_bytes(b" " * (fleet.MOST_BYTES + 1))
    (tmp_path / "latin.json").write_bytes(b'{"mode": "\xff"}')
    found = compared(tmp_path / "large.json", tmp_path / "latin.json", tmp_path / "none.json", code=1)
    assert [wrong["what"] for wrong in found["unreadable"]] == [
        "is larger than 8 MiB", "is no UTF-8 at byte 10", "cannot be read (No such file or directory)"]


def test_a_terminal_is_not_moved(tmp_path: Path) -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\r\b\x9b31m\u202eevil\u2066\ud800\x7f\n\tx"
    item = {"id": evil, "where": evil, "reason": evil, "remedy": evil}
    lay(tmp_path, a=report(mode=evil, outcome=evil, message=evil, blockers=[item], run={**RUN, "version": evil}),
        b=NOTHING, c=report(run={**RUN, "version": evil}))  # fmt: skip
    (tmp_path / "x\x1b[31m.json").write_text(json.dumps(report(findings=[item])))
    (tmp_path / "y\u202e.json").write_text("{")
    done = call("fleet-report", "-v", tmp_path)
    assert done.code == 1
    said = done.out.decode()  # UTF-8 without surrogates
    assert {c for c in said if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")} == {"\n"}
    assert "\\x1b]0;owned\\x07" in said and "x\\x1b[31m" in said
    compared(tmp_path, code=1)


# --- any input ---------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=8)
KEYS = st.sampled_from([*NOTHING, "message"])


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A report with some of it replaced, or a piece of one."""
    value = copy.deepcopy(draw(st.sampled_from([NOTHING, DONE, FAILED, CARRIED])))
    for key in draw(st.lists(KEYS, max_size=3)):
        inner = value.get(key)
        if isinstance(inner, list) and inner and isinstance(inner[0], dict) and inner[0] and draw(st.booleans()):
            inner[0] = {**inner[0], draw(st.sampled_from([*inner[0]])): draw(VALUES)}
        else:
            value[key] = draw(VALUES)
    text = json.dumps(value).encode()
    return text[: draw(st.integers(0, len(text)))] if draw(st.booleans()) else text


@settings(max_examples=int(os.environ.get("FUZZ", "300")), deadline=None)
@given(st.lists(mutated() | st.binary(max_size=200), min_size=1, max_size=4))
def test_any_bytes_are_compared_or_refused(contents: list[bytes]) -> None:
    gathering, refused = Gathering(), []
    for number, content in enumerate(contents):
        try:
            found, _ = fleet.parse(content, f"n{number}.json")
        except ConntrackError as error:
            assert error.where.startswith(f"n{number}.json") and error.what
            refused.append((error.where, error.what))
        else:
            gathering.add(f"n{number}", found)
    together = gathering.fleet()
    assert sum(len(group.nodes) for group in together.groups) == len(contents) - len(refused)
    reports.valid(comparing.to_json(together, tuple(refused)), reports.FLEET)
    for line in comparing.text(together, tuple(refused), False, True):
        assert comparing.plain(line) == line
        line.encode()


# --- many nodes --------------------------------------------------------------------------


def measured(place: Path) -> tuple[Done, float, int]:
    """A run in a process of its own: how it ended, seconds, and its memory at most, in MB."""
    words = [sys.executable, "-m", "cloudinit_conntrack", "fleet-report", "--format", "json", str(place)]
    began, child = time.monotonic(), subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                                      cwd=Path(__file__).parents[2])
    out, err = child.communicate(timeout=120)
    most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    return Done(child.returncode, out, err), time.monotonic() - began, most


def test_many_nodes_that_are_all_different(tmp_path: Path) -> None:
    """Memory does not grow with what the reports say: 256 of them are kept, of others the sums."""
    noise = [{**KNOWN, "where": f"{n}:{'x' * 400}"} for n in range(60)]
    for number in range(600):
        odd = report(findings=[*noise[:50], {**KNOWN, "reason": f"only {number}"}])
        (tmp_path / f"lb-{number}.json").write_text(json.dumps(odd))
    done, seconds, most = measured(tmp_path)
    found = reports.valid(json.loads(done.out), reports.FLEET)
    assert (done.code, len(found["groups"]), done.err) == (4, 600, b"")
    assert sum(bool(group["findings"]["items"]) for group in found["groups"]) <= 257
    assert most < 250 and seconds < 60


def test_the_reader_takes_no_more_files_than_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_MOST_FILES", 2)
    done = call("fleet-report", lay(tmp_path, a=NOTHING, b=NOTHING, c=NOTHING))
    assert (done.code, "more than 2 files" in done.message) == (1, True)
