"""User-data that carries the program: what it holds, what it refuses, what fits; and the program's own tables."""

from __future__ import annotations

import ast
import gzip
import hashlib
import json
import re
import subprocess
import sys
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest

from cloudinit_conntrack import kmod, userdata
from cloudinit_conntrack.actions import from_json
from cloudinit_conntrack.carried import door, planning, rules
from cloudinit_conntrack.config import desired_from_section
from cloudinit_conntrack.errors import ConfigError, ConntrackError, JournalError
from cloudinit_conntrack.host import saved
from cloudinit_conntrack.journal import parse
from cloudinit_conntrack.netfilter import stateful
from cloudinit_conntrack.netfilter.iptables import parse_ruleset
from cloudinit_conntrack.netfilter.parts import TCP
from cloudinit_conntrack.netfilter.ruleset import format_ruleset
from cloudinit_conntrack.netfilter.stated import stated
from cloudinit_conntrack.netfilter.stateless import make_stateless
from cloudinit_conntrack.reduce import reduced

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {name: (ROOT / "cloudinit_conntrack/carried" / name).read_text("utf-8") for name in userdata.FILES}
SECTION: dict[str, Any] = {"mode": "unload", "fallback": "stateless", "flows": {"frontends": [80, 443]}}
ONE_PORT = {"frontends": [80]}


def made(section: dict[str, Any], merge: bytes = b"", compress: bool = False) -> bytes:
    return userdata.make_userdata(desired_from_section(section), section, SOURCES, merge, "more", compress)


def run(*words: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "cloudinit_conntrack", "userdata", *words]
    return subprocess.run(command, input=given, capture_output=True, timeout=60, cwd=ROOT, check=False)


# --- what it holds ---------------------------------------------------------------------


@pytest.mark.parametrize("compress", [False, True])
def test_it_says_what_it_carries(compress: bool) -> None:
    content = made(SECTION, compress=compress)
    found = userdata.carried(content, "made")
    assert (found.mode, found.section, found.others) == ("unload", SECTION, ())
    assert found.size == len(content) <= userdata.MOST_BYTES
    assert found.compressed == compress
    assert "def main():" in found.program and '"""' not in found.program


def test_the_program_is_one_that_python_3_9_reads() -> None:
    tree = ast.parse(userdata.carried(made(SECTION), "made").program, feature_version=(3, 6))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert imported <= sys.stdlib_module_names and "yaml" not in imported


def test_the_same_section_gives_the_same_bytes() -> None:
    assert made(SECTION, compress=True) == made(dict(SECTION), compress=True)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda p: p.name)
def test_every_example_fits_or_is_refused_with_a_remedy(path: Path, tmp_path: Path) -> None:
    done = run("-c", str(path), "-o", str(tmp_path / "out"))
    if done.returncode == 0:
        assert (tmp_path / "out").stat().st_size <= userdata.MOST_BYTES
        assert b"of 16,384 bytes" in done.stderr and not done.stdout
    else:
        assert done.returncode == 2 and not (tmp_path / "out").exists()
        said = done.stderr.decode()
        assert said.count("\n") == 1 and re.search("is left out of the reduced program|holds more than", said), said


# --- what it refuses -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "path"),
    [
        ({"flows": {"haproxy_cfg": "/etc/haproxy/haproxy.cfg"}}, "flows.haproxy_cfg"),
        ({"rules": {"stateful": "remove"}}, "rules.stateful"),
        ({"rules": {"nat": "remove"}}, "rules.nat"),
        ({"modules": {"force": True}}, "modules.force"),
        ({"on_failure": "keep"}, "on_failure"),
        ({"persist": False}, "persist"),
        ({"mode": "notrack", "fallback": "none", "flows": {"all": True}}, "flows.all"),
    ],
)
def test_what_was_left_out_is_refused_here(more: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError, match="is left out of the reduced program") as told:
        made({**SECTION, **more})
    assert told.value.where == f"conntrack.{path}" and told.value.remedy


def test_too_large_is_refused_with_its_size() -> None:
    script = b"#!/bin/sh\n" + b"".join(b"# %d\n" % (n * 7919 % 100003) for n in range(900))
    noise = "".join(f"# {hashlib.sha256(b'%d' % n).hexdigest()}\n" for n in range(200)).encode()
    with pytest.raises(ConntrackError, match=r"is 2\d,\d\d\d bytes, and EC2 takes 16,384") as told:
        made(SECTION, script)
    assert "--compress" in told.value.remedy
    assert len(made(SECTION, script, compress=True)) <= userdata.MOST_BYTES
    with pytest.raises(ConntrackError, match="EC2 takes") as told:
        made(SECTION, script + noise, compress=True)
    assert "shorten" in told.value.remedy


@pytest.mark.parametrize(
    ("words", "given", "said"),
    [
        ((), b"", "no configuration"),
        (("-c", "-", "--merge", "-"), b"", "both the configuration and --merge"),
        (("-c", "-", "--root", "/tmp"), b"conntrack: {mode: unload}", "no file tree"),
        (("--check", "-", "--compress"), b"", "only looks"),
        (("-c", "-"), b"conntrack: {mode: unload}\npackages: [haproxy]\n", "section (packages)"),
        (("--check", "-"), b"#cloud-config\n{}\n", "does not carry cloudinit-conntrack"),
        (("--check", "-"), b"\x1f\x8bxx", "is not whole"),
        (("--check", "-"), b"hello", "is no user-data"),
    ],
)  # fmt: skip
def test_wrong_usage_is_one_message(words: tuple[str, ...], given: bytes, said: str) -> None:
    done = run(*words, given=given)
    assert done.returncode == 2 and not done.stdout
    assert said in done.stderr.decode() and done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("cut", [100, 400, 9000, -5])
def test_a_damaged_one_is_found(cut: int) -> None:
    content = made(SECTION)
    with pytest.raises(ConfigError):
        userdata.carried(content[:cut], "cut")
    with pytest.raises(ConfigError):
        userdata.carried(content[:cut].replace(b"c", b"d") + content[cut:], "changed")


def test_checking_runs_nothing(tmp_path: Path) -> None:
    import base64
    import bz2

    evil = f"CONFIG=open({str(tmp_path / 'ran')!r},'w')\nopen({str(tmp_path / 'ran')!r},'w')\n"

    head = made(SECTION).decode()[: made(SECTION).decode().index("\n'") + 1]
    text = head + f"'{base64.b85encode(bz2.compress(evil.encode())).decode()}')))\n"
    with pytest.raises(ConfigError, match="damaged"):
        userdata.carried(text.encode(), "evil")
    assert not (tmp_path / "ran").exists()


# --- other user-data -------------------------------------------------------------------

MORE = (
    (b"#cloud-config\npackages: [haproxy]\n", "text/cloud-config"),
    (b"#!/bin/sh\necho \xc3\xa4\n", "text/x-shellscript"),
    (b"## template: jinja\n#cloud-config\n{}\n", "text/jinja2"),
    (b"#include\nhttp://192.0.2.1/more\n", "text/x-include-url"),
    (b"#cloud-config-archive\n- '#cloud-config'\n", "text/cloud-config-archive"),
)


@pytest.mark.parametrize(("more", "kind"), MORE, ids=[kind for _, kind in MORE])
def test_it_carries_other_user_data_byte_for_byte(more: bytes, kind: str) -> None:
    message = message_from_bytes(made(SECTION, more))
    first, other = message.get_payload()  # type: ignore[misc]
    assert first.get_content_type() == "text/cloud-boothook"  # type: ignore[union-attr]
    assert (other.get_content_type(), other.get_payload(decode=True)) == (kind, more)  # type: ignore[union-attr]


def test_a_mime_message_comes_apart_and_together_again() -> None:
    both = made(SECTION, MORE[0][0])
    whole = both.replace(b"text/cloud-boothook", b"text/x-shellscript", 1)
    parts = [line.split(": ")[1] for line in userdata.carried(made(SECTION, gzip.compress(MORE[1][0])), "x").others]
    assert parts == ["x-shellscript"]
    with pytest.raises(ConfigError, match="carries the program already"):
        made(SECTION, whole)


def test_a_second_section_is_refused() -> None:
    with pytest.raises(ConfigError, match="holds a conntrack: section too"):
        made(SECTION, b"#cloud-config\nconntrack: {mode: unload}\n")


# --- the program's own tables ----------------------------------------------------------


def test_its_tables_are_those_of_the_whole_program() -> None:
    needs = rules.NEEDS.pattern
    assert set(needs.partition("(")[2].partition(")")[0].split("|")) == set(stateful.MATCHES)
    assert set(needs.rpartition("(")[2].partition(")")[0].split("|")) == set(stateful.TARGETS)
    assert [(part.state, part.options) for part in TCP] == [(s, f"--tcp-flags {o}") for s, o in rules.TCP]
    assert planning.CORE == kmod.CORE and kmod.BLOCK_PATH == planning.BLOCK
    assert {place[:1] + place[2:] for place in saved.PLACES if place[1] == "rules" and "fallback" not in place[0]} == {
        *planning.SAVED}


def test_units_of_programs_that_bring_conntrack_back_are_known() -> None:
    for mode in ("notrack", "stateless", "unload"):
        assert {"firewalld.service", "ufw.service"} <= set(userdata.refused_units(mode))
    assert "docker.service" not in userdata.refused_units("notrack")
    assert {"docker.service", "docker.socket", "kubelet.service"} <= set(userdata.refused_units("unload"))


def test_its_journal_is_the_whole_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "STATE", str(tmp_path))
    monkeypatch.setattr(door, "JOURNAL", str(tmp_path / "journal"))
    file = tmp_path / "file"
    file.write_bytes(b"\xff old\n")
    action = door.written(str(file), door.image(str(file)), "new\n", "why")
    rule = {"action": "LoadRules", "backend": "nft", "family": "ipv4", "before": "a", "after": "b", "reason": "why",
            "dropped": [], "created": ["raw"]}
    door.record("begin", 1, boot="b", mode="stateless", modules=["x"], plan=[action, rule])
    door.record("act", 1, at=0)
    (entry,) = parse((tmp_path / "journal").read_bytes())
    assert entry.planned == (from_json(action), from_json(rule)) and entry.actions == entry.planned[:1]
    door.record("commit", 1, loaded=["x"])
    with (tmp_path / "journal").open("ab") as journal:
        journal.write(b'{"torn')
    assert [e["closed"] for e in door.entries()] == [True]
    door.record("undone", 1)
    assert parse((tmp_path / "journal").read_bytes()) == () == tuple(door.entries())
    with (tmp_path / "journal").open("ab") as journal:
        journal.write(b"{}\t0\n")
    with pytest.raises(door.Failed, match="damaged"):
        door.entries()
    with pytest.raises(JournalError):
        parse((tmp_path / "journal").read_bytes())


# --- its rewrite beside the whole program's ----------------------------------------------

OUTBOUND = [["udp", port, port, ""] for port in (53, 123, 67)]
CONFIG: dict[str, Any] = {"stateful": "rewrite", "frontends": [], "backends": [], "outbound": OUTBOUND}
FRAME = "*filter\n:INPUT DROP [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\n:own - [0:0]\n{}\nCOMMIT\n"
PROTOCOLS = {"": "", "tcp": "-p tcp", "port": "-p tcp -m tcp --dport 22", "syn": "-p tcp -m tcp --syn",
             "ports": "-p tcp -m multiport --dports 80,443", "udp": "-p udp", "dns": "-p udp -m udp --sport 53",
             "ask": "-p udp -m udp --dport 514", "icmp": "-p {icmp}", "type": "-p {icmp} {echo}", "gre": "-p 47"}
STATES = ("NEW", "ESTABLISHED", "RELATED,ESTABLISHED", "INVALID", "NEW,ESTABLISHED", "NEW,RELATED,ESTABLISHED",
          "RELATED", "RELATED,UNTRACKED")
WORDS = {"ipv4": {"icmp": "icmp", "echo": "-m icmp --icmp-type 8"},
         "ipv6": {"icmp": "ipv6-icmp", "echo": "-m icmp6 --icmpv6-type 128"}}


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
@pytest.mark.parametrize("target", ["ACCEPT", "DROP", "own"])
@pytest.mark.parametrize("chain", ["INPUT", "OUTPUT"])
def test_it_says_the_same_as_the_whole_program_or_blocks(family: str, target: str, chain: str) -> None:
    """Every combination: no handshake is let in, no more is let in than the rules before and the whole rewrite do."""
    told = 0
    for match in PROTOCOLS.values():
        for states in STATES:
            for negated in ("", "! "):
                asked = f"-m conntrack {negated}--ctstate {states}"
                rule = f"-A {chain} {match.format(**WORDS[family])} {asked} -j {target}"
                text = FRAME.format(f"{rule}\n-A own -j ACCEPT")
                told += _same_or_blocked(text, family, rule)
    assert told > 80


def _same_or_blocked(text: str, family: str, rule: str) -> bool:
    try:
        after = rules.stateless(text, family, CONFIG, "32768:60999", False)
    except rules.Blocked:
        return False
    before = parse_ruleset(text, family, "before")
    mine = parse_ruleset(after, family, "after")
    assert not stateful_rules(after), rule
    assert rules.stateless(after, family, CONFIG, "32768:60999", False) == after
    whole = make_stateless(before)
    difference, _ = stated(before, mine)
    assert difference is not None and not difference.handshakes, rule
    if whole.blockers:
        return True
    beside, _ = stated(whole.ruleset, mine)
    assert beside is not None
    tcp = [str(told) for told in beside.widened + beside.narrowed if "TCP" in str(told)]
    assert not tcp, (rule, tcp, format_ruleset(whole.ruleset), after)
    return True


def stateful_rules(text: str) -> list[str]:
    return [line for line in text.splitlines() if "state" in line]


# --- the reducer -----------------------------------------------------------------------


def test_reduced_source_is_the_program_without_words_for_readers() -> None:
    one = "'''Words.'''\nimport os\nimport re\nX: float = 1\nUnused = dict\n"
    one += "def f(a: float) -> float:\n    return a + X\n"
    two = "from .one import f\nCONFIG: dict = {}\nclass C:\n    def m(self) -> None:\n        '''D.'''\n"
    two += "def main() -> float:\n    C()\n    return f(re.x)\n"
    text = reduced([one, two])
    assert text.splitlines()[0] == "import re" and "CONFIG" not in text and "Unused" not in text
    assert text.endswith("sys.exit(main())\n") and '"' not in text and "'" not in text and "float" not in text
    with pytest.raises(ValueError, match="given twice: f"):
        reduced([one, "def f():\n    pass\ndef main():\n    f()\n"])


def test_json_of_check() -> None:
    done = run("--check", "-", "--format", "json", given=made(SECTION))
    found = json.loads(done.stdout)
    assert done.returncode == 0 and found["schema"] == 1 and found["section"] == SECTION and "program" not in found


def test_a_node_of_a_stock_image_fits() -> None:
    """What docs/how-to/autoscaling.md says: the gate beside the program, and a group's own script."""
    node = (ROOT / "examples/autoscaling/stock-node.yaml").read_bytes()
    script = b"  # a script of a kilobyte\n" * 40
    content = made(SECTION, node + b"runcmd:\n- |\n" + script, compress=True)
    assert userdata.carried(content, "node").others == ("part-1: cloud-config",)
