"""nft itself: what it lists, what it is given, and rules tried in a network namespace of their own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..errors import CommandError, HostError
from ..netfilter.nft_ruleset import parse_nft
from ..netfilter.nft_tables import alike, listed, only
from ..netfilter.nft_text import interfaces, words_of
from ..netfilter.nft_transaction import transaction
from .process import Completed, failure, find, private_namespace, run

# Link types that need no hardware; not every kernel has each.
_LINKS = ("dummy", "veth", "bridge")
# nft opens /dev/stdin for "-", a link that udev or systemd makes; a guest without them has none (seen, 1.0.6).
STDIN = "/proc/self/fd/0"
_SECONDS = 300.0
_AT_LINE = re.compile(r"^/proc/self/fd/0:(\d+):\d+-\d+: (?:Error: )?(.*)", re.MULTILINE)


def listing(netns: str | None = None) -> str:
    """``nft -j list ruleset``; CommandError when it cannot be had."""
    done = run(["nft", "-j", "list", "ruleset"], netns=netns)
    if not done.stdout.startswith("{"):  # Red Hat 7's knows no JSON
        raise CommandError("prints no JSON", "nft -j list ruleset", "install an nft that is built with JSON")
    return done.stdout


def printed(netns: str | None = None, stateless: bool = False) -> str:
    """``nft list ruleset``; *stateless* leaves out what rules have counted."""
    return run(["nft", *(["-s"] if stateless else []), "list", "ruleset"], netns=netns).stdout


def load_json(text: str, netns: str | None = None) -> None:
    """Let nf_tables do *text* as one transaction, checked first.  CommandError with nft's own words."""
    content = text.encode("utf-8", "surrogateescape")
    for option in (["-c"], []):
        run(["nft", *option, "-j", "-f", STDIN], stdin=content, timeout=_SECONDS, netns=netns)


def load_text(text: str, netns: str | None = None) -> None:
    """The same for nft's own language."""
    content = text.encode("utf-8", "surrogateescape")
    for option in (["-c"], []):
        run(["nft", *option, "-f", STDIN], stdin=content, timeout=_SECONDS, netns=netns)


# --- in a namespace of its own ---------------------------------------------------------------


class NotLoadedError(Exception):
    """nft's error for a text that does not load, and its line (0: unknown)."""

    def __init__(self, what: str, line: int) -> None:
        super().__init__(what, line)
        self.what = what
        self.line = line


@contextmanager
def loaded(text: str) -> Iterator[str]:
    """A fresh network namespace with *text* loaded as the boot does; gives its path.

    The interfaces that the text needs are there, as dummies.  :class:`NotLoadedError` with
    nft's first error.  Loading may load modules.
    """
    if not find("nft"):
        raise HostError("the command nft is not there", "nft", "install the package nftables")
    with private_namespace() as path:
        for name in interfaces(words_of(text)):
            _make_link(name, path)
        content = text.encode("utf-8", "surrogateescape")
        done = run(["nft", "-f", STDIN], stdin=content, timeout=_SECONDS, check=False, netns=path)
        if done.status != 0:
            raise _refused(done)
        yield path


def _make_link(name: str, netns: str) -> None:
    """An interface of that name, of whatever kind there is; where none is, nft's own error will say so."""
    for kind in _LINKS:
        if find("ip") and run(["ip", "link", "add", name, "type", kind], check=False, netns=netns).status == 0:
            return


def _refused(done: Completed) -> NotLoadedError:
    found = _AT_LINE.search(done.stderr)
    if found is None:
        return NotLoadedError(failure(done).what, 0)
    return NotLoadedError(found.group(2).strip(), int(found.group(1)))


@dataclass(frozen=True)
class Rehearsed:
    """Rules as nft words them after a change: as JSON (*listing*), and as text without counters."""

    listing: str
    text: str


def rehearse(text: str, rules: str) -> Rehearsed:
    """Load *text*, make the tables of *rules* (JSON) of its tables, and see what nft makes of it.

    What is printed then must load again and be the same, or it is a :class:`HostError`:
    nothing has been changed yet.
    """
    try:
        with loaded(text) as path:
            change = transaction(parse_nft(listing(path)), parse_nft(rules))
            if change:
                load_json(change, path)
            made = Rehearsed(listing(path), printed(path, stateless=True))
        with loaded(made.text) as path:
            again = listing(path)
    except NotLoadedError as error:
        raise HostError(f"does not load in a namespace of its own: {error.what}", "nft -f") from error
    if not alike(parse_nft(made.listing), parse_nft(again)):
        raise HostError("what nft prints of the new rules does not load as the same rules", "nft list ruleset",
                        "this is a defect of nft or ours: report it with the rule-set")
    return made


def live_tables(tables: Iterable[tuple[str, str]], netns: str | None = None) -> str:
    """The listing of *tables* alone, as they are now."""
    return listed(only(parse_nft(listing(netns), "nft -j list ruleset"), set(tables)))


