"""The editor of module lists, judged by the shell that reads such files."""

from __future__ import annotations

import subprocess
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudinit_conntrack.kmod import is_conntrack_module
from cloudinit_conntrack.shellvars import VARIABLES, clean_modules_line


def sourced(text: str) -> list[list[str]]:
    """The module lists that a shell has after reading *text*, split as the init scripts do."""
    script = text + "\n" + "".join(f'for m in ${name}; do printf "%s " "$m"; done; echo\n' for name in VARIABLES)
    done = subprocess.run(["/bin/sh", "-f", "-c", script], check=True, timeout=20, stdout=subprocess.PIPE, text=True)
    return [line.split() for line in done.stdout.split("\n")[:-1]]


def check(text: str) -> str:
    """Clean *text*; the shell must see the same lists without conntrack's names, and the editor be idempotent."""
    cleaned, removed = clean_modules_line(text)
    before, after = sourced(text), sourced(cleaned)
    assert after == [[name for name in names if not is_conntrack_module(name)] for names in before]
    assert clean_modules_line(cleaned) == (cleaned, ())
    assert bool(removed) == (cleaned != text)
    return cleaned


@pytest.mark.parametrize(("text", "cleaned"), [
    ('IPTABLES_MODULES="nf_conntrack_netbios_ns"\n', 'IPTABLES_MODULES=""\n'),
    ('IPTABLES_MODULES="nf_conntrack_netbios_ns ip_set"\n', 'IPTABLES_MODULES="ip_set"\n'),
    ('IP6TABLES_MODULES="ip_set nf_conntrack_ftp"\n', 'IP6TABLES_MODULES="ip_set"\n'),
    ("IPT_MODULES='a nf_conntrack_ftp nf_nat_ftp  b'\n", "IPT_MODULES='a  b'\n"),
    ("IPTABLES_MODULES=ip_conntrack_ftp # was nf_nat\n", "IPTABLES_MODULES= # was nf_nat\n"),
    ('# IPTABLES_MODULES="nf_nat"\nX="IPTABLES_MODULES=nf_nat"\n',) * 2,
    ('IPTABLES_MODULES="a"\nIPTABLES_MODULES="nf_nat"\n', 'IPTABLES_MODULES="a"\nIPTABLES_MODULES=""\n'),
    ('export IPT_MODULES="nf_nat x"; Y=1\n', 'export IPT_MODULES="x"; Y=1\n'),
    ('IPT_MODULES="a \\\n nf_nat \\\n b"\n', 'IPT_MODULES="a\\\n \\\n b"\n'),
    ("IPT_MODULES=a\\ nf_nat\\ b\n", "IPT_MODULES=a\\ b\n"),
    ("IPT_MODULES=\"a\nnf_nat\nb\"\n", "IPT_MODULES=\"a\nb\"\n"),
    ("IPT_MODULES=a#nf_nat\n",) * 2,
    ("MY_IPT_MODULES=nf_nat\n",) * 2,
    ("IPTABLES_MODULES_UNLOAD=\"yes\"\nIPTABLES_MODULES=''nf_\"nat\"'' z=1\n",
     "IPTABLES_MODULES_UNLOAD=\"yes\"\nIPTABLES_MODULES=''\"\"'' z=1\n"),
    ("IPT_MODULES=\tx\n",) * 2,
])
def test_assignments(text: str, cleaned: str) -> None:
    assert clean_modules_line(text)[0] == cleaned
    check(text)


def test_names_are_told_in_order() -> None:
    text = 'IPT_MODULES="nf_nat x ip_conntrack_ftp"\nIPTABLES_MODULES=xt_state'
    assert clean_modules_line(text)[1] == ("nf_nat", "ip_conntrack_ftp", "xt_state")


def test_windows_line_ends_stay() -> None:
    assert clean_modules_line('IPT_MODULES="nf_nat"\r\nX=1\r\n')[0] == 'IPT_MODULES=""\r\nX=1\r\n'


@pytest.mark.parametrize("text", ['IPT_MODULES="nf_nat', "IPT_MODULES=nf_nat'", 'X="\nIPT_MODULES=nf_nat', "\\"])
def test_an_open_quote_is_left_alone(text: str) -> None:
    assert clean_modules_line(text) == (text, ())


def test_red_hats_own_file() -> None:
    text = """\
# Load additional iptables modules (nat helpers)
#   Default: -none-
# Space separated list of nat helpers (e.g. 'ip_nat_ftp ip_nat_irc'), which
# are loaded after the firewall rules are applied. Options for the helpers are
# stored in /etc/modprobe.conf.
IPTABLES_MODULES="nf_conntrack_netbios_ns"

# Unload modules on restart and stop
IPTABLES_MODULES_UNLOAD="yes"
"""
    assert check(text) == text.replace("nf_conntrack_netbios_ns", "")


words = st.sampled_from(["nf_nat", "nf_conntrack_ftp", "ip_set", "tun", "xt_state", "dummy0", ""])
blanks = st.sampled_from([" ", "  ", "\t", "\n", " \\\n", "\\\n "])


@st.composite
def assignment(draw: st.DrawFn) -> str:
    quote = draw(st.sampled_from(['"', "'", ""]))
    space = blanks if quote == '"' else st.sampled_from([" ", "\t", "\n"] if quote else ["\\ ", "\\\t"])
    value = "".join(draw(words) + draw(space) for _ in range(draw(st.integers(0, 4)))) + draw(words)
    export = draw(st.sampled_from(["", "export ", "X=1 ; ", "\t"])) if quote else ""
    name = draw(st.sampled_from([*VARIABLES, "OTHER"]))
    return f"{export}{name}={quote}{value}{quote}{draw(st.sampled_from(['', ' # nf_nat', ';']))}"


@settings(max_examples=60, deadline=None)
@given(st.lists(assignment(), max_size=4))
def test_whatever_is_written_the_shell_sees_the_rest(lines: list[str]) -> None:
    check("\n".join(lines))


@given(st.text(alphabet="IPT_MODULES=nf_nat \"'\\\n#;", max_size=60))
def test_any_text_survives(text: str) -> None:
    cleaned, removed = clean_modules_line(text)
    assert removed or cleaned == text


@pytest.mark.parametrize("text", [
    'IPT_MODULES="' + "nf_nat " * 30000 + '"', "'a'" * 1000000, '"' + "a" * 5000000, "IPT_MODULES=a;" * 100000,
])
def test_large_files_take_seconds_at_most(text: str) -> None:
    start = time.monotonic()
    clean_modules_line(text)
    assert time.monotonic() - start < 10
