"""Diffs, judged by the real patch(1): each of them, put on the real old file, gives the new one byte for byte."""

from __future__ import annotations

import os
import stat
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_plan import CASES, NAMES, desired_of, state_of

from cloudinit_conntrack import diffs, linediff
from cloudinit_conntrack.actions import (
    Action,
    DeleteEntries,
    Link,
    LoadNative,
    LoadRules,
    NativeImage,
    ProveLoading,
    ProveStarting,
    RefreshInitramfs,
    RewriteNative,
    UnloadModule,
    WriteFile,
)
from cloudinit_conntrack.netfilter.nft_printed import table_texts
from cloudinit_conntrack.plan import make_plan
from cloudinit_conntrack.state import FileImage

Images = dict[str, tuple["FileImage | None", "FileImage | None"]]


def patched(images: Images) -> dict[str, FileImage]:
    """What patch(1) makes of a tree with the first of each path's images, given the diff of all of them."""
    text = "".join(diffs.of_file(path, *both).text or "" for path, both in images.items())
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        for path, (before, _) in images.items():
            if before is not None:
                put(tree, path, before.content, before.mode)
        patch(tree, text)
        return {f"/{os.path.relpath(file, tree)}": image_of(Path(file))
                for folder, _, files in os.walk(tree) for file in (f"{folder}/{one}" for one in files)}


def put(tree: Path, path: str, content: bytes, mode: int = 0o644) -> None:
    file = tree / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    file.chmod(mode)


def image_of(file: Path) -> FileImage:
    return FileImage(file.read_bytes(), stat.S_IMODE(file.stat().st_mode))


def patch(tree: Path, text: str) -> None:
    """Put *text* on the files of *tree*, exactly: no fuzz, no offset, nothing left over."""
    if not text:
        return
    done = subprocess.run(["patch", "--strip=1", "--fuzz=0", "--no-backup-if-mismatch", "--force"], cwd=tree,
                          input=text.encode("utf-8", "surrogateescape"), capture_output=True, timeout=60)  # fmt: skip
    said = (done.stdout + done.stderr).decode(errors="replace")
    assert done.returncode == 0 and "offset" not in said and "garbage" not in said, f"{said}\n{text}"


def assert_patched(images: Images) -> None:
    wanted = {path: replace(after, uid=0, gid=0) for path, (_, after) in images.items() if after is not None}
    assert patched(images) == wanted


# --- files -------------------------------------------------------------------------------------

LINE = st.sampled_from([
    b"", b"a", b"b", b"-A INPUT -j ACCEPT", b"-- x", b"++ y", b"--- a/x", b"+++ b/x", b"@@ -1 +1 @@",
    b"diff --git a/x b/x", b"\\ No newline at end of file", b"caf\xe9", b"\xff\xfe", b"a\r", b"\x0c",
    b"\xe2\x80\xa8", b" a", b"\ta ", b"\x1b[31m",
])  # fmt: skip
LINES = st.lists(LINE, max_size=30)
CONTENT = st.builds(lambda lines, end: b"\n".join(lines) + end, LINES, st.sampled_from([b"", b"\n"]))
IMAGE = st.one_of(st.none(), st.builds(FileImage, CONTENT, st.sampled_from([0o644, 0o600, 0o755])))


@settings(max_examples=80, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(IMAGE, IMAGE), min_size=1, max_size=12))
@example([(FileImage(b"a"), FileImage(b"a\n")), (FileImage(b"a\n"), FileImage(b"a"))])
@example([(FileImage(b""), FileImage(b"a")), (FileImage(b"a"), FileImage(b""))])
@example([(None, FileImage(b"")), (FileImage(b""), None), (FileImage(b"", 0o600), FileImage(b"", 0o755))])
def test_patch_makes_the_new_file_of_the_old_one(pairs: list[tuple[FileImage | None, FileImage | None]]) -> None:
    assert_patched({f"/etc/file{number}": both for number, both in enumerate(pairs) if both != (None, None)})


@settings(max_examples=30, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_long_files_with_few_changes(data: st.DataObject) -> None:
    """Hunks far from each other and near, lines that are there often, moved lines."""
    old = [b"line %d\n" % (n if data.draw(st.booleans()) else n % 3) for n in range(60)]
    new = list(old)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(new) - 1))
        inserted = data.draw(st.lists(LINE, max_size=2))
        new[at : at + data.draw(st.integers(0, 2))] = [line + b"\n" for line in inserted]
        if len(new) < 10:
            break
    assert_patched({"/etc/file": (FileImage(b"".join(old)), FileImage(b"".join(new)))})


@pytest.mark.parametrize("name", ["a b", 'a"b', "a\\b", "é", "caf\udce9", "a\tb", "a\nb", "a\x011", "trailing ",
                                  "a b \udcff"])
def test_odd_names(name: str) -> None:
    path = f"/etc/x {name}/{name}"
    found = patched({path: (FileImage(b"a\n"), FileImage(b"b\n")), "/etc/plain": (None, FileImage(b"c\n"))})
    assert found == {path: FileImage(b"b\n"), "/etc/plain": FileImage(b"c\n")}


def test_what_a_diff_of_a_file_looks_like() -> None:
    before, after = FileImage(b"a\nb\nc", 0o640, 0, 0), FileImage(b"a\nx\nc", 0o600, 1, 2)
    assert diffs.of_file("/etc/f", before, after).text == """\
owner 0:0 becomes 1:2: /etc/f
diff --git a/etc/f b/etc/f
old mode 100640
new mode 100600
--- a/etc/f
+++ b/etc/f
@@ -1,3 +1,3 @@
 a
-b
+x
 c
\\ No newline at end of file
"""
    assert diffs.of_file("/etc/f", None, FileImage(b"a\n", 0o755)).text == """\
diff --git a/etc/f b/etc/f
new file mode 100755
--- /dev/null
+++ b/etc/f
@@ -0,0 +1 @@
+a
"""


def test_what_has_no_text() -> None:
    image = FileImage(b"a\n")
    assert diffs.of(WriteFile("/f", image, FileImage(b"a\0b"), "")).why == "binary: 2 bytes become 3"
    assert diffs.of(WriteFile("/f", image, replace(image, mtime_ns=5), "")).why == "no letter of it changes"
    assert diffs.of(RefreshInitramfs(("mk", "-u"), "/i", "")).why == "binary: written by 'mk -u'"
    assert "could load kernel modules" in diffs.of(RewriteNative("/f", image, "", None, "")).why
    silent: tuple[Action, ...] = (UnloadModule("a", ""), DeleteEntries((), ""), ProveLoading("/f", "ipv4", "", ""),
                                  Link("/l", "", "/a", ""), ProveStarting(("a",), ""))  # fmt: skip
    assert {diffs.of(action) for action in silent} == {diffs.Diff()}


# --- live rules --------------------------------------------------------------------------------


def test_rules_stand_in_their_tables_without_counts() -> None:
    before = "*filter\n:INPUT DROP [5:300]\n[1:60] -A INPUT -j A\n[2:60] -A INPUT -j B\nCOMMIT\n"
    after = before.replace("-j B", "-j C")
    nothing = "*raw\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n"
    assert diffs.of(LoadRules("nft", "ipv6", before + nothing, after + nothing, "", (), ("raw",))).text == """\
diff --git a/live/ip6tables-nft/filter b/live/ip6tables-nft/filter
--- a/live/ip6tables-nft/filter
+++ b/live/ip6tables-nft/filter
@@ -1,5 +1,5 @@
 *filter
 :INPUT DROP [0:0]
 -A INPUT -j A
--A INPUT -j B
+-A INPUT -j C
 COMMIT
diff --git a/live/ip6tables-nft/raw b/live/ip6tables-nft/raw
new file mode 100644
--- /dev/null
+++ b/live/ip6tables-nft/raw
@@ -0,0 +1,3 @@
+*raw
+:OUTPUT ACCEPT [0:0]
+COMMIT
"""


def test_rules_stand_chain_by_chain_as_they_are_printed() -> None:
    head, rules = "*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n", ("-A OUTPUT -j A\n", "-A PREROUTING -j B\n")
    printed = {"raw": f"{head}{rules[1]}{rules[0]}COMMIT\n"}
    assert diffs.saved_tables(f"# a\n{head}{''.join(rules)}COMMIT\n") == printed
    odd = f"{head} {rules[0]}-I PREROUTING 1 -j B\nCOMMIT\n"
    assert diffs.saved_tables(odd) == {"raw": odd}, "what only a restore program knows stays as it is"


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_every_diff_of_a_plan_does_what_its_action_does(case: Path, tmp_path: Path) -> None:
    """All of a plan in one tree: files and live tables as they are, patched, are as the actions leave them."""
    desired = desired_of(case)
    plan = make_plan(desired, state_of(case, desired))
    wanted: dict[str, str | bytes] = {}
    for action in plan.actions:
        if isinstance(action, WriteFile):
            if action.before is not None:
                put(tmp_path, action.path, action.before.content, action.before.mode)
            wanted |= {} if action.after is None else {action.path[1:]: action.after.content}
        if isinstance(action, LoadRules):
            place = f"live/{'iptables' if action.family == 'ipv4' else 'ip6tables'}-{action.backend}"
            for table, text in diffs.saved_tables(action.before).items():
                if table not in action.created:
                    put(tmp_path, f"{place}/{table}", text.encode())
            wanted |= {f"{place}/{table}": text.encode() for table, text in diffs.saved_tables(action.after).items()
                       if table not in action.dropped}  # fmt: skip
        if isinstance(action, LoadNative):
            for (family, name), (old, new) in native_texts(action).items():
                put(tmp_path, f"live/nft/{family}/{name}", old.encode()) if old else None
                wanted |= {f"live/nft/{family}/{name}": new.encode()} if new else {}
    found = [diffs.of(action) for action in plan.actions]
    patch(tmp_path, "".join(diff.text or "" for diff in found))
    assert {str(f.relative_to(tmp_path)): f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()} == wanted
    for action, diff in zip(plan.actions, found):
        assert (diff.text is not None) == isinstance(action, (WriteFile, LoadRules, LoadNative))


def native_texts(action: LoadNative) -> dict[tuple[str, str], tuple[str, str]]:
    return table_texts(action.before.text, action.before.rules, action.after.rules)


def test_native_rules_that_have_no_words() -> None:
    old = '{"nftables": [{"table": {"family": "ip", "name": "t", "handle": 1}}]}'
    new = old.replace("]}", ', {"set": {"family": "ip", "table": "t", "name": "s", "type": "ipv4_addr"}}]}')
    action = LoadNative(NativeImage(old, old, "table ip t {\n}\n"), NativeImage(new), "")
    assert diffs.of(action) == diffs.Diff(why="a new set cannot be said in nft's words; apply asks nft for the words")


# --- size --------------------------------------------------------------------------------------


def test_time_grows_with_the_length() -> None:
    """difflib alone takes half a minute for this, and minutes for rule-sets as large as we take."""
    old = [f"-A INPUT -s 10.{n >> 8 & 255}.{n & 255}.1/32 -p tcp -m tcp --dport {n} -j ACCEPT\n" for n in range(40000)]
    new = [line.replace("-p tcp", "-p tcp -m tcp --syn") if n % 10 == 0 else line for n, line in enumerate(old)]
    began = time.process_time()
    found = linediff.changes(old, new)
    assert time.process_time() - began < 8
    assert found == [(n, n + 1, n, n + 1) for n in range(0, 40000, 10)]
    assert linediff.changes(old, old[::-1]) and linediff.changes(["a\n"] * 40000, ["a\n", "b\n"] * 20000)
    assert time.process_time() - began < 16


def test_what_stands_near_is_one_hunk() -> None:
    old = [f"{n}\n" for n in range(40)]
    for between, hunks in ((6, 1), (7, 2)):
        new = ["x\n" if n in (10, 11 + between) else line for n, line in enumerate(old)]
        found = linediff.hunks(old, new)
        assert found.count("@@ -") == hunks and found.count("\n ") == (12, 12)[hunks - 1]
        assert found.startswith("@@ -8,14 +8,14 @@\n" if hunks == 1 else "@@ -8,7 +8,7 @@\n")


def test_lines_that_are_there_often_do_not_spread_a_change() -> None:
    old = [line for n in range(500) for line in (f"rule {n}\n", "COMMIT\n")]
    new = ["COMMIT\n", *old[:-2], "another\n"]
    assert linediff.changes(old, new) == [(0, 0, 0, 1), (998, 1000, 999, 1000)]


def test_a_diff_is_as_short_as_difflibs_on_what_a_rewrite_does() -> None:
    old = [f"-A INPUT -p tcp --dport {n} -j ACCEPT" for n in range(300)]
    new = [f"{line}{end}\n" for n, line in enumerate(old) for end in (["x", "y"] if n % 40 == 7 else [""])]
    found = linediff.changes([f"{line}\n" for line in old], new)
    assert found == [(n, n + 1, n + k, n + k + 2) for k, n in enumerate(range(7, 300, 40))]
