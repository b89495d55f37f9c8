"""Live native rules changed in one transaction, and back: judged by what the real nft lists."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from cloudinit_conntrack.netfilter.nft_ruleset import NftRuleSet, parse_nft
from cloudinit_conntrack.netfilter.nft_stateless import make_stateless_nft
from cloudinit_conntrack.netfilter.nft_transaction import transaction
from cloudinit_conntrack.netfilter.stateless import Policy

FOLDERS = sorted(path.parent for path in Path(__file__).parent.glob("nft/*/out.nft"))


class Live:
    """An nft that stays in one network namespace until it is closed."""

    def __init__(self) -> None:
        pipe = subprocess.PIPE
        self.shell = subprocess.Popen(["unshare", "--net", "sh"], stdin=pipe, stdout=pipe, text=True)

    def run(self, command: str, text: str = "") -> str:
        assert self.shell.stdin and self.shell.stdout
        self.shell.stdin.write(f"{{ {command}; }} <<'END_OF_TEXT' 2>&1\n{text}\nEND_OF_TEXT\necho end-of-answer $?\n")
        self.shell.stdin.flush()
        lines: list[str] = []
        for line in self.shell.stdout:
            if line.startswith("end-of-answer"):
                assert line.split()[1] == "0", f"{command}: {''.join(lines)}\n{text}"
                return "".join(lines)
            lines.append(line)
        raise AssertionError(f"{command}: the shell is gone: {lines}")

    def listed(self) -> NftRuleSet:
        return parse_nft(self.run("nft -j list ruleset"))

    def close(self) -> None:
        self.shell.communicate("exit\n", timeout=20)


def uncounted(text: str) -> str:
    return re.sub(r"packets \d+ bytes \d+", "packets N bytes N", text)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_there_and_back(folder: Path) -> None:
    nat = "remove" if "nat" in folder.name else "refuse"
    policy = Policy(stateful="remove" if folder.name == "stateful-removed" else "rewrite", nat=nat)
    live = Live()
    try:
        live.run("ip link set lo up")
        live.run("nft -f -", (folder / "in.nft").read_text())
        before, text = live.listed(), live.run("nft list ruleset")
        done = make_stateless_nft(before, policy)
        change = transaction(before, done.ruleset)
        assert bool(change) == bool(done.changes)
        if change:
            live.run("nft -j -f -", change)
        assert uncounted(live.run("nft list ruleset")) == uncounted((folder / "out.nft").read_text())
        after = live.listed()
        # what was loaded is listed in nft's own words, so nothing is left to do only for what did not change
        assert transaction(after, after) == ""
        back = transaction(after, before)
        if back:
            live.run("nft -j -f -", back)
        assert sorted(uncounted(live.run("nft list ruleset")).split("\n")) == sorted(uncounted(text).split("\n"))
    finally:
        live.close()


def test_what_does_not_change_is_not_touched() -> None:
    live = Live()
    try:
        live.run("nft -f -", """
table inet t {
	set seen {
		type ipv4_addr
		flags dynamic
		elements = { 10.0.0.9 }
	}
	set counted {
		type ipv4_addr
		counter
		elements = { 10.0.0.8 counter packets 3 bytes 9 }
	}
	chain c {
		type filter hook input priority filter; policy accept;
		counter packets 5 bytes 300 comment "first"
		ct state established accept
		ip saddr @counted add @seen { ip saddr }
		counter packets 7 bytes 700 comment "last"
	}
}
""")  # fmt: skip
        before = live.listed()
        live.run("nft -j -f -", transaction(before, make_stateless_nft(before).ruleset))
        text = live.run("nft list ruleset")
        for kept in ("packets 5 bytes 300", "packets 7 bytes 700", "flags dynamic", "10.0.0.9", "packets 3 bytes 9"):
            assert kept in text
        assert "ct state" not in text and text.index("first") < text.index("tcp flags rst,ack") < text.index("last")
        handles = {str(e.body["handle"]) for e in before.of_kind("rule") if "ct" not in e.text}
        assert handles <= {str(e.body["handle"]) for e in live.listed().of_kind("rule")}
    finally:
        live.close()


def test_a_whole_table_comes_and_goes() -> None:
    live = Live()
    try:
        live.run("nft -f -", "table ip a { chain c { type filter hook input priority 0; }; }")
        before, text = live.listed(), live.run("nft list ruleset")
        rules = "table inet b { chain c { tcp dport 1 jump d; }; chain d { counter; }; }"
        live.run("nft -f -", rules)
        after, more = live.listed(), live.run("nft list ruleset")
        live.run("nft -j -f -", transaction(after, before))
        assert live.run("nft list ruleset") == text
        live.run("nft -j -f -", transaction(live.listed(), after))
        assert live.run("nft list ruleset") == more
    finally:
        live.close()


def test_protocols_need_no_file_that_names_them() -> None:
    """As in an image without netbase: there nft cannot resolve ``ipv6-icmp``."""
    live = Live()
    try:
        live.run("nft -f -", "table inet t { chain c { meta l4proto { tcp, ipv6-icmp } ct state new accept; }; }")
        before = live.listed()
        text = transaction(before, make_stateless_nft(before).ruleset)
        assert "ipv6-icmp" not in text and '"right": 58' in text
        live.run("nft -j -f -", text)
    finally:
        live.close()
