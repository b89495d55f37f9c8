"""No block beside a saved file that does not load under it: that would be a boot without a firewall."""

from __future__ import annotations

import pytest

from .balancer import SAVED, Story, assert_unloaded, run_balancer
from .later import Later

CHAINS = "".join(f":{chain} ACCEPT [0:0]\n" for chain in ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"))
RAW = "*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p tcp --dport 21 -j CT --helper ftp\nCOMMIT\n"
FILTER = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p tcp --dport 22 -j ACCEPT\nCOMMIT\n"
NAT = f"*nat\n{CHAINS}-A POSTROUTING -o eth0 -j MASQUERADE\nCOMMIT\n"
EMPTY_NAT = f"*nat\n{CHAINS}COMMIT\n"

# Debian's file beside Red Hat's; the status that apply must give; what it must name.
REFUSED = {
    "nat": (NAT + FILTER, 3, "-A POSTROUTING -o eth0 -j MASQUERADE"),
    "unknown-match": (FILTER.replace("-j", "-m geoip --src-cc DE -j"), 1, "geoip"),
    "missing-set": (FILTER.replace("-j", "-m set --match-set nobody src -j"), 1, "nobody"),
    "ct-target": (RAW + FILTER, 3, "--helper ftp"),
    "missing-table": ("*security\n:INPUT ACCEPT [0:0]\nCOMMIT\n" + FILTER, 1, "security"),
}
FILE = "/etc/iptables/rules.v4"

SCRIPT = f"""
load
echo 'install iptable_security /bin/false' >/etc/modprobe.d/security.conf
config 'mode: unload'
look start
for name in {" ".join(REFUSED)}; do
    cp /root/cases/$name {FILE}
    step $name cc apply -c $DESIRED
    step $name-file cmp /root/cases/$name {FILE}
    look $name
done
cp /root/cases/empty-nat {FILE}
step empty-nat cc apply -c $DESIRED
look empty-nat
iptables -F
step boots iptables-restore {FILE}
cat /proc/modules
"""

CASES = {f"/root/cases/{name}": text for name, (text, _, _) in REFUSED.items()}
STORY = Later(lambda: run_balancer(SCRIPT, {**SAVED, **CASES, "/root/cases/empty-nat": EMPTY_NAT + FILTER}))


@pytest.fixture
def story() -> Story:
    return STORY.result()


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_would_not_load_is_refused_with_its_name(story: Story, name: str) -> None:
    _, status, named = REFUSED[name]
    ran = story.step(name)
    assert ran.status == status, ran.output
    assert named in ran.output and FILE in ran.output
    start, now = story.seen("start"), story.seen(name)
    assert (now.rules, now.counts, now.settings) == (start.rules, start.counts, start.settings)
    assert now.without(FILE) == start.files  # no block
    assert story.step(f"{name}-file").ok


def test_an_empty_nat_table_is_taken_out_and_the_file_loads_under_the_block(story: Story) -> None:
    story.answer("empty-nat", 0)
    assert_unloaded(story.seen("empty-nat"))
    assert any("00-cloudinit-conntrack" in row for row in story.seen("empty-nat").files)
    assert story.step("boots").ok, story.step("boots")
    assert "conntrack" not in story.result.stdout and "iptable_filter" in story.result.stdout
