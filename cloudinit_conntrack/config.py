"""The ``conntrack:`` section -> :class:`Desired`: what the host shall be like.

Pure: text or a Python value in, a frozen value out.  Each mistake gives one
:class:`~cloudinit_conntrack.errors.ConfigError` with the path, what is wrong, and what is
allowed; of several mistakes the first in the document's order is told.  The defaults
stand here, in the dataclasses; ``schema/conntrack.schema.json`` repeats them for people
and editors, and a test keeps both alike.  jsonschema takes no part: its messages for "one
of these forms" name every form but the one that was meant.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import fields
from .errors import ConfigError


@dataclass(frozen=True)
class Flow:
    """One kind of connection: *protocol* ``tcp`` or ``udp``, *ports* first and last.

    *address* is an IP network such as ``10.0.0.0/16`` or ``2001:db8::1/128``; ``None`` is
    every address of both families.
    """

    protocol: str
    ports: tuple[int, int]
    address: str | None = None

    @property
    def family(self) -> str | None:
        """``ipv4`` or ``ipv6`` after the address, ``None`` for both."""
        if self.address is None:
            return None
        return "ipv6" if ":" in self.address else "ipv4"

    @property
    def everywhere(self) -> bool:
        """Whether it is every address, of its family or of both."""
        return self.address in (None, "0.0.0.0/0", "::/0")


# DNS, NTP, DHCP: whose replies a host hardly lives without.
DEFAULT_OUTBOUND = (Flow("udp", (53, 53)), Flow("udp", (123, 123)), Flow("udp", (67, 67)))


@dataclass(frozen=True)
class Flows:
    """What the host serves and asks for.  *haproxy_cfg*: absolute paths to derive flows from."""

    haproxy_cfg: tuple[str, ...] = ()
    frontends: tuple[Flow, ...] = ()
    backends: tuple[Flow, ...] = ()
    outbound: tuple[Flow, ...] = DEFAULT_OUTBOUND
    all: bool = False

    @property
    def named(self) -> bool:
        """Whether there is any flow for ``mode: notrack`` to work on."""
        return self.all or bool(self.haproxy_cfg or self.frontends or self.backends)


@dataclass(frozen=True)
class Rules:
    """What becomes of rules: *stateful* rewrite, remove or refuse; *nat* refuse or remove."""

    stateful: str = "rewrite"
    nat: str = "refuse"


@dataclass(frozen=True)
class Modules:
    """*block* the modules in modprobe.d; *extra* names, with ``_``; *force* is rmmod -f."""

    block: bool = True
    extra: tuple[str, ...] = ()
    force: bool = False


@dataclass(frozen=True)
class Guard:
    """*keep*: TCP ports that stay reachable, ``None`` for what sshd listens on.

    *probes*: (host, port) that must answer after apply; an IPv6 host without brackets.
    """

    keep: tuple[int, ...] | None = None
    probes: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Desired:
    """The whole section, with every default filled in.  CONTRACT: "The three modes"."""

    mode: str
    fallback: str = "none"
    flows: Flows = Flows()
    rules: Rules = Rules()
    modules: Modules = Modules()
    guard: Guard = Guard()
    on_failure: str = "rollback"
    persist: bool = True


def desired_from_text(text: bytes, name: str) -> Desired:
    """Read a file with a ``conntrack:`` section, alone or among other user-data keys.

    *name* is how messages call the file.  ConfigError when anything is wrong with it.
    """
    from .document import section_of  # here: it loads YAML, which the boot service can do without

    return desired_from_section(section_of(text, name))


def desired_from_section(section: object) -> Desired:
    """Read the value of ``conntrack:`` as cloud-init hands it over (a dict).  ConfigError."""
    desired: Desired = _SECTION(section, "conntrack")
    _refuse_contradictions(desired)
    return desired


def _flow(protocol: str) -> fields.Parser:
    """A flow in one of its forms, *protocol* where it names none."""
    bare = fields.ports(", or {port: 443, protocol: udp, address: 10.0.0.0/16}")
    mapping = fields.mapping(
        {"port": fields.ports(), "protocol": fields.choice("tcp", "udp"), "address": fields.network},
        required="port",
    )

    def parse(value: object, where: str) -> Flow:
        if not isinstance(value, dict):
            return Flow(protocol, bare(value, where))
        found = mapping(value, where)
        return Flow(found.get("protocol", protocol), found["port"], found.get("address"))

    return parse


_FLOWS = fields.record(
    Flows,
    {
        "haproxy_cfg": fields.paths,
        "frontends": fields.listed(_flow("tcp")),
        "backends": fields.listed(_flow("tcp")),
        "outbound": fields.listed(_flow("udp")),
        "all": fields.flag,
    },
)
_RULES = fields.record(
    Rules,
    {
        "stateful": fields.choice("rewrite", "remove", "refuse"),
        "nat": fields.choice("refuse", "remove"),
    },
)
_MODULES = fields.record(
    Modules,
    {"block": fields.flag, "extra": fields.listed(fields.module), "force": fields.flag},
)
_GUARD = fields.record(
    Guard,
    {"keep": fields.listed(fields.port), "probes": fields.listed(fields.probe)},
)
_SECTION = fields.record(
    Desired,
    {
        "mode": fields.choice("notrack", "stateless", "unload"),
        "fallback": fields.choice("none", "stateless", "notrack"),
        "flows": _FLOWS,
        "rules": _RULES,
        "modules": _MODULES,
        "guard": _GUARD,
        "on_failure": fields.choice("rollback", "keep"),
        "persist": fields.flag,
    },
    required="mode",
)


def _refuse_contradictions(desired: Desired) -> None:
    """Settings that are right alone and senseless together: refused, never ignored."""
    mode, flows, modules = desired.mode, desired.flows, desired.modules
    fallback, stateful = desired.fallback, desired.rules.stateful
    for wrong, what, where, remedy in (
        (
            mode == "notrack" and not flows.named,
            "names no flow, and mode: notrack works on named flows",
            "conntrack.flows",
            "give frontends or backends, or all: true",
        ),
        (
            flows.all and mode != "notrack",
            f"is true with mode: {mode}",
            "conntrack.flows.all",
            "remove it (mode: notrack alone allows it)",
        ),
        (
            fallback != "none" and mode != "unload",
            f"is {fallback} with mode: {mode}",
            "conntrack.fallback",
            "remove it (mode: unload alone allows it)",
        ),
        (
            fallback == "notrack" and not flows.named,
            "is notrack, and conntrack.flows names no flow for it",
            "conntrack.fallback",
            "give flows.frontends or flows.backends",
        ),
        (
            stateful != "rewrite" and mode == "notrack" and not flows.all,
            f"is {stateful} with mode: notrack, which leaves the rules of other flows as they are",
            "conntrack.rules.stateful",
            "remove it",
        ),
        (
            bool(modules.extra) and mode != "unload",
            f"names modules with mode: {mode}, which unloads none",
            "conntrack.modules.extra",
            "remove it (mode: unload alone allows it)",
        ),
        (
            modules.force and mode != "unload",
            f"is true with mode: {mode}, which unloads no module",
            "conntrack.modules.force",
            "remove it (mode: unload alone allows it)",
        ),
    ):
        if wrong:
            raise ConfigError(what, where, remedy)
