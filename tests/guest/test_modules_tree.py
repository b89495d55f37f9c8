"""The tree of ``status`` is complete and its remedies are true: who follows every leaf can unload nf_conntrack."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from .balancer import RULES4, SAVED, Story, run_balancer
from .later import Later

NODE = Any

# What a person would do: what each leaf says, then look again, until only the root is left.
FOLLOW = '''\
import json, re, subprocess, sys

def status():
    done = subprocess.run(["/usr/bin/python3", "-m", "cloudinit_conntrack", "status", "--format", "json"],
                          stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)

def leaves(nodes):
    for node in nodes:
        if node["children"]:
            yield from leaves(node["children"])
        else:
            yield node

def edit(path, change):
    with open(path) as file:
        lines = file.read().split("\\n")
    change(lines)
    with open(path, "w") as file:
        file.write("\\n".join(lines))

def follow(remedy):
    done = subprocess.run(["sh", "-c", remedy], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return [done.returncode, done.stdout]

rounds = []
for _ in range(12):
    found = status()
    root = found["tree"][0] if found["tree"] else None
    rounds.append({"status": found, "did": []})
    if root is None or not root["children"]:
        break
    lines = []
    for leaf in leaves([root]):
        whole = re.fullmatch(r"take line (\\d+) out of (\\S+)", leaf["remedy"])
        word = re.fullmatch(r"take (\\S+) out of line (\\d+) of (\\S+)", leaf["remedy"])
        if whole:
            lines.append((whole[2], int(whole[1]), ""))
        elif word:
            lines.append((word[3], int(word[2]), word[1]))
        if whole or word or not leaf["remedy"]:
            rounds[-1]["did"].append([leaf["id"], leaf["kind"], leaf["remedy"], 0, ""])
        else:
            rounds[-1]["did"].append([leaf["id"], leaf["kind"], leaf["remedy"], *follow(leaf["remedy"])])
    for path, number, name in sorted(lines, reverse=True):  # from below: the numbers above stay right
        def change(rows):
            if name:
                rows[number - 1] = rows[number - 1].replace(name, "")
            else:
                del rows[number - 1]
        edit(path, change)
json.dump(rounds, sys.stdout)
'''

CONFIG = 'IPTABLES_MODULES="nf_conntrack_ftp"\nIPTABLES_MODULES_UNLOAD="yes"\n'
FILES = {
    **SAVED, "/etc/sysconfig/iptables-config": CONFIG, "/root/follow.py": FOLLOW,
    "/etc/sysconfig/iptables": RULES4.replace("--state RELATED,ESTABLISHED", "--state ESTABLISHED,RELATED"),
}  # fmt: skip
SCRIPT = """
load
modprobe nf_conntrack_ftp
iptables -t raw -A PREROUTING -p tcp --dport 443 -j CT --notrack
iptables -t raw -A PREROUTING -p tcp --dport 21 -j CT --helper ftp
iptables -t nat -A PREROUTING -p tcp --dport 80 -j REDIRECT --to-ports 8080
iptables -A INPUT -p tcp --dport 80 -m state --state NEW -m connlimit --connlimit-above 20 -j REJECT
iptables -A INPUT -m comment --comment 'say "hi" \\ $(reboot) `reboot` ; <b>&' -m conntrack --ctstate INVALID -j DROP
iptables -A INPUT -m connmark --mark 7 -j ACCEPT
for n in 1 2 3 4 5 6 7 8 9; do ip6tables -A INPUT -p tcp --dport 900$n -m state --state NEW -j ACCEPT; done
ip netns add blue
ip netns exec blue ip link set lo up
ip netns exec blue iptables -A INPUT -i lo -j ACCEPT
ip netns exec blue iptables -A INPUT -p tcp -m state --state NEW -m tcp --dport 80 -j ACCEPT
ip netns exec blue iptables -t nat -A POSTROUTING -o eth9 -j MASQUERADE
ip netns exec blue python3 -c 'import socket
for port in (1, 2, 3): socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", port))'
unshare --net sh -c 'ip6tables -t raw -A OUTPUT -m conntrack --ctstate NEW -j ACCEPT; exec sleep 1000' &
until grep -q sleep /proc/$!/comm && nsenter --net=/proc/$!/ns/net ip6tables -t raw -S | grep -q ctstate; do
    sleep 0.1
done
ipvsadm -A -t 10.0.0.1:80 -s rr
ipvsadm -A -u '[fd00::1]:53' -s wrr
ipvsadm -A -f 7 -s rr
modprobe nf_conntrack_netlink
conntrack -E >/dev/null 2>&1 &
until [ "$(awk '$2 == 12 && $4 != "00000000"' /proc/net/netlink)" ]; do sleep 0.1; done
look start
step lines env LC_ALL=C.UTF-8 /usr/bin/python3 -m cloudinit_conntrack status
draw() { cc status --picture /root/tree.svg >/dev/null && cat /root/tree.svg; }
step svg draw
look seen
step stubborn modprobe -r nf_conntrack
step follow python3 /root/follow.py
look followed
step unload modprobe -r nf_conntrack
look end
step absent cc status
"""

STORY = Later(lambda: run_balancer(SCRIPT, FILES))


@pytest.fixture
def story() -> Story:
    return STORY.result()


@pytest.fixture
def rounds(story: Story) -> Any:
    ran = story.step("follow")
    assert ran.ok, ran.output
    return json.loads(ran.stdout)


def all_nodes(nodes: list[NODE]) -> Iterator[NODE]:
    for node in nodes:
        yield node
        yield from all_nodes(node["children"])


def leaves(nodes: list[NODE]) -> Iterator[NODE]:
    return (node for node in all_nodes(nodes) if not node["children"])


def meaning(node: NODE) -> tuple[str, str, str]:
    """What stays of a node when the numbers of rules move: its kind, its table or module, its words."""
    words = node["what"].partition(": ")[2] if node["kind"] == "rule" else node["what"].partition(",")[0]
    return node["kind"], node["where"].partition(", chain")[0].partition(":")[0], words


def test_who_follows_every_leaf_can_unload_conntrack(story: Story, rounds: Any) -> None:
    assert not story.step("stubborn").ok  # before, it is in use
    assert story.step("unload").ok, story.step("unload").output
    assert story.seen("end").conntrack == ()
    assert rounds[-1]["status"]["tree"][0]["children"] == []
    assert len(rounds) <= 6


def test_each_command_works_and_removes_its_leaf(rounds: Any) -> None:
    failed = [did for one in rounds for did in one["did"] if did[3] != 0]
    assert not failed
    for now, then in zip(rounds, rounds[1:]):
        gone = {meaning(leaf) for leaf in leaves(now["status"]["tree"]) if leaf["kind"] != "also"}
        left = {meaning(node) for node in all_nodes(then["status"]["tree"])}
        assert gone and not gone & left


def test_nothing_is_unseen_and_nothing_is_told_twice(rounds: Any) -> None:
    nodes = list(all_nodes(rounds[0]["status"]["tree"]))
    kinds = {node["kind"] for node in nodes}
    assert kinds == {
        "conntrack", "module", "table", "rule", "namespace", "owner", "service", "process", "saved", "also",
    }
    assert len({node["id"] for node in nodes}) == len(nodes)
    rules = [meaning(node) for node in nodes if node["kind"] == "rule"]
    assert len(rules) == len(set(rules)) == 22


def test_each_finding_is_in_the_tree(rounds: Any) -> None:
    """The findings are what they always were: programs read them."""
    ids = {node["id"] for node in all_nodes(rounds[0]["status"]["tree"])}
    held = [f for f in rounds[0]["status"]["findings"] if f["id"].startswith(("rule:", "namespace:", "unseen:"))]
    assert len(held) > 20
    assert {f["id"] for f in held} - ids <= {"unseen:ip_vs"}  # told service by service


def test_each_module_is_in_the_tree_once(story: Story, rounds: Any) -> None:
    found = [node["where"].partition(" ")[2] for node in all_nodes(rounds[0]["status"]["tree"])
             if node["kind"] in ("module", "conntrack")]  # fmt: skip
    assert sorted(found) == sorted(story.seen("start").conntrack)


def test_looking_loads_nothing(story: Story) -> None:
    assert story.seen("seen").modules == story.seen("start").modules


def test_the_saved_lines_are_those(story: Story, rounds: Any) -> None:
    saved = {node["where"] for node in all_nodes(rounds[0]["status"]["tree"]) if node["kind"] == "saved"}
    assert saved == {f"/etc/sysconfig/{name}" for name in (
        "iptables-config:1", "iptables:5", "iptables:8", "ip6tables:5", "ip6tables:8")}  # fmt: skip
    assert not story.seen("end").stateful


def test_namespaces_and_what_is_hooked_in(rounds: Any) -> None:
    own, blue, sleeper = rounds[0]["status"]["namespaces"]
    assert own["own"] and own["hooks"] == {"ipv4": True, "ipv6": True, "bridge": None}
    assert own["evidence"] == "its rules"  # this kernel cannot list its hooks
    assert blue["owner"] == blue["path"] == "/run/netns/blue"
    assert blue["entries"] == 3  # three datagrams over its loopback
    assert blue["hooks"] == {"ipv4": True, "ipv6": None, "bridge": None}
    assert "sleep" in sleeper["owner"] and sleeper["hooks"] == {"ipv4": None, "ipv6": True, "bridge": None}


def test_counters_are_there_and_go_with_the_module(story: Story, rounds: Any) -> None:
    counters = rounds[0]["status"]["counters"]
    assert {"entries", "limit", "buckets", "percent_full", "insert", "insert_failed", "drop", "early_drop", "found",
            "invalid"} <= set(counters)  # fmt: skip
    assert all(type(count) is int for count in counters.values())
    absent = story.answer("absent", 0)
    assert (absent["tree"], absent["namespaces"], "counters" in absent) == ([], [], False)


def test_text_and_picture(story: Story) -> None:
    text = story.step("lines").stdout
    assert "└─ " in text and "\n  nf_conntrack: loaded, in use " in text
    assert text.count("-> iptables-legacy -t filter -D INPUT 7\n") == 1  # not said again below
    assert "… 6 more like these (-v shows them)" in text
    svg = story.step("svg")
    assert svg.ok and "<svg" in svg.stdout and "rmmod xt_conntrack" in svg.stdout, svg.output
