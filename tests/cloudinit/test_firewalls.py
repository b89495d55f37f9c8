"""Real firewall programs of each Debian suite: what they load after apply, at the next boot, and after revert.

Judged by iptables-save, by /proc/net/nf_conntrack and by packets from a second host.
"""

from __future__ import annotations

import os

from chroots import Suite
from firewalls import answers, connect_neighbour, enable, install_ufw, unpack
from machines import Boot, Machine
from stateful_host import RULES_V4, RULES_V6, STATEFUL

from tests import reports

FAMILIES = ("ipv4", "ipv6")
SAVE = {"ipv4": "iptables-save", "ipv6": "ip6tables-save"}
SECTION = "conntrack: {mode: stateless, guard: {keep: [22]}}\n"
COMMAND = ("python3", "-m", "cloudinit_conntrack")


def product(boot: Boot, verb: str, expected: int, *options: str) -> dict[str, list[dict[str, str]]]:
    """One verb of the command, in JSON; it must exit with *expected*."""
    done = boot.attempt(*COMMAND, verb, *options, "--format", "json", timeout=120)
    assert done.returncode == expected, done.stdout + done.stderr
    return reports.read(done.stdout)


def apply(boot: Boot, expected: int = 0, section: str = SECTION) -> dict[str, list[dict[str, str]]]:
    boot.write("/root/section.yaml", section)
    return product(boot, "apply", expected, "-c", "/root/section.yaml")


def live(boot: Boot) -> dict[str, str]:
    return {family: boot.run(command) for family, command in SAVE.items()}


def stateful(boot: Boot) -> list[str]:
    return [line for text in live(boot).values() for line in text.splitlines() if STATEFUL.search(line)]


def entries(boot: Boot) -> list[str]:
    return boot.read("/proc/net/nf_conntrack").splitlines()


def files(machine: Machine, *places: str) -> dict[str, tuple[bytes, int, int, int]]:
    """Content, mode, owner and time of each file below *places*."""
    found = {}
    for place in places:
        top = machine.root / place
        for path in [top, *top.rglob("*")]:
            if path.is_file():
                about = path.stat()
                found[str(path.relative_to(machine.root))] = (
                    path.read_bytes(), about.st_mode, about.st_uid, about.st_mtime_ns)
    return found


UFW = ("etc/ufw", "etc/default/ufw")


def enabled_ufw(machine: Machine, suite: Suite, boot: Boot) -> None:
    install_ufw(machine, suite)
    for words in (["--force", "enable"], ["allow", "22/tcp"], ["limit", "80/tcp"], ["allow", "443"]):
        boot.run("ufw", *words)


def test_ufw_now_and_at_the_next_boot(suite: Suite, installed: Machine) -> None:
    with installed.boot() as boot:
        enabled_ufw(installed, suite, boot)
        connect_neighbour(boot, 22, 80, 443, 8081)
        assert answers(boot, "tcp", 22, "ipv4") and entries(boot)  # so far it tracks
        before = files(installed, *UFW)
        apply(boot)
        assert stateful(boot) == []
        _packets_are_as_ufw_says(boot)
    with installed.boot() as boot:  # no rules, as after a power cycle
        done = boot.attempt("/lib/ufw/ufw-init", "start")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert stateful(boot) == []
        connect_neighbour(boot, 22, 80, 443, 8081)
        _packets_are_as_ufw_says(boot)
        _fragments_are_whole(boot)
        assert entries(boot) == []
        assert product(boot, "verify", 0)["actions"] == []
        assert "allow (outgoing)" in boot.run("ufw", "status", "verbose")
        product(boot, "revert", 0)
    after = files(installed, *UFW)
    assert {path: value[:3] for path, value in after.items()} == {path: value[:3] for path, value in before.items()}
    assert after == before  # times too


def _packets_are_as_ufw_says(boot: Boot) -> None:
    for family in FAMILIES:
        assert answers(boot, "tcp", 22, family) and answers(boot, "udp", 443, family)
        assert not answers(boot, "tcp", 8081, family) and not answers(boot, "udp", 8081, family)
        assert answers(boot, "tcp", 8081, family, outgoing=True)
    # In IPv6 ufw's own 'limit' refuses the first connection already, before we touch anything (0.36.2 here).
    limited = [answers(boot, "tcp", 80, "ipv4") for _ in range(7)]
    assert limited[0] and not limited[-1], limited


def _fragments_are_whole(boot: Boot) -> None:
    """Three fragments reach a port rule as one packet; without the rule that keeps them so, they do not."""
    keeper = "ufw6-before-input -i none0 -p tcp -m socket -m comment --comment stateless-reassembly"
    assert f"-A {keeper}" in live(boot)["ipv6"]
    assert answers(boot, "udp", 443, "ipv6", size=4000)
    boot.run("ip6tables", "-D", *keeper.split())
    assert not answers(boot, "udp", 443, "ipv6", size=4000)
    boot.run("ip6tables", "-A", *keeper.split())


def test_ufw_that_lets_nothing_out_still_answers(suite: Suite, installed: Machine) -> None:
    """Which UDP is answered stands in user.rules, and what lets the answers out in before.rules."""
    with installed.boot() as boot:
        enabled_ufw(installed, suite, boot)
        boot.run("ufw", "default", "deny", "outgoing")
        apply(boot)
        boot.run("/lib/ufw/ufw-init", "force-reload")
        assert stateful(boot) == []
        connect_neighbour(boot, 22, 443, 8081)
        for family in FAMILIES:
            assert answers(boot, "udp", 443, family) and answers(boot, "tcp", 22, family)
            assert not answers(boot, "tcp", 8081, family, outgoing=True)


def test_the_ufw_command_afterwards(suite: Suite, installed: Machine) -> None:
    """What it brings back is seen by verify and mended by apply; without logging and 'limit' it brings nothing."""
    with installed.boot() as boot:
        enabled_ufw(installed, suite, boot)
        told = [item["reason"] for item in apply(boot)["findings"] if item["id"] == "ufw:later"]
        assert told and told[0].startswith("'ufw allow'")
        boot.run("ufw", "reload")
        assert stateful(boot)
        assert product(boot, "verify", 4, "-c", "/root/section.yaml")["actions"]
        apply(boot)
        assert stateful(boot) == []
        boot.run("ufw", "delete", "limit", "80/tcp")
        boot.run("ufw", "logging", "off")
        apply(boot)
        boot.run("ufw", "allow", "8080/tcp")
        boot.run("ufw", "reload")
        boot.run("ufw", "default", "deny", "outgoing")
        boot.run("ufw", "default", "allow", "outgoing")
        assert stateful(boot) == []
        assert product(boot, "verify", 0)["actions"] == []


def test_ufw_disabled_is_left_alone(suite: Suite, installed: Machine) -> None:
    with installed.boot() as boot:
        install_ufw(installed, suite)
        before = files(installed, *UFW)
        apply(boot)
        assert files(installed, *UFW) == before


def test_netfilter_persistent(suite: Suite, installed: Machine) -> None:
    """Its own program loads what apply wrote, and saves nothing stateful back."""
    unpack(installed, suite, "netfilter-persistent", "iptables-persistent")
    enable(installed, "netfilter-persistent.service")
    with installed.boot() as boot:
        boot.write("/etc/iptables/rules.v4", RULES_V4)
        boot.write("/etc/iptables/rules.v6", RULES_V6)
        boot.run("netfilter-persistent", "start")
        assert stateful(boot)
        apply(boot)
        boot.run("netfilter-persistent", "save")
        assert stateful(boot) == []
    with installed.boot() as boot:
        boot.run("netfilter-persistent", "start")
        assert stateful(boot) == [] and all("--dport 22" in text for text in live(boot).values())
        connect_neighbour(boot, 22, 8081)
        for family in FAMILIES:
            assert answers(boot, "tcp", 22, family) and not answers(boot, "tcp", 8081, family)
        assert entries(boot) == []


def test_rules_that_ifupdown_restores(suite: Suite, installed: Machine) -> None:
    unpack(installed, suite, "ifupdown")
    with installed.boot() as boot:
        boot.write("/etc/fw.rules", RULES_V4)
        boot.write("/etc/network/interfaces",
                   "auto lo\niface lo inet loopback\n  pre-up iptables-restore < /etc/fw.rules\n")
        boot.run("mkdir", "-p", "/run/network")
        found = apply(boot)
        assert "file:/etc/fw.rules" in {action["id"] for action in found["actions"]}
    with installed.boot() as boot:
        boot.run("mkdir", "-p", "/run/network")
        boot.run("ifup", "--force", "lo")
        assert stateful(boot) == [] and "--dport 22" in live(boot)["ipv4"]


def test_firewalld_is_refused_by_name(suite: Suite, installed: Machine) -> None:
    """Recognised by the package's own unit; nothing is changed."""
    unpack(installed, suite, "firewalld")
    enable(installed, "firewalld.service")
    with installed.boot() as boot:
        for mode in ("{mode: stateless}", "{mode: notrack, flows: {frontends: [80]}}"):
            found = apply(boot, 3, f"conntrack: {mode}\n")
            assert [item["id"] for item in found["blockers"]] == ["frontend:firewalld"]
            assert "firewall" in found["blockers"][0]["remedy"]
    with installed.boot() as boot:
        os.unlink(installed.root / "etc/systemd/system/multi-user.target.wants/firewalld.service")
        apply(boot)
