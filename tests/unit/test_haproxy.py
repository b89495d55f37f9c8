"""haproxy's language piece by piece, hostile texts, and sizes."""

from __future__ import annotations

import ipaddress
import os
import time
from contextlib import suppress
from pathlib import Path

import pytest
from fakehost import FakeHost, fake_host
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cloudinit_conntrack.config import Desired, Flow, Flows, desired_from_text
from cloudinit_conntrack.errors import HaproxyError, HostError
from cloudinit_conntrack.haproxy.addresses import endpoint_of
from cloudinit_conntrack.haproxy.flows import MOST_FLOWS, HaproxyFlows, haproxy_flows
from cloudinit_conntrack.haproxy.merging import MOST_NETWORKS, merged
from cloudinit_conntrack.haproxy.words import Environment, words_of
from cloudinit_conntrack.host.haproxy import haproxy_files
from cloudinit_conntrack.plan import Plan, make_plan
from cloudinit_conntrack.state import FileImage, SavedFile, SourceFile, State

__all__ = ["fake_host"]
GOLDEN = Path(__file__).parent / "haproxy"
SECONDS = 60.0  # of processor time: far more than any size below takes, and no endless loop


def flows_of(*texts: str) -> HaproxyFlows:
    return haproxy_flows([(f"{n}.cfg", text.encode("latin-1")) for n, text in enumerate(texts, 1)])


def message(*texts: str) -> str:
    with pytest.raises(HaproxyError) as caught:
        flows_of(*texts)
    assert caught.value.where and caught.value.what and caught.value.remedy
    return str(caught.value)


# --- words ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("  bind\t:80  ", ["bind", ":80"]),
        ("a#b c", ["a"]),
        ("a \\#b c", ["a", "#b", "c"]),
        ("a 'b # c' \"d # e\"", ["a", "b # c", "d # e"]),
        ("a\\ b \\x41\\x20c", ["a b", "A c"]),
        ("a 'it\\' b", ["a", "it\\", "b"]),
        ('a "say \\"x\\"" b', ["a", 'say "x"', "b"]),
        ("a b\rc d", ["a", "b"]),
        ('a "" b', ["a"]),
        ("a\\1 \\z", ["a\\1", "\\z"]),
        ('"$KNOWN" "${KNOWN}s" $KNOWN \'$KNOWN\' "\\$KNOWN"', ["v 1", "v 1s", "$KNOWN", "$KNOWN", "$KNOWN"]),
        ('a "${KNOWN[*]}" b', ["a", "v", "1", "b"]),
        ('a "${GONE}" b', ["a"]),
        ('a "x${GONE}y${GONE-d}" b', ["a", "xyd", "b"]),
        ("a\xa0b\x85c", ["a\xa0b\x85c"]),
    ],
)
def test_words(line: str, words: list[str]) -> None:
    known = Environment({"KNOWN": "v 1"}, unset={"GONE"})
    assert [word.text for word in words_of(line, "x:1", known)] == words


def test_what_follows_a_list_of_unknown_length_is_unknown() -> None:
    words = words_of('a "${LIST[*]}" b', "x:1", Environment())
    assert [word.unknown for word in words] == ["", "LIST", "LIST"]


@pytest.mark.parametrize("line", ['a "b', "a 'b", "a \\xg1", 'a "$"', 'a "${A"', 'a "${A*}"', 'a "$1"', "a b \\"])
def test_lines_that_cannot_be_read(line: str) -> None:
    with pytest.raises(HaproxyError, match="x:1"):
        words_of(line, "x:1", Environment())


@pytest.mark.parametrize("address", ["10.0.0.1:80-", ":+", "a b:80", "[::1:80", "foo@1.2.3.4:80", "1::2::3:80", ":8-80",
                                     "ipv4@[::1]:80", "ipv6@1.2.3.4:80", ":65536", "\u00e9:80"])  # fmt: skip
def test_addresses_that_cannot_be_read(address: str) -> None:
    with pytest.raises(HaproxyError, match="x:1"):
        endpoint_of(address, "x:1")


# --- hostile texts -------------------------------------------------------------------

PIECES = [
    "global", "defaults", "frontend f", "backend b", "listen l", "peers p", "resolvers r", "ring x", "mailers m",
    "log-forward g", "program q", "bind", "server s", "server-template t 1-5", "peer", "nameserver n", "mailer m",
    "stats socket", "default-server", "log", "source", "dispatch", "disabled", "no", "from", "dgram-bind", ".if",
    ".elif", ".else", ".endif", "defined(A)", "streq(a,a)", "version_atleast(2)", "&&", "||", "!", "(", ")", "1", "0",
    "setenv A", "unsetenv A", "resetenv", "presetenv A", ":80", "*:443", "10.0.0.1:80-90", "[2001:db8::1]:80",
    "a.example:80", ":+100", "quic4@:443", "udp@10.0.0.1:514", "unix@/x", "fd@3", "_s._tcp.x",
    '"$A"', '"${A-b}"', '"${A[*]}"',
    "check", "port", "addr", "socks4", "agent-check", "agent-port", "usesrc", "http-check connect",
    "tcp-check connect", "#", "'",
    '"', "\\", "\\x4", "\r", "\0", "\xff", "from", "namespace", "v6only", "local0", "len", ",",
]  # fmt: skip
LINES = st.lists(st.lists(st.sampled_from(PIECES), max_size=6).map(" ".join), max_size=25).map("\n".join)


def answers(texts: list[str]) -> None:
    begun = time.process_time()
    try:
        found = flows_of(*texts)
    except HaproxyError as error:
        assert error.where and error.what and error.remedy, error
        assert str(error).isprintable()
        assert len(str(error)) < 2000
    else:
        for flow in found.frontends + found.backends + found.outbound + found.logs:
            assert flow.protocol in ("tcp", "udp")
            assert 1 <= flow.ports[0] <= flow.ports[1] <= 65535
            assert flow.address is None or ipaddress.ip_network(flow.address)
        assert all(note.what.isprintable() and note.where.isprintable() for note in found.notes)
    assert time.process_time() - begun < SECONDS


@settings(max_examples=500, deadline=None)
@given(st.lists(LINES.map(lambda text: text + "\n"), min_size=1, max_size=2))
@example([".if " + "(" * 5000 + "\n"])
@example([".if " + "!" * 5000 + "1\n"])
@example([".if 1" + " && 1" * 5000 + "\n.endif\n"])
def test_lines_of_haproxys_own_words(texts: list[str]) -> None:
    answers(texts)


@settings(max_examples=400, deadline=None)
@given(st.text(st.characters(max_codepoint=255), max_size=300))
def test_any_text(text: str) -> None:
    answers([text])
    answers([text + "\n"])


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(GOLDEN.iterdir())), st.data())
def test_damaged_configurations(case: Path, data: st.DataObject) -> None:
    text = min(case.glob("*.cfg")).read_text("latin-1")[:4000]
    at = data.draw(st.integers(0, len(text)))
    junk = data.draw(st.text(st.sampled_from("\"'\\$#{}[]*:,-+@ \n\r\0a1."), max_size=4))
    answers([text[:at] + junk + text[at + data.draw(st.integers(0, 3)):] + "\n"])


# --- sizes ---------------------------------------------------------------------------

HEAD = "defaults\n mode tcp\nlisten l\n bind :80\n"
MEGABYTES = 10 << 20  # the files are read in seconds; the bound leaves room for a slow machine


@pytest.mark.parametrize(
    "line",
    [
        " server s 10.0.0.1:80 check\n", ' server s "10.0.0.1:$A" check\n', " # a comment\n",
        " \\ \\ \\ \\ \\ \\ \\\\x\n",
        " acl a path_beg -i /static /images\n", "backend b from d\n", " bind :81\n", ".if 1\n.endif\n",
        ".if version_atleast(2.4)\n.endif\n", " server s a.example.net\n", " log 10.0.0.1 local0\n", "peers p\n",
        "global\nsetenv A b\n", "\n", " default-server check\n", "a" * 5000 + "\n", '"' + "$A " * 50 + '"\n',
    ],
)  # fmt: skip
def test_one_megabyte(line: str) -> None:
    _take_their_time("global\n setenv A 80\n" + HEAD + line * ((1 << 20) // len(line)))


def test_ten_megabytes() -> None:
    servers = "".join(f" server s{n} 10.0.0.{n}:8080 check inter 2s weight 10 # one\n" for n in range(99))
    acls = ' acl a path_beg -i /static "/images" # x\n' * 900
    _take_their_time(HEAD + (servers + acls) * (MEGABYTES // len(servers + acls)))


def _take_their_time(body: str) -> None:
    begun = time.process_time()
    try:
        flows_of(body)
    except HaproxyError as error:
        assert error.where
    assert time.process_time() - begun < SECONDS


def test_one_long_line() -> None:
    for line in ("a " * (1 << 18), "\\" * (1 << 19), '"' + "$A" * (1 << 18), "," * (1 << 20),
                 ".if " + "1 && " * (1 << 18)):  # fmt: skip
        begun = time.process_time()
        with suppress(HaproxyError):
            flows_of(HEAD + " bind " + line + "\n")
        assert time.process_time() - begun < SECONDS


def test_distinct_servers_in_numbers() -> None:
    servers = "".join(f" server s 10.0.{n >> 8}.{n & 255}:{1024 + n % 5000 * 2}\n" for n in range(20_000))
    begun = time.process_time()
    assert "write ranges of ports and networks" in message(HEAD + servers)
    assert time.process_time() - begun < SECONDS


def test_a_text_that_is_too_large() -> None:
    assert message("#" * (9 << 20) + "\n", "#" * (9 << 20) + "\n").startswith("2.cfg:1: ")


# --- merging -------------------------------------------------------------------------

NETWORKS = st.one_of(
    st.none(),
    st.integers(0, 15).map(lambda n: f"10.0.0.{n}/32"),
    st.sampled_from(["0.0.0.0/0", "::/0", "10.0.0.0/29", "2001:db8::1/128", "2001:db8::/64"]),
)
FLOWS = st.builds(
    lambda protocol, first, more, address: Flow(protocol, (first, first + more), address),
    st.sampled_from(["tcp", "udp"]), st.integers(1, 12), st.integers(0, 3), NETWORKS,
)  # fmt: skip


def packets(flows: tuple[Flow, ...]) -> set[tuple[str, int, str]]:
    """Every packet of *flows* to one of some addresses."""
    hosts = [*(f"10.0.0.{n}" for n in range(17)), "192.0.2.1", "2001:db8::1", "2001:db8::2", "2001:db9::1"]
    return {
        (flow.protocol, port, host)
        for flow in flows for port in range(flow.ports[0], flow.ports[1] + 1) for host in hosts
        if flow.address is None or ipaddress.ip_address(host) in ipaddress.ip_network(flow.address)
    }  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(FLOWS, max_size=25))
def test_merged_flows_are_the_same_packets(flows: list[Flow]) -> None:
    few, widened = merged(flows)
    assert packets(few) == packets(tuple(flows))
    assert not widened
    assert merged(few)[0] == few


def test_neighbours_become_one() -> None:
    flows = [Flow("tcp", (port, port), f"10.0.{n >> 8}.{n & 255}/32") for n in range(512) for port in (80, 81)]
    assert merged(flows) == ((Flow("tcp", (80, 81), "10.0.0.0/23"),), ())


def test_too_many_networks_are_taken_together_and_said() -> None:
    flows = [Flow("tcp", (80, 80), f"10.0.{n}.{n}/32") for n in range(200)]
    few, widened = merged(flows)
    assert len(few) <= MOST_NETWORKS
    assert "200 separate networks" in widened[0]
    assert packets(tuple(flows)) <= packets(few)
    assert merged(flows[:MOST_NETWORKS])[1] == ()


def test_too_many_flows_are_refused() -> None:
    binds = "".join(f" bind :{port}\n" for port in range(1, 2 * MOST_FLOWS + 4, 2))
    assert f"makes {MOST_FLOWS + 2} frontends" in message("frontend f\n" + binds)
    assert len(flows_of("frontend f\n" + "".join(binds.splitlines(True)[:MOST_FLOWS])).frontends) == MOST_FLOWS


# --- reading the files ---------------------------------------------------------------


def paths(found: tuple[SourceFile, ...]) -> list[str]:
    return [file.path for file in found]


def test_a_directory_is_read_as_haproxy_reads_it(fake_host: FakeHost) -> None:
    for name in ("10.cfg", "9.cfg", "a.cfg.cfg", ".b.cfg", "c.conf", "below/d.cfg", "B.cfg", "e.cfg/f.cfg"):
        fake_host.write(f"/etc/haproxy/{name}", name)
    found = haproxy_files(["/etc/haproxy/", "/etc/haproxy/below/d.cfg"], fake_host.root)
    assert paths(found) == [f"/etc/haproxy/{name}.cfg" for name in ("10", "9", "B", "below/d")]
    assert found[0].content == b"10.cfg"


def test_a_link_stays_in_the_root(fake_host: FakeHost) -> None:
    fake_host.write("/etc/haproxy/real.cfg", "inside")
    (fake_host.tree / "etc/haproxy/haproxy.cfg").symlink_to("/etc/haproxy/real.cfg")
    (fake_host.tree / "etc/haproxy/out.cfg").symlink_to("/../../../../../../etc/passwd")
    found = haproxy_files(["/etc/haproxy/haproxy.cfg", "/etc/haproxy/out.cfg"], fake_host.root)
    assert [file.content for file in found] == [b"inside", None]


def test_no_regular_file(fake_host: FakeHost) -> None:
    (fake_host.tree / "etc").mkdir()
    (fake_host.tree / "etc/haproxy.cfg").symlink_to("/dev/null")
    (fake_host.tree / "dev").mkdir()
    os.mkfifo(fake_host.tree / "dev/null")
    with pytest.raises(HostError, match="FIFO"):
        haproxy_files(["/etc/haproxy.cfg"], fake_host.root)


def test_nothing_there(fake_host: FakeHost) -> None:
    fake_host.write("/etc/haproxy/readme", "")
    found = haproxy_files(["/etc/none.cfg", "/etc/haproxy"], fake_host.root)
    assert found == (SourceFile("/etc/none.cfg", None), SourceFile("/etc/haproxy", None))


# --- the plan ------------------------------------------------------------------------

PATH = "/etc/haproxy/haproxy.cfg"
WEB = """\
frontend f
 bind :80
 bind 10.0.0.1:443
backend b
 server s 10.0.0.5:8080
resolvers r
 nameserver n 10.0.0.53:53
"""


def planned(text: str | None, mode: str = "notrack", flows: Flows | None = None, rules: str = "") -> Plan:
    files = (SourceFile(PATH, None if text is None else text.encode()),)
    named = flows or Flows()
    desired = Desired(mode, flows=Flows((PATH,), named.frontends, named.backends, named.outbound))
    saved = (SavedFile("/etc/iptables/rules.v4", "rules", "ipv4", FileImage(rules.encode())),) if rules else ()
    return make_plan(desired, State(None, saved=saved, haproxy=files))


def test_derived_flows_join_the_named_ones() -> None:
    plan = planned(WEB, flows=Flows(frontends=(Flow("tcp", (1, 100)),), outbound=()))
    assert plan.flows.frontends == (Flow("tcp", (1, 100)), Flow("tcp", (443, 443), "10.0.0.1/32"))
    assert plan.flows.backends == (Flow("tcp", (8080, 8080), "10.0.0.5/32"),)
    assert plan.flows.outbound == (Flow("udp", (53, 53), "10.0.0.53/32"),)
    assert planned(WEB).flows.outbound == Flows().outbound, "DNS of any address is among the defaults"


def test_the_flows_are_said() -> None:
    finding = planned(WEB).findings[0]
    assert (finding.id, finding.where) == ("haproxy", PATH)
    assert finding.reason == ("haproxy's flows: frontends 0.0.0.0/0:80/tcp, 10.0.0.1/32:443/tcp; "
                              "backends 10.0.0.5/32:8080/tcp; UDP replies from 10.0.0.53/32:53/udp")  # fmt: skip


@pytest.mark.parametrize(
    ("text", "where"),
    [(None, PATH), ("frontend f\n bind :80x\n", f"{PATH}:2"), ("global\n", PATH),
     ("backend b\n server s 10.0.0.5:80 source 0.0.0.0 usesrc clientip\n", f"{PATH}:2")],
)  # fmt: skip
def test_what_cannot_be_derived_blocks(text: str | None, where: str) -> None:
    plan = planned(text)
    assert [blocker.where for blocker in plan.blockers] == [where]
    assert plan.blockers[0].remedy
    assert not plan.actions


def test_client_addresses_are_no_matter_where_nothing_is_tracked_or_tproxy_is_used() -> None:
    text = "backend b\n server s 10.0.0.5:80 source 0.0.0.0 usesrc clientip\n"
    tproxy = "*mangle\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -p tcp -j TPROXY --on-port 80\nCOMMIT\n"
    assert not planned(text, "stateless").blockers
    assert not planned(text, rules=tproxy).blockers


def test_a_family_of_its_own_gets_rules_of_its_own() -> None:
    """``0.0.0.0/0`` is written as no address at all: the save programs leave it out, too."""
    desired = Desired("notrack", flows=Flows((PATH,)))
    rules = FileImage(b"*filter\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n")
    saved = tuple(SavedFile(f"/etc/iptables/rules.v{v}", "rules", f"ipv{v}", rules) for v in (4, 6))
    state = State(None, saved=saved, haproxy=(SourceFile(PATH, b"frontend f\n bind *:80\n"),))
    plan = make_plan(desired, state)
    texts = [action.after.content.decode() for action in plan.actions]  # type: ignore[union-attr]
    assert ["--dport 80" in text for text in texts] == [True, False]
    assert not any("0.0.0.0/0" in text for text in texts)


def test_the_example(fake_host: FakeHost) -> None:
    text = (Path(__file__).parents[2] / "examples" / "notrack-haproxy.yaml").read_bytes()
    desired = desired_from_text(text, "example")
    for name, case in (("haproxy.cfg", "seed"), ("conf.d/more.cfg", "listen")):
        fake_host.write(f"/etc/haproxy/{name}", (GOLDEN / case / "haproxy.cfg").read_text())
    state = State(None, haproxy=haproxy_files(desired.flows.haproxy_cfg, fake_host.root))
    plan = make_plan(desired, state)
    assert not plan.blockers
    assert {flow.ports for flow in plan.flows.frontends} == {(5000, 5000), (3306, 3306), (8404, 8404)}
    assert Flow("tcp", (8443, 8443), "10.20.0.0/16") in plan.flows.backends
