"""Native nftables: what needs conntrack is said, what iptables owns is left to iptables.

The JSON comes from the real nft, run on real rule-sets in a namespace of its own.
"""

from __future__ import annotations

import json
import subprocess

import pytest
from fakehost import FakeHost, fake_host

from cloudinit_conntrack.errors import HostError
from cloudinit_conntrack.host.native import PREFIX, native_notes, native_rules, notes_of
from cloudinit_conntrack.netfilter.nft_ruleset import parse_nft
from cloudinit_conntrack.netfilter.nft_tables import NOTHING, tables_of
from cloudinit_conntrack.state import LiveRules, NativeRules

__all__ = ["fake_host"]


def listed(rules: str) -> str:
    """What the real nft lists, as JSON, after loading *rules* in a fresh network namespace."""
    script = 'nft -f - && nft -j list ruleset'
    done = subprocess.run(["unshare", "--net", "sh", "-c", script], input=rules, stdout=subprocess.PIPE, check=True,
                          timeout=30, text=True, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    return done.stdout


INPUT = "table inet host {\nchain input {\ntype filter hook input priority 0; %s\n}\n}\n"
NAT = "table ip n {\nchain post {\ntype nat hook postrouting priority 100; %s\n}\n}\n"


@pytest.mark.parametrize(("rules", "use"), [
    (INPUT % "ct state established accept;", "chain input: ct"),
    (INPUT % "ct state vmap { established : accept, invalid : drop };", "chain input: ct"),
    (INPUT % "tcp dport 22 notrack;", "chain input: notrack"),
    (INPUT % "ct count over 5 drop;", "chain input: ct count"),
    (INPUT % "meta mark set ct mark;", "chain input: ct"),
    (NAT % "", "chain post: type nat"),
    (NAT % "masquerade;", "chain post: type nat; chain post: masquerade"),
])
def test_what_needs_conntrack_is_said(rules: str, use: str) -> None:
    notes = notes_of(listed(rules))
    assert len(notes) == 1
    assert notes[0].startswith(f"{PREFIX}table ")
    assert f"uses conntrack ({use}" in notes[0]


@pytest.mark.parametrize("rules", [
    INPUT % "tcp dport { 22, 80 } accept;",
    INPUT % "tcp flags & (ack|rst) != 0 accept;",
    "table inet f {\nset s {\ntype ipv4_addr; elements = { 10.0.0.1 }\n}\nchain conntrack {\ntcp dport 1 accept;\n}\n}",
    "",
])
def test_stateless_rules_are_not_worth_a_word(rules: str) -> None:
    assert notes_of(listed(rules)) == ()


def test_tables_of_iptables_are_left_to_iptables_unless_it_cannot_show_them() -> None:
    text = listed((INPUT % "ct state new accept;").replace("inet host", "ip filter"))
    assert notes_of(text) == ()
    assert len(notes_of(text, frozenset({("ip", "filter")}))) == 1


def test_many_uses_are_counted() -> None:
    rules = INPUT % "ct state new accept; notrack; ct mark set 1; ct count over 1 drop; meta mark set ct mark;"
    chains = "".join(f"chain {name} {{\nct state new;\n}}\n" for name in "cdef")
    rules += f"table inet b {{\n{chains}}}\n"
    notes = notes_of(listed(rules))
    assert [note.split()[3:5] for note in notes] == [["inet", "b"], ["inet", "host"]]
    assert notes[0].endswith("; and 1 more)")


@pytest.mark.parametrize("kind", ["flowtable", "ct helper", "ct timeout", "ct expectation", "synproxy"])
def test_objects_that_this_kernel_may_lack(kind: str) -> None:
    text = json.dumps({"nftables": [{kind: {"family": "inet", "name": "x", "table": "f", "handle": 2}}]})
    assert notes_of(text) == (f"{PREFIX}table inet f uses conntrack ({kind} x: {kind})",)


def test_garbage_is_an_error() -> None:
    for text in ("", "[]x", "{}", "[]", '{"nftables": [7]}', "[" * 100_000):
        with pytest.raises(HostError, match="no JSON that we know"):
            notes_of(text)


def test_nothing_is_asked_where_nf_tables_is_not_there(fake_host: FakeHost) -> None:
    fake_host.boot("")
    assert native_notes((), fake_host.root) == ()
    assert fake_host.calls() == []


@pytest.mark.parametrize("comment", [
    "# Table `filter' is incompatible, use 'nft' tool.\n",
    "# Table `filter' contains incompatible base-chains, use 'nft' tool to list them.\n",
])
def test_a_table_that_iptables_cannot_show_is_looked_through(fake_host: FakeHost, comment: str) -> None:
    fake_host.boot("nf_tables 323584 0 - Live 0x0\n")
    rule = {"rule": {"family": "ip", "table": "filter", "chain": "x", "expr": [{"notrack": None}]}}
    fake_host.stub("nft", json.dumps({"nftables": [rule]}))
    live = (LiveRules("nft", "ipv4", comment),)
    assert native_notes((), fake_host.root) == ()
    assert native_notes(live, fake_host.root) == (f"{PREFIX}table ip filter uses conntrack (chain x: notrack)",)
    fake_host.stub("nft", '{"nftables": []}')
    assert native_notes(live, fake_host.root) == (f"{PREFIX}table ip filter has rules that iptables does not show",)
    assert fake_host.calls()[0] == ("nft", "-j", "list", "ruleset")
    fake_host.without("nft")
    assert "install the package nftables" in native_notes(live, fake_host.root)[0]


def test_an_nft_without_json_is_said(fake_host: FakeHost) -> None:
    fake_host.boot("nf_tables 323584 0 - Live 0x0\n")
    fake_host.stub("nft", "", "Error: JSON support not compiled-in\n", 1)
    assert "JSON support not compiled-in" in native_notes((), fake_host.root)[0]


# --- the rules themselves ------------------------------------------------------------------


def test_native_tables_are_read_and_those_of_iptables_left_out(fake_host: FakeHost) -> None:
    fake_host.boot("nf_tables 323584 0 - Live 0x0\n")
    rules = INPUT % "ct state new accept;" + (INPUT % "tcp dport 1 drop;").replace("inet host", "ip filter")
    fake_host.stub("nft", "table inet host {\n}\ntable ip filter {\n}\n", script=f"""\
case "$*" in *-j*) cat <<'END'
{listed(rules)}
END
exit ;; esac""".replace("cat", "/bin/cat"))
    found, notes = native_rules((), fake_host.root)
    assert found is not None and notes == ()
    assert tables_of(parse_nft(found.listing)) == (("inet", "host"),)
    assert found.text == "table inet host {\n}\n"
    incompatible = (LiveRules("nft", "ipv4", "# Table `filter' is incompatible, use 'nft' tool.\n"),)
    found, _ = native_rules(incompatible, fake_host.root)
    assert found is not None and tables_of(parse_nft(found.listing)) == (("inet", "host"), ("ip", "filter"))
    assert {call for call in fake_host.calls("nft")} == {
        ("nft", "-j", "list", "tables"), ("nft", "-j", "list", "ruleset"), ("nft", "list", "ruleset")}


def test_where_iptables_owns_every_table_nft_prints_no_rules(fake_host: FakeHost) -> None:
    fake_host.boot("nf_tables 323584 0 - Live 0x0\n")
    tables = [{"metainfo": {"json_schema_version": 1}}, {"table": {"family": "ip", "name": "filter", "handle": 1}},
              {"table": {"family": "ip6", "name": "raw", "handle": 2}}]
    fake_host.stub("nft", json.dumps({"nftables": tables}))
    assert native_rules((), fake_host.root) == (NativeRules(NOTHING), ())
    assert fake_host.calls("nft") == [("nft", "-j", "list", "tables")]
    for foreign in ({"family": "inet", "name": "filter"}, {"family": "ip", "name": "mine"}):
        fake_host.stub("nft", json.dumps({"nftables": [*tables, {"table": foreign}]}))
        native_rules((), fake_host.root)
        assert ("nft", "-j", "list", "ruleset") in fake_host.calls("nft")


def test_nothing_is_listed_where_that_would_load_nf_tables(fake_host: FakeHost) -> None:
    fake_host.boot("")
    assert native_rules((), fake_host.root) == (NativeRules(NOTHING), ())
    fake_host.without("nft")
    assert native_rules((), fake_host.root) == (None, ())
    assert fake_host.calls() == []


def test_a_listing_of_an_unknown_version_is_refused_only_where_it_uses_conntrack(fake_host: FakeHost) -> None:
    fake_host.boot("nf_tables 323584 0 - Live 0x0\n")
    unknown = {"wormhole": {"family": "inet", "table": "t", "name": "w"}}
    rule = {"rule": {"family": "inet", "table": "t", "chain": "x", "expr": [{"notrack": None}]}}
    fake_host.stub("nft", json.dumps({"nftables": [unknown]}))
    assert native_rules((), fake_host.root) == (None, ())
    fake_host.stub("nft", json.dumps({"nftables": [unknown, rule]}))
    found, notes = native_rules((), fake_host.root)
    assert found is None and notes == (f"{PREFIX}table inet t uses conntrack (chain x: notrack)",)
