"""The image that Packer bakes, and two hosts that are started from it.  ``make image`` alone runs this (``IMAGE``: a
directory, which is made anew and keeps the image); what happens is in ``image_story.py``.

The judges are Packer's exit status, the disk as debugfs shows it, the kernel's files and its own trace of loaded
modules, nft, modprobe, ssh, and HTTP from this machine through the guests' haproxy.
"""

from __future__ import annotations

import hashlib
import json
import os

import pytest

from tests import reports

from . import cloud_base, image_story
from .clones import Clone
from .full_stories import NFT
from .image_story import Image
from .later import Later
from .outside import between
from .uml import CHECKOUT, QuickResult

STORY = Later(lambda: image_story.tell(CHECKOUT / os.environ["IMAGE"]), first=True)
BLOCK = "00-cloudinit-conntrack.conf"


@pytest.fixture(scope="module")
def image() -> Image:
    return STORY.result()


@pytest.fixture(params=(0, 1), ids=("one", "two"))
def clone(request: pytest.FixtureRequest, image: Image) -> Clone:
    return image.clones[request.param]


def seen(clone: Clone) -> QuickResult:
    assert clone.seen is not None
    return clone.seen


def step(clone: Clone, name: str) -> str:
    ran = seen(clone).steps[name]
    assert ran.status == 0, (name, ran.output)
    return ran.stdout


def modules(text: str) -> set[str]:
    return {line.split()[0] for line in text.splitlines() if line}


# --- the bakes ----------------------------------------------------------------------------------


def test_a_bake_that_verify_does_not_accept_fails_and_keeps_nothing(image: Image) -> None:
    bad = image.bad
    assert bad.status == 1, bad.said[-3000:]
    assert "Script exited with non-zero exit status: 4" in bad.said, bad.said[-3000:]
    assert not bad.output.exists() and not list(bad.output.parent.glob("bad*"))


def test_the_bake_unloaded_conntrack(image: Image) -> None:
    """So the base had it: that no clone has it is no accident."""
    assert image.good.status == 0 and "unload module nf_conntrack" in image.good.said, image.good.said[-6000:]


def test_manifest_and_checksum_are_those_of_the_disk(image: Image, measured: list[str]) -> None:
    output = image.good.output
    disk = output / "stateless.qcow2"
    (build,) = json.loads(output.with_suffix(".manifest.json").read_text())["builds"]
    assert build["builder_type"] == "qemu" and build["files"] == [{"name": disk.name, "size": disk.stat().st_size}]
    with disk.open("rb") as file:
        digest = hashlib.sha256()
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    assert output.with_suffix(".sha256").read_text().split()[0] == digest.hexdigest()
    measured.append(f"image: {disk.stat().st_size >> 20} MB, baked in {image.good.seconds:.0f} s")


# --- the disk -----------------------------------------------------------------------------------


def test_the_image_is_nobodys(image: Image) -> None:
    disk = image.disk
    assert disk.text("/etc/machine-id") == ""
    assert {"moduli", "sshd_config"} <= disk.names("/etc/ssh")
    assert not [name for name in disk.names("/etc/ssh") if name.startswith("ssh_host_")]
    assert disk.names("/home/debian") and "authorized_keys" not in disk.names("/home/debian/.ssh")
    assert "authorized_keys" not in disk.names("/root/.ssh")
    histories = disk.names("/root") | disk.names("/home/debian")
    assert not [name for name in histories if name.endswith("history")]


def test_nothing_of_the_bakes_boot_is_left(image: Image) -> None:
    disk = image.disk
    assert not disk.names("/var/lib/cloud") - {"seed"}
    assert "cloud-init.log" not in disk.names("/var/log")
    assert not disk.names("/var/log/journal") and disk.names("/run") <= {"lock"}
    assert all(name.startswith(".") for name in disk.names("/tmp"))  # systemd-tmpfiles makes .X11-unix and its kin
    assert disk.text("/var/log/wtmp") == ""
    assert "random-seed" not in disk.names("/var/lib/systemd")
    assert not [name for name in disk.names("/etc/systemd/network") if "cloud-init" in name]


def test_the_image_is_stateless(image: Image) -> None:
    disk = image.disk
    assert BLOCK in disk.names("/etc/modprobe.d")
    assert "dport { 22, 80 }" in disk.text("/etc/nftables.conf") and "ct state" not in disk.text("/etc/nftables.conf")
    assert "[conntrack, always]" in disk.text("/etc/cloud/cloud.cfg.d/99-cloudinit-conntrack.cfg")
    assert disk.names("/var/lib/cloudinit-conntrack") == {"desired.json", "journal"}
    assert "mode: unload" in disk.text("/etc/cloud/cloud.cfg.d/95_conntrack.cfg")


# --- two clones ---------------------------------------------------------------------------------


def test_each_clone_is_a_host_of_its_own(image: Image) -> None:
    one, two = image.clones
    machines = {step(clone, "machine").strip() for clone in (one, two)}
    assert len(machines) == 2 and all(len(machine) == 32 for machine in machines)
    assert cloud_base.MACHINE_ID not in machines
    keys = {clone.host_key for clone in (one, two)}
    assert len(keys) == 2 and all(clone.host_key in step(clone, "key") for clone in (one, two))
    assert [step(clone, "name").strip() for clone in (one, two)] == ["one", "two"]


def test_each_clone_serves_its_own_page_through_haproxy(clone: Clone, measured: list[str]) -> None:
    """From the first answer to the last, about once a second."""
    web = between(clone.outside.lines[80], "HTTP/1.0 200 OK")
    assert len(web) > 5 and set(web) == {"HTTP/1.0 200 OK"}, web
    assert set(clone.pages) == {f"200 haproxy {clone.page}"}
    measured.append(f"clone {clone.name}: {len(web)} pages, none missing; {seen(clone).seconds:.0f} s")


def test_cloud_init_is_content(clone: Clone) -> None:
    assert "status: done" in step(clone, "status")
    assert json.loads(step(clone, "stages"))["v1"]["errors"] == []
    assert not step(clone, "failed").strip()
    assert sorted(step(clone, "service").split()) == ["active", "success"]


def test_conntrack_was_never_loaded(clone: Clone) -> None:
    """By the kernel's trace from its first moment on."""
    loaded = {word for line in step(clone, "trace").splitlines() if "module_load: " in line
              for word in line.split("module_load: ")[1].split()[:1]}  # fmt: skip
    assert {"virtio_net", "nf_tables"} <= loaded, loaded
    for names in (loaded, modules(step(clone, "modules"))):
        assert not {name for name in names if "conntrack" in name or name in ("nft_ct", "nf_nat")}, names
    assert "nf_conntrack" not in step(clone, "kernel")
    assert not seen(clone).steps["entries"].ok


def test_the_firewall_is_there_and_nothing_brings_conntrack_back(clone: Clone) -> None:
    assert "policy drop" in step(clone, "rules") and "ct state" not in step(clone, "rules")
    assert not seen(clone).steps["modprobe"].ok and not seen(clone).steps["stateful"].ok
    assert reports.read(step(clone, "verify"))["outcome"] == "verified"


def test_revert_on_a_clone_gives_the_files_of_the_base_back(clone: Clone) -> None:
    """Those the image had before it was baked; no rule of the host on which that was done."""
    reverted = reports.read(step(clone, "revert"))
    assert reverted["outcome"] == "reverted", reverted
    assert step(clone, "saved") == NFT
    assert BLOCK not in step(clone, "blocks")
    assert step(clone, "after,rules") == step(clone, "rules")
    step(clone, "reload")
    assert "nf_conntrack" in modules(step(clone, "after,modules"))
