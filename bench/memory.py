"""What the conntrack table takes: memory at 500,000 entries, filled and emptied in turns.

``python -m bench.memory`` as root, on the machine itself.  A network namespace of its own, with a rule that switches
conntrack on, sends datagrams over loopback, each to another address: the kernel makes the entries, as it does for
clients.  Read are /proc/slabinfo (the entries' own slab) and /proc/meminfo (everything: their extensions, too).  The
hash is there once for the machine, with entries or without.  Writes ``results/memory.json`` and ``results/memory.md``.
"""

from __future__ import annotations

import argparse
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import kept, table
from bench.kept import summary, told
from bench.variants import stateful
from tests.netns.namespace import Namespace

TURNS = 5
ENTRIES = 500_000
PORT = 9
POINTER = 8  # bytes; the hash is an array of list heads (struct hlist_nulls_head)
PAGE = 4096
MIB = 1 << 20
SETTLING = 2.0  # seconds; freed slabs go back after a grace period of RCU
SYSCTLS: dict[str, object] = {"net.netfilter.nf_conntrack_udp_timeout": 3600}
Reading = dict[str, int]


def reading() -> Reading:
    """Bytes, by the kernel's own words: slabs of entries, all slabs, what is available."""
    found: Reading = {}
    for line in Path("/proc/slabinfo").read_text(encoding="ascii").splitlines():
        words = line.split()
        if words[0] == "nf_conntrack":  # slabinfo(5)
            found.update(active=int(words[1]), object=int(words[3]), slabs=int(words[14]) * int(words[5]) * PAGE)
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, value = line.split()[:2]
        if name in ("Slab:", "MemAvailable:"):
            found[name[:-1]] = int(value) * 1024
    if "object" not in found:
        raise RuntimeError("/proc/slabinfo has no nf_conntrack: is the module loaded?")
    return found


def send(place: Namespace, entries: int) -> None:
    """That many datagrams to as many addresses of loopback, which a socket takes in and nobody reads."""
    with place.inside(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink, \
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as source:
        sink.bind(("0.0.0.0", PORT))
        for number in range(entries):
            source.sendto(b"", (f"127.{1 + (number >> 16)}.{number >> 8 & 255}.{number & 255}", PORT))


def turn(place: Namespace, entries: int) -> dict[str, float]:
    """Fill and empty the table; bytes that went and came back."""
    before = reading()
    started = time.monotonic()
    send(place, entries)
    found, seconds = table.count(place), time.monotonic() - started
    full = reading()
    place.forget_connections()
    time.sleep(SETTLING)
    after = reading()
    if found < entries:
        raise RuntimeError(f"{found} entries of {entries}: conntrack did not see every datagram")
    taken = {name: full[name] - before[name] for name in ("slabs", "Slab", "MemAvailable")}
    return {"entries": found, "seconds": seconds, "object": full["object"], "active": full["active"] - before["active"],
            "slabs": taken["slabs"], "all_slabs": taken["Slab"], "available": -taken["MemAvailable"],
            "given_back": full["Slab"] - after["Slab"], "each": taken["Slab"] / found}  # fmt: skip


def measured(turns: int, entries: int) -> list[dict[str, float]]:
    """Alternate *turns* times; the first, which warms up, is not kept."""
    place = Namespace("host")
    try:
        place.run("ip", "link", "set", "lo", "up")
        place.load_rules(stateful(10, "ipv4"), "legacy", "ipv4")
        place.sysctl(SYSCTLS)
        found = []
        for number in range(turns + 1):
            found.append(turn(place, entries))
            print(f"turn {number} of {turns}", file=sys.stderr, flush=True)
        return found[1:]
    finally:
        place.close()


def text(found: dict[str, Any]) -> str:
    """The results for a reader."""
    about = found["machine"]
    rows = (("the entries' own slab (nf_conntrack)", "slabs"), ("all slabs", "all_slabs"),
            ("memory that is no longer available", "available"), ("all slabs, given back when emptied", "given_back"))
    lines = [
        "# What the conntrack table takes", "",
        f"{found['entries']:,} entries, made by packets; filled and emptied in turns, {found['turns']} times: medians "
        f"(least to most). Linux {about['kernel']}, {about['processors']} processors, load {about['load']:.1f}, "
        f"{about['date']}.", "",
        "| what | MiB |", "|---|---:|",
        *(f"| {name} | {told(found[key], 1)} |" for name, key in rows),
        f"| the hash, {found['buckets']:,} buckets, with entries or without | {found['hash'] / MIB:.1f} |", "",
        f"An entry is an object of {found['object']} bytes, {told(found['each'], 0)} with all that belongs to it.",
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description="What the conntrack table takes.")
    parser.add_argument("--turns", type=int, default=TURNS, help=f"default {TURNS}")
    parser.add_argument("--entries", type=int, default=ENTRIES, help=f"default {ENTRIES}")
    parser.add_argument("--results", type=Path, default=kept.RESULTS, help="where to write; default bench/results")
    chosen = parser.parse_args(arguments)
    found: dict[str, Any] = {"machine": kept.machine(sys.version.split()[0]), "turns": chosen.turns,
                             "entries": chosen.entries}  # fmt: skip
    found.update(buckets=table.setting("buckets"), hash=table.setting("buckets") * POINTER)
    with table.kept_settings():
        if chosen.entries > table.setting("max"):
            table.put("max", table.ROOM)
        turns = measured(chosen.turns, chosen.entries)
    for name in ("slabs", "all_slabs", "available", "given_back"):
        found[name] = summary([one[name] for one in turns], 1 / MIB)
    found["each"] = summary([one["each"] for one in turns])
    found["seconds"] = summary([one["seconds"] for one in turns])
    found["object"] = int(turns[0]["object"])
    kept.keep("memory", found, text(found), chosen.results)


if __name__ == "__main__":
    main()
