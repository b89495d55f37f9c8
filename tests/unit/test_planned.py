"""What only ``plan`` says: for programs by the schema, for people as on a terminal of theirs."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from fakehost import FakeHost
from test_config import EXAMPLES, GOOD
from test_config import SCHEMA as SECTION_SCHEMA
from test_plan import CASES, NAMES, desired_of, state_of

from cloudinit_conntrack import planned, report, showing
from cloudinit_conntrack.actions import Action, RefreshInitramfs, UnloadModule, WriteFile
from cloudinit_conntrack.config import Desired, Flow, Flows, desired_from_section, desired_from_text
from cloudinit_conntrack.plan import Plan, make_plan
from cloudinit_conntrack.report import Report
from cloudinit_conntrack.state import FileImage, Kernel, State
from tests import reports

ROOT = Path(__file__).resolve().parents[2]
SHOWN = ("seed", "native-notrack", "builtin-fallback-notrack")


def report_of(plan: Plan, desired: Desired, state: State) -> Report:
    """What the verb ``plan`` reports."""
    outcome = "blocked" if plan.blockers else "changes" if plan.actions else "nothing-to-do"
    return replace(report.of_plan(plan, outcome), planned=planned.of_plan(plan, desired, state))


def of_actions(*actions: Action) -> Report:
    return report_of(Plan("unload", actions), Desired("unload"), State(None))


# --- for programs ------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_json_of_every_plan(case: Path) -> None:
    desired = desired_of(case)
    state = state_of(case, desired)
    plan = make_plan(desired, state)
    found = reports.read(report.json_text(report_of(plan, desired, state)))
    assert [(a["id"], a["reason"]) for a in found["actions"]] == [(a.id, a.reason) for a in plan.actions]
    assert all(("no_diff" in a) <= (a["diff"] is None) for a in found["actions"])
    assert found["kept_ports"] == list(desired.guard.keep or state.sshd_ports)
    assert len(found["flows"]["frontends"]) == len(plan.flows.frontends)
    if not desired.flows.haproxy_cfg:
        assert found["flows"]["all"] == desired.flows.all


@pytest.mark.parametrize("path", [*GOOD, *EXAMPLES], ids=lambda path: path.name)
def test_the_section_as_it_was_understood(path: Path) -> None:
    """It is a section that means the same, and that the section's own schema takes."""
    desired = desired_from_text(path.read_bytes(), path.name)
    section = planned.section(desired)
    assert desired_from_section(section) == desired
    jsonschema.Draft7Validator(SECTION_SCHEMA).validate({"conntrack": section})
    reports.valid(report.to_json(report_of(Plan(desired.mode), desired, State(None))))


def test_flows_as_they_were_resolved() -> None:
    flows = Flows(frontends=(Flow("tcp", (80, 80)),), backends=(Flow("udp", (1, 9), "10.0.0.0/8"),), outbound=())
    found = report.to_json(report_of(Plan("notrack", flows=flows), Desired("notrack"), State(None)))
    assert found["flows"] == {
        "frontends": [{"protocol": "tcp", "ports": [80, 80], "address": None}],
        "backends": [{"protocol": "udp", "ports": [1, 9], "address": "10.0.0.0/8"}],
        "outbound": [], "all": False,
    }  # fmt: skip


def test_bytes_that_are_no_text_are_not_said_wrongly() -> None:
    found = of_actions(WriteFile("/f", FileImage(b"caf\xe9\n"), FileImage(b"caf\xc3\xa9\n"), "why"))
    (action,) = reports.read(report.json_text(found))["actions"]
    assert action["diff"] is None and "no UTF-8" in action["no_diff"]
    assert "-caf\udce9\n+café\n" in report.text(found)


def test_only_plan_shows_diffs() -> None:
    plan = Plan("unload", (UnloadModule("nf_nat", "why"), WriteFile("/f", None, FileImage(b"a\n"), "why")))
    found = report.to_json(report.of_plan(plan, "done"))
    assert not {"diff", "no_diff"} & {key for action in found["actions"] for key in action}
    assert "desired" not in found and "what changes" not in report.text(report.of_plan(plan, "done"))


# --- for people --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHOWN)
def test_the_whole_text(name: str) -> None:
    """``plan/NAME/shown.txt`` is what a person reads."""
    case = Path(__file__).parent / "plan" / name
    desired = desired_of(case)
    state = state_of(case, desired)
    plan = make_plan(desired, state)
    assert report.text(report_of(plan, desired, state)) == (case / "shown.txt").read_text()


def lines(count: int) -> FileImage:
    return FileImage(b"".join(b"line %d\n" % n for n in range(count)))


def shown(found: Report, colour: bool = False, verbose: bool = False) -> list[str]:
    text = report.text(found, colour, verbose).split("what changes")[1]
    return text.split("\n")[1:-1]


@pytest.mark.parametrize("changed, told", [(40, 40), (41, 41), (42, 40), (5000, 40)])
def test_a_long_diff_is_cut_and_says_so(changed: int, told: int) -> None:
    """*changed* lines: three for the names, one for the place, the rest pluses."""
    found = of_actions(WriteFile("/f", FileImage(b""), lines(changed - 4), "why"))
    assert len(shown(found, verbose=True)) == changed
    cut = shown(found)
    assert cut[:told] == shown(found, verbose=True)[:told]
    assert cut[told:] == ([f"… {changed - told} more lines; -v shows all"] if changed > told else [])


def test_a_new_file_is_cut_sooner() -> None:
    (*_, last) = shown(of_actions(WriteFile("/f", None, lines(100), "why")))
    assert last == "… 93 more lines; -v shows all"


def test_many_files_are_not_many_screens() -> None:
    actions = [WriteFile(f"/{n}", FileImage(b""), FileImage(lines(60).content + b"%d\n" % n), "why") for n in range(40)]
    found = of_actions(*actions)
    assert len(shown(found)) < showing.MOST_OF_ALL + 40 * 5 < len(shown(found, verbose=True)) / 4
    assert all(f"diff --git a/{n} b/{n}" in shown(found) for n in range(40))


def test_the_same_change_is_shown_once() -> None:
    before, after = FileImage(b"a\nb\n"), FileImage(b"a\nc\n")
    found = of_actions(WriteFile("/f", before, after, "why"), WriteFile("/g", before, after, "why"))
    assert shown(found)[-1] == "g: as f"
    assert shown(found, verbose=True)[-1] == "+c"


def test_another_mode_is_another_change() -> None:
    one, two, three, empty = FileImage(b"a\n"), FileImage(b"b\n", 0o600), FileImage(b"b\n"), FileImage(b"", 0o600)
    found = of_actions(WriteFile("/f", one, two, "why"), WriteFile("/g", one, three, "why"),
                       WriteFile("/h", three, two, "why"), WriteFile("/i", empty, FileImage(b""), "why"))
    assert [line for line in shown(found) if " as " in line] == []
    told = [line[:8] + line[-3:] for line in shown(found) if "mode" in line]
    assert told == ["old mode644", "new mode600", "old mode644", "new mode600", "old mode600", "new mode644"]


def test_what_has_no_diff_says_why() -> None:
    found = of_actions(RefreshInitramfs(("mkinitramfs",), "/boot/initrd", "why"), UnloadModule("nf_nat", "why"))
    assert shown(found) == ["/boot/initrd: no diff: binary: written by 'mkinitramfs'"]


def test_colours_are_gits_and_change_nothing_else() -> None:
    found = of_actions(WriteFile("/f", FileImage(b"a\n-- b\n"), FileImage(b"a\n++ c\n"), "why"))
    assert shown(found, colour=True)[1:] == [
        "\033[1mdiff --git a/f b/f\033[0m", "\033[1m--- a/f\033[0m", "\033[1m+++ b/f\033[0m",
        "\033[36m@@ -1,2 +1,2 @@\033[0m", " a", "\033[31m--- b\033[0m", "\033[32m+++ c\033[0m",
    ][1:]  # fmt: skip
    assert [re.sub("\033\\[[0-9]*m", "", line) for line in shown(found, colour=True)] == shown(found)


def test_a_terminal_is_not_told_what_to_do() -> None:
    found = of_actions(WriteFile("/f", None, FileImage(b"a\x1b]0;b\x07\tc\n"), "why"))
    assert shown(found, colour=True)[-1] == "\033[32m+a^[]0;b^G\tc\033[0m"
    assert shown(found)[-1] == "+a\x1b]0;b\x07\tc"


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """The command for a plan with a diff, on an image tree."""
    (tmp_path / "image").mkdir()
    host = FakeHost(tmp_path / "image")
    host.write("/etc/sysconfig/iptables-config", 'IPTABLES_MODULES="nf_conntrack_ftp"\n')
    config = tmp_path / "conntrack.yaml"
    config.write_text("conntrack: {mode: unload}\n")
    return [sys.executable, "-m", "cloudinit_conntrack", "plan", "--root", str(host.tree), "-c", str(config)]


def on_terminal(words: list[str], **environment: str) -> str:
    """What the command writes to a terminal."""
    mine, theirs = pty.openpty()
    env = {"TERM": "xterm", **{k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TERM")}, **environment}
    with subprocess.Popen(words, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=theirs) as running:
        os.close(theirs)
        found = b""
        try:
            while select.select([mine], [], [], 60)[0]:
                found += os.read(mine, 65536)
        except OSError:  # it has ended (EIO)
            pass
        running.wait(60)
    os.close(mine)
    assert running.returncode == 4
    return found.decode().replace("\r\n", "\n")


def test_on_a_terminal(words: list[str]) -> None:
    plain = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False).stdout
    assert '\n-IPTABLES_MODULES="nf_conntrack_ftp"\n+IPTABLES_MODULES=""\n' in plain and "\033" not in plain
    coloured = on_terminal(words)
    assert '\n\033[31m-IPTABLES_MODULES="nf_conntrack_ftp"\033[0m\n\033[32m+IPTABLES_MODULES=""\033[0m\n' in coloured
    assert on_terminal(words, NO_COLOR="1") == plain
    assert on_terminal(words, TERM="dumb") == plain
    assert on_terminal(words, NO_COLOR="") == coloured


def test_the_order_of_modules_and_what_a_program_needs(words: list[str]) -> None:
    done = subprocess.run([*words, "--format", "json"], cwd=ROOT, capture_output=True, timeout=60, check=False)
    found = reports.read(done.stdout)
    (config, block) = found["actions"]
    assert (config["kind"], config["verb"], config["path"]) == ("file", "rewrite", "/etc/sysconfig/iptables-config")
    assert config["diff"].endswith('-IPTABLES_MODULES="nf_conntrack_ftp"\n+IPTABLES_MODULES=""\n')
    assert config["before"]["mode"] == "0644" and block["before"] is None and block["after"]["size"] > 1000
    assert found["desired"]["mode"] == "unload" and found["kept_ports"] == [22]


def test_a_boot_with_nothing_to_do_and_apply_load_no_differ() -> None:
    code = "import sys, cloudinit_conntrack.cli; print(sorted({'difflib'} & set(sys.modules)))"
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout.replace("'", '"')) == []


def test_a_kernel_of_what_is_unloaded() -> None:
    """Modules in their order, with what is set again when they come back."""
    kernel = Kernel("6.1", True, False, "loaded", True)
    module = UnloadModule("nf_conntrack", "why", (("hashsize", "8"),), (("net.netfilter.nf_conntrack_max", "9"),), True)
    found = report.to_json(report_of(Plan("unload", (UnloadModule("nf_nat", "why"), module)), Desired("unload"),
                                     State(kernel)))  # fmt: skip
    assert [a["name"] for a in found["actions"]] == ["nf_nat", "nf_conntrack"]
    told = found["actions"][1]
    assert (told["parameters"], told["sysctls"], told["force"]) == (
        {"hashsize": "8"}, {"net.netfilter.nf_conntrack_max": "9"}, True)  # fmt: skip
