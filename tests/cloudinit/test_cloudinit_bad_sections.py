"""Bad user-data: one message each, with the path, and a host as it was."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from chroots import Suite
from machines import Boot, Machine
from stages import run_stages, seed
from stateful_host import Firewall, files_below, firewall, load_rules

# name -> (the section's text, the path its message names)
BAD = {
    "unknown-key": ("{mode: stateless, flow: {}}", "conntrack.flow"),
    "no-mode": ("{flows: {frontends: [80]}}", "conntrack.mode"),
    "empty-mapping": ("{}", "conntrack.mode"),
    "misspelt-mode": ("{mode: statless}", "conntrack.mode"),
    "mode-a-list": ("{mode: [unload]}", "conntrack.mode"),
    "section-a-list": ("[mode, unload]", "conntrack"),
    "section-a-word": ("unload", "conntrack"),
    "section-false": ("false", "conntrack"),
    "flows-a-list": ("{mode: stateless, flows: [80]}", "conntrack.flows"),
    "frontends-a-number": ("{mode: stateless, flows: {frontends: 80}}", "conntrack.flows.frontends"),
    "port-0": ("{mode: stateless, flows: {frontends: [80, 0]}}", "conntrack.flows.frontends[1]"),
    "port-70000": ("{mode: stateless, flows: {frontends: [80, 70000]}}", "conntrack.flows.frontends[1]"),
    "port-negative": ("{mode: stateless, flows: {backends: [-80]}}", "conntrack.flows.backends[0]"),
    "port-a-word": ("{mode: stateless, flows: {frontends: [http]}}", "conntrack.flows.frontends[0]"),
    "port-true": ("{mode: stateless, flows: {frontends: [true]}}", "conntrack.flows.frontends[0]"),
    "port-a-fraction": ("{mode: stateless, flows: {frontends: [80.5]}}", "conntrack.flows.frontends[0]"),
    "range-backwards": ('{mode: stateless, flows: {backends: ["8010-8000"]}}', "conntrack.flows.backends[0]"),
    "range-too-far": ('{mode: stateless, flows: {backends: ["8000-70000"]}}', "conntrack.flows.backends[0]"),
    "flow-without-port": (
        "{mode: stateless, flows: {frontends: [{protocol: udp}]}}", "conntrack.flows.frontends[0].port",
    ),
    "flow-unknown-key": (
        "{mode: stateless, flows: {frontends: [{port: 80, proto: tcp}]}}",
        "conntrack.flows.frontends[0].proto",
    ),
    "protocol-icmp": (
        "{mode: stateless, flows: {outbound: [{port: 53, protocol: icmp}]}}",
        "conntrack.flows.outbound[0].protocol",
    ),
    "address-no-network": (
        "{mode: stateless, flows: {backends: [{port: 80, address: 10.0.0.0/33}]}}",
        "conntrack.flows.backends[0].address",
    ),
    "haproxy-relative": ("{mode: stateless, flows: {haproxy_cfg: h.cfg}}", "conntrack.flows.haproxy_cfg"),
    "notrack-without-flows": ("{mode: notrack}", "conntrack.flows"),
    "all-in-another-mode": ("{mode: stateless, flows: {all: true}}", "conntrack.flows.all"),
    "fallback-in-another-mode": ("{mode: stateless, fallback: notrack}", "conntrack.fallback"),
    "stateful-drop": ("{mode: stateless, rules: {stateful: drop}}", "conntrack.rules.stateful"),
    "nat-rewrite": ("{mode: stateless, rules: {nat: rewrite}}", "conntrack.rules.nat"),
    "block-a-word": ("{mode: unload, modules: {block: maybe}}", "conntrack.modules.block"),
    "extra-a-word": ("{mode: unload, modules: {extra: nf_nat}}", "conntrack.modules.extra"),
    "extra-a-path": ("{mode: unload, modules: {extra: [../nf_nat]}}", "conntrack.modules.extra[0]"),
    "force-a-number": ("{mode: unload, modules: {force: 1}}", "conntrack.modules.force"),
    "keep-a-word": ("{mode: stateless, guard: {keep: [ssh]}}", "conntrack.guard.keep[0]"),
    "probe-without-port": ("{mode: stateless, guard: {probes: [localhost]}}", "conntrack.guard.probes[0]"),
    "on-failure-ignore": ("{mode: stateless, on_failure: ignore}", "conntrack.on_failure"),
    "persist-a-word": ("{mode: stateless, persist: always}", "conntrack.persist"),
}

ERROR = re.compile(r"^(?:\w+\.)*(\w+Error): (.*)$", re.MULTILINE)
SINGLES = (Path(__file__).parent / "many_singles.py").read_text()


@dataclass(frozen=True)
class Answer:
    """What ``cloud-init single`` did with one section: exit status, and its errors in the log."""

    code: int
    errors: tuple[tuple[str, str], ...]


def user_data(section: str) -> str:
    return f"#cloud-config\nconntrack: {section}\n"


def answers_to(boot: Boot, sections: list[str]) -> list[Answer]:
    """One real ``cloud-init single`` per section, on a machine that has booted."""
    texts = json.dumps([user_data(section) for section in sections])
    found = json.loads(boot.run("python3", "-c", SINGLES, stdin=texts, timeout=300))
    return [Answer(one["code"], tuple(ERROR.findall(one["log"]))) for one in found]


@dataclass(frozen=True)
class Looks:
    """What must not change: the firewall, every file but cloud-init's own, what is in /run."""

    firewall: Firewall
    files: dict[str, str]
    run: list[str]


@dataclass(frozen=True)
class Trial:
    """The answers to all of BAD on one machine, and its looks before and after."""

    answers: dict[str, Answer]
    before: Looks
    after: Looks


@pytest.fixture(scope="session")
def trial_on(installed_on: Callable[[Suite], AbstractContextManager[Machine]]) -> Callable[[Suite], Trial]:
    """The trial on a version; made once, since all of BAD takes one machine some seconds."""

    @cache
    def trial(suite: Suite) -> Trial:
        with installed_on(suite) as machine, machine.boot() as boot:
            seed(boot)
            load_rules(boot)
            run_stages(boot, suite.single_process)
            before = _looks(machine, boot)
            answers = answers_to(boot, [section for section, _ in BAD.values()])
            return Trial(dict(zip(BAD, answers)), before, _looks(machine, boot))

    return trial


def _looks(machine: Machine, boot: Boot) -> Looks:
    return Looks(
        firewall(boot),
        files_below(machine.changed, "var/log", "var/lib/cloud/"),
        sorted(path.name for path in (boot.root / "run").iterdir()),
    )


@pytest.mark.parametrize("name", BAD)
def test_one_message_with_the_path(suite: Suite, trial_on: Callable[[Suite], Trial], name: str) -> None:
    answer = trial_on(suite).answers[name]
    assert answer.code == 1
    ((kind, message),) = answer.errors
    assert kind == "ConfigError"
    where, _, what = message.partition(": ")
    assert where == BAD[name][1]
    assert len(what) > 10


def test_the_host_is_as_it_was(suite: Suite, trial_on: Callable[[Suite], Trial]) -> None:
    trial = trial_on(suite)
    assert trial.before.firewall.stateful
    assert "etc/cloud/cloud.cfg.d/90_test.cfg" in trial.before.files
    assert trial.after == trial.before


def test_a_good_section_is_no_error(suite: Suite, installed: Machine) -> None:
    """The runs above can tell: the same door lets a right section in."""
    with installed.boot() as boot:
        seed(boot)
        load_rules(boot)
        run_stages(boot, suite.single_process)
        assert answers_to(boot, ["{mode: stateless, guard: {keep: [22]}}"]) == [Answer(0, ())]
        assert firewall(boot).stateful == []


def test_a_boot_tells_it_in_the_status(suite: Suite, installed: Machine) -> None:
    with installed.boot() as boot:
        seed(boot, user_data(BAD["port-0"][0]))
        load_rules(boot)
        before = firewall(boot)
        outcome = run_stages(boot, suite.single_process)
        assert firewall(boot) == before
    (error,) = outcome.errors
    assert BAD["port-0"][1] in error
    assert error in outcome.status
    assert outcome.status.startswith("status: error\n")
    assert outcome.status_code == 1
