"""Parsers for the values of a configuration: one value and its path in, what it means out.

Each raises :class:`~cloudinit_conntrack.errors.ConfigError` that says what stands there
and what may.  :mod:`cloudinit_conntrack.config` puts them together.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from typing import Any, Union

from .errors import ConfigError
from .messages import joined, shown

Parser = Callable[[object, str], Any]
_Address = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]

MISSING = object()  # what the parser of a required key gets where the key is not there

MAX_ENTRIES = 1024  # of one list; more ports than that are written as ranges
MAX_PATH = 4096  # PATH_MAX of linux/limits.h
MAX_MODULE = 55  # MODULE_NAME_LEN of linux/module.h on 64 bit, less its final NUL

_ONE_PORT = "a port from 1 to 65535"
_HOST_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
# RFC 1123, 2.1: the last label of a name is never all digits, so 10.0.0.300 is no name.
_HOST_NAME = re.compile(rf"(?=.{{1,253}}$)({_HOST_LABEL}\.)*(?![0-9]+$){_HOST_LABEL}")


def mapping(parsers: Mapping[str, Parser], required: str = "") -> Callable[[object, str], dict[str, Any]]:
    """A mapping with the keys of *parsers* and no other; gives what each parser gave."""

    def parse(value: object, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _wrong(value, where, f"a mapping with {', '.join(parsers)}")
        found = {}
        for key, inner in value.items():
            place = joined(where, key)
            if key not in parsers:
                raise ConfigError("is no known key", place, _nearest(key, parsers))
            found[key] = parsers[key](inner, place)
        if required and required not in found:
            parsers[required](MISSING, joined(where, required))
        return found

    return parse


def record(kind: type[Any], parsers: Mapping[str, Parser], required: str = "") -> Parser:
    """A mapping that becomes the dataclass *kind*, whose defaults fill the gaps."""
    fields = mapping(parsers, required)
    return lambda value, where: kind(**fields(value, where))


def listed(entry: Parser) -> Parser:
    """A list, each entry read by *entry*; what stands twice is kept once."""

    def parse(value: object, where: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            single = isinstance(value, int) and not isinstance(value, bool)
            raise _wrong(value, where, f"a list, as in [{shown(value)}]" if single else "a list")
        if len(value) > MAX_ENTRIES:
            raise ConfigError(f"has {len(value)} entries", where, f"must have at most {MAX_ENTRIES}")
        return tuple(dict.fromkeys(entry(inner, f"{where}[{n}]") for n, inner in enumerate(value)))

    return parse


def choice(*allowed: str) -> Parser:
    """One of the words *allowed*."""
    words = f"{', '.join(allowed[:-1])} or {allowed[-1]}"

    def parse(value: object, where: str) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise _wrong(value, where, words)
        return value

    return parse


def flag(value: object, where: str) -> bool:
    """``true`` or ``false``; no word, no number."""
    if not isinstance(value, bool):
        raise _wrong(value, where, "true or false")
    return value


def port(value: object, where: str) -> int:
    """One port number, as an int or its plain digits."""
    number = _port_number(value)
    if not number:
        raise _wrong(value, where, _ONE_PORT)
    return number


def ports(other_forms: str = "") -> Parser:
    """``80``, ``"80"``, ``"8000-8010"`` or ``"8000:8010"`` as (first, last).

    *other_forms* is what else the message shall name as allowed here.
    """

    def parse(value: object, where: str) -> tuple[int, int]:
        text = isinstance(value, str) and len(value) <= len("65535-65535")
        numbers = [_port_number(part) for part in (re.split("[-:]", str(value)) if text else [value])]
        if 0 in numbers or len(numbers) > 2:
            raise _wrong(value, where, f'{_ONE_PORT} or a range like "8000-8010"{other_forms}')
        first, last = numbers[0], numbers[-1]
        if first > last:
            raise ConfigError(f"is {shown(value)}, which runs backwards", where, f'write "{last}-{first}"')
        return first, last

    return parse


def network(value: object, where: str) -> str:
    """An IP address or network, as the text of a network: ``10.0.0.1`` is ``10.0.0.1/32``."""
    address, prefix = _address_and_prefix(value, where)
    found = ipaddress.ip_network(f"{address}/{prefix or address.max_prefixlen}", strict=False)
    if address != found.network_address:
        what = f"is {shown(value)}, which has bits set behind its prefix"
        raise ConfigError(what, where, f"write {found}, or {address} for the one host")
    if int(address) == 0 and found.num_addresses == 1:
        what = f"is {shown(value)}, which is nobody's address"
        raise ConfigError(what, where, f"write {address}/0, or leave it out for both families")
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        what = f"is {shown(value)}, which goes over the wire as IPv4"
        raise ConfigError(what, where, f"write {address.ipv4_mapped}")
    return str(found)


def paths(value: object, where: str) -> tuple[str, ...]:
    """An absolute path or a list of them."""
    if isinstance(value, str):
        return (_path(value, where),)
    if not isinstance(value, list):
        raise _wrong(value, where, "an absolute path or a list of them")
    found: tuple[str, ...] = listed(_path)(value, where)
    return found


def module(value: object, where: str) -> str:
    """A kernel module's name as the kernel writes it, with ``_`` for ``-``."""
    if not isinstance(value, str) or not re.fullmatch(f"[A-Za-z0-9_-]{{1,{MAX_MODULE}}}", value):
        raise _wrong(value, where, "a module's name like nf_conntrack_ftp, without path and .ko")
    return value.replace("-", "_")


def probe(value: object, where: str) -> tuple[str, int]:
    """``host:port`` or ``[v6]:port`` as (host, port); the host is no more than looked at."""
    text = value if isinstance(value, str) else ""
    host, colon, digits = text.rpartition(":")
    number = _port_number(digits)
    bracketed = host.startswith("[") and host.endswith("]")
    name = _ip_text(host[1:-1], 6) if bracketed else _ip_text(host, 4)
    if not name and _HOST_NAME.fullmatch(host):
        name = host.lower()
    if not colon or not number or not name:
        raise _wrong(value, where, "host:port like 10.0.0.5:8080, lb.example.org:443 or [2001:db8::1]:443")
    return name, number


def _wrong(value: object, where: str, allowed: str) -> ConfigError:
    what = "is missing" if value is MISSING else f"is {shown(value)}"
    return ConfigError(what, where, f"must be {allowed}")


def _nearest(key: object, known: Mapping[str, Parser]) -> str:
    import difflib  # here: only for a message

    word = key[:40].lower() if isinstance(key, str) else ""
    near = difflib.get_close_matches(word, known, 1)
    allowed = f"known are {', '.join(known)}"
    return f"did you mean {near[0]}? {allowed}" if near else allowed


def _port_number(value: object) -> int:
    """A port number from an int or its plain digits; 0 for everything else."""
    if isinstance(value, str) and re.fullmatch("[1-9][0-9]{0,4}", value):
        value = int(value)
    # Python counts True among the ints.
    if not isinstance(value, int) or isinstance(value, bool):
        return 0
    return value if 1 <= value <= 65535 else 0


def _address_and_prefix(value: object, where: str) -> tuple[_Address, str]:
    """The two halves of an IP network, unjudged; the prefix is ``""`` where there is none."""
    allowed = "an IP address or network like 10.0.0.0/16 or 2001:db8::/32"
    # Digits only behind the slash (no mask), and no 010.0.0.1: Pythons differ on both.
    shape = r"(?!.*(\b0[0-9]+\.|\.0[0-9]))([0-9A-Fa-f:.]{2,45})(?:/([0-9]{1,3}))?"
    match = re.fullmatch(shape, value) if isinstance(value, str) else None
    if not match:
        raise _wrong(value, where, allowed)
    prefix = match.group(3) or ""
    try:
        address = ipaddress.ip_address(match.group(2))
    except ValueError:
        raise _wrong(value, where, allowed) from None
    if prefix and int(prefix) > address.max_prefixlen:
        raise _wrong(value, where, f"a network with a prefix of at most /{address.max_prefixlen}")
    return address, prefix


def _ip_text(text: str, version: int) -> str:
    """*text* normalised when it is an address of that IP *version*, else ``""``."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return ""
    return str(address) if address.version == version and "%" not in text else ""


def _path(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.startswith("/") or len(value) > MAX_PATH:
        raise _wrong(value, where, "an absolute path like /etc/haproxy/haproxy.cfg")
    if not value.isprintable() or ".." in value.split("/"):
        raise _wrong(value, where, "a path of printable characters without ..")
    return value
