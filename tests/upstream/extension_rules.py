"""The rules by which iptables tests its extensions: ``extensions/*.t`` and ``extensions/*.txlate``.

A ``.t`` file names chains (``:INPUT,FORWARD``), a table (``*mangle``), and rules: the
options, what the save program shall print (``=`` for the same), and what shall happen.  A
``.txlate`` file holds a command of iptables-translate and, below, the nft commands that it
prints.  We take neither file's word for what is accepted: that is for the real programs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

FAMILIES_OF = {"libxt": ("ipv4", "ipv6"), "libipt": ("ipv4",), "libip6t": ("ipv6",), "iptables.t": ("ipv4", "ipv6")}
TRANSLATORS = {"iptables-translate": "ipv4", "ip6tables-translate": "ipv6"}


@dataclass(frozen=True)
class Candidate:
    """One command that a restore program may accept; *refused* is the file's guess that it will not."""

    where: str
    family: str
    table: str
    text: str
    refused: bool = False

    def but(self, text: str) -> Candidate:
        """The same place, another text."""
        return replace(self, text=text, refused=False)


@dataclass(frozen=True)
class Translation:
    """nft commands, as a translator prints them for *source* (``None`` for a rule of ebtables)."""

    source: Candidate | None
    commands: tuple[str, ...]


def candidates(tree: Path) -> Iterator[Candidate]:
    """Every rule of iptables and ip6tables in the source *tree*; those of both families twice."""
    for path in sorted((tree / "extensions").glob("*.t")):
        for family in FAMILIES_OF.get(path.name.split("_")[0], ()):
            yield from _of_t(path, family)
    for path in sorted((tree / "extensions").glob("*.txlate")):
        yield from _of_txlate(path)


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """(place, line) of all that is no comment."""
    for number, line in enumerate(path.read_text().split("\n"), 1):
        if line.strip() and line[0] not in "#@%":
            yield f"{path.name}:{number}", line


def _of_t(path: Path, family: str) -> Iterator[Candidate]:
    table, chains = "filter", ["INPUT"]
    for number, (place, line) in enumerate(_lines(path)):
        if line[0] == ":":
            chains = line[1:].strip().split(",")
        elif line[0] == "*":
            table = line[1:].strip()
        else:
            options, _, rest = line.partition(";")
            refused = rest.split(";")[1:2] == ["FAIL"]
            # One chain each, in turn: all chains would be three times the time for the same words.
            chain = chains[number % len(chains)]
            yield Candidate(place, family, table, f"-A {chain} {options}".rstrip(), refused)


def _of_txlate(path: Path) -> Iterator[Candidate]:
    yield from filter(None, (_candidate(place, line) for place, line in _lines(path)))


def _candidate(place: str, line: str) -> Candidate | None:
    program, _, command = line.partition(";")[0].partition(" ")
    if program not in TRANSLATORS:
        return None
    table, text = _without_table(command)
    return Candidate(place, TRANSLATORS[program], table, text)


def _without_table(command: str) -> tuple[str, str]:
    """A restore file names the table in a line of its own."""
    words = command.split(" ")
    for name in ("-t", "--table"):
        if name in words:
            at = words.index(name)
            return words[at + 1], " ".join(words[:at] + words[at + 2 :])
    return "filter", command


def translations(tree: Path) -> Iterator[Translation]:
    """What iptables-translate is to print: groups of nft commands, bridge tables too."""
    for path in sorted((tree / "extensions").glob("*.txlate")):
        group: list[str] = []
        source: Candidate | None = None
        for place, line in [*_lines(path), ("", "")]:
            if line.startswith("nft "):
                group.append(line[4:].strip().strip("'"))
                continue
            if group:
                yield Translation(source, tuple(group))
            group, source = [], _candidate(place, line)
