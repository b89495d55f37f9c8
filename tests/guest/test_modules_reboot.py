"""The next boot: the saved files load as the distribution loads them, the filter works, nothing is tracked."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from .balancer import RULES4, RULES6, SAVED, Seen, Story, run_balancer
from .later import Later

DEBIAN = {"/etc/iptables/rules.v4": RULES4, "/etc/iptables/rules.v6": RULES6}

FIRST = """
load
iptables -t nat -L >/dev/null
look start
config 'mode: {mode}'
step apply cc apply -c $DESIRED
look applied
"""

# The network of the second boot: an outside, and servers on an open and on a closed port.
SECOND = """
look boot
step load4 iptables-restore /etc/sysconfig/iptables
step load6 ip6tables-restore /etc/sysconfig/ip6tables
step debian4 iptables-restore /etc/iptables/rules.v4
step debian6 ip6tables-restore /etc/iptables/rules.v6
look loaded
outside_up
/usr/bin/python3 /root/server.py 22 23 >/root/listening &
until grep -q listening /root/listening; do sleep 0.1; done
step outside out /usr/bin/python3 /root/client.py 10.9.0.1-22 10.9.0.1-23 fd09::1-22 fd09::1-23
step entries cat /proc/net/nf_conntrack
step verify cc verify
step again cc apply
step modules cat /proc/modules
kill $!
outside_down
step revert cc revert
look end
"""


def two_boots(mode: str) -> tuple[Story, Story]:
    with tempfile.TemporaryDirectory() as name:
        disk = Path(name) / "disk.tar"
        first = run_balancer(FIRST.format(mode=mode), {**SAVED, **DEBIAN}, disk=disk)
        return first, run_balancer(SECOND, {}, disk=disk)


UNLOAD = Later(lambda: two_boots("unload"))
STATELESS = Later(lambda: two_boots("stateless"))


@pytest.fixture(params=["unload", "stateless"])
def boots(request: pytest.FixtureRequest) -> tuple[Story, Story]:
    return {"unload": UNLOAD, "stateless": STATELESS}[request.param].result()


def test_the_second_boot_loads_every_saved_file(boots: tuple[Story, Story]) -> None:
    first, second = boots
    first.answer("apply", 0)
    for name in ("load4", "load6", "debian4", "debian6"):
        assert second.step(name).ok, second.step(name)
    assert without_nat(second.seen("loaded")) == without_nat(first.seen("applied"))


def test_no_conntrack_in_the_second_boot(boots: tuple[Story, Story]) -> None:
    _, second = boots
    for modules in (second.seen("boot").modules, second.seen("loaded").modules, second.step("modules").stdout):
        assert "conntrack" not in modules
    assert not second.step("entries").ok  # no such file


def test_the_filter_works_in_the_second_boot(boots: tuple[Story, Story]) -> None:
    _, second = boots
    said = dict(line.split(" ", 1) for line in second.step("outside").stdout.splitlines())
    assert said["10.9.0.1-22"] == said["fd09::1-22"] == "hello"
    assert said["10.9.0.1-23"] == "No route to host"  # icmp-host-prohibited
    assert said["fd09::1-23"] == "Permission denied"  # icmp6-adm-prohibited


def test_the_second_boot_is_verified_and_has_nothing_to_do(boots: tuple[Story, Story]) -> None:
    _, second = boots
    assert second.answer("verify", 0)["outcome"] == "verified"
    assert second.answer("again", 0)["outcome"] == "nothing-to-do"


def test_revert_in_the_second_boot_gives_back_the_first_start(boots: tuple[Story, Story]) -> None:
    first, second = boots
    second.answer("revert", 0)
    start, end = first.seen("start"), second.seen("end")
    assert end.files == start.files
    assert without_nat(end) == without_nat(start)
    assert {"nf_conntrack", "xt_conntrack"} <= set(end.conntrack) <= set(start.conntrack)


def test_revert_after_unload_is_whole() -> None:
    """The nat table and all modules too: stateless has no record of them, unload has."""
    first, second = UNLOAD.result()
    start, end = first.seen("start"), second.seen("end")
    assert (end.rules, end.conntrack, end.settings) == (start.rules, start.conntrack, start.settings)


def without_nat(seen: Seen) -> list[str]:
    """The rules but for an empty nat table, which a legacy kernel keeps until its module goes."""
    rows = list(seen.rules)
    if "*nat" in rows:
        at = rows.index("*nat")
        del rows[at : rows.index("COMMIT", at) + 1]
    return rows
