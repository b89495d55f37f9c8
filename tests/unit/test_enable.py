"""enable, disable and forget on small trees: what they refuse, keep, put aside and leave behind."""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import call

from cloudinit_conntrack import cloudcfg, journal, perform
from cloudinit_conntrack.actions import Action, Link, LoadRules, RefreshInitramfs, UnloadModule, WriteFile
from cloudinit_conntrack.cloudcfg import CLEAN, DROP_IN, Importing, drop_in_text, parse
from cloudinit_conntrack.enable import facts_of, plan_disable, plan_enable, problem_of
from cloudinit_conntrack.errors import HostError
from cloudinit_conntrack.host.cloudinit import observe_cloud_init
from cloudinit_conntrack.host.root import Root
from cloudinit_conntrack.said import Item
from cloudinit_conntrack.state import FileImage

BASE = """\
users: [default]
cloud_init_modules: [bootcmd, write-files]
cloud_config_modules:
 - locale
 - [ntp, always]
cloud_final_modules: [final-message]
"""
PACKAGES = "usr/lib/python3/dist-packages"
KEPT = "/var/lib/cloudinit-conntrack/kept"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with cloud-init and our package, as far as files tell; its Python cannot run."""
    root = tmp_path / "root"
    put(root, "/etc/cloud/cloud.cfg", BASE)
    (root / "etc/cloud/cloud.cfg.d").mkdir()
    put(root, "/usr/bin/cloud-init", "#!/usr/bin/python3\n", 0o755)
    put(root, "/usr/bin/python3", "")
    for name in ("cc_conntrack.py", "cloudinit_conntrack/__init__.py", "cloudinit_conntrack/__main__.py",
                 "yaml/__init__.py"):
        put(root, f"/{PACKAGES}/{name}", "")
    return root


def put(root: Path, path: str, text: str, mode: int = 0o644) -> None:
    place = root / path.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
    place.chmod(mode)


def read(root: Path, path: str) -> str:
    return (root / path.lstrip("/")).read_text()


def ours(tree: Path, *words: str, code: int = 0) -> dict[str, Any]:
    done = call(*words, "--root", tree, "--format", "json")
    assert done.code == code, (done.out, done.err)
    return done.json


def ids(found: dict[str, Any], kind: str = "findings") -> list[str]:
    return [item["id"] for item in found[kind] if item["id"] != "cloud-init:unasked"]


def files(tree: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p.relative_to(tree)): (p.read_bytes(), stat.S_IMODE(p.stat().st_mode))
            for p in sorted(tree.rglob("*")) if p.is_file()}


# --- enable and disable ----------------------------------------------------------------


def test_the_drop_in_repeats_the_list_and_adds_ours(tree: Path) -> None:
    before = files(tree)
    assert ours(tree, "enable")["outcome"] == "enabled"
    assert yaml.safe_load(read(tree, DROP_IN)) == {
        "cloud_config_modules": ["locale", ["ntp", "always"], ["conntrack", "always"]]}
    assert "disable" in read(tree, DROP_IN) and "/etc/cloud/cloud.cfg\n" in read(tree, DROP_IN)
    assert os.access(tree / CLEAN.lstrip("/"), os.X_OK)
    found = ours(tree, "status")
    assert found["facts"]["cloud-init"] == f"runs our module ({DROP_IN})" and ids(found) == []
    assert ours(tree, "disable")["outcome"] == "disabled"
    assert files(tree) == before and not (tree / "etc/cloud/clean.d").exists()
    assert ours(tree, "disable")["outcome"] == "nothing-to-do"


def test_a_directory_that_was_there_stays(tree: Path) -> None:
    (tree / "etc/cloud/clean.d").mkdir()
    ours(tree, "enable")
    ours(tree, "disable")
    assert (tree / "etc/cloud/clean.d").is_dir()


@pytest.mark.parametrize("missing", ["/etc/cloud/cloud.cfg", "/usr/bin/cloud-init"])
def test_without_cloud_init_there_is_nothing_to_enable(tree: Path, missing: str) -> None:
    ours(tree, "enable")
    (tree / missing.lstrip("/")).unlink()
    found = ours(tree, "enable", code=3)
    assert ids(found, "blockers") == ["cloud-init:none"] and found["blockers"][0]["remedy"]
    assert ids(ours(tree, "status")) == [f"cloud-init:left:{DROP_IN}", f"cloud-init:left:{CLEAN}"]
    assert ours(tree, "disable")["outcome"] == "disabled"


@pytest.mark.parametrize(
    "entry", ["conntrack", "[conntrack, once-per-instance]", "{name: cc_conntrack}", "cc_conntrack", "conntrack.py"]
)
@pytest.mark.parametrize("key", cloudcfg.KEYS)
def test_what_is_listed_by_hand_is_left_alone(tree: Path, key: str, entry: str) -> None:
    put(tree, "/etc/cloud/cloud.cfg.d/50.cfg", f"{key}: [locale, {entry}]\n")
    before = files(tree)
    found = ours(tree, "enable")
    assert found["outcome"] == "nothing-to-do" and ids(found) == ["cloud-init:listed"]
    assert files(tree) == before
    assert ours(tree, "status")["facts"]["cloud-init"] == "runs our module (/etc/cloud/cloud.cfg.d/50.cfg)"
    assert ids(ours(tree, "disable")) == ["cloud-init:listed"]


def test_a_list_that_is_replaced_lists_nothing(tree: Path) -> None:
    put(tree, "/etc/cloud/cloud.cfg.d/50.cfg", "cloud_config_modules: [conntrack]\n")
    put(tree, "/etc/cloud/cloud.cfg.d/60.cfg", "cloud_config_modules: [runcmd]\n")
    assert ours(tree, "enable")["outcome"] == "enabled"
    assert yaml.safe_load(read(tree, DROP_IN))["cloud_config_modules"] == ["runcmd", ["conntrack", "always"]]


def test_listed_by_hand_later_ours_goes(tree: Path) -> None:
    ours(tree, "enable")
    put(tree, "/etc/cloud/cloud.cfg", BASE.replace(" - locale", " - locale\n - [conntrack, always]"))
    assert [action["verb"] for action in ours(tree, "enable")["actions"]] == ["remove"]
    assert not (tree / DROP_IN.lstrip("/")).exists()


@pytest.mark.parametrize(("name", "text", "key"), [
    ("99_x.cfg", "cloud_config_modules: [runcmd]\n", "later"),
    ("zz.cfg", "cloud_config_modules: [runcmd]\n", "later"),
    ("10.cfg", "cloud_config_modules: [runcmd]\nmerge_type: 'list(append)+dict()+str()'\n", "merge"),
    ("10.cfg", "## template: jinja\n{% if 1 %}\ncloud_config_modules: [runcmd]\n{% endif %}\n", "unclear"),
    ("10.cfg", "".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9 if n else 'x'}]\n" for n in range(9))
     + "cloud_config_modules: [*a8]\n", "unclear"),
    ("10.cfg", "cloud_config_modules: &a [[*a, x]]\n", "unclear"),
])  # fmt: skip
def test_a_list_that_ours_does_not_replace_blocks(tree: Path, name: str, text: str, key: str) -> None:
    put(tree, f"/etc/cloud/cloud.cfg.d/{name}", text)
    before = files(tree)
    found = ours(tree, "enable", code=3)
    assert ids(found, "blockers") == [f"cloud-init:{key}:/etc/cloud/cloud.cfg.d/{name}"]
    assert files(tree) == before


def test_overridden_afterwards_is_said(tree: Path) -> None:
    ours(tree, "enable")
    put(tree, "/etc/cloud/cloud.cfg.d/99_x.cfg", "cloud_config_modules: [runcmd]\n")
    found = ours(tree, "status")
    assert "does not list" in found["facts"]["cloud-init"]
    assert ids(found) == ["cloud-init:later:/etc/cloud/cloud.cfg.d/99_x.cfg"]


def test_another_directory_of_drop_ins_blocks(tree: Path) -> None:
    put(tree, "/etc/cloud/cloud.cfg", BASE + "conf_d: /etc/cloud/cloud.cfg.d/\n")
    assert ours(tree, "enable")["outcome"] == "enabled"
    ours(tree, "disable")
    put(tree, "/etc/cloud/cloud.cfg", BASE + "conf_d: /etc/other\n")
    assert ids(ours(tree, "enable", code=3), "blockers") == ["cloud-init:conf_d"]


@pytest.mark.parametrize(
    "text", ["a: [\n", "- list\n", "a: !!python/object:os.system x\n", "\x00", "[" * 100, "a: 2001-99-99"]
)
def test_a_broken_cloud_cfg_blocks_and_a_broken_drop_in_is_said(tree: Path, text: str) -> None:
    put(tree, "/etc/cloud/cloud.cfg.d/50.cfg", text)
    found = ours(tree, "enable")
    assert found["outcome"] == "enabled" and ids(found) == ["cloud-init:unread:/etc/cloud/cloud.cfg.d/50.cfg"]
    put(tree, "/etc/cloud/cloud.cfg", text)
    assert ids(ours(tree, "enable", code=3), "blockers") == ["cloud-init:unread:/etc/cloud/cloud.cfg"]


def test_changed_by_hand_it_is_left_alone_and_at_the_end_kept_aside(tree: Path) -> None:
    ours(tree, "enable")
    changed = read(tree, DROP_IN).replace("- locale\n", "")
    put(tree, DROP_IN, changed)
    found = ours(tree, "enable")
    assert found["outcome"] == "nothing-to-do" and ids(found) == ["cloud-init:changed"]
    assert ids(ours(tree, "status")) == ["cloud-init:stale"]
    put(tree, DROP_IN, changed.replace("- [conntrack, always]\n", ""))
    assert ids(ours(tree, "enable", code=3), "blockers") == ["cloud-init:place"]
    put(tree, DROP_IN, changed)
    assert ids(ours(tree, "disable")) == ["cloud-init:kept"]
    assert not (tree / DROP_IN.lstrip("/")).exists()
    assert read(tree, f"{KEPT}{DROP_IN.replace('/', '_').replace('_', '/', 1)}") == changed
    assert stat.S_IMODE((tree / KEPT.lstrip("/")).stat().st_mode) == 0o700


def test_a_file_that_we_did_not_write_is_never_removed(tree: Path) -> None:
    put(tree, DROP_IN, "cloud_config_modules: [locale, conntrack]\n")
    put(tree, CLEAN, "#!/bin/sh\n", 0o755)
    before = files(tree)
    assert ours(tree, "enable")["outcome"] == "nothing-to-do"
    found = ours(tree, "disable")
    assert found["outcome"] == "nothing-to-do"
    assert ids(found) == [f"cloud-init:foreign:{DROP_IN}", f"cloud-init:foreign:{CLEAN}"]
    assert files(tree) == before


def test_links_are_not_followed(tree: Path) -> None:
    outside = tree.parent / "outside"
    outside.mkdir()
    (tree / DROP_IN.lstrip("/")).symlink_to(outside / "drop-in")
    done = call("enable", "--root", tree)
    assert done.code == 1 and "symbolic link" in done.message
    (tree / DROP_IN.lstrip("/")).unlink()
    (tree / "etc/cloud/clean.d").symlink_to(outside)
    done = call("enable", "--root", tree)
    assert done.code == 1
    assert not (tree / DROP_IN.lstrip("/")).exists() and list(outside.iterdir()) == []


def test_after_a_power_cut_between_the_two_files(tree: Path) -> None:
    """Whatever is there, enable finishes it and disable takes it away; the list never comes first."""
    before = files(tree)
    plan = plan_enable(observe_cloud_init(Root(str(tree))))
    assert [action.path for action in plan.actions] == [CLEAN, DROP_IN]
    perform.perform(plan.actions[0], Root(str(tree)))
    assert "does not list" in ours(tree, "status")["facts"]["cloud-init"]
    assert [action["where"] for action in ours(tree, "enable")["actions"]] == [DROP_IN]
    back = plan_disable(observe_cloud_init(Root(str(tree)), asking=False))
    assert [action.path for action in back.actions] == [DROP_IN, CLEAN]
    perform.perform(back.actions[0], Root(str(tree)))
    assert [action["where"] for action in ours(tree, "disable")["actions"]] == [CLEAN]
    assert files(tree) == before


def test_what_fails_half_way_is_undone(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, real = files(tree), Root.write_image

    def full(self: Root, path: str, image: FileImage) -> None:
        if path == DROP_IN:
            raise HostError("no space left", path)
        real(self, path, image)

    monkeypatch.setattr(Root, "write_image", full)
    done = call("enable", "--root", tree)
    assert done.code == 1 and "no space left" in done.message
    assert files(tree) == before


NAMES = st.sampled_from(("locale", "on", "12", "a b", "", "conntrack.x", "x: y", "- z", "é", "#c", "~", "[a]", "y-n"))
ENTRIES = st.lists(st.one_of(NAMES, st.text(max_size=5), st.lists(st.one_of(NAMES, st.booleans(), st.integers())),
                             st.dictionaries(NAMES, NAMES)), max_size=6)  # fmt: skip


@settings(deadline=None, max_examples=25)
@given(ENTRIES)
def test_every_list_is_repeated_as_it_is(entries: list[object]) -> None:
    try:
        text = drop_in_text(entries, "/etc/cloud/cloud.cfg")
    except ValueError:  # JSON writes these as two halves, which YAML does not put together
        assert re.search("[\U00010000-\U0010ffff]", json.dumps(entries, ensure_ascii=False))
        return
    assert yaml.safe_load(text)["cloud_config_modules"] == [*entries, ["conntrack", "always"]]
    assert cloudcfg.is_ours(text) and cloudcfg.is_untouched(text)
    assert not cloudcfg.is_untouched(text + " ") and not cloudcfg.is_untouched(text.replace("always", "once"))
    assert parse(DROP_IN, text.encode()).list("cloud_config_modules") == (*entries, ["conntrack", "always"])


# --- cloud-init's Python ---------------------------------------------------------------


@pytest.mark.parametrize(("importing", "reason", "remedy"), [
    (Importing(True, ("/usr/bin/python3", "-s"), "3.9", ("cc_conntrack",), elsewhere="/usr/local/lib/x"),
     "/usr/local/lib/x is not on its path", "--prefix /usr"),
    (Importing(True, ("/usr/bin/python3",), "3.9", ("yaml",)), "does not find yaml", ".deb or .rpm"),
    (Importing(True, ("/usr/libexec/platform-python", "-s"), "3.6"), "Python 3.6", "apply -c FILE"),
    (Importing(True, ("/usr/bin/python3",), "3.11", broken="ImportError('x')"), "ImportError('x')", "anew"),
    (Importing(True, ("/usr/bin/python3",), problem="exit status 1: no"), "exit status 1: no", "--version"),
])  # fmt: skip
def test_what_cannot_be_imported_blocks_and_says_why(importing: Importing, reason: str, remedy: str) -> None:
    found = problem_of(importing)
    assert isinstance(found, Item) and reason in found.reason and remedy in found.remedy
    assert found.where == " ".join(importing.words)


def test_what_can_be_imported_is_no_problem() -> None:
    assert problem_of(Importing(True, ("/usr/bin/python3",), "3.10")) is None


@pytest.mark.parametrize(("flags", "place", "seen"), [
    ("", "usr/local/lib/python3.9/site-packages", True),
    (" -s", "usr/local/lib/python3.9/site-packages", False),
    (" -sP", "usr/local/lib/python3.12/site-packages", False),
    (" -s", "usr/lib/python3.9/site-packages", True),
    (" -s", "usr/local/lib/python3.11/dist-packages", True),
])  # fmt: skip
def test_without_its_python_the_usual_paths_tell(tree: Path, flags: str, place: str, seen: bool) -> None:
    put(tree, "/usr/bin/cloud-init", f"#!/usr/bin/python3{flags}\n")
    (tree / place).mkdir(parents=True)
    for name in ("cc_conntrack.py", "cloudinit_conntrack"):
        (tree / PACKAGES / name).rename(tree / place / name)
    found = ours(tree, "enable", code=0 if seen else 3)
    assert ids(found, "blockers") == ([] if seen else ["cloud-init:import"])
    if not seen:
        assert place in found["blockers"][0]["reason"]


def test_listed_and_not_importable_is_said(tree: Path) -> None:
    ours(tree, "enable")
    found = observe_cloud_init(Root(str(tree)), asking=False)
    lost = replace(found, importing=Importing(True, ("/usr/bin/python3",), "3.11", ("cc_conntrack",)))
    assert [item.id for item in facts_of(lost)[1]] == ["cloud-init:import"]
    (tree / PACKAGES / "cc_conntrack.py").unlink()
    assert ids(ours(tree, "status")) == ["cloud-init:import"]


# --- forget ----------------------------------------------------------------------------

WRITE = WriteFile("/etc/iptables/rules.v4", FileImage(b"old"), FileImage(b"new"), "")
LINK = Link("/etc/systemd/system/x", "", "y", "")
REFRESH = RefreshInitramfs(("true",), "/boot/initrd", "")
LOAD = LoadRules("legacy", "ipv4", "*filter\n-A INPUT -s 198.51.100.9\nCOMMIT\n", "*filter\nCOMMIT\n", "")
UNLOAD = UnloadModule("nf_conntrack", "", (), (("net.netfilter.nf_conntrack_max", "7"),))
STATE = "/var/lib/cloudinit-conntrack"


def written(*applies: tuple[tuple[Action, ...], int, bool]) -> bytes:
    """A journal of applies: (planned, begun, committed)."""
    lines: list[bytes] = []
    for number, (planned, begun, closed) in enumerate(applies, 1):
        lines.append(journal.begin(number, "boot-of-the-bake", "unload", ("nf_conntrack",), planned))
        lines += [journal.intent(number, at) for at in range(begun)]
        lines += [journal.commit(number, ("x_tables",))] if closed else []
    return b"".join(lines)


def test_of_the_journal_files_stay_and_nothing_of_the_kernel() -> None:
    planned = (WRITE, LOAD, UNLOAD, REFRESH, LINK)
    kept = journal.parse(journal.files_alone(journal.parse(written((planned, 5, True), ((LOAD,), 1, True)))))
    assert [entry.actions for entry in kept] == [(WRITE, REFRESH, LINK)]
    assert (kept[0].closed, kept[0].boot, kept[0].modules, kept[0].loaded) == (True, "", (), ())
    again = journal.files_alone(kept)
    assert journal.parse(again) == kept and journal.files_alone(journal.parse(again)) == again


def test_an_apply_that_was_cut_off_is_undone_by_the_clone_in_its_files() -> None:
    kept = journal.parse(journal.files_alone(journal.parse(written(((WRITE, LOAD, LINK, UNLOAD), 2, False)))))
    assert [(entry.actions, entry.planned, entry.closed) for entry in kept] == [((WRITE,), (WRITE, LINK), False)]
    assert journal.to_undo(kept[0], "boot-of-the-clone") == (WRITE,)
    assert journal.files_alone(journal.parse(written(((LOAD, WRITE), 1, False)))) == b""


def test_forget_keeps_the_section_and_drops_what_is_this_hosts(tree: Path) -> None:
    put(tree, f"{STATE}/journal", written(((WRITE, LOAD), 2, True)).decode(), 0o600)
    for name in ("desired.json", "seen.json", "good/etc_iptables_rules.v4", "kept/x"):
        put(tree, f"{STATE}/{name}", "{}")
    for name in ("result.json", "refused.json"):
        put(tree, f"/run/cloudinit-conntrack/{name}", "{}")
    assert ours(tree, "forget")["outcome"] == "forgotten"
    left = sorted(name for name in files(tree) if name.startswith(("var/", "run/")))
    assert left == [f"{STATE[1:]}/{name}" for name in ("desired.json", "journal", "kept/x", "lock")]
    assert b"198.51.100.9" not in (tree / STATE[1:] / "journal").read_bytes()
    put(tree, "/etc/iptables/rules.v4", "new")
    assert ours(tree, "forget")["outcome"] == "nothing-to-do"
    assert ours(tree, "revert")["outcome"] == "reverted"
    assert read(tree, "/etc/iptables/rules.v4") == "old"


def test_forget_does_nothing_where_nothing_was_applied(tree: Path) -> None:
    before = files(tree)
    assert ours(tree, "forget")["outcome"] == "nothing-to-do"
    assert files(tree) == before and not (tree / "var").exists()


def test_forget_waits_for_a_confirmation_and_leaves_a_damaged_journal(tree: Path) -> None:
    put(tree, f"{STATE}/journal", written(((WRITE, LOAD), 2, True)).decode(), 0o600)
    value = {"number": 1, "boot": "x", "kept": None, "since": None, "until": None}
    put(tree, f"{STATE}/unconfirmed.json", json.dumps(value))
    before = files(tree)
    done = call("forget", "--root", tree)
    assert done.code == 3 and "confirm" in done.message
    (tree / STATE[1:] / "unconfirmed.json").unlink()
    put(tree, f"{STATE}/journal", "nothing of ours\n")
    done = call("forget", "--root", tree)
    assert done.code == 1 and "damaged" in done.message
    assert read(tree, f"{STATE}/journal") == "nothing of ours\n" and len(before) > 5
