"""nft's own language as words, and saved files with what they include."""

from __future__ import annotations

from pathlib import Path

import pytest
from nft_kernel import load

from cloudinit_conntrack.host.nftfile import saved_native, with_rules
from cloudinit_conntrack.host.root import Root
from cloudinit_conntrack.netfilter import nft_text
from cloudinit_conntrack.netfilter.nft_ruleset import parse_nft
from cloudinit_conntrack.netfilter.nft_stateful import dependency
from cloudinit_conntrack.netfilter.nft_text import words_of
from cloudinit_conntrack.planning.nativefiles import file_text

CHAIN = """table inet t {
	set cts { type ipv4_addr; }
	chain redirected { }
	chain c {
		type filter hook input priority 0
		%s
	}
}
"""


@pytest.mark.parametrize("rule", [
    "ct state new accept", "notrack", "ct mark set 1", "meta mark set ct mark", "ct count over 5 drop",
    "ct state vmap { new : accept }", "tcp dport 22 \\\n\tct state new", 'log prefix "a # b" ct state new',
])
def test_words_see_what_the_kernel_sees(rule: str) -> None:
    (loaded,) = load([CHAIN % rule], as_json=False)
    assert loaded.code == 0 and any(dependency(e) for e in parse_nft(loaded.json).of_kind("rule"))
    assert nft_text.stateful_words(words_of(CHAIN % rule))


@pytest.mark.parametrize("rule", [
    "tcp dport 22 accept # ct state new", 'iifname "ct state" accept', 'log prefix "notrack masquerade"',
    "ip saddr @cts accept", "jump redirected", "goto redirected",
    "icmp type { redirect, echo-request } accept", "icmp type redirect accept",
])
def test_names_comments_and_strings_are_no_statements(rule: str) -> None:
    (loaded,) = load([CHAIN % rule], as_json=False)
    assert loaded.code == 0, loaded.error
    assert not any(dependency(e) for e in parse_nft(loaded.json).of_kind("rule"))
    assert not nft_text.stateful_words(words_of(CHAIN % rule))


def test_nat_and_flowtables() -> None:
    for text in ("type nat hook prerouting priority -100", "flowtable f { }", "redirect to :80", "masquerade",
                 "flow add @f", "synproxy mss 1460", "dnat to 10.0.0.1"):
        assert nft_text.stateful_words(words_of(text)), text


def test_where_a_word_stands() -> None:
    (word,) = nft_text.stateful_words(words_of("# ct\n\ntable x {\n  ct state new\n"))
    assert (word.text, word.line) == ("ct", 4)


def test_the_chains_of_a_distribution_are_no_rules() -> None:
    assert not nft_text.has_rules(words_of("flush ruleset\ntable inet filter { chain input {\n"
                                           "type filter hook input priority filter; policy accept;\n} }"))
    assert nft_text.has_rules(words_of("table inet filter { chain input { tcp dport 22 accept\n} }"))


def test_interfaces_that_must_be_there() -> None:
    text = ('define up = { eth0, "eth1" }\niif $up accept\noif "wan0" drop\niif != lo accept\niifname other accept\n'
            "type filter hook ingress devices = { eth2, eth3 } priority 0; flowtable f { devices = { eth4 } }\n"
            'hook ingress device "eth5" priority 0')
    assert nft_text.interfaces(words_of(text)) == ("eth0", "eth1", "wan0", "eth2", "eth3", "eth4", "eth5")


def test_what_is_emptied_first() -> None:
    words = words_of("flush table filter\ntable inet a\ndelete table inet a\ndestroy table ip6 b; flush chain ip c d")
    assert nft_text.renewed_tables(words) == {("ip", "filter"), ("inet", "a"), ("ip6", "b")}
    assert not nft_text.flushes_all(words) and nft_text.flushes_all(words_of("flush  ruleset"))


def test_a_file_anew_keeps_its_head_and_the_way_it_begins() -> None:
    printed = "table inet a {\n}\ntable ip b {\n}\n"
    new = file_text("#!/usr/sbin/nft -f\n# mine\n\ntable inet a\n", "delete table inet a\n", "# cloudinit-conntrack: x",
                    printed)
    head = "#!/usr/sbin/nft -f\n# mine\n# cloudinit-conntrack: x\n"
    assert new == f"{head}\ntable inet a\ndelete table inet a\n\n{printed}"
    again = file_text(new, new, "# cloudinit-conntrack: y", printed)
    assert again == new.replace(": x", ": y")
    assert file_text("table inet a { }", "flush ruleset", "# n", printed) == f"# n\n\nflush ruleset\n\n{printed}"


# --- files -------------------------------------------------------------------------------


def tree(tmp_path: Path, **files: str) -> Root:
    for name, text in files.items():
        place = tmp_path / "etc" / name.replace("__", "/").replace("_", ".")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return Root(str(tmp_path))


def test_includes_stand_in_their_places_in_order(tmp_path: Path) -> None:
    root = tree(tmp_path, nftables_conf='include "/etc/nft/*.nft"; include "one.nft"\ntable ip z { }\n',
                nft__b_nft="table ip b { }\n", nft__a_nft="table ip a { }", nft__a_txt="nonsense",
                one_nft='# include "none"\ninclude "./etc/nft/a.nft"\ntable ip one { }\n')  # fmt: skip
    (file,) = saved_native(root)
    assert file.included == ("/etc/nft/a.nft", "/etc/nft/b.nft", "/etc/one.nft", "/etc/nft/a.nft")
    listed = with_rules(file, root, live=False, looking=True)
    tables = [e.body["name"] for e in parse_nft(listed.listing or "").of_kind("table")]
    assert tables == ["a", "b", "one", "z"] and not listed.problem


@pytest.mark.parametrize(("files", "where", "what"), [
    ({"nftables_conf": "table ip a {\n  chain c { bogus }\n}\n"}, "/etc/nftables.conf:2", "syntax error"),
    ({"nftables_conf": 'table ip a { }\ninclude "b.nft"\ntable ip d { }\n', "b_nft": "\n\ntable ip b { ? }"},
     "/etc/b.nft:3", "syntax error"),
    ({"nftables_conf": 'include "b.nft"\n\nbogus\n', "b_nft": "table ip b { }\n"},
     "/etc/nftables.conf:3", "syntax error"),
    ({"nftables_conf": '\ninclude "b.nft"\n'}, "/etc/nftables.conf:2", "/etc/b.nft, which is not there"),
    ({"nftables_conf": 'include "*/b.nft"\n'}, "/etc/nftables.conf:1", "a pattern"),
    ({"nftables_conf": 'include "nftables.conf"\n'}, "/etc/nftables.conf", "without end"),
])
def test_what_does_not_load_is_said_with_its_line(
    tmp_path: Path, files: dict[str, str], where: str, what: str
) -> None:
    root = tree(tmp_path, **files)
    (file,) = saved_native(root)
    found = with_rules(file, root, live=False, looking=True)
    assert (found.where, found.listing) == (where, None)
    assert what in found.problem


def test_looking_at_a_live_host_loads_no_file_where_that_could_load_a_module(tmp_path: Path) -> None:
    root = tree(tmp_path, nftables_conf="table ip a { }\n")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/modules").write_text("nf_tables 1 0 - Live 0x0\n")
    (file,) = saved_native(root)
    assert with_rules(file, root, live=True, looking=True) is file
    assert with_rules(file, root, live=True, looking=False).listing
    (tmp_path / "proc/modules").unlink()  # a kernel without modules
    assert with_rules(file, root, live=True, looking=True).listing


def test_a_link_is_refused_and_no_file_is_nothing(tmp_path: Path) -> None:
    assert saved_native(tree(tmp_path)) == ()
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nftables.conf").symlink_to("elsewhere")
    with pytest.raises(Exception, match="symbolic link"):
        saved_native(Root(str(tmp_path)))
