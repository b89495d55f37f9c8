"""What would bring a live rule, or a module, back at the next boot: a file and its line, and who reads it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..errors import ConntrackError
from ..kmod import normal
from ..netfilter.iptables import parse_ruleset
from ..netfilter.ruleset import Line, Option
from ..netfilter.stateful import may_depend
from ..said import Node
from ..scripts import restored_files
from ..shellvars import VARIABLES
from ..state import State
from .uses import Use

_READERS: dict[str, tuple[str, ...]] = {
    "/etc/sysconfig/iptables": ("iptables.service",), "/etc/sysconfig/ip6tables": ("ip6tables.service",),
    "/etc/sysconfig/iptables-config": ("iptables.service",), "/etc/sysconfig/ip6tables-config": ("ip6tables.service",),
    "/etc/iptables/rules.v4": ("netfilter-persistent.service",),
    "/etc/iptables/rules.v6": ("netfilter-persistent.service",),
    "/etc/nftables.conf": ("nftables.service",), "/etc/sysconfig/nftables.conf": ("nftables.service",),
    "/etc/default/ufw": ("ufw.service",),
}
_LOADING = ("/etc/modules", "/etc/modules-load.d/", "/run/modules-load.d/", "/usr/lib/modules-load.d/",
            "/usr/local/lib/modules-load.d/")
_PROTOCOLS = frozenset(("tcp", "udp", "udplite", "icmp", "icmp6", "icmpv6", "sctp", "dccp"))
_LIST = re.compile(rf"^\s*(?:{'|'.join(VARIABLES)})\+?=")
_SPACES = re.compile(r"\s+")

Key = tuple[str, str, str, tuple[tuple[str, bool, str], ...]]


@dataclass
class SavedLines:
    """The lines of saved rules that need conntrack, by what they say; each is given out once."""

    by_rule: dict[Key, list[tuple[str, int]]] = field(default_factory=dict)
    by_words: dict[str, list[tuple[str, int]]] = field(default_factory=dict)

    def of(self, use: Use) -> tuple[str, int] | None:
        """The file and line of the rule *use*; line 0 where only the file is known."""
        if use.rule is not None:
            found = self.by_rule.get(_key(use.rule.live.family, use.rule.line), [])
        else:
            found = self.by_words.get(_plain(use.statements), []) if use.statements else []
        return found.pop(0) if found else None


def saved_lines(state: State) -> SavedLines:
    """The saved rules of *state*; a file that cannot be parsed is the plan's to tell."""
    found = SavedLines()
    for path, family, text in _files(state):
        for line in _rules(text, family, path):
            found.by_rule.setdefault(_key(family, line), []).append((path, line.number))
    for file in state.native_saved:
        for number, text in enumerate(file.text.split("\n"), 1):
            if plain := _plain(text):
                # Includes stand in their places: then the number is not the file's own.
                found.by_words.setdefault(plain, []).append((file.path, 0 if file.included else number))
    return found


def _files(state: State) -> Iterator[tuple[str, str, str]]:
    """(path, family, text) of each file of saved iptables rules."""
    for saved in state.saved:
        if saved.kind == "rules":
            yield saved.path, saved.family, saved.image.content.decode("utf-8", "surrogateescape")
    for file in state.surroundings.below("/etc/ufw/"):
        if file.path.endswith(".rules"):
            yield file.path, "ipv6" if "6" in file.path else "ipv4", file.text


def _rules(text: str, family: str, path: str) -> Iterator[Line]:
    try:
        yield from (line for line in parse_ruleset(text, family, path).rules() if may_depend(line))
    except ConntrackError:
        return


def _key(family: str, line: Line) -> Key:
    """What *line* says, alike for the ways to write it that iptables-save does not keep."""
    said = (_alike(option) for option in line.rule.options[1:])
    return family, line.table, line.chain, tuple(sorted(option for option in said if option is not None))


def _alike(option: Option) -> tuple[str, bool, str] | None:
    """*option* in one form; ``None`` for what goes without saying (``-m tcp`` beside ``-p tcp``)."""
    name, value = option.name, " ".join(option.args)
    if name == "-m" and value in _PROTOCOLS:
        return None
    if name == "-m" and value == "state":
        value = "conntrack"
    if name in ("--state", "--ctstate"):
        name, value = "--ctstate", ",".join(sorted(value.split(",")))
    if name in ("-s", "-d"):
        value = value[:-3] if value.endswith("/32") else value[:-4] if value.endswith("/128") else value
    return name, option.negated, value


def _plain(text: str) -> str:
    return _SPACES.sub(" ", text).strip()


def rule_comes_back(use: Use, lines: SavedLines, state: State) -> tuple[Node, ...]:
    """The saved line of *use*, if one is known."""
    found = lines.of(use)
    if found is None:
        return ()
    path, number = found
    where = f"{path}:{number}" if number else path
    remedy = f"take line {number} out of {path}" if number else f"take it out of {path}, or of what that includes"
    return (Node(f"saved:{use.id}", "saved", f"saved in {where}, {_read_by(path, state)}", where, remedy),)


def module_comes_back(name: str, state: State) -> tuple[Node, ...]:
    """The lines that load the module *name* at boot: modules-load.d, and the lists of firewall services."""
    found = []
    for path, number, by in _loading(name, state):
        where = f"{path}:{number}"
        found.append(Node(f"saved:module:{name}:{where}", "saved", f"loaded by {where}, {by}", where,
                          f"take {name} out of line {number} of {path}"))
    return tuple(found)


def _loading(name: str, state: State) -> Iterator[tuple[str, int, str]]:
    """(file, line, who reads it) of each line that loads *name*."""
    for file in state.surroundings.files:
        if file.path == "/etc/modules" or file.path.startswith(_LOADING[1:]):
            for number, line in enumerate(file.text.split("\n"), 1):
                if _is(name, line.split("#")[0].strip()):
                    yield file.path, number, "read at boot"
    for saved in state.saved:
        if saved.kind != "rules":
            text = saved.image.content.decode("utf-8", "surrogateescape")
            for number, line in enumerate(text.split("\n"), 1):
                if _LIST.match(line) and any(_is(name, word) for word in re.split(r"[\s\"'=]+", line)):
                    yield saved.path, number, _read_by(saved.path, state)


def _is(name: str, word: str) -> bool:
    """Whether *word* loads the module *name*: ip_conntrack_ftp is an alias of nf_conntrack_ftp, and so on."""
    plain = normal(word)
    return plain == name or (plain.startswith("ip_") and f"nf_{plain[3:]}" == name)


def _read_by(path: str, state: State) -> str:
    around = state.surroundings
    units = ("ufw.service",) if path.startswith("/etc/ufw/") else _READERS.get(path, ())
    scripts = [f.path for f in around.files if path in [restored for restored, _ in restored_files(f)]]
    starting = [unit for unit in units if around.units.starts(unit)]
    if starting or scripts:
        return f"loaded by {', '.join((*starting, *scripts))} at boot"
    return f"which {' or '.join(units)} would load, and it is not enabled" if units else "read at boot"
