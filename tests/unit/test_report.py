"""What a run says: for a person at three in the morning, and for programs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from cloudinit_conntrack import report
from cloudinit_conntrack.actions import DeleteEntries, LoadModule, LoadRules, ProveLoading, UnloadModule, WriteFile
from cloudinit_conntrack.kmod import parse_proc_modules
from cloudinit_conntrack.plan import Item, Plan
from cloudinit_conntrack.report import OUTCOME_COLOUR, Report
from cloudinit_conntrack.state import FileImage, Kernel, LiveRules, Resolution, State
from cloudinit_conntrack.status import make_status
from cloudinit_conntrack.verify import Evidence
from tests import reports

FILE = FileImage(b"")
ACTIONS = (
    WriteFile("/a", FILE, FILE, "one"),
    WriteFile("/b", None, FILE, "two"),
    WriteFile("/c", FILE, None, "three"),
    LoadRules("nft", "ipv6", "", "", "four"),
    UnloadModule("nf_nat", "five"),
    LoadModule("nf_nat", "six"),
    DeleteEntries((), "seven"),
    ProveLoading("/d", "ipv4", "", "eight"),
)
PLAN = Plan(
    "unload",
    ACTIONS,
    (Item("b:1", "here", "it cannot be", "do that"), Item("b:2", "there", "it cannot be", "do that")),
    (Item("w:1", "rule 1", "more is let in"),),
    (Item("f:1", "/e", "know this", "if you like"),),
)
EVIDENCE = (Evidence("a", True, "it is so"), Evidence("b", False, "it is not so"), Evidence("c", None, "who knows"))

TEXT = """\
blocked  mode unload

blocked by
  here
  there
      it cannot be
      -> do that

actions, in this order
   1  rewrite /a
      one
   2  write /b
      two
   3  remove /c
      three
   4  load live rules, iptables-nft ipv6
      four
   5  unload module nf_nat
      five
   6  load module nf_nat
      six
   7  delete entries of the flows from the conntrack table
      seven
   8  prove the loading of /d
      eight

accepted now and not before
  rule 1
      more is let in

good to know
  /e
      know this
      -> if you like

the kernel says
  NO  it is not so
  ?   who knows
"""


def test_text() -> None:
    assert report.text(report.of_plan(PLAN, "blocked", EVIDENCE)) == TEXT


def test_verbose_text_shows_what_is_as_it_should_be() -> None:
    shown = report.text(report.of_plan(PLAN, "blocked", EVIDENCE), verbose=True)
    assert shown == TEXT.replace("  NO  it", "  yes it is so\n  NO  it")


def test_agreement_is_one_line() -> None:
    said = report.text(Report("unload", "verified", evidence=EVIDENCE[:1] * 3))
    assert said == "verified  mode unload\n  the kernel agrees (3 checks; -v shows them)\n"


def test_a_terminal_gets_colour_and_nothing_else_changes() -> None:
    found = report.of_plan(PLAN, "blocked", EVIDENCE)
    coloured = report.text(found, colour=True)
    assert coloured.startswith("\033[31mblocked\033[0m  mode unload\n\n\033[31mblocked by\033[0m\n")
    for number in ("31", "33", "1", "0"):
        coloured = coloured.replace(f"\033[{number}m", "")
    assert coloured == TEXT


@pytest.mark.parametrize("outcome", sorted(OUTCOME_COLOUR))
def test_every_outcome_has_a_colour_that_fits(outcome: str) -> None:
    good = outcome in ("done", "nothing-to-do", "verified", "reverted", "confirmed", "enabled", "disabled")
    colour = "32" if good else "31" if outcome in ("blocked", "failed") else "33"
    assert (
        report.text(Report("", outcome), colour=True) == f"\033[{colour}m{outcome.replace('-', ' ')}\033[0m  mode -\n"
    )


def test_a_message_and_facts() -> None:
    said = report.text(Report("", "failed", facts=(("a", "1"), ("long", "2")), message="it broke"))
    assert said == "failed  mode -\n  it broke\n  a     1\n  long  2\n"


def test_json() -> None:
    found = reports.read(report.json_text(report.of_plan(PLAN, "blocked", EVIDENCE)))
    assert list(found) == [
        "schema", "mode", "outcome", "actions", "blockers", "widenings", "findings", "evidence", "facts"]  # fmt: skip
    assert (found["schema"], found["mode"], found["outcome"]) == (1, "unload", "blocked")
    told = {"id": "file:/a", "kind": "file", "verb": "rewrite", "where": "/a", "reason": "one", "path": "/a"}
    image = {"mode": "0644", "uid": 0, "gid": 0, "size": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    assert found["actions"][0] == {**told, "before": image, "after": image}
    assert found["blockers"][0] == {"id": "b:1", "where": "here", "reason": "it cannot be", "remedy": "do that"}
    assert found["evidence"][2] == {"id": "c", "holds": None, "what": "who knows"}
    for kind, many in (("actions", 8), ("blockers", 2), ("widenings", 1), ("findings", 1)):
        assert len(found[kind]) == many
        assert all({"id", "reason", "where"} <= set(item) for item in found[kind])
    assert reports.read(report.json_text(Report("", "failed", message="x")))["message"] == "x"


def test_json_of_bytes_that_are_no_text() -> None:
    where = b"caf\xe9 \xe2\x82\xac".decode("utf-8", "surrogateescape")
    text = report.json_text(Report("", "blocked", blockers=(Item("a", where, "b"),)))
    assert text.encode()
    assert reports.read(text)["blockers"][0]["where"] == "caf? €"


# --- status ------------------------------------------------------------------------------

RULES = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -m state --state NEW -j ACCEPT\nCOMMIT\n"
MODULES = parse_proc_modules("xt_conntrack 1 1 - Live 0\nnf_conntrack 1 1 xt_conntrack, Live 0\n")
LOADED = Kernel("6.1.0", True, False, "loaded", True, MODULES, entries=12)


def test_status_of_a_host_that_tracks() -> None:
    state = State(LOADED, (LiveRules("legacy", "ipv4", RULES),), notes=("something is odd",),
                  resolutions=(Resolution("nf_conntrack", "loads", "insmod nf_conntrack.ko"),))  # fmt: skip
    assert (
        report.text(make_status(state, "unload"))
        == """\
conntrack loaded  mode unload
  kernel                 6.1.0
  nf_conntrack           loaded
  in use                 once, by xt_conntrack
  entries                12 in this network namespace
  modprobe nf_conntrack  loads (insmod nf_conntrack.ko)

why it is in use
  nf_conntrack: loaded, in use once  -> modprobe -r nf_conntrack
  └─ module xt_conntrack, in use once  -> rmmod xt_conntrack
     └─ iptables-legacy ipv4, table filter
        └─ INPUT, rule 1: -m state --state NEW -j ACCEPT  -> iptables-legacy -t filter -D INPUT 1

good to know
  host
      something is odd
"""
    )


@pytest.mark.parametrize(
    "kernel, outcome, word",
    [
        (Kernel("6.1.0", True, False, "absent", False), "conntrack-absent", "nothing is tracked"),
        (Kernel("6.1.0", False, False, "builtin", True, entries=0), "conntrack-builtin", "built into the kernel"),
        (None, "image", ""),
    ],
)
def test_status_of_other_hosts(kernel: Kernel | None, outcome: str, word: str) -> None:
    found = make_status(State(kernel), "")
    assert (found.outcome, found.findings) == (outcome, ())
    assert word in report.text(found)
    assert ("entries", "0 in this network namespace") in found.facts or kernel is None or kernel.entries is None


def test_every_line_of_the_seeds_plan_is_short_or_a_place_or_a_list() -> None:
    """What a person reads at the top fits the screen: verb and place of each action."""
    expected = (Path(__file__).parent / "plan/seed/expected.txt").read_text()
    actions = [
        line for line in expected.splitlines() if line[:1].isalpha() and not line.startswith(("widening", "finding"))
    ]
    assert len(actions) == 13
    assert max(map(len, actions)) < 80
