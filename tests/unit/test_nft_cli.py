"""``rewrite --backend nft`` as a person runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from nft_kernel import load

from tests import reports

REPOSITORY = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "nft"


def call(*words: str, stdin: str = "") -> tuple[int, str, str]:
    command = [sys.executable, "-m", "cloudinit_conntrack", "rewrite", "--backend", "nft", *words]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False, cwd=REPOSITORY)
    return done.returncode, done.stdout, done.stderr


def test_it_is_a_filter() -> None:
    text = (GOLDEN / "balancer" / "in.json").read_text()
    code, out, said = call(stdin=text)
    assert code == 0
    (loaded,) = load([out])
    assert (loaded.code, loaded.text) == (0, (GOLDEN / "balancer" / "out.nft").read_text())
    assert "<stdin>: accepted now and not before: INPUT: TCP segments with ACK or RST set" in said
    assert "<stdin>: object 4: IPv6 fragments other than the first are accepted" in said
    assert call(stdin=out) == (0, out, "")
    assert "<stdin>: object 6: widens: TCP segments with ACK or RST set" in call("-v", stdin=text)[2]


def test_as_json() -> None:
    path = GOLDEN / "balancer" / "in.json"
    code, out, _ = call("--format", "json", str(path))
    found = reports.read(out)
    assert code == 0 and found["blockers"] == []
    change = next(change for change in found["changes"] if change["line"] == 10)
    assert change["rule"] == 'inet lb input ct state new ip saddr 10.0.0.0/16 tcp dport 22 accept comment "operators"'
    assert change["becomes"] == [
        'tcp flags & (fin | syn | rst | ack) == syn ip saddr 10.0.0.0/16 tcp dport 22 accept comment "operators"'
    ]
    assert json.loads(found["ruleset"])["nftables"][0] == json.loads(path.read_text())["nftables"][0]


@pytest.mark.parametrize("name", ["impossible", "nat-refused", "conntrack-objects"])
def test_what_is_blocked_gives_nothing(name: str) -> None:
    path = str(GOLDEN / name / "in.json")
    code, out, said = call(path)
    assert (code, out) == (3, "")
    assert f"{path}: object 7: blocked: " in said or f"{path}: object 4: blocked: " in said
    code, out, _ = call("--format", "json", path)
    found = reports.read(out)
    assert code == 3 and found["ruleset"] == "" and found["changes"] == [] and found["blockers"]
    assert all(blocker["remedy"] for blocker in found["blockers"])


def test_the_section_decides(tmp_path: Path) -> None:
    config = tmp_path / "section.yaml"
    flows = "flows: {outbound: [{port: 5000, protocol: udp}]}"
    config.write_text(f"conntrack: {{mode: stateless, rules: {{nat: remove}}, {flows}}}\n")
    code, out, _ = call("-c", str(config), str(GOLDEN / "nat-removed" / "in.json"))
    assert code == 0 and '"nat"' in out and "masquerade" not in out and '"type": "nat"' not in out
    code, out, _ = call("-c", str(config), str(GOLDEN / "workstation" / "in.json"))
    assert code == 0 and "5000" in out and "123" not in out


def test_damage_is_one_message() -> None:
    damaged = ("", "*filter\nCOMMIT\n", '{"nftables": [\n{"rule": 5}]}', '{"nftables": [', "[" * 5000, "\0", "\x1b[31m")
    for text in damaged:
        code, out, said = call(stdin=text)
        assert (code, out) == (1, "") and said.count("\n") == 1
        assert said.startswith("cloudinit-conntrack: <stdin>:")
