"""enable, disable and the script for ``cloud-init clean``, with the real cloud-inits."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from operator import attrgetter
from typing import Any

import pytest
from chroots import SUITES, Suite, numbers
from installation import DIST_PACKAGES, PRODUCT
from machines import Boot, Machine
from stages import Outcome, run_stages, seed
from stateful_host import SAVED_V4, SAVED_V6, files_below, firewall, load_rules, tracked
from test_cloudinit_channels import assert_clean, assert_ran, assert_stateless, by_drop_in

from tests import reports

DROP_IN = "/etc/cloud/cloud.cfg.d/99-cloudinit-conntrack.cfg"
SCRIPT = "/etc/cloud/clean.d/50-cloudinit-conntrack"
CONFIG = "/etc/cloud/cloud.cfg"
RUN = re.compile(r"^start: (\S+): running (\S+) with frequency", re.MULTILINE)
STATE = "/var/lib/cloudinit-conntrack"
BOOKWORM = next(suite for suite in SUITES if suite.name == "bookworm")
TRIXIE = next(suite for suite in SUITES if suite.name == "trixie")
# As Red Hat's Python does it (patch 00251 of its python3): /usr/local is a place for packages without -s only.
RED_HAT = """\
import site, sys
sys.path[:] = [p for p in sys.path if not p.startswith("/usr/local")]
if site.ENABLE_USER_SITE:
    sys.path.append("/usr/local/lib/python3.11/site-packages")
"""

on_one = partial(pytest.mark.parametrize, "version", ids=attrgetter("version"))
on_bookworm, on_trixie = on_one([BOOKWORM]), on_one([TRIXIE])
Packages = Callable[[Suite], AbstractContextManager[Machine]]


@pytest.fixture
def packaged(suite: Suite, packages: Packages) -> Iterator[Machine]:
    """A machine with our package, listed nowhere."""
    with packages(suite) as made:
        yield made


def ours(boot: Boot, *words: str, code: int = 0) -> dict[str, Any]:
    """What our command, called in the machine, answers."""
    done = boot.attempt("python3", "-m", "cloudinit_conntrack", *words, "--format", "json")
    assert done.returncode == code, done.stdout + done.stderr
    return reports.read(done.stdout)


def wiring(boot: Boot) -> list[dict[str, str]]:
    """What status finds about cloud-init."""
    return [item for item in ours(boot, "status")["findings"] if item["id"].startswith("cloud-init")]


def modules_run(outcome: Outcome) -> list[tuple[str, str]]:
    return RUN.findall(outcome.said)


def etc(machine: Machine) -> dict[str, str]:
    return files_below(machine.root / "etc", times=False)


# --- boots -----------------------------------------------------------------------------


def test_a_boot_runs_everything_that_it_ran_before_and_ours(suite: Suite, packages: Packages) -> None:
    with packages(suite) as machine, machine.boot() as boot:
        by_drop_in(boot)
        without = modules_run(run_stages(boot, suite.single_process))
    assert len(without) > 20 and not [name for _, name in without if "conntrack" in name]
    with packages(suite) as machine:
        with machine.boot() as boot:
            assert [action["where"] for action in ours(boot, "enable")["actions"]] == [SCRIPT, DROP_IN]
            by_drop_in(boot)
            load_rules(boot)
            boot.run("iptables", "-I", "INPUT", "-s", "198.51.100.9", "-j", "ACCEPT")  # of this host alone
            before = firewall(boot)
            files = {path: boot.read(path) for path in (SAVED_V4, SAVED_V6)}
            outcome = run_stages(boot, suite.single_process)
            assert_clean(outcome)
            assert_ran(outcome)
            assert_stateless(before, firewall(boot))
            assert not tracked(boot)
            assert wiring(boot) == []
            assert "99-cloudinit-conntrack.cfg" in ours(boot, "status")["facts"]["cloud-init"]
            with_us = modules_run(outcome)
            assert [found for found in with_us if "conntrack" not in found[1]] == without
            stage = next(stage for stage, name in with_us if name == "config-conntrack").partition("/")[0]
            assert [name for where, name in with_us if where.startswith(stage)][-1] == "config-conntrack"
            clean(boot, suite)
        clone(machine, suite, files)


def clean(boot: Boot, suite: Suite) -> None:
    """cloud-init's own clean, which runs our script from 22.3 on; before that a person does."""
    assert "198.51.100.9" in journal(boot) and "kernel" not in boot.read(f"{STATE}/desired.json")
    boot.run("cloud-init", "clean", "--logs")
    if numbers(suite.version) < (22, 3):
        boot.run(SCRIPT)
    assert "198.51.100.9" not in journal(boot) and "WriteFile" in journal(boot)
    kept = boot.run("ls", STATE).split()
    assert sorted(kept) == ["desired.json", "journal"]
    assert boot.attempt("test", "-e", "/run/cloudinit-conntrack/result.json").returncode == 1
    assert ours(boot, "forget")["outcome"] == "nothing-to-do"


def journal(boot: Boot) -> str:
    return boot.read(f"{STATE}/journal")


def clone(machine: Machine, suite: Suite, files: dict[str, str]) -> None:
    """Its first boot is stateless as the image; its revert gives it the image's files, and nobody else's rules."""
    with machine.boot() as boot:
        seed(boot)
        load_rules(boot)
        boot.run("iptables", "-I", "INPUT", "-s", "203.0.113.7", "-j", "DROP")  # of the clone alone
        assert firewall(boot).stateful == []
        outcome = run_stages(boot, suite.single_process)
        assert_clean(outcome)
        assert "nothing to do" in outcome.said
        before = firewall(boot)
        found = ours(boot, "revert")
        assert found["outcome"] == "reverted"
        assert any("next boot" in item["reason"] for item in found["findings"])
        assert {path: boot.read(path) for path in files} == files
        after = firewall(boot)
        assert (after.live_v4, after.live_v6) == (before.live_v4, before.live_v6)
        assert "203.0.113.7" in after.live_v4 and "198.51.100.9" not in after.live_v4
        assert boot.attempt("test", "-e", STATE + "/journal").returncode == 1


# --- files -----------------------------------------------------------------------------


def test_disable_leaves_every_byte_as_it_was(suite: Suite, packaged: Machine) -> None:
    before = etc(packaged)
    with packaged.boot() as boot:
        ours(boot, "enable")
        boot.run("touch", "-d", "2020-01-01", DROP_IN, SCRIPT)
        enabled = files_below(packaged.root / "etc")
        assert ours(boot, "enable")["outcome"] == "nothing-to-do"
        assert files_below(packaged.root / "etc") == enabled
        assert set(etc(packaged)) - set(before) >= {DROP_IN[5:], SCRIPT[5:]}
        assert boot.run("stat", "-c", "%a %U:%G", DROP_IN, SCRIPT).split() == ["644", "root:root", "755", "root:root"]
        assert ours(boot, "disable")["outcome"] == "disabled"
        assert etc(packaged) == before
        assert ours(boot, "disable")["outcome"] == "nothing-to-do"
        assert boot.attempt("test", "-e", STATE).returncode == 1


def test_cloud_init_clean_outlives_us(suite: Suite, packaged: Machine) -> None:
    with packaged.boot() as boot:
        ours(boot, "enable")
        seed(boot)
        boot.run("mkdir", "-p", "/var/lib/cloud/instance")
        boot.write(f"{STATE}/journal", "no journal of ours\n")
        done = boot.attempt("sh", "-c", f"{SCRIPT} && cloud-init clean")
        assert done.returncode == 0 and "may be left in the image" in done.stderr
        assert boot.read(f"{STATE}/journal") == "no journal of ours\n"
        boot.run("rm", "-r", f"{DIST_PACKAGES}/cloudinit_conntrack", f"{DIST_PACKAGES}/cc_conntrack.py")
        boot.run("mkdir", "-p", "/var/lib/cloud/instance")
        done = boot.attempt("sh", "-c", f"{SCRIPT} && cloud-init clean")
        assert done.returncode == 0 and done.stderr == ""


@on_bookworm
def test_a_changed_list_is_said_and_taken_over(version: Suite, packages: Packages) -> None:
    with packages(version) as packaged, packaged.boot() as boot:
        ours(boot, "enable")
        assert wiring(boot) == []
        boot.run("sed", "-i", r"s/^\( *\)- runcmd$/\1- [runcmd, once]\n\1- {name: phone-home, args: [1]}/", CONFIG)
        (found,) = wiring(boot)
        assert found["id"] == "cloud-init:stale" and "phone-home" in found["reason"] and "enable" in found["remedy"]
        assert [action["where"] for action in ours(boot, "enable")["actions"]] == [DROP_IN]
        assert wiring(boot) == []
        assert "- {\"name\": \"phone-home\", \"args\": [1]}\n- byobu\n- [conntrack, always]\n" in boot.read(DROP_IN)
        enabled = etc(packaged)
        boot.write(CONFIG, "cloud_config_modules: [\n")
        assert [item["id"] for item in wiring(boot)] == [f"cloud-init:unread:{CONFIG}"]
        assert ours(boot, "enable", code=3)["blockers"][0]["where"] == CONFIG
        assert {k: v for k, v in etc(packaged).items() if k != CONFIG[5:]} == {
            k: v for k, v in enabled.items() if k != CONFIG[5:]}


# --- cloud-init's own reading ----------------------------------------------------------

# In one process, on trees of their own: cloud-init's reading of the list before enable, and of it after.
READ = """
import json, os, sys, tempfile
from dataclasses import replace
from cloudinit.util import read_conf_with_confd
from cloudinit_conntrack.cloudcfg import DROP_IN, KEY
from cloudinit_conntrack.enable import plan_enable
from cloudinit_conntrack.host.cloudinit import observe_cloud_init
from cloudinit_conntrack.host.root import Root
from cloudinit_conntrack.perform import perform

base, told = open("/etc/cloud/cloud.cfg").read(), []
for files in json.load(sys.stdin):
    tree = tempfile.mkdtemp()
    os.makedirs(tree + "/etc/cloud/cloud.cfg.d")
    os.makedirs(tree + "/usr/bin")
    for name, text in {"../cloud.cfg": base, "../../../usr/bin/cloud-init": "", **files}.items():
        with open(tree + "/etc/cloud/cloud.cfg.d/" + name, "w") as file:
            file.write(text)
    before = read_conf_with_confd(tree + "/etc/cloud/cloud.cfg").get(KEY)
    found = observe_cloud_init(Root(tree), asking=False)
    for action in plan_enable(replace(found, importing=None)).actions:
        perform(action, Root(tree))
    told.append((before, read_conf_with_confd(tree + "/etc/cloud/cloud.cfg").get(KEY)))
print(json.dumps(told))
"""
LISTS: tuple[dict[str, str], ...] = (
    {},
    {"50_a.cfg": "cloud_config_modules: [runcmd, [ntp, always]]\n"},
    {"50_a.cfg": "cloud_config_modules: [runcmd]\n", "98-b.cfg": "cloud_config_modules:\n- ntp\n- {name: byobu}\n"},
    {"50_a.cfg": "cloud_config_modules: [runcmd]\n", "98-b.cfg.off": "cloud_config_modules: [ntp]\n"},
    {"50_a.cfg": "cloud_config_modules: [runcmd]\n", "98-b.cfg": "not: [yaml\n", "98-c.cfg": "- list\n"},
    {"50_a.cfg": "cloud_config_modules: [ntp]\n", "6.cfg": "cloud_config_modules: [runcmd, 'on', 'x y', [a, 'no']]\n"},
    {"50_a.cfg": "cloud_config_modules: []\n", "05_.cfg": "cloud_config_modules: [runcmd]\n"},
    {"50_a.cfg": "merge_how: 'list(append)+dict(recurse_list)+str()'\nruncmd: [x]\n"},
    {"50_a.cfg": "cloud_init_modules: [ntp]\n", "60_a.cfg": "# nothing\n"},
)


def test_the_list_is_what_cloud_init_itself_reads_and_ours(suite: Suite, packaged: Machine) -> None:
    with packaged.boot() as boot:
        told = json.loads(boot.run("python3", "-B", "-c", READ, stdin=json.dumps(LISTS)).splitlines()[-1])
    assert len(told) == len(LISTS)
    for files, (before, after) in zip(LISTS, told):
        assert after == [*before, ["conntrack", "always"]], files


@on_bookworm
@pytest.mark.parametrize(("name", "text"), [
    ("99_crowdstrike.cfg", "cloud_config_modules: [runcmd]\n"),
    ("50_a.cfg", "cloud_config_modules: [runcmd]\nmerge_how: 'list(prepend)+dict(no_replace,recurse_list)+str()'\n"),
    ("50_a.cfg", "## template: jinja\ncloud_config_modules: [runcmd]\n"),
])  # fmt: skip
def test_a_list_that_ours_would_not_replace_is_refused(
    version: Suite, packages: Packages, name: str, text: str
) -> None:
    with packages(version) as machine, machine.boot() as boot:
        boot.write(f"/etc/cloud/cloud.cfg.d/{name}", text)
        before = etc(machine)
        found = ours(boot, "enable", code=3)
        assert found["blockers"][0]["where"] == f"/etc/cloud/cloud.cfg.d/{name}"
        assert etc(machine) == before
        boot.write(f"/etc/cloud/cloud.cfg.d/{name}", text.replace("runcmd", "runcmd, [conntrack, always]"))
        if not text.startswith("#"):
            assert ours(boot, "enable")["outcome"] == "nothing-to-do"


# --- cloud-init's own Python -----------------------------------------------------------


@on_bookworm
def test_a_module_that_cloud_inits_python_cannot_see_is_never_listed(version: Suite, packages: Packages) -> None:
    """As on Red Hat's: pip has put us into /usr/local, and cloud-init runs with -s."""
    with packages(version) as machine, machine.boot() as boot:
        local = "/usr/local/lib/python3.11/site-packages"
        boot.run("mkdir", "-p", local)
        boot.run("sh", "-c", f"mv {DIST_PACKAGES}/*conntrack* {local}/")
        boot.write("/etc/python3.11/sitecustomize.py", RED_HAT)
        before = etc(machine)
        assert ours(boot, "enable")["outcome"] == "enabled"
        ours(boot, "disable")
        assert etc(machine) == before
        boot.run("sed", "-i", "1s/.*/#!\\/usr\\/bin\\/python3 -s/", "/usr/bin/cloud-init")
        (blocker,) = ours(boot, "enable", code=3)["blockers"]
        assert blocker["where"] == "/usr/bin/python3 -s" and local in blocker["reason"]
        assert "pip install --prefix /usr" in blocker["remedy"]
        assert etc(machine) == before
        assert "Could not find module named cc_conntrack" in listed_all_the_same(boot)
        (found,) = wiring(boot)
        assert found["id"] == "cloud-init:import"


def listed_all_the_same(boot: Boot) -> str:
    """What cloud-init says of a boot that lists us by hand, though its Python does not see us."""
    boot.run("sed", "-i", "s/^cloud_config_modules:/&\\n - [conntrack, always]/", CONFIG)
    by_drop_in(boot)
    return run_stages(boot, single_process=False).said


@on_bookworm
def test_a_module_that_does_not_import_is_never_listed(version: Suite, packages: Packages) -> None:
    with packages(version) as machine, machine.boot() as boot:
        boot.write(f"{DIST_PACKAGES}/cc_conntrack.py", "import nope\n")
        (blocker,) = ours(boot, "enable", code=3)["blockers"]
        assert "No module named 'nope'" in blocker["reason"]


# --- another tree ----------------------------------------------------------------------


@on_trixie
def test_in_an_image_tree(version: Suite, packages: Packages) -> None:
    """The tree's own Python is asked; in a tree of another machine its files are looked at."""
    with packages(version) as packaged:
        in_a_tree(packaged)


def in_a_tree(packaged: Machine) -> None:
    before = etc(packaged)
    with packaged.boot() as boot:
        ours(boot, "enable")
    inside = etc(packaged)
    with packaged.boot() as boot:
        ours(boot, "disable")
    python = packaged.root / "usr/bin/python3"
    found = from_outside(packaged, "enable")
    assert found["outcome"] == "enabled" and found["findings"] == []
    assert etc(packaged) == inside
    from_outside(packaged, "disable")
    real = python.readlink()
    python.unlink()
    python.write_bytes(b"\x7fELF of another machine")
    python.chmod(0o755)
    found = from_outside(packaged, "enable")
    assert [item["id"] for item in found["findings"]] == ["cloud-init:unasked"]
    assert etc(packaged) == inside
    from_outside(packaged, "disable")
    python.unlink()
    python.symlink_to(real)
    assert etc(packaged) == before


def from_outside(machine: Machine, verb: str) -> dict[str, Any]:
    """Our command, as it runs on this machine, on the tree."""
    words = [sys.executable, "-m", "cloudinit_conntrack", verb, "--format", "json", "--root",
             str(machine.mount_point / "root")]
    enter = ["nsenter", f"--target={machine.keeper}", "--mount", "--", "env", "-C", str(PRODUCT)]
    done = subprocess.run([*enter, *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return reports.read(done.stdout)
