"""Debian 11, 12 and 13 as whole systems with their own kernels and cloud-init: first boot, second boot, revert.

``make guests`` (``FULL_GUESTS=all``) runs these; without it they are not collected.  ``FULL_GUESTS=trixie`` asks for
one host alone.  The hosts are those of ``full_stories.py``.  The judges are the kernel's files and its own trace of
loaded modules, the firewalls' tools, modprobe, and connections: of another host through a real haproxy to that host's
server, of this machine, of the host itself.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests import reports

from . import full_stories
from .full_stories import Told
from .later import Later
from .outside import between
from .seed_case import changed_files

ASKED = os.environ.get("FULL_GUESTS", "").split(",")


def _story(told: Callable[[], Told]) -> Later[Told] | None:
    return Later(told, first=True) if told.__name__ in ASKED or ASKED == ["all"] else None


BULLSEYE = _story(full_stories.bullseye)
BOOKWORM = _story(full_stories.bookworm)
TRIXIE = _story(full_stories.trixie)
BAKED = _story(full_stories.baked)
STOCK = _story(full_stories.stock)
STORIES = {"stock": STOCK, "bullseye": BULLSEYE, "bookworm": BOOKWORM, "trixie": TRIXIE, "baked": BAKED}

KERNELS = {"bullseye": ("5.10.", "6.1."), "bookworm": ("6.1.", "6.1."), "trixie": ("6.12.", "6.12.")}  # by boot
CLOUD_INITS = {"bullseye": "20.4", "bookworm": "22.4", "trixie": "25.1"}


LATER = [("bullseye", "second"), ("bookworm", "second"), ("trixie", "second"), ("baked", "first")]


def of(host: str) -> Told:
    story = STORIES[host]
    if story is None:
        pytest.skip("FULL_GUESTS does not ask for this host")
    return story.result()


@pytest.fixture(params=("bullseye", "bookworm", "trixie"))
def told(request: pytest.FixtureRequest) -> Told:
    return of(request.param)


@pytest.fixture(params=LATER, ids="-".join)
def stateless(request: pytest.FixtureRequest) -> tuple[Told, str]:
    """A host, and the name of a boot that is stateless from its first moment on."""
    host, boot = request.param
    return of(host), boot


def answer(told: Told, name: str, boot: str, status: int = 0) -> Any:
    ran = told.step(name, boot)
    assert ran.status == status, ran.output
    return json.loads(ran.stdout) if name == "stages" else reports.read(ran.stdout)


def conntrack(modules: set[str]) -> set[str]:
    """Those that are conntrack, or cannot be there without it."""
    return {name for name in modules if "conntrack" in name or name in ("xt_state", "nft_ct", "nf_nat", "xt_CT")}


def is_stateful(row: str) -> bool:
    return any(word in row for word in (" -m state ", " -m conntrack ", "ct state"))


def in_order(rules: list[str]) -> list[str]:
    """*rules* with the tables in one order, and the elements of nft's sets."""

    def elements(found: re.Match[str]) -> str:
        return f"{{ {', '.join(sorted(found[1].split(', ')))} }}"

    return sorted(re.sub(r"\{ (.*?) \}", elements, row) for row in rules)


def alike(told: Told, rules: list[str]) -> list[str]:
    """*rules* in order, without what ufw writes otherwise than apply left it live.

    apply has what keeps fragments whole in a table of its own, ufw's files in a chain of ufw's; and a policy that
    ufw's files do not track any more has two rules less that accept what goes out.
    """
    if told.suite != "trixie":
        return in_order(rules)
    otherwise = ("stateless-reassembly", "-track-output -p ")
    return sorted(row for row in rules if row.startswith("-A ") and not any(word in row for word in otherwise))


def filled(rules: list[str]) -> list[str]:
    """*rules* without empty iptables tables: one that a boot loaded cannot be deleted where there is no nft."""
    text = "\n".join(rules)
    return re.sub(r"^\*(?!filter).*\n(:\S+ ACCEPT\n)*COMMIT\n?", "", text, flags=re.MULTILINE).splitlines()


def assert_serving(told: Told, name: str, boot: str) -> None:
    """ssh and haproxy answer the other host, port 8404 does not though somebody listens; and we reach that host."""
    lines = told.step(f"{name},in", boot).stdout.splitlines()
    for address in ("10.93.0.2", "fd93::2"):
        ssh, web, shut = (line for line in lines if line.startswith(f"{address}-"))
        assert ssh.startswith(f"{address}-22 SSH-2.0-"), lines
        assert web == f"{address}-80 HTTP/1.0 200 OK haproxy the far host asked by {address}", lines
        assert shut.startswith(f"{address}-8404 shut:") and "refused" not in shut, lines
    assert len(told.step(f"{name},listening", boot).stdout.splitlines()) == 2
    page = "HTTP/1.0 200 OK {} the far host asked by {}"
    assert [line.split(" ", 1)[1] for line in told.step(f"{name},out", boot).stdout.splitlines()] == [
        page.format(server, far) for server in ("BaseHTTP/0.6", "haproxy") for far in ("10.93.0.2", "fd93::2")
    ]


def test_this_is_the_suite(told: Told, measured: list[str]) -> None:
    for name, boot in told.boots.items():
        assert boot.stdout.startswith(KERNELS[told.suite][name == "second"]), boot.output
    assert f" {CLOUD_INITS[told.suite]}." in told.step("cloudinit", "first").output
    seconds = ", ".join(f"{name} boot {boot.seconds:.0f} s" for name, boot in told.boots.items())
    measured.append(f"{told.suite} as a whole: {seconds}")


def test_this_machine_was_served_without_a_gap(told: Told, measured: list[str]) -> None:
    """Through haproxy to the far host, and by sshd: about once a second, from the first answer to the last."""
    for name, outside in told.met.items():
        web, ssh = between(outside.lines[80], "HTTP/1.0 200 OK"), between(outside.lines[22], "SSH-2.0-")
        assert len(web) > 10 and all(line == web[0] for line in web), (name, web)
        assert len(ssh) > 10 and all(line == ssh[0] for line in ssh), (name, ssh)
        measured.append(f"{told.suite}, {name} boot: {len(web)} pages and {len(ssh)} greetings of sshd, none missing")


# --- the first boot -----------------------------------------------------------------------------


def test_before_cloud_inits_config_stage_the_host_tracks(told: Told) -> None:
    assert "nf_conntrack" in told.trace("before", "first") & told.modules("before", "first")
    entries = told.step("before,entries", "first").stdout
    assert {line.split()[0] for line in entries.splitlines() if "dport=80 " in line} == {"ipv4", "ipv6"}, entries
    assert any(map(is_stateful, told.rules("before", "first")))
    assert_serving(told, "before", "first")


def test_it_is_applied(told: Told) -> None:
    """By cloud-init; on the host that had firewalld by hand."""
    if told.suite == "bookworm":
        assert answer(told, "apply", "first")["outcome"] == "done"
    else:
        assert answer(told, "stages", "first")["v1"]["errors"] == []
        assert not told.step("first,failed", "first").stdout.strip()
    assert told.rules("first", "first") and not any(map(is_stateful, told.rules("first", "first")))
    assert conntrack(told.modules("before", "first")) and not conntrack(told.modules("first", "first"))
    assert not told.step("first,entries", "first").ok
    assert_serving(told, "first", "first")
    assert answer(told, "verify", "first")["outcome"] == "verified"


def test_a_section_in_cloud_cfg_d_leaves_no_warning() -> None:
    """In user-data it does from cloud-init 23.4 on: it knows no keys but its own modules'."""
    status = of("trixie").step("status", "first").stdout
    assert "status: done" in status and "recoverable_errors: {}" in status, status


# --- firewalld ----------------------------------------------------------------------------------


def test_firewalld_is_refused_and_nothing_is_touched() -> None:
    told = of("bookworm")
    (error,) = json.loads(told.step("refusal", "first").stdout)["v1"]["errors"]
    assert "firewalld" in error and "blocked" in error, error
    (blocker,) = answer(told, "plan", "first", 3)["blockers"]
    assert blocker["id"] == "frontend:firewalld" and "systemctl disable --now firewalld.service" in blocker["remedy"]
    assert not changed_files(told.files("host", "first"), told.files("refused", "first"))
    assert told.rules("host", "first") == told.rules("refused", "first")
    assert told.modules("host", "first") == told.modules("refused", "first")
    assert any(map(is_stateful, told.rules("refused", "first")))
    for name in ("host", "refused"):
        assert_serving(told, name, "first")


# --- the initramfs ------------------------------------------------------------------------------


def images(told: Told, name: str, boot: str) -> dict[str, set[str]]:
    """What each initramfs in /boot holds."""
    lines = (line.partition(":") for line in told.step(f"{name},images", boot).stdout.splitlines())
    return {path: set(files.split()) for path, _, files in lines}


def test_each_kernels_initramfs_gets_the_block_and_loses_it_again() -> None:
    told = of("bullseye")
    before, first, end = images(told, "before", "first"), images(told, "first", "first"), images(told, "end", "second")
    assert len(before) == 2 and before == end
    for image, files in before.items():
        assert any(name.endswith("/nf_conntrack.ko") for name in files)
        assert first[image] - files == {"etc/modprobe.d/00-cloudinit-conntrack.conf"}


def test_the_initramfs_loads_conntrack_before_and_not_after() -> None:
    told = of("bullseye")
    assert "nf_conntrack" in told.modules("start", "first")
    assert "virtio_blk" in told.modules("start", "second")
    assert "nf_conntrack" not in told.modules("start", "second")


# --- the image ----------------------------------------------------------------------------------


def test_an_image_is_baked_and_its_first_boot_has_nothing_to_do() -> None:
    told = of("baked")
    assert answer(told, "apply", "image")["outcome"] == "done"
    assert answer(told, "stages", "first")["v1"]["errors"] == []
    assert "status: done" in told.step("status", "first").stdout


# --- a stock image ------------------------------------------------------------------------------


def test_a_stock_image_is_made_stateless_by_user_data_alone() -> None:
    told = of("stock")
    assert answer(told, "stages", "first")["v1"]["errors"] == []
    assert "status: done" in told.step("status", "first").stdout
    assert "nf_conntrack" in told.trace("first", "first") - told.modules("first", "first")  # it was there, and went
    assert not any(map(is_stateful, told.rules("first", "first")))
    assert_serving(told, "first", "first")
    assert told.step("verify", "first").ok and "verified" in told.step("verify", "first").stdout
    assert not conntrack(told.trace("blocked", "second"))
    assert told.rules("second", "second") and not any(map(is_stateful, told.rules("second", "second")))
    assert sorted(told.step("firewall", "second").stdout.split()) == ["0", "active", "success"]
    assert not told.step("modprobe", "second").ok and told.step("verify", "second").ok
    assert_serving(told, "second", "second")


def test_and_back_again() -> None:
    told = of("stock")
    assert told.step("revert", "second").ok
    assert any(map(is_stateful, told.rules("end", "second"))) and conntrack(told.modules("end", "second"))
    saved = full_stories.STOCK.files
    assert told.step("rules", "second").stdout == saved["/etc/iptables/rules.v4"] + saved["/etc/iptables/rules.v6"]
    assert_serving(told, "end", "second")


# --- later boots --------------------------------------------------------------------------------


def test_conntrack_was_never_loaded(stateless: tuple[Told, str]) -> None:
    """By the kernel's trace, from its first moment on; a host's first boot shows that it would have been there."""
    told, boot = stateless
    assert not conntrack(told.trace("blocked", boot))
    assert not conntrack(told.modules("early", boot)) and not conntrack(told.modules("second", boot))
    assert "nf_conntrack" not in told.step("second,kernel", boot).stdout
    assert not told.step("second,entries", boot).ok


def test_the_saved_firewall_is_loaded_and_serves(stateless: tuple[Told, str]) -> None:
    told, boot = stateless
    firewall = told.step("firewall", boot)
    assert sorted(firewall.stdout.split()) == ["0", "active", "success"], firewall.output
    assert not told.step("second,failed", boot).stdout.strip()
    assert told.rules("second", boot) and not any(map(is_stateful, told.rules("second", boot)))
    assert in_order(told.rules("early", boot)) == in_order(told.rules("second", boot))
    assert alike(told, told.rules("second", boot)) == alike(told, told.rules("first", "first"))
    assert_serving(told, "second", boot)


def test_the_boot_service_ran_before_the_network(stateless: tuple[Told, str]) -> None:
    told, boot = stateless
    journal = told.step("journal", boot).output
    assert sorted(told.step("service", boot).stdout.split()) == ["active", "success"], journal
    assert 0 < int(told.step("order", boot).stdout) < int(told.step("network", boot).stdout)
    assert "nothing to do" in journal


def test_nothing_brings_it_back(stateless: tuple[Told, str]) -> None:
    told, boot = stateless
    assert not told.step("modprobe", boot).ok and "install /bin/false" in told.step("answer", boot).output
    assert not told.step("stateful", boot).ok
    assert answer(told, "verify", boot)["outcome"] == "verified"


# --- revert -------------------------------------------------------------------------------------


def test_revert_puts_files_rules_and_modules_back(told: Told) -> None:
    assert answer(told, "revert", "second")["outcome"] == "reverted"
    assert not changed_files(told.files("before", "first"), told.files("end", "second"))
    assert filled(told.rules("end", "second")) == filled(told.rules("before", "first"))
    assert conntrack(told.modules("end", "second")) == conntrack(told.modules("before", "first"))
    assert_serving(told, "end", "second")
    assert "dport=80 " in told.step("end,entries", "second").stdout
    assert not told.step("left", "second").stdout.strip()
