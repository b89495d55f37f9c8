"""``defaults``, ``frontend``, ``backend`` and ``listen``: where they listen, and what they ask."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ..errors import HaproxyError
from ..messages import quoted
from .addresses import Endpoint, Ports
from .collected import Collected
from .options import Options, address_at, port_at, server_options, uses_foreign_source
from .sections import Line, Section


@dataclass(frozen=True)
class Connect:
    """One ``connect`` of a health check; port 0 is the check's own."""

    line: Line
    addr: Endpoint | None = None
    port: int = 0


@dataclass
class Proxy:
    """One section as far as it is read; that of ``defaults`` is what the next ones begin with."""

    kind: str
    disabled: bool = False
    options: Options = field(default_factory=Options)
    connects: list[Connect] = field(default_factory=list)
    inherited: list[Connect] = field(default_factory=list)
    binds: list[Line] = field(default_factory=list)
    servers: list[tuple[Line, Endpoint, Options]] = field(default_factory=list)


class Proxies:
    """All proxies; a server without a port needs the listeners of those that may use it."""

    def __init__(self, found: Collected) -> None:
        self.found = found
        self.proxies: list[Proxy] = []
        self.named: dict[str, Proxy] = {}
        self.last = Proxy("defaults")

    def read(self, section: Section) -> None:
        """Read one section."""
        proxy = self._begin(section)
        for line in section.lines:
            self._line(proxy, line)
        if section.kind == "defaults":
            self.last = proxy
            if len(section.head) > 1 and section.head.text(1) != "from":
                self.named[section.head.text(1)] = proxy
        else:
            self.proxies.append(proxy)

    def _begin(self, section: Section) -> Proxy:
        head = section.head
        words = [head.text(at) for at in range(1, len(head))]
        at = words.index("from") + 1 if "from" in words[-2:-1] else 0
        if section.kind != "defaults" and (len(words) != (3 if at else 1)):
            raise HaproxyError(f"{section.kind} takes a name, and 'from' with the name of a defaults section",
                               head.where, "put an address on a bind line of its own; haproxy refuses it too")
        if at and words[at] not in self.named:
            raise HaproxyError(f"there is no defaults section {quoted(words[at])} above", head.where,
                               "haproxy refuses it too")
        base = self.named[words[at]] if at else (self.last if section.kind != "defaults" else Proxy("defaults"))
        return Proxy(section.kind, base.disabled, base.options, [], base.connects or base.inherited)

    def _line(self, proxy: Proxy, line: Line) -> None:
        keyword = line.keyword
        if keyword == "bind":
            proxy.binds.append(line)
        elif keyword in ("server", "server-template"):
            self._server(proxy, line, 2 if keyword == "server" else 3)
        elif keyword == "default-server":
            options = server_options(line, 1, proxy.options)
            if options != proxy.options:
                line.sure()
            proxy.options = options
            self._source(line)
        elif keyword == "dispatch":
            proxy.servers.append((line, address_at(line, 1), Options()))
        elif keyword in ("disabled", "enabled"):
            line.sure()
            proxy.disabled = keyword == "disabled"
        elif keyword in ("http-check", "tcp-check") and len(line) > 1 and line.text(1) == "connect":
            proxy.connects.append(_connect(line, self.found))
        elif keyword == "source":
            self._source(line)
        else:
            self._told(line)

    def _server(self, proxy: Proxy, line: Line, at: int) -> None:
        self.found.assumed(line)
        proxy.servers.append((line, address_at(line, at), server_options(line, at + 1, proxy.options)))
        self._source(line)

    def _source(self, line: Line) -> None:
        if uses_foreign_source(line):
            self.found.foreign.append(line.where)

    def _told(self, line: Line) -> None:
        """What chooses destinations at run time, and cannot be told."""
        words = [word.text for word in line.words[1:3]]
        if line.keyword in ("http-request", "tcp-request") and {"set-dst", "set-dst-port"} & set(words):
            self.found.note(line, "the destination is chosen for each request; what it can be is not told here")
        if line.keyword == "external-check" and words[:1] == ["command"]:
            self.found.note(line, "a health check runs another program; its connections are not told here")
        if line.keyword in ("transparent",) or (line.keyword == "option" and "transparent" in words[:1]):
            self.found.note(line, "it goes to whatever address the client asked for, which is not told here")

    def finish(self) -> None:
        """Everything is read: the flows."""
        running = [proxy for proxy in self.proxies if not proxy.disabled]
        own: dict[int, list[Ports]] = {}
        for proxy in running:
            before = self.found.frontends
            self.found.frontends = set()
            for line in proxy.binds:
                self.found.listener(line)
            own[id(proxy)] = sorted({flow.ports for flow in self.found.frontends if flow.protocol == "tcp"})
            self.found.frontends |= before
        every = sorted({ports for many in own.values() for ports in many})
        for proxy in running:
            for line, target, options in proxy.servers:
                # a listen section may be another's default_backend too
                self._asks(proxy, line, target, options, every)

    def _asks(self, proxy: Proxy, line: Line, target: Endpoint, options: Options, clients: list[Ports]) -> None:
        if options.namespace:
            self.found.note(line, "it connects from another network namespace: the rules of this one never see it")
            return
        ports = self._ports(line, target, clients)
        first = options.socks4 if options.socks4 is not None else target
        self.found.asks(line, first, (first.ports,) if first is options.socks4 and first.ports else ports)
        if options.check:
            self._checks(proxy, line, target, options, ports)
        if options.agent and options.agent_port:
            agent = options.agent_addr or target
            self.found.asks(line, agent, ((options.agent_port, options.agent_port),))

    def _ports(self, line: Line, target: Endpoint, clients: list[Ports]) -> list[Ports]:
        if target.place != "ip":
            return []
        if target.ports:
            return [target.ports]
        if target.name.startswith("_"):
            self.found.note(line, "its ports come from DNS (SRV records): name them in flows.backends")
            return []
        self.found.note(line, "it takes the port that the client connected to: each port of a frontend is taken")
        moved = [(first + target.offset, last + target.offset) for first, last in clients]
        return [(max(first, 1), min(last, 65535)) for first, last in moved if last > 0 and first < 65536]

    def _checks(
        self, proxy: Proxy, line: Line, target: Endpoint, options: Options, ports: list[Ports]
    ) -> None:
        """Where its health check goes: to its own address and port, or where ``connect`` says."""
        through = options.socks4 if options.check_via_socks4 else None
        for connect in proxy.connects or proxy.inherited or [Connect(line)]:
            addr = through or connect.addr or options.addr or target
            port = connect.port or options.port
            known: Iterable[Ports] = [(port, port)] if port else ([addr.ports] if addr.ports else ports)
            if through and through.ports:
                known = [through.ports]
            connect.line.sure()
            self.found.asks(line, addr, known)


def _connect(line: Line, found: Collected) -> Connect:
    """``http-check connect`` or ``tcp-check connect``."""
    addr, port, at = None, 0, 2
    while at < len(line):
        keyword = line.text(at)
        if keyword == "addr":
            addr = address_at(line, at + 1)
        elif keyword == "port" and line.text(at + 1).isdigit():
            port = port_at(line, at + 1)
        elif keyword == "port":
            found.note(line, "the port of a health check is chosen at run time; name it in flows.backends")
        at += 2 if keyword in ("addr", "port", "proto", "sni", "alpn", "comment", "pool-conn-name") else 1
    return Connect(line, addr, port)
