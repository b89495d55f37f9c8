"""The command on the kernel of this machine: plan, apply, verify and revert of a balancer's host.

Judged by iptables-save, the files, /proc/net/nf_conntrack and clients; never by our own verify.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import reports

from . import applying, conversations, patching, usage
from .applying import SAVED, STATEFUL, Machine, failures_during, sent_again, without_made_tables
from .namespace import Namespace
from .topology import BACKENDS, FAMILIES, Topology, address, topology

pytestmark = pytest.mark.usefixtures("mount_points")

MODES = ("stateless", "notrack")
LISTS = ("actions", "blockers", "widenings", "findings")
SAYS_BUILT_IN = "nf_conntrack is built into this kernel"


@pytest.fixture(params=BACKENDS)
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    with applying.alone(request.param, tmp_path) as made:
        yield made


@pytest.fixture(params=BACKENDS)
def balancer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Topology, Machine]]:
    """A host between its clients and its servers."""
    with topology() as net:
        made = Machine(net.host, request.param, tmp_path)
        made.prepare()
        yield net, made


@pytest.fixture
def built_in() -> None:
    """On a kernel with conntrack as a module, 'unload' would take it from this very machine."""
    listed = Path("/proc/modules")  # not there on a kernel that cannot load modules at all
    modules = {line.split()[0] for line in listed.read_text("ascii").splitlines()} if listed.exists() else set()
    assert Path("/proc/sys/net/netfilter/nf_conntrack_max").exists(), "this kernel has no conntrack"
    assert "nf_conntrack" not in modules, "conntrack is a module here: not for a test in namespaces"


def _is_as_the_mode_says(machine: Machine, mode: str, alike: bool = True) -> None:
    """The rules, live and saved, are those of the mode, and *alike* if they were before."""
    for family in FAMILIES:
        live, saved = machine.live(family), (machine.files / SAVED[family]).read_text(encoding="utf-8")
        if mode == "stateless":
            assert not STATEFUL.search(live) and not STATEFUL.search(saved), live + saved
        else:
            assert STATEFUL.search(live.partition("*filter")[2]), "the rest of the host keeps its rules"
            assert "-j CT --notrack" in live.partition("*raw")[2], live
        booted = Namespace("booted")
        try:
            booted.load_rules(saved, machine.backend, family)
            assert not alike or applying.uncounted(booted.save_rules(machine.backend, family)) == live
        finally:
            booted.close()


# --- from plan to revert -------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_apply_twice_mend_and_revert(machine: Machine, mode: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    config = machine.config(mode)
    rules, files = machine.rules(), machine.of_others()

    actions = machine.report(4, "plan", "-c", config)["actions"]
    expected = patching.patched(patching.now(machine, actions), actions, tmp_path_factory.mktemp("patched"))
    machine.run(0, "apply", "-c", config)
    assert patching.filled(patching.now(machine, actions)) == patching.filled(expected), "the diffs said otherwise"
    applied = machine.rules(), machine.of_others()
    assert applied[0] != rules
    _is_as_the_mode_says(machine, mode)
    assert "nf_conntrack_ftp" not in str(applied[1]["etc/sysconfig/iptables-config"]) or mode == "notrack"
    for name, entry in applied[1].items():
        assert entry[:3] == files[name][:3], f"mode and owner of {name}"  # type: ignore[index]

    assert machine.run(0, "apply", "-c", config).stdout.startswith("nothing to do")
    machine.run(0, "verify")
    assert (machine.rules(), machine.of_others()) == applied

    _spoil(machine, mode)
    machine.run(4, "verify")
    machine.run(4, "plan", "-c", config)
    machine.run(0, "apply")
    _is_as_the_mode_says(machine, mode, alike=mode == "notrack")

    machine.run(0, "revert")
    assert without_made_tables(machine.rules(), rules) == rules
    assert machine.of_others() == files
    assert machine.run(0, "revert").stdout.startswith("nothing to do")


def _spoil(machine: Machine, mode: str) -> None:
    if mode == "stateless":
        machine.hand("ipv4", "-I", "INPUT", "-p", "tcp", "--dport", "8443", "-m", "conntrack", "--ctstate", "NEW",
                     "-j", "ACCEPT")  # fmt: skip
    else:
        machine.hand("ipv6", "-t", "raw", "-F", "PREROUTING")


@pytest.mark.usefixtures("built_in")
def test_unload_is_refused_where_conntrack_is_built_in(machine: Machine) -> None:
    config = machine.config("unload")
    rules, files = machine.rules(counters=True), machine.tree("/etc/iptables", "/etc/sysconfig", "/etc/modprobe.d")
    for verb in ("plan", "apply"):
        done = machine.run(3, verb, "-c", config)
        assert SAYS_BUILT_IN in done.stdout and os.uname().release in done.stdout
    assert machine.rules(counters=True) == rules
    assert machine.tree("/etc/iptables", "/etc/sysconfig", "/etc/modprobe.d") == files


@pytest.mark.usefixtures("built_in")
def test_unload_settles_for_its_fallback_and_says_so(machine: Machine) -> None:
    config = machine.config("unload", fallback="stateless")
    rules, files = machine.rules(), machine.of_others()
    done = machine.run(0, "apply", "-c", config)
    assert done.stdout.startswith("done  mode stateless")
    assert SAYS_BUILT_IN in done.stdout and "settled for stateless" in done.stdout
    _is_as_the_mode_says(machine, "stateless")
    machine.run(0, "verify")
    machine.run(0, "revert")
    assert without_made_tables(machine.rules(), rules) == rules
    assert machine.of_others() == files


# --- looking changes nothing ---------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_looking_changes_nothing(machine: Machine, mode: str) -> None:
    """Neither rules, their counters, entries nor files; only verify's own probes over loopback are counted."""
    config = machine.config(mode)
    machine.place.run("ping", "-c1", "-W1", "127.0.0.1")
    machine.place.run("ping", "-c1", "-W1", "::1")
    for code in (4, 0):  # before apply and after
        rules, counted, files = machine.rules(), machine.rules(counters=True), machine.tree()
        entries = _entries(machine)
        assert len(re.findall(r"^\[[1-9]", str(counted).replace("\\n", "\n"), re.M)) >= 2, "no rule has counted"
        for expected, verb in ((0, "status"), (code, "plan")):
            machine.run(expected, verb, *(() if verb == "status" else ("-c", config)))
            assert (machine.rules(counters=True), machine.tree()) == (counted, files), verb
            assert _entries(machine) <= entries, verb
        machine.run(code, "verify", "-c", config)
        assert (machine.rules(), machine.tree()) == (rules, files)
        assert len(_entries(machine) - entries) <= (4 if code else 0)
        if code:
            machine.run(0, "apply", "-c", config)


def _entries(machine: Machine) -> set[str]:
    """The conntrack entries, without the time that is left to each."""
    return {" ".join(words[:4] + words[5:]) for words in map(str.split, machine.place.tracked())}


# --- a failing apply -----------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_probe_without_an_answer_rolls_everything_back(machine: Machine, mode: str) -> None:
    config = machine.config(mode, guard={"probes": ["127.0.0.1:9"]})
    rules, files = machine.rules(), machine.of_others()
    found = machine.report(1, "apply", "-c", config)
    assert found["outcome"] == "failed" and "127.0.0.1:9" in found["message"]
    assert without_made_tables(machine.rules(), rules) == rules
    assert machine.of_others() == files


@pytest.mark.parametrize("mode", MODES)
def test_a_restore_that_fails_half_way_rolls_everything_back(machine: Machine, mode: str) -> None:
    """IPv4 and the files are done when the program for IPv6 fails, once, after its test run."""
    config = machine.config(mode)
    tool = shutil.which(f"ip6tables-{machine.backend}-restore")
    assert tool
    stubs, failed = machine.files / "bin", machine.files / "failed"
    stubs.mkdir()
    stub = stubs / Path(tool).name
    stub.write_text(
        f'#!/bin/sh\ncase "$*" in *--test*|*--help*|*--version*) exec {tool} "$@" ;; esac\n'
        f'[ -e {failed} ] && exec {tool} "$@"\ntouch {failed}; echo "no buffer space" >&2; exit 4\n', encoding="ascii"
    )  # fmt: skip
    stub.chmod(0o755)
    machine.path = f"{stubs}:{machine.path}"
    rules, files = machine.rules(), machine.of_others()
    done = machine.run(1, "apply", "-c", config)
    assert failed.exists() and "no buffer space" in done.stderr
    assert without_made_tables(machine.rules(), rules) == rules
    assert machine.of_others() == files
    machine.run(0, "apply", "-c", config)
    _is_as_the_mode_says(machine, mode)


# --- clients notice nothing ----------------------------------------------------------


@pytest.mark.alone
@pytest.mark.parametrize("mode", MODES)
def test_clients_notice_neither_apply_nor_revert(balancer: tuple[Topology, Machine], mode: str) -> None:
    net, machine = balancer
    rules = machine.rules()
    applying.clients_notice_nothing(net, machine, mode, lambda: _is_as_the_mode_says(machine, mode))
    assert without_made_tables(machine.rules(), rules) == rules


@pytest.mark.alone
def test_a_short_gap_is_noticed(balancer: tuple[Topology, Machine]) -> None:
    """What the test above would show otherwise: for a fifth of a second nobody is let in."""
    net, machine = balancer

    async def acts() -> None:
        await asyncio.sleep(0.2)
        for family in FAMILIES:
            machine.hand(family, "-I", "INPUT", "-p", "tcp", "--dport", "80", "-j", "DROP")
        await asyncio.sleep(0.2)
        for family in FAMILIES:
            machine.hand(family, "-D", "INPUT", "1")
        await asyncio.sleep(0.5)

    start = sent_again(net)
    failures_during(net, acts)
    assert sent_again(net) - start > 3


@pytest.mark.parametrize("mode", MODES)
def test_what_is_tracked(balancer: tuple[Topology, Machine], mode: str) -> None:
    """Before: everything. After: with notrack all but the flows, with stateless nothing."""
    net, machine = balancer
    assert asyncio.run(_tracked_ports(net)) == {"22", "80", "443", "8080"}
    machine.run(0, "apply", "-c", machine.config(mode))
    assert asyncio.run(_tracked_ports(net)) == ({"22"} if mode == "notrack" else set())
    machine.run(0, "revert")
    assert asyncio.run(_tracked_ports(net)) == {"22", "80", "443", "8080"}


async def _tracked_ports(net: Topology) -> set[str]:
    """Talk to SSH and the flows over both families; the ports in what conntrack then has."""
    net.host.forget_connections()
    for family in FAMILIES:
        async with usage.services(net, family) as world:
            for place, to, port in (("client", "host", 22), ("client", "host", 80), ("host", "backend", 8080)):
                pair = await _within(conversations.connect(world, net.named(place), (address(family, to), port)))
                await _within(conversations.talk(pair, 100))
                await _within(conversations.hang_up(pair.caller, pair.called))
            await _within(conversations.ask(family, net.client, (address(family, "host"), 443)))
    ports: dict[str, set[str]] = {}
    for family in FAMILIES:
        fields = [line.split() for line in net.host.tracked(family)]
        ports[family] = {next(word[6:] for word in words if word.startswith("dport=")) for words in fields
                         if words[2] in ("tcp", "udp")}  # fmt: skip
    assert ports["ipv4"] == ports["ipv6"]
    return ports["ipv4"]


async def _within(conversation: Any) -> Any:
    return await conversations.within(conversation, usage.EXPECTED)


# --- for programs --------------------------------------------------------------------


def test_json_of_every_verb(machine: Machine) -> None:
    mode = dict(zip(BACKENDS, MODES))[machine.backend]
    config = machine.config(mode)
    status = machine.report(0, "status")
    plan = machine.report(4, "plan", "-c", config)
    applied = machine.report(0, "apply", "-c", config)
    kept = reports.read((machine.files / "run/cloudinit-conntrack/result.json").read_text(encoding="utf-8"))
    verified, nothing = machine.report(0, "verify"), machine.report(0, "apply")
    outcomes = [found["outcome"] for found in (plan, applied, verified, nothing)]
    assert outcomes == ["changes", "done", "verified", "nothing-to-do"]
    assert kept == applied and plan["actions"] == applied["actions"] and not nothing["actions"]
    assert {f"rules:{machine.backend}:{family}" for family in FAMILIES} <= {a["id"] for a in plan["actions"]}
    assert plan["widenings"] and status["findings"]
    for found in (status, plan, applied, verified, nothing):
        _is_well_formed(found)
        assert found["mode"] == ("" if found is status else mode)
    assert machine.report(0, "status")["mode"] == mode


@pytest.mark.usefixtures("built_in")
def test_json_of_a_refusal(machine: Machine) -> None:
    found = machine.report(3, "plan", "-c", machine.config("unload"))
    _is_well_formed(found)
    assert found["outcome"] == "blocked" and not found["actions"]
    assert [b["where"] for b in found["blockers"]] == [f"kernel {os.uname().release}"]
    assert machine.report(3, "apply", "-c", machine.config("unload")) == found


def _is_well_formed(found: dict[str, Any]) -> None:
    assert found["schema"] == 1
    for name in LISTS:
        ids = [item["id"] for item in found[name]]
        assert len(set(ids)) == len(ids), ids
        assert all(item["id"] and item["reason"] and item["where"] for item in found[name]), found[name]
