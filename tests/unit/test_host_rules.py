"""Which commands read and write the rules, under which conditions: stub commands on a fake host.

The real kernel's answers are in test_host_real.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fakehost import FakeHost, fake_host

from cloudinit_conntrack.errors import CommandError, HostError
from cloudinit_conntrack.host import rules
from cloudinit_conntrack.state import LiveRules

__all__ = ["fake_host"]

TABLE = "*filter\n:INPUT ACCEPT [0:0]\n[7:99] -A INPUT -j ACCEPT\nCOMMIT\n"
EMPTY_RAW = "*raw\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n"
NFT = "nft_compat 20480 0 - Live 0x0\nnf_tables 323584 1 nft_compat, Live 0x0\n"
NOTHING = tuple(LiveRules(backend, family, "") for backend in ("legacy", "nft") for family in ("ipv4", "ipv6"))


def test_nothing_is_asked_where_asking_could_load(fake_host: FakeHost) -> None:
    fake_host.boot("tun 61440 2 - Live 0x0\n")
    assert rules.live_rules(fake_host.root) == NOTHING
    assert fake_host.calls() == []


def test_each_back_end_is_asked_where_it_is_there_already(fake_host: FakeHost) -> None:
    fake_host.boot(NFT)
    fake_host.write("/proc/net/ip6_tables_names", "filter\n")
    fake_host.write("/proc/net/ip_tables_names", "")
    fake_host.stub("ip6tables-legacy-save", TABLE)
    fake_host.stub("iptables-nft-save", TABLE + "# h\udcff\n")
    fake_host.stub("ip6tables-nft-save", "")
    assert rules.live_rules(fake_host.root) == (
        LiveRules("legacy", "ipv4", ""), LiveRules("legacy", "ipv6", TABLE),
        LiveRules("nft", "ipv4", TABLE + "# h\udcff\n"), LiveRules("nft", "ipv6", ""))
    assert fake_host.calls() == [("ip6tables-legacy-save", "-c"), ("iptables-nft-save", "-c"),
                                 ("ip6tables-nft-save", "-c")]


@pytest.mark.parametrize(("version", "backend"), [
    ("echo iptables-save v1.8.9 (nf_tables)", "nft"),
    ("echo iptables-save v1.8.9 (legacy)", "legacy"),
    ("echo unrecognized option >&2; exit 1", "legacy"),
])
def test_the_plain_commands_serve_the_back_end_they_are(fake_host: FakeHost, version: str, backend: str) -> None:
    for family in ("iptables", "ip6tables"):
        fake_host.without(*(f"{family}-{b}{verb}" for b in ("legacy", "nft") for verb in ("", "-save", "-restore")))
        quoted = version.replace("(", "'(").replace(")", ")'")
        fake_host.stub(f"{family}-save", TABLE, script=f'case "$1" in --version) {quoted}; exit;; esac')
    fake_host.boot(NFT)
    if backend == "legacy":
        fake_host.stub("nft", '{"nftables": []}')
        fake_host.write("/proc/net/ip_tables_names", "filter\n")
        fake_host.write("/proc/net/ip6_tables_names", "filter\n")
    assert rules.default_backend() == backend
    found = rules.live_rules(fake_host.root)
    assert [live for live in found if live.text] == [LiveRules(backend, f, TABLE) for f in ("ipv4", "ipv6")]


def test_legacy_tables_that_nobody_can_read_are_an_error(fake_host: FakeHost) -> None:
    fake_host.without("iptables-legacy-save", "iptables-save")
    fake_host.boot("")
    fake_host.write("/proc/net/ip_tables_names", "nat\nfilter\n")
    with pytest.raises(HostError, match=r"legacy tables \(nat, filter\).*install iptables-legacy"):
        rules.live_rules(fake_host.root)


def test_a_failing_save_is_an_error_and_no_empty_rule_set(fake_host: FakeHost) -> None:
    fake_host.boot(NFT)
    fake_host.stub("iptables-nft-save", "*filter\n", "netlink: no buffer space\n", 1)
    with pytest.raises(CommandError, match="iptables-nft-save -c: exit status 1: netlink: no buffer space"):
        rules.live_rules(fake_host.root)


def test_another_namespace_is_asked_from_inside(fake_host: FakeHost) -> None:
    fake_host.boot("ip_tables 323584 0 - Live 0x0\n")
    fake_host.write("/proc/net/ip_tables_names", "")
    fake_host.stub("nsenter", script='case "$*" in *ip_tables_names) echo raw; exit;; esac', stdout=EMPTY_RAW)
    found = rules.live_rules(fake_host.root, "/run/netns/blue")
    assert found[0] == LiveRules("legacy", "ipv4", EMPTY_RAW)
    assert found[1:] == NOTHING[1:]
    assert fake_host.calls() == [
        ("nsenter", "--net=/run/netns/blue", "--", "cat", "/proc/net/ip_tables_names"),
        ("nsenter", "--net=/run/netns/blue", "--", "iptables-legacy-save", "-c")]


INCOMPATIBLE = "# Table `filter' is incompatible, use 'nft' tool.\n"


@pytest.mark.parametrize(("expression", "text"), [
    ({"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 22}}, INCOMPATIBLE),
    ({"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "new"}}, INCOMPATIBLE),
    ({"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": "10.0.0.1"}}, TABLE),
    ({"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "lo"}}, TABLE),
    ({"counter": {"packets": 0, "bytes": 0}}, TABLE),
    ({"jump": {"target": "x"}}, TABLE),
    ({"xt": None}, INCOMPATIBLE),
])
def test_extensions_are_not_loaded_by_looking(fake_host: FakeHost, expression: object, text: str) -> None:
    """Without nft_compat, iptables-nft-save runs only on rules that it shows by itself."""
    fake_host.boot("nf_tables 323584 0 - Live 0x0\n")
    rule = {"rule": {"family": "ip", "table": "filter", "chain": "INPUT", "expr": [expression, {"accept": None}]}}
    fake_host.stub("nft", json.dumps({"nftables": [{"metainfo": {}}, rule]}))
    fake_host.stub("iptables-nft-save", TABLE)
    assert rules.saved_text("nft", "ipv4", fake_host.root).text == text


def test_tables_of_iptables_names_are_not_missed_where_there_is_no_iptables(fake_host: FakeHost) -> None:
    fake_host.boot(NFT)
    fake_host.without(*(f"iptables{variant}-save" for variant in ("", "-nft", "-legacy")))
    chain = {"chain": {"family": "ip", "table": "filter", "name": "INPUT"}}
    fake_host.stub("nft", json.dumps({"nftables": [chain]}))
    assert rules.saved_text("nft", "ipv4", fake_host.root).text == INCOMPATIBLE
    fake_host.stub("nft", json.dumps({"nftables": [{"table": {"family": "ip", "name": "filter"}}]}))
    assert rules.saved_text("nft", "ipv4", fake_host.root).text == ""


def test_a_host_without_iptables_has_no_default(fake_host: FakeHost) -> None:
    fake_host.without("iptables-save")
    assert rules.default_backend() == ""


@pytest.mark.parametrize(("program", "backend"), [("xtables-nft-multi", "nft"), ("xtables-legacy-multi", "legacy")])
def test_the_program_behind_the_links_tells_the_back_end(fake_host: FakeHost, program: str, backend: str) -> None:
    fake_host.stub(program)
    place = Path(fake_host.path, "iptables-save")
    place.unlink()
    place.symlink_to(program)
    assert rules.default_backend() == backend
    assert fake_host.calls() == []


# --- putting back ------------------------------------------------------------------------


def test_rules_are_tested_first_then_loaded_with_counters_and_patience(fake_host: FakeHost) -> None:
    fake_host.stub("iptables-legacy-restore", "[ --wait=<seconds>\n")
    rules.restore("legacy", "ipv4", TABLE)
    command = ("iptables-legacy-restore", "-c", "-w", "10")
    assert fake_host.calls()[-2:] == [(*command, "--test"), command]
    assert fake_host.fed("iptables-legacy-restore")[-2:] == [TABLE, TABLE]
    assert rules.restore_command("legacy", "ipv4") == command


def test_an_old_restore_is_not_given_an_option_it_lacks(fake_host: FakeHost) -> None:
    fake_host.stub("ip6tables-nft-restore", "[ --counters ]\n")
    rules.restore("nft", "ipv6", TABLE)
    assert fake_host.calls()[-1] == ("ip6tables-nft-restore", "-c")


def test_a_rule_set_that_fails_its_test_is_never_loaded(fake_host: FakeHost) -> None:
    fake_host.stub("iptables-nft-restore", script='case "$*" in *--test) echo "line 3 failed" >&2; exit 1;; esac')
    with pytest.raises(CommandError, match=r"line 3 failed \(line 3: \[7:99\] -A INPUT -j ACCEPT\)"):
        rules.restore("nft", "ipv4", TABLE)
    assert all(call[-1] in ("--test", "--help") for call in fake_host.calls())


def test_no_restore_command_at_all(fake_host: FakeHost) -> None:
    fake_host.without("iptables-nft-restore", "iptables-restore")
    with pytest.raises(HostError, match="iptables-nft-restore is not there; install the package iptables"):
        rules.restore("nft", "ipv4", TABLE)


# --- dropping ----------------------------------------------------------------------------


def nft_host(host: FakeHost, saved: str, listed: str) -> None:
    host.boot(NFT)
    host.stub("iptables-nft-save", saved)
    host.stub("iptables-nft-restore")
    host.stub("nft", listed)


def test_an_empty_nft_table_is_deleted(fake_host: FakeHost) -> None:
    nft_host(fake_host, EMPTY_RAW, '{"nftables": [{"chain": {"name": "OUTPUT"}}]}')
    rules.drop_table("nft", "ipv4", "raw", fake_host.root)
    table = ("table", "ip", "raw")
    assert fake_host.calls("nft") == [("nft", "-j", "list", *table), ("nft", "delete", *table)]
    assert fake_host.calls("iptables-nft-restore") == []


def test_a_table_with_a_rule_is_not_dropped(fake_host: FakeHost) -> None:
    nft_host(fake_host, EMPTY_RAW.replace("COMMIT", "[0:0] -A OUTPUT -j CT --notrack\nCOMMIT"), "{}")
    with pytest.raises(HostError, match="not empty"):
        rules.drop_table("nft", "ipv4", "raw", fake_host.root)
    nft_host(fake_host, EMPTY_RAW, '{"nftables": [{"rule": {"expr": []}}]}')
    with pytest.raises(HostError, match="rules that iptables does not show"):
        rules.drop_table("nft", "ipv4", "raw", fake_host.root)
    assert not any("delete" in call for call in fake_host.calls())


def test_without_nft_or_its_json_the_table_is_flushed(fake_host: FakeHost) -> None:
    nft_host(fake_host, EMPTY_RAW, "Error: JSON support not compiled-in\n")
    rules.drop_table("nft", "ipv4", "raw", fake_host.root)
    fake_host.without("nft")
    rules.drop_table("nft", "ipv4", "raw", fake_host.root)
    assert [text for text in fake_host.fed("iptables-nft-restore") if text] == [EMPTY_RAW] * 4


def test_a_legacy_table_is_flushed_and_left(fake_host: FakeHost) -> None:
    fake_host.boot("")
    fake_host.write("/proc/net/ip_tables_names", "raw\n")
    fake_host.stub("iptables-legacy-save", EMPTY_RAW)
    fake_host.stub("iptables-legacy-restore")
    rules.drop_table("legacy", "ipv4", "raw", fake_host.root)
    assert [text for text in fake_host.fed("iptables-legacy-restore") if text] == [EMPTY_RAW] * 2


def test_a_table_that_is_not_there_is_dropped_already(fake_host: FakeHost) -> None:
    nft_host(fake_host, TABLE, "")
    rules.drop_table("nft", "ipv4", "raw", fake_host.root)
    assert fake_host.calls("nft") == []
