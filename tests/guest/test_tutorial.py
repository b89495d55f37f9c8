"""docs/tutorial: each command of it, in its order, on a kernel with modules; and what it says of them is so."""

from __future__ import annotations

import re

import pytest

from .balancer import WORDS
from .uml import CHECKOUT, QuickResult, run_quick

PAGE = CHECKOUT / "docs/tutorial/first-balancer.md"
BLOCK = re.compile(r"^(?:<!-- (.*?) -->\n)?```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# A quick guest has no systemd, and nothing is installed in it.
STAND_INS = {
    "/usr/local/bin/systemctl": "#!/bin/sh\n"
    '[ "$*" = "restart haproxy" ] && exec /usr/sbin/haproxy -D -f /etc/haproxy/haproxy.cfg\n'
    'exec /usr/bin/systemctl "$@"\n',
    "/usr/local/bin/cloudinit-conntrack": '#!/bin/sh\nexec /usr/bin/python3 -m cloudinit_conntrack "$@"\n',
}


def blocks() -> list[tuple[str, str]]:
    """(what stands before it, commands) of each block."""
    return BLOCK.findall(PAGE.read_text(encoding="utf-8"))


def run() -> list[str]:
    """The blocks that are not for hands, as the reader would type them."""
    return [text for note, text in blocks() if not note.startswith("by hand")]


@pytest.fixture(scope="module")
def told() -> QuickResult:
    """The guest after the last command."""
    script = [WORDS, "chmod 755 /usr/local/bin/*", "PATH=/usr/local/bin:$PATH", "rm -rf /etc/haproxy"]
    for number, text in enumerate(run(), 1):
        script.append(f"cat >/root/{number} <<'END OF BLOCK'\n{text}END OF BLOCK\nstep {number} bash -e /root/{number}")
    return run_quick("\n".join(script), files=STAND_INS)


def test_every_block_is_run_or_says_why_not(told: QuickResult) -> None:
    assert [note for note, _ in blocks() if note] == [
        "by hand: it needs a network", "exits with 4", "by hand: on the new server"]  # fmt: skip
    assert len(told.steps) == len(run()) == len(blocks()) - 2


def test_each_ends_as_the_page_says(told: QuickResult) -> None:
    wanted = [4 if note == "exits with 4" else 0 for note, _ in blocks() if not note.startswith("by hand")]
    got = [told.steps[str(number)] for number in range(1, len(wanted) + 1)]
    assert [step.status for step in got] == wanted, [step.output for step in got]


def test_what_the_page_promises(told: QuickResult) -> None:
    said = {number: told.steps[str(number)].output for number in range(1, len(run()) + 1)}
    assert said[2].endswith("hello from the application")
    assert "dport=80 " in said[3] and "dport=8080 " in said[3], "nothing is proved by what would not be tracked"
    assert "table filter, chain INPUT, rule 1" in said[4]
    assert "actions, in this order" in said[6] and "accepted now and not before" in said[6]
    assert said[7].startswith("done  mode unload")
    assert said[8].startswith("verified  mode unload")
    for words in ("hello from the application", "no table", "no module", "cannot be loaded", "--tcp-flags"):
        assert words in said[9]
    assert said[10].count("-m state --state") == 3 and said[10].endswith("\n3\n")
    assert "user-data" in said[11]
