"""The command on a host with native nftables rules: plan, apply, verify and revert, live and saved.

Judged by nft, the files, /proc/net/nf_conntrack and clients; never by our own verify.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import applying, conversations, patching, rulesets, usage
from .applying import Machine, without_made_tables
from .namespace import Namespace
from .test_cli_apply import MODES, _tracked_ports
from .topology import FAMILIES, Topology, address, topology

pytestmark = pytest.mark.usefixtures("mount_points")

NATIVE = Path(__file__).with_name("native")
CONF = "etc/sysconfig/nftables.conf"
CASES = ("server-vmap", "router", "two-chains", "balancer", "learning")
OWN_TABLE = "table inet cloudinit_conntrack_notrack {"
USES_CONNTRACK = re.compile(r"\bct (state|mark|count|helper|status)|\bnotrack\b|masquerade|type nat")


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A host with nothing but a loopback, and no rules."""
    place = Namespace("host")
    try:
        place.run("ip", "link", "set", "lo", "up")
        made = Machine(place, "nft", tmp_path)
        made.furnish()
        yield made
    finally:
        place.close()


@pytest.fixture
def net() -> Iterator[Topology]:
    with topology() as made:
        yield made


@pytest.fixture
def balancer(tmp_path: Path) -> Iterator[tuple[Topology, Machine]]:
    """A host between its clients and its servers."""
    with topology() as net:
        made = Machine(net.host, "nft", tmp_path)
        made.furnish()
        have(made, "balancer")
        yield net, made


def have(machine: Machine, name: str, saved: bool = True) -> None:
    """The rules of a case, live, and saved as an administrator does it."""
    text = (NATIVE / f"{name}.nft").read_text()
    machine.place.run("nft", "-f", "-", stdin=text)
    if saved:
        (machine.files / "etc/sysconfig/rules.d").mkdir()
        machine.put("etc/sysconfig/rules.d/10-mine.nft", text)
        machine.put(CONF, '#!/usr/sbin/nft -f\n# mine\n\nflush ruleset\ninclude "/etc/sysconfig/rules.d/*.nft"\n')


def listed(machine: Machine) -> str:
    """What nft lists, without what changes by itself."""
    return settled(machine.place.run("nft", "list", "ruleset").stdout)


def settled(text: str) -> str:
    text = re.sub(r"packets \d+ bytes \d+", "packets N bytes N", text)
    return re.sub(r" expires [0-9dhms]+", " expires T", text)


def by_table(text: str) -> list[str]:
    return sorted(text.replace("table ", "\0table ").split("\0"))


def booted(machine: Machine) -> str:
    """What the saved file loads at the next boot."""
    place = Namespace("booted")
    try:
        text = (machine.files / CONF).read_text()
        place.run("nft", "-f", "-", stdin=text.replace("/etc/sysconfig", str(machine.files / "etc/sysconfig")))
        return settled(place.run("nft", "list", "ruleset").stdout)
    finally:
        place.close()


def same(one: str, two: str) -> bool:
    """Whether two listings say the same: timeouts begin anew, elements of hash tables have any order."""

    def words(text: str) -> list[list[str]]:
        return [sorted(line.replace(",", " ").split()) for line in text.replace(" expires T", "").splitlines()]

    return words(one) == words(two)


def _is_as_the_mode_says(machine: Machine, mode: str) -> None:
    for text in (listed(machine), booted(machine)):
        if mode == "stateless":
            assert not USES_CONNTRACK.search(text), text
        else:
            assert OWN_TABLE in text and "ct state untracked" in text and text.count("notrack comment") > 8, text
    assert same(booted(machine), listed(machine))


# --- from plan to revert -----------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES)
def test_apply_twice_mend_and_revert(
    machine: Machine, case: str, mode: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    have(machine, case)
    config = machine.config(mode)
    rules, files = listed(machine), machine.of_others()

    plan = machine.report(4, "plan", "-c", config)
    assert {"rules:native", f"file:/{CONF}"} <= {action["id"] for action in plan["actions"]}
    assert (listed(machine), machine.of_others()) == (rules, files), "looking changed something"
    actions = plan["actions"]
    expected = patching.patched(patching.now(machine, actions), actions, tmp_path_factory.mktemp("patched"))
    machine.run(0, "apply", "-c", config)
    one, two = (patching.in_nfts_words(found) for found in (expected, patching.now(machine, actions)))
    native = {name for name in two if name.startswith("live/")}
    assert {name: one[name] for name in native} == {name: two[name] for name in native}, "the diffs said otherwise"
    applied = listed(machine), machine.of_others()
    _is_as_the_mode_says(machine, mode)
    kept = str(applied[1][CONF][4], "utf-8")  # type: ignore[index]
    assert kept.startswith("#!/usr/sbin/nft -f\n# mine\n# cloudinit-conntrack:") and "\nflush ruleset\n" in kept
    assert applied[1][CONF][:3] == files[CONF][:3], "mode and owner"  # type: ignore[index]

    assert machine.run(0, "apply", "-c", config).stdout.startswith("nothing to do")
    machine.run(0, "verify")
    assert (listed(machine), machine.of_others()) == applied

    machine.place.run("nft", "-f", "-", stdin=_spoiling(mode))
    machine.run(4, "verify")
    machine.run(0, "apply")
    if mode == "notrack":
        assert same(listed(machine), applied[0])
    assert mode == "notrack" or not USES_CONNTRACK.search(listed(machine))

    machine.run(0, "revert")
    if mode == "stateless":
        machine.place.run("nft", "delete", "table", "inet", "admin")
    assert listed(machine) == rules
    assert machine.of_others() == files
    assert machine.run(0, "revert").stdout.startswith("nothing to do")


def _spoiling(mode: str) -> str:
    if mode == "notrack":
        return "flush chain inet cloudinit_conntrack_notrack prerouting"
    return "table inet admin { chain c { type filter hook input priority 9; ct state new tcp dport 8443 accept; }; }"


@pytest.mark.parametrize("mode", MODES)
def test_what_is_learned_and_counted_meanwhile_stays(machine: Machine, mode: str) -> None:
    have(machine, "learning")
    before = listed(machine)
    machine.place.run("nft", "add", "element", "inet", "filter", "seen", "{ 198.51.100.10 }")
    machine.run(0, "apply", "-c", machine.config(mode))
    text = listed(machine)
    assert "198.51.100.9" in text and "198.51.100.10" in text
    machine.place.run("nft", "add", "element", "inet", "filter", "seen", "{ 198.51.100.11 timeout 2h }")
    machine.place.run("ping", "-c1", "-W1", "127.0.0.1")
    machine.run(0, "revert")
    text = listed(machine)
    for n in (9, 10, 11):
        assert f"198.51.100.{n}" in text
    seen = re.compile(r"(elements = \{[^}]*198[^}]*\})")
    assert seen.sub("", text) == seen.sub("", before)


def test_tables_that_somebody_changed_since_come_back_whole(machine: Machine) -> None:
    have(machine, "learning")
    rules = listed(machine)
    config = machine.config("stateless")
    machine.run(0, "apply", "-c", config)
    machine.place.run("nft", "add", "rule", "inet", "filter", "input", "tcp", "dport", "1", "drop")
    done = machine.run(0, "revert")
    assert "inet filter: changed since" in done.stdout
    assert by_table(listed(machine)) == by_table(rules), "of several tables, one that comes back whole is the last"

    machine.run(0, "apply", "-c", config)
    machine.place.run("nft", "flush", "ruleset")  # what 'systemctl stop nftables' does
    assert "inet filter: changed since" in machine.run(0, "revert").stdout
    assert by_table(listed(machine)) == by_table(rules.partition("table netdev")[0]), "what we had changed is back"


def test_a_file_that_needs_no_change_is_left_alone(machine: Machine) -> None:
    machine.put(CONF, "# by hand\ntable inet t { chain c { type filter hook input priority 0; udp dport 9 drop; }; }\n")
    files = machine.of_others()
    assert machine.run(0, "apply", "-c", machine.config("stateless")).stdout.startswith("nothing to do")
    assert machine.of_others() == files


def test_a_file_with_its_own_words(machine: Machine) -> None:
    """Variables, a table that is renewed instead of a flush, interfaces that the private namespace has not."""
    machine.put(CONF, """define uplink = { "eth7", "eth8" }
table inet mine {}
delete table inet mine
table inet mine {
	chain input { # ct state in a comment
		type filter hook input priority 0; policy drop;
		iif $uplink ct state established accept
		iifname "ct state" accept
		tcp dport 22 accept
	}
}
""")  # fmt: skip
    files = machine.of_others()
    machine.run(0, "apply", "-c", machine.config("stateless"))
    text = (machine.files / CONF).read_text()
    assert "delete table inet mine" in text and "flush ruleset" not in text and "ct state est" not in text
    assert 'iif { "eth7", "eth8" } tcp flags' in text and 'iifname "ct state" accept' in text
    machine.run(0, "verify")
    machine.run(0, "revert")
    assert machine.of_others() == files


# --- refusals ----------------------------------------------------------------------------


def test_a_file_that_does_not_load_is_a_blocker_with_its_line(machine: Machine) -> None:
    (machine.files / "etc/sysconfig/rules.d").mkdir()
    machine.put("etc/sysconfig/rules.d/b.nft", "table inet b {\n\tchain c { ct state new accept }\n}\n")
    machine.put(CONF, 'table inet a { }\ninclude "/etc/sysconfig/rules.d/b.nft"\n')
    found = machine.report(3, "apply", "-c", machine.config("stateless"))
    assert found["blockers"][0]["where"] == "/etc/sysconfig/rules.d/b.nft:2"
    assert "syntax error" in found["blockers"][0]["reason"]
    machine.put(CONF, 'include "gone.nft"\ntable inet a { chain c { ct state new accept; }; }\n')
    found = machine.report(3, "plan", "-c", machine.config("stateless"))
    assert found["blockers"][0]["where"] == f"/{CONF}:1" and "/etc/gone.nft" in found["blockers"][0]["reason"]


NAT = """table ip nat {
	chain post {
		type nat hook postrouting priority srcnat; policy accept;
		oifname "eth9" masquerade
	}
}
"""


def test_nat_is_refused_by_its_place_or_removed(machine: Machine) -> None:
    machine.place.run("nft", "-f", "-", stdin=NAT)
    rules = listed(machine)
    found = machine.report(3, "apply", "-c", machine.config("stateless"))
    assert listed(machine) == rules
    places = {blocker["where"] for blocker in found["blockers"]}
    assert "live native nftables: table ip nat, chain post, rule handle 2" in places
    machine.run(0, "apply", "-c", machine.config("stateless", rules={"nat": "remove"}))
    assert "masquerade" not in listed(machine) and "type nat" not in listed(machine)
    machine.run(0, "revert")
    assert listed(machine) == rules


def test_a_port_that_must_stay_reachable_is_not_closed(machine: Machine) -> None:
    """An accept of NEW that depends on a connection's mark would go with 'remove'."""
    machine.place.run("nft", "-f", "-", stdin="""table inet f {
	chain input {
		type filter hook input priority 0; policy drop;
		ct state established accept
		tcp dport 22 ct state new accept
	}
}
""")  # fmt: skip
    rules = listed(machine)
    config = machine.config("stateless", rules={"stateful": "remove"}, guard={"keep": [22]})
    found = machine.report(3, "apply", "-c", config)
    assert any(b["id"].startswith("guard:") and "TCP port 22" in b["reason"] for b in found["blockers"])
    assert listed(machine) == rules


# --- beside iptables ---------------------------------------------------------------------


@pytest.mark.parametrize("backend", ("nft", "legacy"))
@pytest.mark.parametrize("mode", MODES)
def test_beside_iptables(machine: Machine, backend: str, mode: str) -> None:
    """With rules of both, iptables' raw table stops the tracking, and the native rules let the flows."""
    machine.backend = backend
    for family in FAMILIES:
        machine.place.load_rules(rulesets.rules("balancer-centos", family), backend, family)
    have(machine, "server-vmap")
    native, rules, files = listed(machine), machine.rules(), machine.of_others()
    machine.run(0, "apply", "-c", machine.config(mode))
    text = listed(machine)
    if mode == "stateless":
        assert not USES_CONNTRACK.search(text) and not applying.STATEFUL.search("".join(machine.rules().values()))
    else:
        assert OWN_TABLE not in text and "ct state untracked" in text.partition("table inet filter")[2]
        assert all("-j CT --notrack" in machine.live(family) for family in FAMILIES)
    machine.run(0, "verify")
    machine.run(0, "revert")
    assert without_made_tables(machine.rules(), rules) == rules
    assert machine.of_others() == files
    ours = native.partition("table inet filter")[2]
    assert ours and ours in listed(machine)


# --- clients notice nothing ------------------------------------------------------------------


@pytest.mark.alone
@pytest.mark.parametrize("case", ("balancer", "server-vmap"))
@pytest.mark.parametrize("mode", MODES)
def test_clients_notice_neither_apply_nor_revert(net: Topology, tmp_path: Path, case: str, mode: str) -> None:
    """Where the host's own packets are judged by their state too, coming back may cost open connections.

    Then a server's packet that is the first to be seen of a connection is refused, so
    ``balancer``, whose output is closed, is not reverted under traffic.
    """
    machine = Machine(net.host, "nft", tmp_path)
    machine.furnish()
    have(machine, case)
    rules = listed(machine)
    applying.clients_notice_nothing(net, machine, mode, back=case != "balancer")
    assert case == "balancer" or listed(machine) == rules


@pytest.mark.parametrize("mode", MODES)
def test_what_is_tracked(balancer: tuple[Topology, Machine], mode: str) -> None:
    """Before: everything. After: with notrack all but the flows, with stateless nothing."""
    net, machine = balancer
    assert asyncio.run(_tracked_ports(net)) == {"22", "80", "443", "8080"}
    machine.run(0, "apply", "-c", machine.config(mode))
    assert asyncio.run(_tracked_ports(net)) == ({"22"} if mode == "notrack" else set())
    machine.run(0, "revert")
    assert asyncio.run(_tracked_ports(net)) == {"22", "80", "443", "8080"}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_fragments_come_through_as_before(tmp_path: Path, family: str, mode: str) -> None:
    """Datagrams in three fragments, to a port of the rules and to one that is closed."""
    with topology() as net:
        machine = Machine(net.host, "nft", tmp_path)
        machine.furnish()
        have(machine, "server-vmap")
        before = asyncio.run(_big(net, family))
        assert before == {"53": "ok", "514": "timeout"}, before
        machine.run(0, "apply", "-c", machine.config(mode))
        assert asyncio.run(_big(net, family)) == before


async def _big(net: Topology, family: str) -> dict[str, str]:
    found: dict[str, str] = {}
    async with usage.services(net, family):
        for port in (53, 514):
            asked = conversations.ask(family, net.client, (address(family, "host"), port), size=4000)
            outcome = await conversations.outcome(asked, 2.0)
            found[str(port)] = outcome if outcome == "ok" else "timeout"
    return found


# --- cut off -----------------------------------------------------------------------------


@pytest.mark.parametrize("done", (False, True), ids=("before", "after"))
@pytest.mark.parametrize("mode", MODES)
def test_a_killed_apply_is_rolled_back_by_the_next(machine: Machine, mode: str, done: bool) -> None:
    """SIGKILL when the live rules are about to be loaded, or are: the journal has the intent and no commit."""
    have(machine, "server-vmap")
    rules, files = listed(machine), machine.of_others()
    nft = shutil.which("nft")
    assert nft
    stubs, marker = machine.files / "bin", machine.files / "killed"
    stubs.mkdir()
    own = os.stat(machine.place.path).st_ino
    here = f'[ "$(stat -Lc %i /proc/self/ns/net)" = {own} ]'
    act = f'{nft} "$@"; ' if done else ""
    (stubs / "nft").write_text(
        f'#!/bin/sh\nif [ "$1 $2" = "-j -f" ] && [ ! -e {marker} ] && {here}; then\n'
        f'  touch {marker}; {act}kill -9 $PPID; exit 1\nfi\nexec {nft} "$@"\n', encoding="ascii"
    )  # fmt: skip
    (stubs / "nft").chmod(0o755)
    machine.path = f"{stubs}:{machine.path}"
    machine.run(128 + signal.SIGKILL, "apply", "-c", machine.config(mode))
    assert marker.exists() and machine.of_others() != files
    assert (listed(machine) != rules) == done
    said = machine.run(0, "apply", "-c", machine.config(mode)).stdout
    assert "was cut off and was rolled back first" in said
    _is_as_the_mode_says(machine, mode)
    machine.run(0, "revert")
    assert listed(machine) == rules
    assert machine.of_others() == files
