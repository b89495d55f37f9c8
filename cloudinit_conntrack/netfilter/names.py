"""The names of iptables' options: long and short, whole and cut short.

From the option tables of iptables 1.8.9; tests/upstream looks that no extension's option is
taken for another.
"""

from __future__ import annotations

from functools import lru_cache

COMMANDS = {
    "-A": "-A", "--append": "-A", "-I": "-I", "--insert": "-I", "-D": "-D", "--delete": "-D",
    "-R": "-R", "--replace": "-R", "-N": "-N", "--new": "-N", "--new-chain": "-N",
    "-X": "-X", "--delete-chain": "-X", "-F": "-F", "--flush": "-F", "-Z": "-Z", "--zero": "-Z",
    "-P": "-P", "--policy": "-P", "--pol": "-P", "-E": "-E", "--rename-chain": "-E",
}
BASE = {
    "--protocol": "-p", "--source": "-s", "--src": "-s",
    "--destination": "-d", "--dst": "-d", "--in-interface": "-i", "--out-interface": "-o",
    "--jump": "-j", "--goto": "-g", "--match": "-m", "--fragments": "-f", "--ipv4": "-4", "--ipv6": "-6",
}
SYNONYMS = {
    "--source-port": "--sport", "--destination-port": "--dport",
    "--source-ports": "--sports", "--destination-ports": "--dports", "--set-counters": "-c",
}
# getopt_long takes the beginning of a name for the whole.  These are the beginnings that no two options of
# iptables 1.8.9 share ...
SHORTENED = {
    "--sy": "--syn", "--tcp-f": "--tcp-flags", "--icmp-": "--icmp-type", "--icmpv": "--icmpv6-type",
    "--sta": "--state", "--not": "--notrack", "--comm": "--comment",
}
# ... and these look like one, but are whole names (-m policy, -j CLUSTERIP, -m recent).
WHOLE = frozenset(("--pol", "--proto", "--new", "--set"))
GLUED = tuple("-" + letter for letter in "psdiojgmcAIDRNPXFZE")
# Options whose value is free text, which may look like an option itself: ``--comment -j``.
FREE_TEXT = frozenset(
    ("--comment", "--log-prefix", "--nflog-prefix", "--ulog-prefix", "--string", "--hex-string", "--name",
     "--hashlimit-name", "--nfacct-name", "--rateest-name", "--led-trigger-id", "--helper", "--selctx", "--path",
     "--object-pinned", "--genre", "--timeout", "--label")
)


@lru_cache(maxsize=1024)
def split_name(name: str) -> tuple[str, str | None]:
    """An option word as its canonical name and a value glued to it (``-ptcp``, ``--dport=80``)."""
    if name.startswith("--"):
        name, equals, value = name.partition("=")
        return _canonical(name), value if equals else None
    if len(name) > 2 and name[:2] in GLUED:
        return name[:2], name[2:]
    return name, None


def _canonical(name: str) -> str:
    """The one name of a long option, which may be cut short."""
    if name in WHOLE:
        return name
    known = COMMANDS.get(name) or BASE.get(name) or SYNONYMS.get(name)
    if known:
        return known
    for short, long in SHORTENED.items():
        if name.startswith(short) and long.startswith(name):
            return long
    names = {**BASE, **COMMANDS}
    meant = {names[long] for long in names if name[2:] and long.startswith(name)}
    return meant.pop() if len(meant) == 1 else name
