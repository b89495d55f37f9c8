"""The sections of a haproxy configuration -> the flows that they make."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Callable

from ..config import Flow
from ..errors import HaproxyError
from .collected import Collected, Note
from .merging import merged
from .options import Options, address_at, server_options
from .proxies import Proxies
from .sections import Line, Section, read_sections

MOST_FLOWS = 128  # each becomes several rules; planning 128 took 10 s of processor time, and it grows with the cube
SYSLOG = (514, 514)
DNS = (53, 53)
_LOGGING = ("global", "defaults", "frontend", "backend", "listen", "peers", "log-forward")


@dataclass(frozen=True)
class HaproxyFlows:
    """What a configuration says.  *logs* are datagrams that nobody answers.

    *foreign* are the places where haproxy connects with a source address that is not this host's.
    """

    frontends: tuple[Flow, ...] = ()
    backends: tuple[Flow, ...] = ()
    outbound: tuple[Flow, ...] = ()
    logs: tuple[Flow, ...] = ()
    notes: tuple[Note, ...] = ()
    foreign: tuple[str, ...] = ()


def haproxy_flows(files: Iterable[tuple[str, bytes]]) -> HaproxyFlows:
    """The flows of the configuration *files* (name, content), read in this order as haproxy does.

    :class:`HaproxyError` with ``FILE:LINE`` for what cannot be read, and for what only
    haproxy's environment, version or build decides; what merely has no fixed address is a note.
    """
    sections = read_sections(files)
    found = Collected()
    proxies = Proxies(found)
    local_peer = _local_peer(sections)
    for section in sections:
        if section.kind == "peers":
            _peers(section, found, local_peer)
        elif section.kind in ("defaults", "frontend", "backend", "listen"):
            proxies.read(section)
        else:
            _other(section, found)
        for line in section.lines if section.kind in _LOGGING else ():
            if line.keyword == "log":
                _log(line, found)
    proxies.finish()
    return _result(found)


def _result(found: Collected) -> HaproxyFlows:
    parts: list[tuple[Flow, ...]] = []
    notes = list(found.notes())
    for name in ("frontends", "backends", "outbound", "logs"):
        flows, widened = merged(getattr(found, name))
        if len(flows) > MOST_FLOWS:
            raise HaproxyError(f"haproxy's configuration makes {len(flows)} {name} that do not go together",
                               "conntrack.flows.haproxy_cfg",
                               f"write ranges of ports and networks in conntrack.flows instead (at most {MOST_FLOWS})")
        notes += [Note("conntrack.flows.haproxy_cfg", f"{name}: {text}") for text in widened]
        parts.append(flows)
    return HaproxyFlows(parts[0], parts[1], parts[2], parts[3], tuple(notes), tuple(dict.fromkeys(found.foreign)))


# --- sections that are no proxies --------------------------------------------------------


def _other(section: Section, found: Collected) -> None:
    handlers = _HANDLERS.get(section.kind, {})
    if section.kind == "program":
        found.note(section.head, "haproxy starts another program; its connections are not told here")
    if section.kind == "acme":
        found.note(section.head, "haproxy asks for certificates at a server that DNS finds; name it in flows.backends")
    for line in section.lines:
        handler = handlers.get(line.keyword)
        if handler is not None:
            handler(line, found)


def _stats(line: Line, found: Collected) -> None:
    if line.text(1) == "socket":
        found.listener(line, 2)


def _lua(line: Line, found: Collected) -> None:
    found.note(line, "a Lua program may connect to where it likes; that is not told here")


def _nameserver(line: Line, found: Collected) -> None:
    server = address_at(line, 2, protocol="udp")
    found.assumed(line)
    if server.place != "ip":
        return
    if server.protocol == "tcp":
        found.asks(line, server, (server.ports or DNS,))
        return
    line.sure()
    found.outbound.add(Flow("udp", server.ports or DNS, found.network(line, server)))


def _resolv_conf(line: Line, found: Collected) -> None:
    line.sure()
    found.note(line, "the name servers are those of /etc/resolv.conf: port 53 of any address is taken")
    found.outbound.add(Flow("udp", DNS))


def _asked(at: int) -> Callable[[Line, Collected], None]:
    """A handler for lines whose word *at* is the address of something that is connected to."""

    def handler(line: Line, found: Collected) -> None:
        target = address_at(line, at)
        found.assumed(line)
        found.asks(line, target, (target.ports,) if target.ports else ())

    return handler


def _dgram_bind(line: Line, found: Collected) -> None:
    found.listener(line, 1, "udp")


def _bind(line: Line, found: Collected) -> None:
    found.listener(line)


_HANDLERS: dict[str, dict[str, Callable[[Line, Collected], None]]] = {
    "global": {"stats": _stats, "lua-load": _lua, "lua-load-per-thread": _lua},
    "resolvers": {"nameserver": _nameserver, "parse-resolv-conf": _resolv_conf},
    "mailers": {"mailer": _asked(2)},
    "ring": {"server": _asked(2)},
    "log-forward": {"bind": _bind, "dgram-bind": _dgram_bind},
}


def _log(line: Line, found: Collected) -> None:
    """``log ADDRESS ...``; UDP to port 514 unless it says otherwise."""
    if line.negated or len(line) < 3 or line.words[1].text in ("stdout", "stderr"):
        return
    word = line.words[1].address or line.words[1]
    if word.text.startswith(("ring@", "backend@", "fd@", "/", "unix@", "uxdg@", "uxst@")):
        return
    target = address_at(line, 1, protocol="udp")
    found.assumed(line)
    found.asks(line, target, (target.ports or SYSLOG,))


# --- peers -------------------------------------------------------------------------------


def _local_peer(sections: list[Section]) -> str:
    """The name of this host among its peers, empty where the file does not say it."""
    lines = [line for section in sections if section.kind == "global" for line in section.lines
             if line.keyword == "localpeer"]  # fmt: skip
    for line in lines:
        line.sure()
    return lines[-1].text(1) if lines else ""


def _peers(section: Section, found: Collected, local: str) -> None:
    if _is_disabled(section):
        return
    for line in section.lines:
        if line.keyword == "bind":
            found.listener(line)
        elif line.keyword in ("peer", "server") and len(line) > 2:
            _peer(line, found, local)


def _is_disabled(section: Section) -> bool:
    state = False
    for line in section.lines:
        if line.keyword in ("disabled", "enabled"):
            line.sure()
            state = line.keyword == "disabled"
    return state


def _peer(line: Line, found: Collected, local: str) -> None:
    """A ``peer`` line is where to listen if it names this host, and where to connect if it does not."""
    name = line.text(1)
    target = address_at(line, 2)
    server_options(line, 3, Options())
    if target.place != "ip":
        return
    if line.keyword == "peer" and (not local or name == local):
        found.listener(_without_options(line), 1)
    if not local:
        found.note(line, "which of the peers this host is goes by its name: it is taken for each of them")
    if name != local:
        found.asks(line, target, (target.ports,) if target.ports else ())


def _without_options(line: Line) -> Line:
    return Line(line.file, line.number, line.words[1:3], line.doubt)


