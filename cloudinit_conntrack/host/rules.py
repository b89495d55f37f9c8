"""The rules in the kernel: read, put back, dropped, and proved to load.

Observing must not load a module, and nearly every way to list rules can
(``iptables -t nat -L`` loads conntrack itself).  So the legacy tables are saved only when
the kernel lists one in ``/proc/net/ip_tables_names``, those of nf_tables only when
nf_tables is there already, and never with ``-t``.
"""

from __future__ import annotations

import json
import os
import re
from functools import cache

from ..errors import CommandError, HostError
from ..state import BACKENDS, FAMILIES, LiveRules
from . import kernel
from .native import beyond_iptables, no_nf_tables
from .process import Completed, failure, find, private_namespace, quoted, run
from .root import HOST, Root

_COMMAND = {"ipv4": "iptables", "ipv6": "ip6tables"}
_NAMES = {"ipv4": "/proc/net/ip_tables_names", "ipv6": "/proc/net/ip6_tables_names"}
_NFT_FAMILY = {"ipv4": "ip", "ipv6": "ip6"}
_LOCK_SECONDS = "10"
_RESTORE_SECONDS = 300.0  # 100,000 rules take seconds; on a slow host more
_SETS = re.compile(r"--(match|add|del|map)-set\b")

# The hooks of each table, for a flush; the built-in chains of x_tables.
_CHAINS = {
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "raw": ("PREROUTING", "OUTPUT"),
    "security": ("INPUT", "FORWARD", "OUTPUT"),
}


def live_rules(root: Root = HOST, netns: str | None = None) -> tuple[LiveRules, ...]:
    """The rules of every back end and family, of this network namespace or of *netns*.

    One item each, with an empty text where no table is there.  :class:`HostError` when
    there are tables that cannot be read.
    """
    return tuple(saved_text(backend, family, root, netns) for backend in BACKENDS for family in FAMILIES)


def saved_text(backend: str, family: str, root: Root = HOST, netns: str | None = None) -> LiveRules:
    """What ``iptables-save -c`` of *backend* and *family* prints, untouched."""
    command = _tool(backend, family, "save")
    if backend == "nft":
        return LiveRules(backend, family, _nft_text(command, family, root, netns))
    names = _legacy_tables(family, root, netns)
    if not names:
        return LiveRules(backend, family, "")
    if command is None:
        raise HostError(f"there are legacy tables ({', '.join(names)}) and no {_COMMAND[family]}-legacy-save",
                        _NAMES[family], "install iptables-legacy to let us read them, or reboot without them")
    return LiveRules(backend, family, run([command, "-c"], netns=netns).stdout)


def _nft_text(command: str | None, family: str, root: Root, netns: str | None) -> str:
    """iptables-nft-save's answer; in its own words that it has none, where asking it could load modules."""
    if not kernel.available(root, "nf_tables"):
        return ""
    if find("nft") and not (command and kernel.available(root, "nft_compat")):
        tables = beyond_iptables(_NFT_FAMILY[family], command is None, netns)
        if tables:
            return "".join(f"# Table `{table}' is incompatible, use 'nft' tool.\n" for table in tables)
    if command is None:
        return ""
    done = run([command, "-c"], check=False, netns=netns)
    if done.status != 0 and not no_nf_tables(done):
        raise failure(done)
    return done.stdout


def default_backend(family: str = "ipv4") -> str:
    """``legacy`` or ``nft``: what plain ``iptables-save`` of this host is; empty when there is none.

    Not asked of ``iptables --version``: that opens a netfilter socket first and so loads
    nfnetlink (measured, 1.8.9).
    """
    path = find(f"{_COMMAND[family]}-save")
    return _variant(path) if path else ""


def restore(backend: str, family: str, text: str | bytes, netns: str | None = None) -> None:
    """Replace the tables that *text* holds, each in one transaction, counters included; tested first.

    :class:`CommandError` names the line that the kernel refused.  ip6tables-nft 1.8.9 (Debian
    12) cannot set the counters of a rule: there they start again at 0.
    """
    content = _encoded(text)
    for argv in ((*restore_command(backend, family), "--test"), restore_command(backend, family)):
        done = run(argv, stdin=content, timeout=_RESTORE_SECONDS, check=False, netns=netns)
        if done.status != 0:
            raise _refusal(done, content)


def restore_command(backend: str, family: str) -> tuple[str, ...]:
    """The command that :func:`restore` feeds; :class:`HostError` when the host has none."""
    command = _tool(backend, family, "restore")
    if command is None:
        name = f"{_COMMAND[family]}-{backend}-restore"
        raise HostError(f"the command {name} is not there", name, "install the package iptables")
    return (command, "-c", *_waiting(command))


def drop_table(backend: str, family: str, table: str, root: Root = HOST,
               netns: str | None = None) -> None:
    """Take away *table*, which must hold no rule.  A legacy table can only be flushed: it stays.

    :class:`HostError` when there are rules in it, or a policy that is not ACCEPT.
    """
    lines = _section(saved_text(backend, family, root, netns).text, table)
    if not lines:
        return
    if any("-A " in line or (line.startswith(":") and " DROP " in line) for line in lines):
        raise HostError("is not empty", f"{backend} {family} table {table}", "look at the rules in it first")
    if backend == "nft" and _delete_nft_table(f"{_NFT_FAMILY[family]} {table}", netns):
        return
    chains = "".join(f":{chain} ACCEPT [0:0]\n" for chain in _CHAINS[table])
    restore(backend, family, f"*{table}\n{chains}COMMIT\n", netns)


def _delete_nft_table(name: str, netns: str | None) -> bool:
    """Delete the nft table *name* if nft is there and shows no rule, not even one of its own making."""
    if not find("nft"):
        return False
    shown = run(["nft", "-j", "list", "table", *name.split()], check=False, netns=netns)
    if shown.status != 0 or not shown.stdout.startswith("{"):
        return False  # built without JSON, as on Red Hat 7
    if any("rule" in item for item in json.loads(shown.stdout)["nftables"]):
        raise HostError("holds rules that iptables does not show", f"nft table {name}",
                        f"look at them: nft list table {name}")
    run(["nft", "delete", "table", *name.split()], netns=netns)
    return True


def _section(text: str, table: str) -> tuple[str, ...]:
    """The lines of *table* in *text*, from its ``*`` line up to its COMMIT."""
    lines: list[str] = []
    for line in text.splitlines():
        if lines or line == f"*{table}":
            lines.append(line)
            if line == "COMMIT":
                break
    return tuple(lines)


def load_in_private_namespace(content: str | bytes, family: str) -> str | None:
    """Load a saved rule file as the boot does, in a fresh network namespace; the problem, or ``None``.

    ``iptables-restore --test`` is no proof: it answers 0 for a rule whose match the kernel
    does not have, and for a table that cannot be had.  Loading may load modules.
    """
    command = f"{_COMMAND[family]}-restore"
    body = _encoded(content)
    with private_namespace() as path:
        if _SETS.search(body.decode("utf-8", "replace")) and find("ipset"):
            sets = run(["ipset", "save"]).stdout  # sets belong to a namespace; at boot they come first
            run(["ipset", "restore"], stdin=_encoded(sets), check=False, netns=path)
        argv = [command, *_waiting(command)]
        done = run(argv, stdin=body, timeout=_RESTORE_SECONDS, check=False, netns=path)
    return None if done.status == 0 else _refusal(done, body).what


def _tool(backend: str, family: str, verb: str) -> str | None:
    """``iptables-legacy-save`` and so on, or the plain name where that is the one meant."""
    plain = _COMMAND[family]
    if find(f"{plain}-{backend}-{verb}"):
        return f"{plain}-{backend}-{verb}"
    if find(f"{plain}-{verb}") and default_backend(family) == backend:
        return f"{plain}-{verb}"
    return None


@cache
def _variant(path: str) -> str:
    """By the name of the program behind the links, as on Debian and Red Hat 8+, else by its version.

    Versions name their back end since 1.8.0; before, there was only one, and no such option.
    """
    program = os.path.basename(os.path.realpath(path))
    for backend in BACKENDS:
        if backend in program:
            return backend
    return "nft" if "nf_tables" in run([path, "--version"], check=False).stdout else "legacy"


def _waiting(command: str) -> tuple[str, ...]:
    """The option to wait for the xtables lock, where *command* knows it (1.6.2, and Red Hat's 1.4.21)."""
    path = find(command)
    return ("-w", _LOCK_SECONDS) if path and _knows_wait(path) else ()


@cache
def _knows_wait(path: str) -> bool:
    shown = run([path, "--help"], check=False)
    return "--wait" in shown.stdout + shown.stderr


def _legacy_tables(family: str, root: Root, netns: str | None) -> tuple[str, ...]:
    if netns is None:
        return tuple((root.read_text(_NAMES[family]) or "").split())
    if not root.exists(_NAMES[family]):
        return ()  # the file is there in every namespace, or in none
    return tuple(run(["cat", _NAMES[family]], netns=netns).stdout.split())


def _encoded(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")


def _refusal(done: Completed, content: bytes) -> CommandError:
    """The failure of a restore, with the rule that it stumbled over."""
    error = failure(done)
    found = re.search(r"line:? (\d+)", done.stderr)
    lines = content.decode("utf-8", "replace").splitlines()
    number = int(found.group(1)) if found else 0
    if not 0 < number <= len(lines):
        return error
    return CommandError(f"{error.what} (line {number}: {lines[number - 1].strip()[:200]})", quoted(done.argv))
