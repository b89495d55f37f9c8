"""What stands behind the address of a ``server``, ``default-server`` or ``bind`` line.

The tables say how many words follow a keyword (haproxy 2.6 to 3.5-dev, the lists of
``srv_kw`` and ``bind_kw``), so that a value is never taken for a keyword.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import HaproxyError
from ..messages import quoted
from .addresses import Endpoint, endpoint_of
from .sections import Line

_ONE_WORD = frozenset(
    """addr agent-addr agent-inter agent-port agent-send alpn ca-file check-alpn check-pool-conn-name check-proto
    check-sni ciphers ciphersuites client-sigalgs cookie crl-file crt curves downinter error-limit fall fastinter guid
    hash-key healthcheck id idle-ping init-addr init-state inter ktls log-bufsize log-proto max-reuse maxconn maxqueue
    minconn namespace npn observe on-error on-marked-down on-marked-up pool-conn-name pool-low-conn pool-max-conn
    pool-purge-delay port proto proxy-v2-options redir resolve-net resolve-opts resolve-prefer resolvers rise shard
    sigalgs slowstart sni socks4 source ssl-max-ver ssl-min-ver track usesrc verify verifyhost weight ws
    interface tcp-md5sig tcp-ut cc quic-cc-algo renegotiate-limit""".split()
)
_BIND_ONE_WORD = frozenset(
    """accept-netscaler-cip alpn backlog ca-file ca-ignore-err ca-sign-file ca-sign-pass ca-verify-file cc ciphers
    ciphersuites client-sigalgs crl-file crt crt-ignore-err crt-list curves default-crt ecdhe expose-fd gid group
    guid-prefix id idle-ping interface ktls label level maxconn mode mss name namespace nbconn nice npn ocsp-update
    process proto quic-cc-algo quic-socket severity-output shards sigalgs ssl-max-ver ssl-min-ver tcp-md5sig tcp-ss
    tcp-ut thread tls-ticket-keys uid user verify""".split()
)
_FLAGS = {
    "check": ("check", True), "no-check": ("check", False), "agent-check": ("agent", True),
    "no-agent-check": ("agent", False), "check-via-socks4": ("check_via_socks4", True),
    "namespace": ("namespace", True),
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Of a server, what decides where packets go.  *port* and *addr* are those of its health check."""

    check: bool = False
    port: int = 0
    addr: Endpoint | None = None
    agent: bool = False
    agent_port: int = 0
    agent_addr: Endpoint | None = None
    socks4: Endpoint | None = None
    check_via_socks4: bool = False
    namespace: bool = False


def address_at(line: Line, at: int, **how: str | bool) -> Endpoint:
    """The address that is the word *at* of *line*."""
    return endpoint_of(address_text(line, at), line.where, **how)  # type: ignore[arg-type]


def address_text(line: Line, at: int) -> str:
    """The word *at*, its variables replaced as an address replaces them."""
    if at >= len(line):
        raise HaproxyError(f"{line.keyword} lacks an address", line.where, "write one")
    word = line.words[at]
    return line.known(word.address or word)


def port_at(line: Line, at: int) -> int:
    """The port number that is the word *at*."""
    text = line.text(at)
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 0 < int(text) < 65536):
        raise HaproxyError(f"the port {quoted(text)} is none", line.where, "write 1 to 65535 in digits")
    return int(text)


def server_options(line: Line, start: int, base: Options) -> Options:
    """What the words of *line* from *start* on say, *base* being what ``default-server`` said before."""
    found, at = base, start
    while at < len(line):
        keyword = line.text(at)
        found = _with(found, line, keyword, at)
        at += 2 if keyword in _ONE_WORD or keyword.startswith("set-proxy-v2-tlv-fmt") else 1
    return found


def _with(found: Options, line: Line, keyword: str, at: int) -> Options:
    if keyword in _FLAGS:
        name, value = _FLAGS[keyword]
        return found if getattr(found, name) is value else replace(found, **{name: value})  # type: ignore[arg-type]
    if keyword == "port":
        return replace(found, port=port_at(line, at + 1))
    if keyword == "agent-port":
        return replace(found, agent_port=port_at(line, at + 1))
    if keyword == "addr":  # haproxy sets both by it
        return replace(found, addr=address_at(line, at + 1), agent_addr=address_at(line, at + 1))
    if keyword == "agent-addr":
        return replace(found, agent_addr=address_at(line, at + 1))
    if keyword == "socks4":
        return replace(found, socks4=address_at(line, at + 1))
    return found


def bind_options(line: Line, start: int) -> frozenset[str]:
    """The keywords of a ``bind`` line from the word *start* on."""
    found, at = set(), start
    while at < len(line):
        keyword = line.text(at)
        found.add(keyword)
        at += 2 if keyword in _BIND_ONE_WORD else 1
    return frozenset(found)


def uses_foreign_source(line: Line) -> bool:
    """Whether servers see another address than this host's as the source (``usesrc``)."""
    words = [word.text for word in line.words]
    return any(word == "usesrc" for word in words[:-1])
