"""User-data that carries the program, on machines that never saw our package: all stages, and no network."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path

import pytest
import yaml
from chroots import SUITES, Suite
from installation import PRODUCT, bare_machine
from machines import Boot, Machine
from stages import SEED, Outcome, run_stages, seed
from stateful_host import RULES_V4, SAVED_V4, SECTION, firewall, load_rules, tracked
from test_cloudinit_channels import assert_clean, assert_stateless

from tests import reports

ENDS = (SUITES[0], SUITES[-1])  # the oldest and the newest; each costs a boot
COMMAND = "/usr/local/sbin/cloudinit-conntrack"
AGAIN = "/var/lib/cloud/scripts/per-boot/cloudinit-conntrack"
OTHERS = {
    "config.yaml": "#cloud-config\nwrite_files: [{path: /root/written, content: ümlaut}]\nruncmd: [touch /root/ran]\n",
    "script": "#!/bin/sh\necho $0 >/root/script\n",
}
BOTH = """\
Content-Type: multipart/mixed; boundary="=="
MIME-Version: 1.0

--==
Content-Type: text/cloud-config; charset="utf-8"

{config.yaml}
--==
Content-Type: text/x-shellscript; charset="utf-8"

{script}
--==--
""".replace("{config.yaml}", OTHERS["config.yaml"]).replace("{script}", OTHERS["script"])


def made(place: Path, *options: str, section: str = SECTION) -> bytes:
    """What the verb writes for *section*."""
    config, out = place / "section.yaml", place / "out"
    config.write_text(section, "utf-8")
    command = [sys.executable, "-m", "cloudinit_conntrack", "userdata", "-c", str(config), "-o", str(out), *options]
    subprocess.run(command, check=True, timeout=60, cwd=PRODUCT)
    content = out.read_bytes()
    assert len(content) <= 16384
    return content


def give(boot: Boot, content: bytes) -> None:
    """The instance with this user-data, byte for byte; the machine has a route to nowhere."""
    seed(boot)
    boot.run("sh", "-c", f"base64 -d >{SEED}/user-data", stdin=base64.b64encode(content).decode("ascii"))
    assert not boot.run("ip", "route")


def boot_with(boot: Boot, suite: Suite, content: bytes) -> Outcome:
    give(boot, content)
    load_rules(boot)
    return run_stages(boot, suite.single_process)


def result(boot: Boot) -> object:
    return reports.read(boot.read("/run/cloudinit-conntrack/result.json"))["outcome"]


def test_a_stock_image_becomes_stateless_and_stays_so(suite: Suite, bare: Machine, tmp_path: Path) -> None:
    content = made(tmp_path)
    with bare.boot() as boot:
        load_rules(boot)
        before = firewall(boot)
        assert tracked(boot)
        outcome = boot_with(boot, suite, content)
        assert_clean(outcome)
        assert outcome.codes == (0, 0, 0, 0)
        assert_stateless(before, firewall(boot))
        assert not tracked(boot)
        assert result(boot) == "nothing-to-do"  # the last stage asked again
        boot.run(COMMAND, "verify")
    with bare.boot() as boot:  # its saved files are what a boot loads
        load_rules(boot)
        assert firewall(boot).stateful == []
        boot.run("ip6tables", "-I", "INPUT", "-m", "conntrack", "--ctstate", "INVALID", "-p", "tcp", "-j", "DROP")
        assert boot.attempt(COMMAND, "verify").returncode == 4
        assert_clean(run_stages(boot, suite.single_process))
        assert firewall(boot).stateful == []
        boot.run(COMMAND, "revert")
        boot.run(COMMAND, "apply")
        boot.run(COMMAND, "revert")
        assert firewall(boot).texts[2:] == before.texts[2:]
        boot.write("/usr/bin/cloudinit-conntrack", "#!/bin/sh\necho $* >/root/asked; cat >/root/given\n")
        boot.run("chmod", "755", "/usr/bin/cloudinit-conntrack")
        boot.run(AGAIN)  # a package that came later is handed the section
        assert boot.read("/root/asked") == "apply -c -\n"
        assert json.loads(boot.read("/root/given")) == yaml.safe_load(SECTION)
        boot.write("/var/lib/cloudinit-conntrack/off", "")
        boot.run(AGAIN)  # what the last stage of the next boot runs
        assert firewall(boot).texts[2:] == before.texts[2:]


def test_other_user_data_comes_along(suite: Suite, bare: Machine, tmp_path: Path) -> None:
    """Plain on two versions, compressed on the others."""
    other = tmp_path / "other"
    other.write_text(BOTH, "utf-8")
    content = made(tmp_path, "--merge", str(other), *(["--compress"] if suite.name in ("bullseye", "trixie") else []))
    with bare.boot() as boot:
        assert_clean(boot_with(boot, suite, content))
        assert firewall(boot).stateful == []
        assert boot.read("/root/written") == "ümlaut"
        assert "script" in boot.read("/root/script") or "part" in boot.read("/root/script")
        boot.run("test", "-e", "/root/ran")


@pytest.mark.parametrize("version", ENDS, ids=attrgetter("version"))
def test_rules_that_the_same_user_data_brings_are_rewritten_too(
    version: Suite, chroot_of: Callable[[Suite], Path], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    rules = "".join(f"    {line}\n" for line in RULES_V4.splitlines())
    other.write_text(f"#cloud-config\nwrite_files:\n- path: {SAVED_V4}\n  content: |\n{rules}", "utf-8")
    with bare_machine(chroot_of(version)) as bare, bare.boot() as boot:
        assert_clean(boot_with(boot, version, made(tmp_path, "--merge", str(other), "--compress")))
        assert result(boot) == "done"  # by the last stage: write_files came behind the boothook
        assert firewall(boot).stateful == []


@pytest.mark.parametrize("version", ENDS, ids=attrgetter("version"))
def test_what_cannot_be_done_is_an_error_of_cloud_init_and_changes_nothing(
    version: Suite, chroot_of: Callable[[Suite], Path], tmp_path: Path
) -> None:
    with bare_machine(chroot_of(version)) as bare, bare.boot() as boot:
        give(boot, made(tmp_path))
        load_rules(boot)
        boot.run("iptables", "-A", "INPUT", "-m", "connlimit", "--connlimit-above", "9", "-j", "DROP")
        before = firewall(boot)
        outcome = run_stages(boot, version.single_process)
        assert firewall(boot) == before
        assert result(boot) == "blocked"
        assert any("cloudinit-conntrack" in error or "per" in error for error in outcome.errors)
        assert outcome.status.startswith("status: error\n")


