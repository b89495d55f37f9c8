"""What conntrack has counted since the kernel made this network namespace.  Reads only, and loads nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from .root import Root

_STATISTICS = "/proc/net/stat/nf_conntrack"
_LIMIT = "/proc/sys/net/netfilter/nf_conntrack_max"


@dataclass(frozen=True)
class Counters:
    """*limit* is the most entries, ``None`` where it is not told; *columns* are counters by the kernel's names."""

    limit: int | None = None
    columns: dict[str, int] = field(default_factory=dict)


def read(root: Root) -> Counters:
    """The counters of this namespace, all processors together; none where there is no conntrack.

    A line for each processor, hexadecimal, under a line of names (nf_conntrack_standalone.c, ct_cpu_seq_show).
    """
    limit = (root.read_text(_LIMIT) or "").strip()
    lines = (root.read_text(_STATISTICS) or "").splitlines()
    names = lines[0].split() if lines else []
    rows = [[int(word, 16) for word in line.split()] for line in lines[1:]]
    columns = {name: sum(row[at] for row in rows if at < len(row)) for at, name in enumerate(names)}
    return Counters(int(limit) if limit.isdigit() else None, columns)
