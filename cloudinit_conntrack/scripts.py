"""What a script that runs at boot does to the packet filter, as far as its words tell.

For ``/etc/network/interfaces``, ``rc.local``, ``if-pre-up.d``, crontabs and their like.  A
line is cut into simple commands as a shell would; what a variable holds is not known, and
such a word never counts.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from .kmod import is_conntrack_module
from .state import FoundFile

SCRIPTS = (
    "/etc/network/interfaces", "/etc/network/if-", "/etc/rc.local", "/etc/rc.d/rc.local", "/etc/crontab",
    "/etc/cron.d/", "/etc/NetworkManager/dispatcher.d/", "/etc/networkd-dispatcher/", "/etc/sysconfig/modules/",
    "/usr/share/netfilter-persistent/plugins.d/", "/etc/ufw/before.init", "/etc/ufw/after.init",
)
# These are read whatever their mode is; the others are run only where they are executable.
_READ = ("/etc/network/interfaces", "/etc/crontab", "/etc/cron.d/")
_PASSING = ("/dev/", "/proc/", "/run/", "/tmp/")  # nothing there lasts until the next boot
_RESTORE = re.compile(r"(ip6?)tables(?:-legacy|-nft)?-restore")
_TOOL = re.compile(r"ip6?tables(?:-legacy|-nft)?")
_SEPARATORS = frozenset(";&|()\n")
_TAKES_A_VALUE = frozenset(("-T", "--table", "-M", "--modprobe"))  # of iptables-restore(8); -w takes one or not


@dataclass(frozen=True)
class Command:
    """A command of a script that needs conntrack.

    *kind* is ``rule`` (adds a stateful rule or a nat table), ``module`` (loads a module),
    ``asks`` (the conntrack tool) or ``sysctl``.
    """

    line: int
    text: str
    kind: str


def is_script(file: FoundFile) -> bool:
    """Whether *file* runs at boot, or at its hour."""
    return file.path.startswith(_READ) or (file.path.startswith(SCRIPTS) and file.image.mode & 0o111 != 0)


def restored_files(file: FoundFile) -> tuple[tuple[str, str], ...]:
    """(path, family) of each file that *file* feeds to ``iptables-restore``."""
    if not is_script(file):
        return ()
    found = (_restored(words) for _, words in _commands(file.text))
    return tuple(dict.fromkeys(one for one in found if one is not None))


def stateful_commands(file: FoundFile) -> tuple[Command, ...]:
    """The commands of *file* that need conntrack."""
    if not is_script(file):
        return ()
    found = []
    for number, words in _commands(file.text):
        kind = _kind(words)
        if kind:
            found.append(Command(number, " ".join(words), kind))
    return tuple(found)


def _commands(text: str) -> Iterator[tuple[int, list[str]]]:
    """(line, words) of each simple command."""
    number = 0
    for raw in text.replace("\\\n", "\0").split("\n"):  # continued lines stay one, and are counted
        number += 1
        words: list[str] = []
        for word in _words(raw.replace("\0", " ")):
            if word and set(word) <= _SEPARATORS:
                yield number, words
                words = []
            else:
                words.append(word)
        yield number, words
        number += raw.count("\0")


def _words(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|()<>")
    lexer.whitespace_split = True
    try:
        return list(lexer)
    except ValueError:  # an open quote: the string goes on in the next line
        return line.split()


def _name(word: str) -> str:
    return word.rpartition("/")[2]


def _restored(words: list[str]) -> tuple[str, str] | None:
    for at, word in enumerate(words):
        match = _RESTORE.fullmatch(_name(word))
        if match is None:
            continue
        rest = words[at + 1:]
        path = rest[rest.index("<") + 1] if "<" in rest[:-1] else _positional(rest)
        known = path.startswith("/") and not any(char in path for char in "$`*?") and not path.startswith(_PASSING)
        return (path, "ipv6" if match[1] == "ip6" else "ipv4") if known else None
    return None


def _positional(words: list[str]) -> str:
    skip = False
    for word in words:
        if not skip and word.startswith("/"):
            return word
        skip = word in _TAKES_A_VALUE
    return ""


def _kind(words: list[str]) -> str:
    for at, word in enumerate(words):
        name, rest = _name(word), words[at + 1:]
        if _TOOL.fullmatch(name):
            return "rule" if _is_stateful(rest) else ""
        if name == "nft":
            return "rule" if {"ct", "notrack", "masquerade", "dnat", "snat", "redirect"} & set(rest) else ""
        if name in ("modprobe", "insmod"):
            taken = "-r" in rest or "--remove" in rest
            loads = any(is_conntrack_module(_name(x).partition(".ko")[0]) for x in rest if not x.startswith("-"))
            return "module" if loads and not taken else ""
        if name == "conntrack" and rest[:1] and rest[0].startswith("-"):
            return "asks"
        if name == "sysctl":
            return "sysctl" if any("nf_conntrack_" in x and "frag6" not in x for x in rest) else ""
    return ""


def _is_stateful(words: list[str]) -> bool:
    pairs = list(zip(words, words[1:]))
    deleting = words[:1] and any(w in ("-D", "-F", "-X", "--delete", "--flush") for w in words)
    if any(option in ("-t", "--table") and value == "nat" for option, value in pairs):
        return True  # looking at it, or emptying it, loads it just as well
    if deleting:
        return False
    from .netfilter.stateful import MATCHES, NAT_TARGETS, TARGETS  # here: a boot with nothing to do needs no language

    return any((option in ("-m", "--match") and value in MATCHES)
               or (option in ("-j", "--jump") and (value in TARGETS or value in NAT_TARGETS))
               for option, value in pairs)
