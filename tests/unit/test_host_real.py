"""The door against the real kernel: network namespaces of our own, real rules and flows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudinit_conntrack.errors import CommandError, HostError
from cloudinit_conntrack.host import rules
from cloudinit_conntrack.host.namespaces import find_namespaces, other_namespaces
from cloudinit_conntrack.host.process import private_namespace, run

ROOT = Path(__file__).parents[2]
GOOD = """\
*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
[5:420] -A INPUT -p tcp -m tcp --dport 22 -m comment --comment "h\u00e9 \\"x\\"" -j ACCEPT
COMMIT
"""
EMPTY_RAW = "*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n"


@pytest.fixture
def namespace() -> Iterator[str]:
    """The path of a fresh network namespace, loopback up."""
    with private_namespace() as path:
        run(["ip", "link", "set", "lo", "up"], netns=path)
        yield path


def inside(path: str, code: str) -> str:
    """What the Python *code* prints when it runs in the namespace *path*."""
    argv = ["nsenter", f"--net={path}", "--", sys.executable, "-c", code]
    done = subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=60, text=True)
    return done.stdout


def bare(text: str) -> str:
    """*text* without the comments of iptables-save, which hold the time."""
    return "".join(line + "\n" for line in text.splitlines() if not line.startswith("#"))


# --- rules -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
@pytest.mark.parametrize("backend", ["legacy", "nft"])
def test_rules_go_in_and_come_out_the_same(namespace: str, backend: str, family: str) -> None:
    assert all(live.text == "" for live in rules.live_rules(netns=namespace))
    rules.restore(backend, family, GOOD, namespace)
    found = {(live.backend, live.family): live.text for live in rules.live_rules(netns=namespace)}
    text = bare(found.pop((backend, family)))
    if (backend, family) == ("nft", "ipv6"):  # ip6tables-nft 1.8.9 cannot set the counters of a rule at all
        text = text.replace("[0:0] -A", "[5:420] -A")
    assert text == GOOD
    assert set(found.values()) == {""}


@pytest.mark.parametrize("backend", ["legacy", "nft"])
def test_a_refused_rule_leaves_the_old_ones_and_is_named(namespace: str, backend: str) -> None:
    rules.restore(backend, "ipv4", GOOD, namespace)
    bad = GOOD.replace("--dport 22", "--dport 23").replace("COMMIT", "-A INPUT -m nosuch -j ACCEPT\nCOMMIT")
    with pytest.raises(CommandError, match=r"line 6: -A INPUT -m nosuch -j ACCEPT"):
        rules.restore(backend, "ipv4", bad, namespace)
    assert bare(rules.saved_text(backend, "ipv4", netns=namespace).text) == GOOD


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
@pytest.mark.parametrize("backend", ["legacy", "nft"])
def test_an_empty_table_is_dropped_and_a_full_one_is_not(namespace: str, backend: str, family: str) -> None:
    full = EMPTY_RAW.replace("COMMIT", "-A OUTPUT -p udp -j CT --notrack\nCOMMIT")
    rules.restore(backend, family, GOOD + full, namespace)
    with pytest.raises(HostError, match="not empty"):
        rules.drop_table(backend, family, "raw", netns=namespace)
    rules.restore(backend, family, EMPTY_RAW, namespace)
    rules.drop_table(backend, family, "raw", netns=namespace)
    left = rules.saved_text(backend, family, netns=namespace).text
    assert ("*raw" in left) is (backend == "legacy")
    assert "-A OUTPUT" not in left
    assert "--dport 22" in left


def test_a_saved_file_is_proved_by_loading_it() -> None:
    for family in ("ipv4", "ipv6"):
        assert rules.load_in_private_namespace(GOOD, family) is None
        problem = rules.load_in_private_namespace(GOOD.replace("-m tcp", "-m nosuch"), family)
        assert problem is not None
        assert "line 5: [5:420] -A INPUT -p tcp -m nosuch" in problem
        # what --test lets pass: a table that ends without COMMIT is not loaded at all
        assert rules.load_in_private_namespace(GOOD.replace("--dport 22", "--dport x22"), family) is not None
    assert "h\u00e9" not in "".join(live.text for live in rules.live_rules())  # nothing of it reached this namespace


def test_foreign_bytes_in_comments_survive(namespace: str) -> None:
    text = GOOD.encode().replace("h\u00e9".encode(), b"h\xe9")
    rules.restore("legacy", "ipv4", text, namespace)
    found = rules.saved_text("legacy", "ipv4", netns=namespace).text
    assert b"h\xe9" in found.encode("utf-8", "surrogateescape")
    rules.restore("legacy", "ipv4", found, namespace)
    assert bare(rules.saved_text("legacy", "ipv4", netns=namespace).text) == bare(found)


# --- entries -----------------------------------------------------------------------------

FLOWS = """
import socket
from cloudinit_conntrack.host.entries import delete_entries, list_entries
for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
    for port in (5301, 5302):
        with socket.socket(family, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"x", (address, port))
ports = lambda: sorted((e.family, e.protocol, e.dport) for e in list_entries() if e.protocol == "udp")
print(ports())
print(delete_entries(lambda e: e.protocol == "udp" and e.dport == 5301 and e.dst in ("127.0.0.1", "::1")))
print(ports())
print(delete_entries(lambda e: e.dport == 5301))
print(delete_entries(lambda e: e.reply.sport == 5302 and e.reply.dst == "::1"))
print(ports())
"""


def test_entries_of_some_flows_are_deleted_and_no_others(namespace: str) -> None:
    for family in ("ipv4", "ipv6"):  # without a rule that wants it, nothing is tracked
        rules.restore("nft", family, GOOD.replace("--dport 22", "--dport 22 -m state --state NEW")
                      .replace(":INPUT DROP", ":INPUT ACCEPT"), namespace)
    assert inside(namespace, FLOWS).splitlines() == [
        "[('ipv4', 'udp', 5301), ('ipv4', 'udp', 5302), ('ipv6', 'udp', 5301), ('ipv6', 'udp', 5302)]",
        "2",
        "[('ipv4', 'udp', 5302), ('ipv6', 'udp', 5302)]",
        "0",
        "1",
        "[('ipv4', 'udp', 5302)]",
    ]


MANY = """
import socket
from cloudinit_conntrack.host.entries import delete_entries, list_entries
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    for number in range(300):
        sender.sendto(b"x", ("127.1.0.%d" % (number % 150), 5300 + number // 150))
print(delete_entries(lambda e: e.dport == 5300), sorted({e.dport for e in list_entries() if e.protocol == "udp"}))
"""


def test_more_entries_than_one_message_holds_are_deleted_and_no_others(namespace: str) -> None:
    rules.restore("nft", "ipv4", GOOD.replace("--dport 22", "--dport 22 -m state --state NEW")
                  .replace(":INPUT DROP", ":INPUT ACCEPT"), namespace)
    assert inside(namespace, MANY) == "150 [5301]\n"


def test_the_netlink_dump_says_what_the_proc_file_says(namespace: str) -> None:
    rules.restore("nft", "ipv4", GOOD.replace("--dport 22", "--dport 22 -m state --state NEW")
                  .replace(":INPUT DROP", ":INPUT ACCEPT"), namespace)
    code = """
import socket
from cloudinit_conntrack.host import entries
with socket.create_server(("127.0.0.1", 5400)) as server, socket.create_connection(("127.0.0.1", 5400)):
    with entries._Netlink() as link:
        dumped = [entry for entry, _ in link.dump()]
    print(sorted(map(str, dumped)) == sorted(map(str, entries.list_entries())), [e.dport for e in dumped])
"""
    assert inside(namespace, code) == "True [5400]\n"


# --- namespaces --------------------------------------------------------------------------


def test_other_namespaces_are_found_with_their_rules_and_owners(namespace: str) -> None:
    rules.restore("legacy", "ipv6", GOOD, namespace)
    inode = os.stat(namespace).st_ino
    pid = namespace.split("/")[2]
    seen, unread = other_namespaces()
    assert unread == ()
    found = next(one for one in seen if one.inode == inode)
    assert found.owner == f"pid {pid} (cat)"
    assert [(live.backend, live.family) for live in found.rules if live.text] == [("legacy", "ipv6")]
    assert os.stat("/proc/self/ns/net").st_ino not in [one.inode for one in seen]


def test_named_namespaces_go_by_their_name(tmp_path: Path) -> None:
    name = f"cc-test-{os.getpid()}"
    run(["ip", "netns", "add", name])
    (Path("/run/netns") / f"{name}-file").touch()
    try:
        owners = [one.owner for one in find_namespaces()]
        assert f"/run/netns/{name}" in owners
        assert f"/run/netns/{name}-file" not in owners
    finally:
        (Path("/run/netns") / f"{name}-file").unlink()
        run(["ip", "netns", "del", name])


# --- observing changes nothing -----------------------------------------------------------

ALLOWED = re.compile(
    r"ip6?tables(-legacy|-nft)?-save -c|modprobe -n -v -D \S+|nft -j list (tables|ruleset)"
    r"|nsenter --net=\S+ -- (ip6?tables(-legacy|-nft)?-save -c|cat /proc/net/ip6?_tables_names|nft -j list ruleset)"
    r"|cat /proc/net/ip6?_tables_names"
)


def test_observing_only_reads(namespace: str, tmp_path: Path) -> None:
    """Every command and every opened file of ``observe``, as strace sees them."""
    rules.restore("legacy", "ipv4", GOOD, namespace)
    rules.restore("nft", "ipv6", GOOD, namespace)
    trace = tmp_path / "trace"
    code = "from cloudinit_conntrack.host.observe import observe; print(len(observe().live))"
    argv = ["nsenter", f"--net={namespace}", "--", "strace", "-f", "-s", "300", "-o", str(trace),
            "-e", "trace=execve,open,openat,creat,unlink,unlinkat,rename,renameat,renameat2,mkdir,mkdirat,init_module,"
            "finit_module,delete_module", sys.executable, "-c", code]
    done = subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=120, text=True,
                          env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    assert done.stdout == "4\n"
    calls = trace.read_text().splitlines()
    executed = [" ".join(re.findall(r'"((?:[^"\\]|\\.)*)"', line.split("[", 1)[1].rsplit("]", 1)[0]))
                for line in calls if "execve(" in line and line.endswith(" = 0")]
    assert len(executed) > 8
    assert [words for words in executed[1:] if not ALLOWED.fullmatch(words)] == []
    changing = re.compile(r"O_WRONLY|O_RDWR|O_CREAT|creat\(|unlink|rename|mkdir|_module\(")
    writes = [line for line in calls if changing.search(line)]
    assert [line for line in writes if '"/dev/null"' not in line] == []
