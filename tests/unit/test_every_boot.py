"""The boot service: its unit and link are planned, written, left alone and taken away; the initramfs; other kernels."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from fakehost import FakeHost, fake_host
from stubs import LiveHost

from cloudinit_conntrack import kmod, service
from cloudinit_conntrack.actions import (
    Link,
    LoadRules,
    ProveLoading,
    ProveStarting,
    RefreshInitramfs,
    WriteFile,
    from_json,
    inverse,
    to_json,
)
from cloudinit_conntrack.boot import apply_section
from cloudinit_conntrack.config import desired_from_section
from cloudinit_conntrack.errors import ConntrackError
from cloudinit_conntrack.host import journalfile, observe
from cloudinit_conntrack.host.initramfs import observe_initramfs
from cloudinit_conntrack.host.saved import PLACES
from cloudinit_conntrack.host.service import observe_service
from cloudinit_conntrack.plan import Plan, make_plan
from cloudinit_conntrack.state import (
    BootService,
    FileImage,
    Initramfs,
    Kernel,
    LiveRules,
    Program,
    SavedFile,
    State,
)
from cloudinit_conntrack.status import make_status
from cloudinit_conntrack.transaction import apply, revert

__all__ = ["fake_host"]

PACKAGE = Path(service.__file__).parent
EARLY = "[Unit]\nDefaultDependencies=no\nBefore=network-pre.target shutdown.target\n"
LATE = "[Unit]\nDescription=rules\n[Service]\nExecStart=/bin/true\n"
HERE = Program("/usr/bin/python3", "/usr/lib/python3/dist-packages/cloudinit_conntrack")
KERNEL = Kernel("6.1.0-fake", True, False, "absent", False)


def plan(boot: BootService | None, persist: bool = True, mode: str = "stateless", kernel: Kernel | None = KERNEL,
         initramfs: Initramfs | None = None, block: FileImage | None = None) -> Plan:
    desired = desired_from_section({"mode": mode, "persist": persist})
    return make_plan(desired, State(kernel, boot=boot, initramfs=initramfs, block=block))


def unit(program: Program = HERE, after: tuple[str, ...] = service.FIREWALLS) -> FileImage:
    return FileImage(service.unit_text(program, after).encode())


# --- the plan ---------------------------------------------------------------------------


def test_unit_and_link_are_written_once_and_proved_before() -> None:
    boot = BootService(program=HERE, after=service.FIREWALLS)
    found = plan(boot)
    assert [type(a) for a in found.actions] == [ProveStarting, WriteFile, Link]
    written, link = found.actions[1:]
    assert isinstance(written, WriteFile) and isinstance(link, Link) and written.after
    done = BootService(unit=written.after, link=link.after, program=HERE, after=service.FIREWALLS)
    assert plan(done) == Plan("stateless")


@pytest.mark.parametrize(("boot", "finding"), [
    (BootService(taken=True, program=HERE), "boot:masked"),
    (BootService(program=None), "boot:program"),
    (BootService(program=Program("/usr/bin/python3", "/opt/with space/cloudinit_conntrack")), "boot:program"),
])
def test_where_there_can_be_no_service_nothing_is_written_and_it_is_said(boot: BootService, finding: str) -> None:
    found = plan(boot)
    assert not found.actions
    assert [item.id for item in found.findings] == [finding]


def test_without_systemd_it_is_said_with_a_change_and_not_at_every_run() -> None:
    bare = BootService(systemd=False)
    assert plan(bare) == Plan("stateless")
    assert [item.id for item in plan(bare, mode="unload").findings] == ["boot:init"]


def test_nothing_for_this_boot_alone() -> None:
    assert plan(BootService(program=HERE), persist=False) == Plan("stateless")


def test_a_packages_own_unit_wins() -> None:
    path = service.PACKAGED[0]
    boot = BootService(packaged=path, program=HERE)
    assert [(a.id, getattr(a, "after", None)) for a in plan(boot).actions] == [(f"link:{service.LINK}", path)]
    both = BootService(packaged=path, unit=unit(), link="x", program=HERE)
    assert [(a.id, getattr(a, "after", "")) for a in plan(both).actions] == [(f"file:{service.UNIT}", None)]


def test_an_administrators_own_unit_stays() -> None:
    boot = BootService(unit=FileImage(b"[Service]\nExecStart=/root/mine\n"), link="x", program=HERE)
    assert plan(boot) == Plan("stateless")


def test_an_older_text_or_another_order_is_renewed() -> None:
    boot = BootService(unit=unit(after=()), link="x", program=HERE, after=service.FIREWALLS)
    assert [a.id for a in plan(boot).actions] == ["prove:start", f"file:{service.UNIT}"]


def test_in_an_image_tree_nothing_is_started() -> None:
    found = plan(BootService(program=HERE, after=service.FIREWALLS), kernel=None)
    assert [a.id for a in found.actions] == [f"file:{service.UNIT}", f"link:{service.LINK}"]


@pytest.mark.parametrize("action", [
    Link(service.LINK, "", service.UNIT, "why"), ProveStarting(("a", "b"), "why"),
    RefreshInitramfs(("dracut", "-f"), "/boot/x", "why"),
])
def test_actions_live_in_the_journal(action: Link | ProveStarting | RefreshInitramfs) -> None:
    assert from_json(to_json(action)) == action
    back = inverse(action)
    assert back is None if isinstance(action, ProveStarting) else back is not None and from_json(to_json(back)) == back


# --- what is found ----------------------------------------------------------------------


def test_a_unit_that_cannot_come_before_the_network_is_not_waited_for(fake_host: FakeHost) -> None:
    """A cycle otherwise: it waits for sysinit.target, that for cloud-init, and that for the network."""
    fake_host.write("/usr/lib/systemd/systemd")
    fake_host.write("/etc/systemd/system/iptables.service", LATE)
    fake_host.write("/etc/systemd/system/ip6tables.service", EARLY)
    fake_host.write("/usr/lib/systemd/system/ufw.service", "[Unit]\nDefaultDependencies=no\nBefore=network.target\n")
    fake_host.write("/usr/lib/systemd/system/nftables.service", LATE)
    found = observe_service(fake_host.root, False)
    assert (found.late, found.program) == (("nftables.service", "iptables.service"), None)
    known = ("netfilter-persistent.service", "ufw.service", "firewalld.service", "ipset.service")
    assert found.after == (*known, "ip6tables.service")


def test_a_drop_in_counts(fake_host: FakeHost) -> None:
    fake_host.write("/usr/lib/systemd/systemd")
    fake_host.write("/etc/systemd/system/iptables.service", LATE)
    fake_host.write("/etc/systemd/system/iptables.service.d/early.conf", EARLY)
    assert "iptables.service" in observe_service(fake_host.root, False).after


def test_the_program_of_a_tree_is_the_one_installed_there(fake_host: FakeHost) -> None:
    fake_host.write("/usr/lib/systemd/systemd")
    fake_host.write("/usr/bin/python3")
    assert observe_service(fake_host.root, False).program is None
    fake_host.write("/usr/local/lib/python3.11/dist-packages/cloudinit_conntrack/__main__.py")
    script = "/usr/local/lib/python3.11/dist-packages/cloudinit_conntrack"
    assert observe_service(fake_host.root, False).program == Program("/usr/bin/python3", script)


def test_a_recorded_program_stays_while_it_is_there_however_we_are_run(fake_host: FakeHost) -> None:
    (fake_host.tree / "run/systemd/system").mkdir(parents=True)
    running = Program(sys.executable, str(PACKAGE))
    other = Program("/opt/python", "/opt/program.pyz")
    fake_host.write(service.UNIT, service.unit_text(other, ()))
    assert observe_service(fake_host.root).program == running
    fake_host.write("/opt/python")
    fake_host.write("/opt/program.pyz")
    assert observe_service(fake_host.root).program == other


def test_a_mask_is_seen_and_links_are_not_followed(fake_host: FakeHost) -> None:
    (fake_host.tree / "run/systemd/system").mkdir(parents=True)
    mask = fake_host.tree / service.UNIT[1:]
    mask.parent.mkdir(parents=True)
    mask.symlink_to("/dev/null")
    assert observe_service(fake_host.root).taken


def test_a_link_goes_nowhere_outside_the_root_and_only_replaces_links(fake_host: FakeHost, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    wants = fake_host.tree / "etc/wants"
    wants.parent.mkdir(parents=True)
    wants.symlink_to(outside)  # absolute: inside the root it leads to nothing
    with pytest.raises(ConntrackError):
        fake_host.root.put_link("/etc/wants/x.service", "/etc/x.service")
    assert not list(outside.iterdir())
    fake_host.write("/etc/file")
    with pytest.raises(ConntrackError, match="is not a symbolic link"):
        fake_host.root.put_link("/etc/file", "/etc/x.service")
    fake_host.root.put_link("/etc/new", "one")
    fake_host.root.put_link("/etc/new", "two")
    assert os.readlink(fake_host.tree / "etc/new") == "two"
    fake_host.root.put_link("/etc/new", "")
    assert sorted(os.listdir(fake_host.tree / "etc")) == ["file", "wants"]


# --- done and undone on a host ------------------------------------------------------------


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LiveHost:
    found = LiveHost(tmp_path / "host", ())
    (found.tree / "run/systemd/system").mkdir(parents=True)
    monkeypatch.setenv("PATH", found.path)
    return found


def test_apply_writes_it_a_second_one_does_not_and_revert_takes_it_away(host: LiveHost) -> None:
    said = list(apply_section({"mode": "unload"}, host.root))
    assert f"write {service.UNIT}" in "".join(said)
    place = host.tree / service.LINK[1:]
    assert os.readlink(place) == service.UNIT
    assert f"{sys.executable} -I -S {PACKAGE} apply\n" in host.read(service.UNIT)
    assert next(iter(apply_section({"mode": "unload"}, host.root))) == "mode unload: nothing to do"
    reverted = revert(host.root, lambda line: None)
    assert not reverted.problems
    assert not place.is_symlink() and not (host.tree / service.UNIT[1:]).exists()


def test_a_link_that_somebody_else_made_since_is_left_alone(host: LiveHost) -> None:
    list(apply_section({"mode": "unload"}, host.root))
    place = host.tree / service.LINK[1:]
    place.unlink()
    place.symlink_to("/opt/other.service")
    reverted = revert(host.root, lambda line: None)
    assert any("is left as it is" in note for note in reverted.notes)
    assert os.readlink(place) == "/opt/other.service"


def test_a_program_that_does_not_start_is_found_before_the_unit_is_written(
    host: LiveHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ConntrackError, match="could not start"):
        list(apply_section({"mode": "unload"}, host.root))
    assert not (host.tree / service.UNIT[1:]).exists()
    assert not (host.tree / kmod.BLOCK_PATH[1:]).exists()  # rolled back whole


def test_an_image_gets_unit_and_link_and_revert_takes_them_away(fake_host: FakeHost) -> None:
    script = "/usr/lib/python3/dist-packages/cloudinit_conntrack"
    for path in ("/usr/lib/systemd/systemd", "/usr/bin/python3", f"{script}/__main__.py"):
        fake_host.write(path)
    section = {"mode": "stateless"}
    desired = desired_from_section(section)
    assert apply(desired, section, fake_host.root, False, lambda line: None).outcome == "done"
    assert f"ExecStart=/usr/bin/python3 -I -S {script} apply\n" in fake_host.read(service.UNIT)
    assert os.readlink(fake_host.tree / service.LINK[1:]) == service.UNIT
    assert apply(desired, section, fake_host.root, False, lambda line: None).outcome == "nothing-to-do"
    assert not revert(fake_host.root, lambda line: None).problems
    left = [path for path in (fake_host.tree / "etc").rglob("*") if not path.is_dir() or path.is_symlink()]
    assert left == []


# --- the program starts as the unit starts it --------------------------------------------


def started(*words: str) -> str:
    done = subprocess.run(["/usr/bin/python3", "-I", *words, "--version"], cwd="/", env={"PATH": "/usr/bin:/bin"},
                          capture_output=True, text=True, timeout=60, check=False)  # fmt: skip
    return done.stdout + done.stderr


def test_it_starts_by_its_path_from_anywhere(tmp_path: Path) -> None:
    copy = tmp_path / "dist-packages" / "cloudinit_conntrack"
    shutil.copytree(PACKAGE, copy)
    (copy.parent / "json.py").write_text("raise SystemExit('the standard library comes first')")
    assert started(str(copy)).startswith("cloudinit-conntrack ")


def test_it_starts_from_a_zip_file(tmp_path: Path) -> None:
    path = tmp_path / "program.pyz"
    with zipfile.ZipFile(path, "w") as packed:
        for file in PACKAGE.rglob("*.py"):
            packed.write(file, f"cloudinit_conntrack/{file.relative_to(PACKAGE)}")
        packed.writestr("__main__.py", "from cloudinit_conntrack.quick import main\nraise SystemExit(main())\n")
    assert started(str(path)).startswith("cloudinit-conntrack ")


def test_a_boot_with_nothing_to_do_loads_neither_yaml_nor_the_language_of_nftables() -> None:
    code = ("import sys; sys.path.append(sys.argv[1]); import cloudinit_conntrack.cli; "
            "print(*(m for m in sys.modules if m in ('yaml', 'shutil', 'tempfile', 'difflib')"
            " or m.endswith(('.difference', '.nft_stateless'))))")
    done = subprocess.run(["/usr/bin/python3", "-I", "-c", code, str(PACKAGE.parent)], capture_output=True, text=True,
                          timeout=60, check=True)  # fmt: skip
    assert done.stdout.split() == []


# --- other kernels ------------------------------------------------------------------------


def test_a_newer_kernels_modules_join_the_block_and_stay_when_the_older_one_boots() -> None:
    newer = Kernel("9.0", True, False, "absent", False, dependants=("nf_conntrack_quic", "xt_conntrack"))
    first = plan(None, mode="unload", kernel=newer).actions[-1]
    assert isinstance(first, WriteFile) and first.after
    assert b"\nblacklist nf_conntrack_quic\n" in first.after.content
    assert plan(None, mode="unload", kernel=newer, block=first.after).empty
    assert plan(None, mode="unload", block=first.after).empty  # back in the older kernel
    old = FileImage(kmod.modprobe_conf().encode())
    assert [a.id for a in plan(None, mode="unload", kernel=newer, block=old).actions] == [f"file:{kmod.BLOCK_PATH}"]


def test_an_extra_module_that_is_named_no_longer_leaves_the_block() -> None:
    old = FileImage(kmod.modprobe_conf(["dccp"], ["nf_conntrack_quic"]).encode())
    renewed = plan(None, mode="unload", block=old).actions[-1]
    assert isinstance(renewed, WriteFile) and renewed.after
    assert b"dccp\n" not in renewed.after.content.replace(b"proto_dccp", b"") and b"quic" in renewed.after.content


# --- the initramfs ------------------------------------------------------------------------

IMAGE = Initramfs(("update-initramfs", "-u"), "/boot/initrd.img-1", (("nf_conntrack", "/etc/initramfs-tools/modules"),),
                  True)


def test_the_initramfs_is_refreshed_behind_the_block_both_ways() -> None:
    actions = plan(None, mode="unload", initramfs=IMAGE).actions
    assert [a.id for a in actions] == ["initramfs:/boot/initrd.img-1:back", f"file:{kmod.BLOCK_PATH}",
                                       "initramfs:/boot/initrd.img-1"]
    back = [inverse(action) for action in reversed(actions)]
    assert [isinstance(a, RefreshInitramfs) and not a.only_back for a in back] == [False, False, True]


def test_a_refreshed_initramfs_is_left_alone_and_a_stale_one_is_not() -> None:
    block = FileImage(kmod.modprobe_conf().encode())
    fresh = Initramfs(IMAGE.tool, IMAGE.image, IMAGE.names, False)
    assert plan(None, mode="unload", initramfs=fresh, block=block).empty
    assert len(plan(None, mode="unload", initramfs=IMAGE, block=block).actions) == 2
    assert plan(None, mode="stateless", initramfs=IMAGE).empty


@pytest.mark.parametrize(("path", "text", "names"), [
    ("/etc/initramfs-tools/modules", "# nf_conntrack\next4\n", ()),
    ("/etc/initramfs-tools/modules", "ext4\nnf-conntrack hashsize=1\n", ("nf_conntrack",)),
    ("/etc/dracut.conf.d/a.conf", 'add_drivers+=" nf_conntrack xfs "\n', ("nf_conntrack",)),
    ("/etc/dracut.conf", "force_drivers=xt_conntrack\n", ("xt_conntrack",)),
    ("/etc/dracut.conf", 'omit_drivers+=" nf_conntrack "\n', ()),
])
def test_which_configuration_loads_conntrack_early(
    fake_host: FakeHost, path: str, text: str, names: tuple[str, ...]
) -> None:
    fake_host.boot()
    fake_host.write(path, text)
    fake_host.stub("update-initramfs")
    image = fake_host.write("/boot/initrd.img-6.1.0-fake")
    block = fake_host.write(kmod.BLOCK_PATH)
    for after, stale in ((-10, False), (10, True)):
        os.utime(block, (image.stat().st_mtime + after,) * 2)
        found = observe_initramfs(fake_host.root)
        assert (tuple(name for name, _ in found.names) if found else ()) == names
        assert found is None or (found.stale, found.tool) == (stale, ("update-initramfs", "-u", "-k", "all"))


def test_observing_looks_at_both(host: LiveHost) -> None:
    found = observe.observe(host.root)
    assert found.boot == observe_service(host.root) and found.initramfs is None


# --- a saved file that the block kept from loading ------------------------------------------

STATEFUL = b"*filter\n:INPUT DROP [0:0]\n-A INPUT -m state --state ESTABLISHED -j ACCEPT\nCOMMIT\n"
SAVED = SavedFile("/etc/sysconfig/iptables", "rules", "ipv4", FileImage(STATEFUL))
EMPTY = LiveRules("legacy", "ipv4", "*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n")  # what a failed restore leaves
LIVE = LiveRules("legacy", "ipv4", "*filter\n:INPUT DROP [0:0]\nCOMMIT\n")


@pytest.mark.parametrize(("live", "loaded", "blocked", "loads"), [
    ((), (SAVED.path,), True, 1),
    ((EMPTY,), (SAVED.path,), True, 1),
    ((LIVE,), (SAVED.path,), True, 0),  # there are rules
    ((), (), True, 0),  # no service loads that file
    ((), (SAVED.path,), False, 0),  # it is not the block that kept it out
])
def test_a_mended_file_that_could_not_load_at_boot_is_loaded(
    live: tuple[LiveRules, ...], loaded: tuple[str, ...], blocked: bool, loads: int
) -> None:
    boot = BootService(unit=unit(), link="x", program=HERE, after=service.FIREWALLS, loaded=loaded)
    block = FileImage(kmod.modprobe_conf().encode()) if blocked else None
    state = State(KERNEL, live, (SAVED,), block, boot=boot)
    found = [a for a in make_plan(desired_from_section({"mode": "unload"}), state).actions if isinstance(a, LoadRules)]
    assert len(found) == loads
    for action in found:
        assert "state" not in action.after and ":INPUT DROP" in action.after
        assert action.before.splitlines()[1] == ":INPUT ACCEPT [0:0]"
        assert action.created == (() if live else ("filter",))


# --- status -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("boot", "last", "said"), [
    (BootService(unit=unit(), link="x"), "nothing-to-do", "is enabled; the last apply of this boot: nothing-to-do"),
    (BootService(packaged="/usr/lib/systemd/system/x", link="x"), "", "is enabled"),
    (BootService(unit=unit()), "", "is not enabled"),
    (BootService(link="x"), "done", "is not enabled; the last apply of this boot: done"),
    (BootService(taken=True, link="x"), "", "is masked"),
])
def test_status_says_what_happens_at_every_boot(boot: BootService, last: str, said: str) -> None:
    facts = dict(make_status(State(KERNEL, boot=boot), "unload", last).facts)
    assert facts["every boot"] == f"{service.NAME} {said}"
    assert "every boot" not in dict(make_status(State(KERNEL), "unload").facts)


def test_the_last_outcome_is_read_and_a_damaged_report_is_none(fake_host: FakeHost) -> None:
    assert journalfile.last_outcome(fake_host.root) == ""
    for text, outcome in (('{"outcome": "blocked"}', "blocked"), ("{", ""), ("[]", "")):
        fake_host.write(journalfile.RESULT, text)
        assert journalfile.last_outcome(fake_host.root) == outcome


# --- every saved file is proved to load before the block is there ----------------------------


@pytest.mark.parametrize(("path", "family"), [(path, family) for path, kind, family in PLACES if kind == "rules"])
def test_each_saved_rule_set_is_proved_as_it_will_be_before_the_block(path: str, family: str) -> None:
    saved = SavedFile(path, "rules", family, FileImage(STATEFUL))
    actions = make_plan(desired_from_section({"mode": "unload"}), State(KERNEL, (), (saved,))).actions
    written, proof, block = actions
    assert isinstance(written, WriteFile) and written.after and isinstance(proof, ProveLoading)
    assert (proof.path, proof.family, proof.text.encode()) == (path, family, written.after.content)
    assert block.where == kmod.BLOCK_PATH
