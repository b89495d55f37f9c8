"""Unloading with everything loaded that can stand in the way; the block; and all of it back."""

from __future__ import annotations

import pytest

from .balancer import SAVED, Story, assert_same, assert_unloaded, run_balancer
from .later import Later

# What firewalld installs: its own install line, which would load the module all the same.
FIREWALLD = {
    "/etc/modprobe.d/firewalld-sysctls.conf": "install nf_conntrack /usr/sbin/modprobe --ignore-install nf_conntrack"
    " $CMDLINE_OPTS && /usr/sbin/sysctl --quiet --pattern 'net[.]netfilter[.]nf_conntrack.*' --system\n"
}

# IP_VS_SO_SET_ADD and _DEL with struct ip_vs_service_user (<linux/ip_vs.h>): ipvsadm -A -t 192.0.2.1:80 -s rr
IPVS = """\
import socket, struct, sys
service = struct.pack("=H2x4sH2xI16sIII", 6, bytes((192, 0, 2, 1)), socket.htons(80), 0, b"rr", 0, 0, 0xFFFFFFFF)
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
raw.setsockopt(socket.IPPROTO_IP, {"add": 1154, "del": 1156}[sys.argv[1]], service)
"""

LOADED = """
    ip6table_nat ip_vs ip_vs_rr iptable_nat nf_conncount nf_conntrack nf_conntrack_broadcast nf_conntrack_ftp
    nf_conntrack_netbios_ns nf_conntrack_netlink nf_nat nf_nat_ftp xt_CT xt_MASQUERADE xt_connlimit xt_conntrack
""".split()

# Every way to the module that people and programs go.
WAYS = {
    "state-rule": "iptables -A INPUT -m state --state NEW -j ACCEPT",
    "ctstate-rule": "ip6tables -A INPUT -m conntrack --ctstate NEW -j ACCEPT",
    "nat-list": "iptables -t nat -L",
    "nat-list-6": "ip6tables -t nat -S",
    "nat-rule": "iptables -t nat -A POSTROUTING -j MASQUERADE",
    "notrack-rule": "iptables -t raw -A PREROUTING -j NOTRACK",
    "connlimit-rule": "iptables -A INPUT -p tcp -m connlimit --connlimit-above 9 -j DROP",
    "old-file": "iptables-restore /root/stateful",
    "modprobe": "modprobe nf_conntrack",
    "modprobe-dash": "modprobe nf-conntrack",
    "modprobe-old-name": "modprobe ip_conntrack",
    "modprobe-dependant": "modprobe xt_state",
    "modprobe-nat": "modprobe iptable_nat",
    "modprobe-ipvs": "modprobe ip_vs",
    "conntrack-list": "conntrack -L",
}

TRIED = "\n".join(
    f"step way-{name} timeout 20 {way}; step after-{name} cat /proc/modules" for name, way in WAYS.items()
)

SCRIPT = f"""
cp /etc/sysconfig/iptables /root/stateful
load
modprobe -a nf_conntrack_netlink nf_conntrack_netbios_ns xt_MASQUERADE xt_CT xt_connlimit ip_vs ip_vs_rr
modprobe nf_conntrack_ftp ports=21,2121; modprobe nf_nat_ftp
iptables -t nat -L >/dev/null; ip6tables -t nat -L >/dev/null
echo 8192 >/sys/module/nf_conntrack/parameters/hashsize
sysctl -qw net.netfilter.nf_conntrack_max=54321 net.netfilter.nf_conntrack_udp_timeout=77
step firewalld modprobe -n -v -D nf_conntrack
look start
config 'mode: unload'
step service /usr/bin/python3 /root/ipvs.py add
step service-apply cc apply -c $DESIRED
/usr/bin/python3 /root/ipvs.py del
look blocked
step apply cc apply -c $DESIRED
look unloaded
step dry-run modprobe -n -v nf_conntrack
{TRIED}
look still
step verify cc verify
step revert cc revert
look end
"""


STORY = Later(lambda: run_balancer(SCRIPT, {**SAVED, **FIREWALLD, "/root/ipvs.py": IPVS}))


@pytest.fixture
def story() -> Story:
    return STORY.result()


def test_every_module_goes_the_holders_first(story: Story) -> None:
    start = story.seen("start")
    assert list(start.conntrack) == LOADED
    actions = story.answer("apply", 0)["actions"]
    order = [a["where"].split()[1] for a in actions if a["verb"] == "unload"]
    assert sorted(order) == LOADED
    for line in start.modules.splitlines():
        name, _, _, holders = line.split()[:4]
        for holder in holders.rstrip(",").split(","):
            if name in order and holder in order:
                assert order.index(holder) < order.index(name)
    assert_unloaded(story.seen("unloaded"))


def test_schedulers_of_ipvs_are_no_services_but_a_service_blocks(story: Story) -> None:
    assert story.step("service").ok, story.step("service")
    blockers = {b["where"]: b for b in story.answer("service-apply", 3)["blockers"]}
    assert set(blockers) == {"module ip_vs", "module ip_vs_rr"}
    assert "ipvsadm -C" in blockers["module ip_vs"]["remedy"]
    assert_same(story.seen("blocked"), story.seen("start"))


def test_our_block_comes_before_the_install_line_of_firewalld(story: Story) -> None:
    assert "--ignore-install nf_conntrack" in story.step("firewalld").stdout  # it would win without us
    assert "install /bin/false" in story.step("dry-run").stdout


@pytest.mark.parametrize("way", WAYS)
def test_nothing_brings_the_module_back(story: Story, way: str) -> None:
    assert not story.step(f"way-{way}").ok
    names = {line.split()[0] for line in story.step(f"after-{way}").stdout.splitlines()}
    assert not names & set(LOADED)


def test_and_nothing_was_changed_by_trying(story: Story) -> None:
    unloaded, still = story.seen("unloaded"), story.seen("still")
    assert [row for row in still.rules if row.startswith("-A")] == [r for r in unloaded.rules if r.startswith("-A")]
    assert still.files == unloaded.files
    assert story.answer("verify", 0)["outcome"] == "verified"


def test_revert_loads_each_again_with_its_parameters_and_sysctls(story: Story) -> None:
    start, end = story.seen("start"), story.seen("end")
    assert story.answer("revert", 0)["outcome"] == "reverted"
    values = dict(row.split(":", 1) for row in start.settings)
    assert values["/proc/sys/net/netfilter/nf_conntrack_max"] == "54321"
    assert values["/sys/module/nf_conntrack/parameters/hashsize"] == "8192"
    assert values["/sys/module/nf_conntrack_ftp/parameters/ports"].startswith("21,2121")
    assert end.settings == start.settings
    assert end.conntrack == start.conntrack
    assert end.files == start.files


def test_revert_brings_the_rules_back_the_empty_nat_tables_too(story: Story) -> None:
    start, end = story.seen("start"), story.seen("end")
    assert start.rules.count("*nat") == 2
    assert tables(end.rules) == {**tables(start.rules), "raw": [":PREROUTING ACCEPT", ":OUTPUT ACCEPT"]}


def tables(rules: tuple[str, ...]) -> dict[str, list[str]]:
    """Both families' tables by name, one behind the other; a save has them in the order of their first use."""
    found: dict[str, list[str]] = {}
    name = ""
    for row in rules:
        if row.startswith("*"):
            name = row[1:]
        elif row and row != "COMMIT":
            found.setdefault(name, []).append(row)
    return found
