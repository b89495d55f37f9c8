"""Flows and notes while the sections are read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ..config import Flow
from ..errors import HaproxyError
from ..messages import quoted
from .addresses import EVERY, Endpoint, Ports, endpoint_of
from .options import address_text, bind_options
from .sections import Line

_SOME = 3  # places that a note names


@dataclass(frozen=True)
class Note:
    """What could not be told, or is taken for granted; *where* names up to three places."""

    where: str
    what: str


@dataclass
class Collected:
    """Sets of flows: *frontends* that this host serves, *backends* that it asks, *outbound* UDP whose
    replies must come back, *logs* that nobody answers."""

    frontends: set[Flow] = field(default_factory=set)
    backends: set[Flow] = field(default_factory=set)
    outbound: set[Flow] = field(default_factory=set)
    logs: set[Flow] = field(default_factory=set)
    foreign: list[str] = field(default_factory=list)
    places: dict[str, dict[str, None]] = field(default_factory=dict)

    def note(self, line: Line, what: str) -> None:
        """Remember *what* of *line*."""
        self.places.setdefault(what, {})[line.where] = None

    def notes(self) -> tuple[Note, ...]:
        """All notes, each once."""
        return tuple(Note(_some(list(places)), what) for what, places in self.places.items())

    def listener(self, line: Line, at: int = 1, protocol: str = "tcp") -> None:
        """What the ``bind`` line *line* listens on; its addresses are the word *at*."""
        options = bind_options(line, at + 1)
        word = line.words[at] if at < len(line) else None
        if word and word.text.startswith("fd@") and "," not in word.text:
            self._inherited(line)
            return
        addresses = address_text(line, at).split(",")
        self.assumed(line)
        for text in addresses[:-1] if len(addresses) > 1 and not addresses[-1] else addresses:
            if not text:
                raise HaproxyError("one of the addresses is empty", line.where, "remove a comma")
            self._listens(line, _endpoint(line, text, protocol), options)

    def _inherited(self, line: Line) -> None:
        self.note(line, "a listener comes as a file descriptor, and its port is not in the file: name it in "
                        "flows.frontends")

    def _listens(self, line: Line, found: Endpoint, options: frozenset[str]) -> None:
        if found.place == "inherited":
            self._inherited(line)
        if found.place != "ip":
            return
        if "namespace" in options:
            self.note(line, "it listens in another network namespace: the rules of this one never see its packets")
            return
        if found.ports is None:
            raise HaproxyError("the address names no port to listen on", line.where, "write ADDRESS:PORT")
        if "ocsp-update" in options:
            self.note(line, "ocsp-update asks servers that the certificates name")
        line.sure()
        self.frontends.add(Flow(found.transport, found.ports, self._listening_on(line, found, options)))

    def _listening_on(self, line: Line, found: Endpoint, options: frozenset[str]) -> str | None:
        if found.name:
            self.note(line, f"{quoted(found.name)} is a name; every address of this host is taken")
            return None
        # net.ipv6.bindv6only is 0 nearly everywhere: a socket on :: is one for IPv4 too
        return None if found.network == EVERY[6] and "v6only" not in options else found.network

    def asks(self, line: Line, found: Endpoint, ports: Iterable[Ports]) -> None:
        """This host connects to *found* on *ports*, or sends it logs."""
        if found.place != "ip":
            return
        for these in ports:
            if found.protocol != "udp":
                line.sure()
                self.backends.add(Flow(found.transport, these, self.network(line, found)))
            elif not line.doubt:  # what haproxy sends by plain UDP to a server is a log
                self.logs.add(Flow("udp", these, self.network(line, found)))

    def network(self, line: Line, found: Endpoint) -> str | None:
        """The network of what this host sends to; ``None`` for every one, which is noted."""
        if found.name:
            self.note(line, f"{quoted(found.name)} is a name, and DNS says its addresses: any address is taken")
            return None
        if found.everywhere:
            self.note(line, "it goes to whatever address the client asked for: any address is taken")
            return None
        return found.network

    def assumed(self, line: Line) -> None:
        """Note the values of variables in *line* that haproxy's environment can overrule."""
        for word in line.words:
            text = word.assumed or (word.address.assumed if word.address else "")
            if text:
                self.note(line, text)


def _endpoint(line: Line, text: str, protocol: str) -> Endpoint:
    return endpoint_of(text, line.where, protocol, ranges=True)


def _some(places: list[str]) -> str:
    more = len(places) - _SOME
    return ", ".join(places[:_SOME]) + (f" and {more} more" if more > 0 else "")
