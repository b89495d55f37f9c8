"""Debian's cloud kernels 5.10, 6.1, 6.12 and the newest: apply, verify and revert on each; a change of kernel.

Rules of both back ends, both families and native nftables at once; the judges are the kernel's files, kmod, iptables
and nft.  ``make test`` boots the oldest and the host that changes from 6.12 to the newest; ``make guest``
(``KERNELS=all``) all of them.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from .balancer import RULES4, RULES6
from .kernels import SUITES, kernel
from .later import Later
from .qemu import run_qemu
from .seed_case import is_stateful, without_counters
from .uml import QuickResult, Ran

SEND = """\
import socket
for family, to in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
    socket.socket(family, socket.SOCK_DGRAM).sendto(b"x", (to, 9))
"""
NATIVE = """\
#!/usr/sbin/nft -f
flush ruleset
table inet guard {
    chain input {
        type filter hook input priority 10; policy drop;
        ct state vmap { established : accept, related : accept, invalid : drop }
        iif "lo" accept
        tcp dport { 22, 80 } ct state new accept
    }
}
"""
SAVED = {"/etc/nftables.conf": NATIVE,
         "/etc/iptables/rules.v4": RULES4, "/etc/iptables/rules.v6": RULES6,
         "/root/desired.yaml": "conntrack: {mode: unload}\n", "/root/send.py": SEND}  # fmt: skip
RELEASES = {"bullseye": "5.10.", "bookworm": "6.1.", "trixie": "6.12."}
NEWEST = (6, 13)
ASKED = SUITES if os.environ.get("KERNELS") == "all" else ("bullseye", "trixie")

WORDS = """\
cc() { verb=$1; shift; python3 -m cloudinit_conntrack $verb --format json "$@"; }
rules() { for b in legacy nft; do for t in iptables ip6tables; do echo "# $t $b"; $t-$b-save 2>/dev/null; done; done; }
look() {
    step "$1,modules" cat /proc/modules; step "$1,rules" rules; step "$1,proc" ls /proc/net/nf_conntrack
    step "$1,native" nft -s list table inet guard; step "$1,saved" cat /etc/nftables.conf
}
blocked() {
    for name in nf_conntrack xt_state xt_conntrack nft-expr-ct; do step "$1,$name" modprobe -n -v $name; done
    for t in iptables-legacy ip6tables-legacy iptables-nft; do step "$1,$t" $t -A INPUT -m state --state NEW; done
    step "$1,nft" nft add rule inet guard input ct state new accept
    step "$1,check" nft -c -f /etc/nftables.conf
    look "$1"
}
"""
APPLY = """\
uname -r
step bare modprobe nf_conntrack
python3 /root/send.py
step unhooked cat /proc/net/nf_conntrack
nft -f /etc/nftables.conf || exit 9
for b in legacy nft; do
    iptables-$b-restore </etc/iptables/rules.v4 && ip6tables-$b-restore </etc/iptables/rules.v6 || exit 9
done
python3 /root/send.py
step hooked cat /proc/net/nf_conntrack
look start
step apply cc apply -c /root/desired.yaml
blocked applied
step verify cc verify
"""
REVERT = """\
step revert cc revert
look end
"""
# The next boot of the same host with another kernel: its saved files load as the distribution loads them.
SWITCH = """\
uname -r
step loadnft nft -f /etc/nftables.conf
step load4 iptables-restore /etc/iptables/rules.v4
step load6 ip6tables-restore /etc/iptables/rules.v6
step apply cc apply
blocked switched
step verify cc verify
"""


def tell(suite: str) -> tuple[QuickResult, QuickResult | None]:
    """One guest; for ``trixie`` also the next boot of the same disk, with the newest kernel."""
    if suite != "trixie":
        return run_qemu(WORDS + APPLY + REVERT, kernel(suite), files=SAVED, timeout=1800), None
    with tempfile.TemporaryDirectory(prefix="qemu-disk-") as name:
        disk = Path(name) / "disk.tar"
        first = run_qemu(WORDS + APPLY, kernel(suite), files=SAVED, timeout=1800, disk=disk)
        return first, run_qemu(WORDS + SWITCH + REVERT, kernel(SUITES[-1]), timeout=1800, disk=disk)


TRIXIE = Later(lambda: tell("trixie"), first=True)
BULLSEYE = Later(lambda: tell("bullseye"))
BOOKWORM = Later(lambda: tell("bookworm"))
SID = Later(lambda: tell("sid"))
STORIES = {"bullseye": BULLSEYE, "bookworm": BOOKWORM, "trixie": TRIXIE, "sid": SID}


@pytest.fixture(params=ASKED)
def told(request: pytest.FixtureRequest) -> QuickResult:
    found: QuickResult = STORIES[request.param].result()[0]
    return found


@pytest.fixture
def switched() -> QuickResult:
    found = TRIXIE.result()[1]
    assert found
    return found


def step(told: QuickResult, name: str) -> Ran:
    assert name in told.steps, f"no step {name}:\n{told.output}\n{told.console[-2000:]}"
    return told.steps[name]


def answer(told: QuickResult, name: str, status: int = 0) -> Any:
    ran = step(told, name)
    assert ran.status == status, ran.output
    return json.loads(ran.stdout)


def conntrack(told: QuickResult, look: str) -> set[str]:
    names = {line.split()[0] for line in step(told, f"{look},modules").stdout.splitlines()}
    return {name for name in names if "conntrack" in name or name in ("xt_state", "nft_ct", "nf_nat", "xt_CT")}


def test_these_are_the_kernels_that_we_mean(switched: QuickResult, measured: list[str]) -> None:
    stories = {suite: STORIES[suite].result()[0] for suite in ASKED}
    for suite, release in RELEASES.items():
        assert suite not in stories or stories[suite].stdout.startswith(release)
    for newest in (switched, stories.get("sid", switched)):
        assert tuple(int(number) for number in newest.stdout.split(".")[:2]) >= NEWEST
    seconds = ", ".join(f"{suite} {story.seconds:.0f} s" for suite, story in stories.items())
    measured.append(f"QEMU guests: {seconds}, the change of kernel {switched.seconds:.0f} s")


def test_packets_are_tracked_only_with_a_stateful_rule(told: QuickResult) -> None:
    assert step(told, "bare").ok
    assert step(told, "unhooked").ok and "dport=9 " not in step(told, "unhooked").stdout
    entries = [line for line in step(told, "hooked").stdout.splitlines() if "dport=9 " in line]
    assert {line.split()[0] for line in entries} == {"ipv4", "ipv6"}, step(told, "hooked")


def test_the_rules_of_both_back_ends_become_stateless(told: QuickResult) -> None:
    assert answer(told, "apply")["outcome"] == "done"
    start, now = (step(told, f"{look},rules").stdout.splitlines() for look in ("start", "applied"))
    assert sum(map(is_stateful, start)) == 8  # two rules, two families, two back ends
    assert not any(map(is_stateful, now))
    assert sum("-j REJECT" in line for line in now) == sum("-j REJECT" in line for line in start) == 8


def test_native_rules_become_stateless_live_and_saved(told: QuickResult) -> None:
    start, now = (step(told, f"{look},native").stdout for look in ("start", "applied"))
    assert start.count("ct state") == 2 and "ct state" not in now
    assert "tcp dport { 22, 80 }" in now and "policy drop" in now
    assert "ct state" not in step(told, "applied,saved").stdout
    assert step(told, "applied,check").ok, "the saved file loads under the block"


def test_no_conntrack_module_is_left(told: QuickResult) -> None:
    assert {"nf_conntrack", "xt_conntrack"} <= conntrack(told, "start")
    assert conntrack(told, "applied") == set()
    assert not step(told, "applied,proc").ok and step(told, "start,proc").ok


@pytest.mark.parametrize("name", ["nf_conntrack", "xt_conntrack", "nft-expr-ct"])
def test_modprobe_answers_with_the_block(told: QuickResult, name: str) -> None:
    """The install line of nf_conntrack comes first, or the alias is blacklisted and nothing is left to do."""
    said = [line.strip() for line in step(told, f"applied,{name}").stdout.splitlines()]
    before = said[: said.index("install /bin/false")] if "install /bin/false" in said else said
    assert not [line for line in before if "/nf_conntrack.ko" in line or f"/{name}.ko" in line], said


@pytest.mark.parametrize("tool", ["iptables-legacy", "ip6tables-legacy", "iptables-nft", "nft"])
def test_a_new_stateful_rule_is_refused(told: QuickResult, tool: str) -> None:
    assert not step(told, f"applied,{tool}").ok


def test_verify_agrees(told: QuickResult) -> None:
    assert answer(told, "verify")["outcome"] == "verified"


@pytest.mark.parametrize("suite", [suite for suite in ASKED if suite != "trixie"])
def test_revert_gives_rules_and_modules_back(suite: str) -> None:
    told = STORIES[suite].result()[0]
    assert answer(told, "revert")["outcome"] == "reverted"
    start, end = (without_counters(step(told, f"{look},rules").stdout) for look in ("start", "end"))
    assert end == start
    assert step(told, "end,native").stdout == step(told, "start,native").stdout
    assert step(told, "end,saved").stdout == NATIVE
    assert conntrack(told, "end") == conntrack(told, "start")


# --- the same host with another kernel -------------------------------------------------------


def test_another_kernel_stays_without_conntrack_and_blocked(switched: QuickResult) -> None:
    assert switched.stdout.split()[0] != TRIXIE.result()[0].stdout.split()[0]
    assert step(switched, "load4").ok and step(switched, "load6").ok and step(switched, "loadnft").ok
    assert answer(switched, "apply")["outcome"] == "nothing-to-do"
    assert conntrack(switched, "switched") == set() and not step(switched, "switched,proc").ok
    assert "install /bin/false" in step(switched, "switched,nf_conntrack").stdout
    assert not step(switched, "switched,iptables-legacy").ok
    assert answer(switched, "verify")["outcome"] == "verified"


def test_revert_under_another_kernel_brings_the_saved_files_back(switched: QuickResult) -> None:
    assert answer(switched, "revert")["outcome"] == "reverted"
    assert "nf_conntrack" in conntrack(switched, "end")
