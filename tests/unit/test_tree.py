"""Why conntrack is in use: every holder once, in its place, with what removes it; and how it is drawn."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from seen_host import HOSTILE, KERNEL, STATE, TRACKING, sight_of, tree_of

from cloudinit_conntrack import report
from cloudinit_conntrack.drawing import clipped, printable, tree_lines
from cloudinit_conntrack.holders import all_holders
from cloudinit_conntrack.kmod import loaded_dependants, parse_proc_modules
from cloudinit_conntrack.report import COLOURS
from cloudinit_conntrack.said import Node
from cloudinit_conntrack.state import FileImage, Kernel, LiveRules, SavedFile, State, Surroundings, Units
from cloudinit_conntrack.status import make_status
from cloudinit_conntrack.tracking import Counters, Tracking
from tests import reports

HERE = Path(__file__).parent


def nodes_of(tree: tuple[Node, ...]) -> Iterator[Node]:
    for node in tree:
        yield node
        yield from nodes_of(node.children)


def the(kind: str, words: str, tree: tuple[Node, ...] = ()) -> Node:
    """The one node of *kind* whose text holds *words*."""
    (found,) = (n for n in nodes_of(tree or tree_of()) if n.kind == kind and words in n.what)
    return found


def test_the_whole_tree_as_it_is_drawn() -> None:
    drawn = "\n".join(tree_lines(tree_of())) + "\n"
    assert drawn == (HERE / "tree/whole.txt").read_text()


def test_a_terminal_without_those_characters_gets_plain_ones() -> None:
    plain = "\n".join(tree_lines(tree_of(), unicode=False)) + "\n"
    assert plain.isascii()
    drawn = (HERE / "tree/whole.txt").read_text()
    for line, ascii_one in (("├─ ", "|- "), ("└─ ", "`- "), ("│", "|"), ("…", "...")):
        drawn = drawn.replace(line, ascii_one)
    assert plain == drawn


def test_every_holder_is_in_the_tree() -> None:
    found = list(nodes_of(tree_of()))
    ids = [node.id for node in found]
    assert len(ids) == len(set(ids))
    for holder in all_holders(STATE):
        if holder.kind == "module":  # each module once, however many it uses
            assert f"module {holder.id.split(':')[1]}" in {node.where for node in found}
        elif "native" not in holder.id and holder.kind != "unseen":  # those are told rule by rule
            assert holder.id in ids, holder
    assert "1 user more" in the("unseen", "").what
    assert {n.where for n in found if n.kind in ("module", "conntrack")} == {
        f"module {name}" for name in loaded_dependants(KERNEL.modules)}  # fmt: skip


def test_every_leaf_says_what_removes_it() -> None:
    for node in nodes_of(tree_of()):
        if not node.children and node.kind != "also":
            assert node.remedy, node


def test_a_module_stands_under_the_one_furthest_from_conntrack() -> None:
    assert the("module", "xt_connlimit") in the("module", "nf_conncount").children
    assert "(uses nf_conntrack too)" not in the("module", "xt_connlimit").what  # that is told by its place
    assert the("module", "xt_REDIRECT") in the("module", "nf_nat").children


def test_the_last_rule_of_a_chain_comes_first() -> None:
    """Deleted from top to bottom, the numbers of those that are left stay right."""
    rules = [n for n in nodes_of((the("table", "iptables-legacy ipv4, table filter",
                                      the("module", "xt_conntrack").children[:1]),)) if n.kind == "rule"]  # fmt: skip
    assert [int(n.remedy.split()[-1]) for n in rules] == [5, 4, 3, 1]


def test_a_saved_line_is_found_however_it_is_written() -> None:
    for words, line in (("--dport 22", 3), ("RELATED,ESTABLISHED", 4)):
        (saved,) = the("rule", words).children
        assert (saved.where, saved.remedy) == (
            f"/etc/iptables/rules.v4:{line}", f"take line {line} out of /etc/iptables/rules.v4")  # fmt: skip
        assert "loaded by netfilter-persistent.service at boot" in saved.what
    assert the("rule", "INVALID").children == ()


def test_a_saved_line_is_given_out_once() -> None:
    twice = "*filter\n:INPUT ACCEPT [0:0]\n" + "-A INPUT -m state --state NEW -j ACCEPT\n" * 3 + "COMMIT\n"
    saved = SavedFile("/etc/sysconfig/iptables", "rules", "ipv4", FileImage(twice.encode()))
    tree = tree_of(replace(STATE, live=(LiveRules("legacy", "ipv4", twice),), saved=(saved,)))
    lines = [n.where for n in nodes_of(tree) if n.kind == "saved" and "sysconfig" in n.where]
    assert sorted(lines) == [f"/etc/sysconfig/iptables:{n}" for n in (3, 4, 5)]


def test_what_a_script_restores() -> None:
    saved = STATE.saved[0]
    script = replace(STATE.surroundings.files[0], path="/etc/network/if-pre-up.d/fw",
                     image=FileImage(b"iptables-restore < /etc/iptables/rules.v4\n", 0o755))  # fmt: skip
    state = replace(STATE, saved=(saved,), surroundings=Surroundings(Units(), (script,)))
    assert "loaded by /etc/network/if-pre-up.d/fw at boot" in the("rule", "--dport 22", tree_of(state)).children[0].what


def test_programs_stand_above_their_rules() -> None:
    docker = next(n for n in nodes_of(tree_of()) if n.kind == "writer")
    assert docker.where == "docker.service, docker.socket"
    assert docker.remedy == "systemctl disable --now docker.service docker.socket"
    gone = replace(STATE, surroundings=Surroundings())
    assert "which no unit starts now" in next(n for n in nodes_of(tree_of(gone)) if n.kind == "writer").what


def test_a_unit_without_rules_is_told_beside_the_modules() -> None:
    """docker's rules are told; conntrackd's socket is; without both, the units are told themselves."""
    assert not [n for n in nodes_of(tree_of()) if n.kind == "unit"]
    state = replace(STATE, live=())
    tree = tree_of(state, replace(TRACKING, listeners=()))
    units = {n.where: n.remedy for n in tree[0].children if n.kind == "unit"}
    assert units == {"docker.service, docker.socket": "systemctl disable --now docker.service docker.socket",
                     "conntrackd.service": "systemctl disable --now conntrackd.service"}  # fmt: skip


@pytest.mark.parametrize(
    ("owner", "remedy"),
    [
        ("pid 5 (sleep)", "kill 5"),
        ("pid 5 (nginx, podman container 0123456789ab)", "podman stop 0123456789ab"),
        ("pid 5 (init, lxc container web-1)", "lxc-stop -n web-1"),
        ("pid 5 (systemd, systemd-nspawn machine web)", "machinectl terminate web"),
        ("pid 5 (haproxy, unit haproxy.service)", "systemctl disable --now haproxy.service"),
        ("pid 5 (pause, Kubernetes container 0123456789ab)", "crictl stop 0123456789ab"),
    ],
)
def test_what_ends_a_namespace(owner: str, remedy: str) -> None:
    other = replace(STATE.namespaces[0], owner=owner)
    assert the("owner", "held by pid 5", tree_of(replace(STATE, namespaces=(other,)))).remedy == remedy


def test_native_rules_of_a_namespace_that_cannot_be_read_are_told_as_they_were_noted() -> None:
    spaces = tuple(replace(space, listing="") for space in TRACKING.spaces)
    tree = tree_of(STATE, replace(TRACKING, spaces=spaces))
    assert the("rule", "native nftables: table inet fw", tree).id == "namespace:8:native1"


def test_chains_of_an_empty_nat_table_of_iptables_nft() -> None:
    live = LiveRules("nft", "ipv6", "*nat\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:MINE - [0:0]\nCOMMIT\n")
    modules = parse_proc_modules("nft_chain_nat 1 2 - Live 0\nnf_nat 1 1 nft_chain_nat, Live 0\n"
                                 "nf_conntrack 1 1 nf_nat, Live 0\n")  # fmt: skip
    tree = tree_of(State(replace(KERNEL, modules=modules), (live,)), Tracking())
    assert the("rule", "2 chains of type nat", tree).remedy == "nft delete table ip6 nat"
    assert not [n for n in nodes_of(tree) if n.kind == "unseen"]


def test_a_kernel_that_has_it_built_in() -> None:
    kernel = Kernel("6.1", False, False, "builtin", True)
    (root,) = tree_of(replace(STATE, kernel=kernel))
    assert (root.kind, root.remedy) == ("conntrack", "")
    assert not [n for n in nodes_of((root,)) if n.kind == "module"]
    assert len([n for n in nodes_of((root,)) if n.kind == "rule"]) == 10


@pytest.mark.parametrize("kernel", [None, Kernel("6.1", True, False, "absent", False)])
def test_nothing_where_conntrack_is_absent(kernel: Kernel | None) -> None:
    state = replace(STATE, kernel=kernel)
    found = json.loads(report.json_text(make_status(state, "")))
    assert (found["tree"], found["namespaces"], "counters" in found) == ([], [], False)
    assert "why it is in use" not in report.text(make_status(state, ""))


# --- drawn -------------------------------------------------------------------------------


def test_many_like_rules_are_folded_and_v_shows_them() -> None:
    rules = "".join(f"-A INPUT -p tcp -m tcp --dport {n} -m state --state NEW -j ACCEPT\n" for n in range(1, 301))
    state = replace(STATE, live=(LiveRules("legacy", "ipv4", f"*filter\n:INPUT ACCEPT [0:0]\n{rules}COMMIT\n"),))
    short, whole = tree_lines(tree_of(state)), tree_lines(tree_of(state), verbose=True)
    assert sum("… 295 more like these (-v shows them)" in line for line in short) == 1
    assert not any("more like these" in line for line in whole)
    assert len(whole) - len(short) > 295
    assert len([1 for _ in nodes_of(sight_of(state).tree)]) > 300  # JSON has all


def test_eight_are_not_many() -> None:
    rules = "-A INPUT -m state --state NEW -j ACCEPT\n" * 8
    state = replace(STATE, live=(LiveRules("legacy", "ipv4", f"*filter\n:INPUT ACCEPT [0:0]\n{rules}COMMIT\n"),))
    assert not any("more like these" in line for line in tree_lines(tree_of(state)))


def test_a_comment_cannot_steer_the_terminal() -> None:
    node = Node("a", "rule", "\033[2Jevil\rline\n\x07 caf\udce9 ü", "", "x\033[0m")
    (line,) = tree_lines((node,))
    assert line == "?[2Jevil?line?? caf\udce9 ü  -> x?[0m"
    assert printable("ü…\t") == "ü…?"


def test_colours_change_nothing_else() -> None:
    coloured = "\n".join(tree_lines(tree_of(), colour=True))
    for number in (*COLOURS.values(), "0"):
        coloured = coloured.replace(f"\033[{number}m", "")
    assert coloured + "\n" == (HERE / "tree/whole.txt").read_text()


def test_lines_are_cut_to_the_width_of_the_screen() -> None:
    assert clipped("abcdef", 4) == "abcd"
    assert clipped("\033[1mabc\033[0mdef\033[2mghi\033[0m", 4) == "\033[1mabc\033[0md\033[2m\033[0m"
    assert clipped("abc", 4) == "abc"


# --- in the report -----------------------------------------------------------------------


def test_the_text_says_no_holder_twice() -> None:
    text = report.text(make_status(STATE, "unload", "", TRACKING))
    assert text.count("-> iptables-legacy -t filter -D INPUT 3\n") == 1
    assert "good to know" not in text
    noted = report.text(make_status(replace(STATE, notes=("something is odd",)), "unload", "", TRACKING))
    assert "good to know\n  host\n      something is odd\n" in noted


def test_json_keeps_the_findings_and_is_valid() -> None:
    found = json.loads(report.json_text(make_status(STATE, "unload", "", TRACKING)))
    reports.valid(found)
    # The tree counts what stands in other namespaces, and every module that a rule uses: those users are not unseen.
    accounted = {"unseen:nft_ct", "unseen:xt_connlimit"}
    assert [f["id"] for f in found["findings"]] == [h.id for h in all_holders(STATE) if h.id not in accounted]
    assert found["counters"] == {
        "entries": 80, "limit": 100, "buckets": 64, "percent_full": 80, "insert": 5, "found": 1, "drop": 2}  # fmt: skip
    own, blue, docker, sh = found["namespaces"]
    assert (own["hooks"], own["evidence"]) == ({"ipv4": True, "ipv6": True, "bridge": None}, "its rules")
    assert (blue["hooks"], blue["evidence"]) == ({"ipv4": True, "ipv6": False, "bridge": False}, "nft list hooks")
    assert (docker["hooks"]["ipv6"], docker["evidence"]) == (True, "its rules")  # table inet
    assert (sh["hooks"]["ipv4"], sh["evidence"]) == (None, "not told")


def test_notrack_alone_proves_no_hook() -> None:
    rules = "*raw\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -j CT --notrack\nCOMMIT\n"
    found = sight_of(replace(STATE, live=(LiveRules("legacy", "ipv4", rules),), native=None))
    assert dict(found.spaces[0].hooks)["ipv4"] is None


@pytest.mark.parametrize(
    ("entries", "drops", "colours"),
    [(79, 0, {}), (80, 0, {"entries": "33"}), (95, 0, {"entries": "31"}), (1, 3, {"counters": "33"})],
)
def test_a_table_that_is_nearly_full_is_coloured(entries: int, drops: int, colours: dict[str, str]) -> None:
    tracking = replace(TRACKING, counters=Counters(entries, 100, 64, (("drop", drops),)))
    lines = report.text(make_status(STATE, "", "", tracking), colour=True).split("\n")
    for name in ("entries", "counters"):
        (line,) = (line for line in lines if line.strip().startswith(name))
        assert (f"\033[{colours[name]}m" in line) if name in colours else ("\033" not in line)


def test_hostile_words_go_through_json_unchanged() -> None:
    found = json.loads(report.json_text(make_status(STATE, "", "", TRACKING)))
    assert HOSTILE in json.dumps(found["tree"], ensure_ascii=False).replace("\\\\", "\\").replace('\\"', '"')
