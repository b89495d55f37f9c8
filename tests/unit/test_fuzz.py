"""Mutated files of every kind that we read: an error of ours or an answer, in bounded time, never a traceback.

The seeds are the cases of the other tests; a mutation cuts, doubles, moves or overwrites pieces of one or splices two.
``FUZZ=20000 make fuzz`` tries that many of each kind instead of a few.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloudinit_conntrack import journal
from cloudinit_conntrack.actions import WriteFile
from cloudinit_conntrack.config import desired_from_text
from cloudinit_conntrack.errors import ConntrackError
from cloudinit_conntrack.haproxy.flows import haproxy_flows
from cloudinit_conntrack.kmod import dependants, parse_proc_modules
from cloudinit_conntrack.netfilter.iptables import parse_ruleset
from cloudinit_conntrack.netfilter.nft_ruleset import parse_nft
from cloudinit_conntrack.netfilter.nft_stateless import make_stateless_nft
from cloudinit_conntrack.netfilter.nft_text import includes, interfaces, renewed_tables, stateful_words, words_of
from cloudinit_conntrack.netfilter.ruleset import format_ruleset
from cloudinit_conntrack.netfilter.stateless import make_stateless
from cloudinit_conntrack.scripts import restored_files, stateful_commands
from cloudinit_conntrack.service import comes_early, program_of
from cloudinit_conntrack.shellvars import clean_modules_line
from cloudinit_conntrack.state import FileImage, FoundFile

HERE = Path(__file__).resolve().parent
EXAMPLES = int(os.environ.get("FUZZ", "150"))
MOST_SECONDS = 20.0  # for one input, on a busy machine: what hangs takes for ever
PIECES = (b"", b"\0", b"\n", b"\r\n", b'"', b"'", b"\\", b"\xff\xfe", b"\xe2\x80\xae", b"-A INPUT ", b"COMMIT\n",
          b"*filter\n", b"--state ", b"! ", b"{", b"}", b"[", b"]", b": ", b"&a ", b"*a", b"9" * 30, b"-1", b"65536",
          b"${X}", b"$(", b"`", b"\ttail", b"A" * 5000)  # fmt: skip


def rules(text: bytes) -> None:
    """An iptables-save file: what parses, round-trips; what is rewritten, is parsed again."""
    read = text.decode("utf-8", "surrogateescape")
    for family in ("ipv4", "ipv6"):
        try:
            parsed = parse_ruleset(read, family)
        except ConntrackError:
            continue
        assert format_ruleset(parsed) == read
        done = make_stateless(parsed)
        if not done.blockers:
            parse_ruleset(format_ruleset(done.ruleset), family)


def nft_json(text: bytes) -> None:
    make_stateless_nft(parse_nft(text.decode("utf-8", "surrogateescape")))


def nft_text(text: bytes) -> None:
    read = text.decode("utf-8", "surrogateescape")
    words = words_of(read)
    interfaces(words), stateful_words(words), renewed_tables(words), includes(read)


def journal_file(text: bytes) -> None:
    journal.open_entry(journal.parse(text))


def script(text: bytes) -> None:
    found = FoundFile("/etc/rc.local", FileImage(text, 0o755))
    restored_files(found), stateful_commands(found)


def lists(text: bytes) -> None:
    """What the kernel and systemd give: a line that is odd is left out or refused, like any other input."""
    read = text.decode("utf-8", "replace")
    parse_proc_modules(read), dependants(read), comes_early(read), program_of(read)


def modules_line(text: bytes) -> None:
    clean_modules_line(text.decode("utf-8", "surrogateescape"))


def files(*patterns: str) -> list[bytes]:
    found = [path.read_bytes() for pattern in patterns for path in sorted(HERE.glob(pattern)) if path.is_file()]
    assert found, patterns
    return found


def journals() -> list[bytes]:
    act = WriteFile("/etc/x", FileImage(b"a\xff", 0o640), FileImage(b"b", 0o640), "why")
    whole = journal.begin(1, "boot", "unload", ("nf_nat",), (act,)) + journal.intent(1, 0) + journal.commit(1, ())
    opened = whole + journal.begin(2, "boot", "stateless", (), (act, act)) + journal.intent(2, 0)
    return [whole, opened, whole + journal.undoing(1), whole + journal.undone(1)]


KINDS: dict[str, tuple[Callable[[bytes], object], list[bytes]]] = {
    "config": (lambda text: desired_from_text(text, "fuzz"), files("config/good/*", "config/bad/*")),
    "rules": (rules, files("rewrite/*/in.v*", "../netns/rules/*.rules")),
    "nft json": (nft_json, files("nft/*/*.json")),
    "nft text": (nft_text, files("../netns/native/*.nft")),
    "journal": (journal_file, journals()),
    "haproxy": (lambda text: haproxy_flows([("/etc/haproxy/haproxy.cfg", text)]), files("haproxy/*/*.cfg")),
    "iptables-config": (modules_line, [b'# we\nIPTABLES_MODULES="nf_conntrack_ftp ip_nat_ftp"\nexport A=\'b\' C=d\n']),
    "script": (script, [b"#!/bin/sh\niptables-restore < /etc/rules\n"
                        b"iptables -A INPUT -m state --state NEW \\\n -j DROP\n"]),
    "lists": (lists, [b"nf_conntrack 172032 2 nf_nat,xt_state, Live 0x0000\n", b"a/b.ko.xz: c/d.ko\n",
                      b"[Unit]\nBefore=network-pre.target\nExecStart=/usr/bin/python3 -I /x apply\n"]),
}  # fmt: skip


def mutated(seeds: list[bytes], chance: random.Random) -> bytes:
    text = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((1, 1, 2, 4, 12))):
        start = chance.randint(0, len(text))
        end = min(len(text), start + chance.choice((0, 1, 1, 8, 60, 400)))
        how = chance.randrange(6)
        if how == 0:
            text[start:end] = chance.choice(PIECES)
        elif how == 1:
            text[start:end] = b""
        elif how == 2:
            text[start:start] = text[start:end] * chance.choice((1, 2, 40))
        elif how == 3:
            text[start:end] = bytes(chance.randrange(256) for _ in range(end - start))
        elif how == 4:
            other = chance.choice(seeds)
            at = chance.randint(0, len(other))
            text[start:end] = other[at : at + chance.choice((1, 20, 300))]
        else:
            del text[start:]
    return bytes(text)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_of_ours_or_an_answer(kind: str) -> None:
    read, seeds = KINDS[kind]

    @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 1 << 48))
    def fuzz(number: int) -> None:
        text = mutated(seeds, random.Random(number))
        began = time.process_time()
        try:
            read(text)
        except ConntrackError as error:
            assert str(error).strip() and "\n" not in str(error)
        assert time.process_time() - began < MOST_SECONDS

    fuzz()
