"""What conntrack costs a balancer: new connections per second, and processor time for each.

``python -m bench.effect`` as root, on the machine itself (the limit of the table can be set in its first network
namespace only, and is put back).  In each round every group of variants is visited in random order, and in a group
every variant, for a short window; a variant is compared with "no rules" of the same group and round.  A group's second
"no rules" shows what that comparison is worth.  Writes ``results/effect.json``, ``.md`` and ``effect-rounds.csv``;
``python -m bench.plots`` draws them.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import effect_text, kept, table
from bench.intervals import interval
from bench.kept import summary
from bench.load import Window, client
from bench.variants import LARGE, Ready, Variant, ready
from tests.netns.applying import mount_points

ROUNDS = 60
SECONDS = 0.25  # of a window
STALLED = 2.0  # seconds of a window in which hardly anything is let in: a refused SYN is sent again after one
APPLIED = ("apply notrack", "apply stateless", "apply unload")
BASE = "no rules"
ALL = (BASE, "no rules again", "stateful", "NOTRACK by hand", "stateless by hand", *APPLIED)
# One of each pair is enough where rules are many: unload's rules are those of stateless on this kernel.
MANY = (BASE, "stateful", "stateless by hand", "apply notrack", "apply stateless")
Figures = dict[str, list[Window]]


@dataclass(frozen=True)
class Group:
    """Variants that are compared with each other; *limit* is that of the conntrack table (0: the machine's)."""

    name: str
    variants: tuple[Variant, ...]
    limit: int = 0


def _group(name: str, kinds: Sequence[str], **more: Any) -> Group:
    return Group(name, tuple(Variant(kind, **more) for kind in kinds))


def _filled(name: str, kinds: Sequence[str], limit: int) -> Group:
    """No rules, no table; all others with a table of ``ENTRIES``."""
    return Group(name, tuple(Variant(kind, entries=0 if kind.startswith(BASE) else table.ENTRIES, limit=limit)
                             for kind in kinds), limit)  # fmt: skip


EMPTY = (
    _group("10 rules, iptables-legacy", ALL),
    _group("10 rules, iptables-nft", (BASE, *ALL[2:]), backend="nft"),
    _group("1,000 rules, iptables-legacy", MANY, rules=LARGE),
    _group("1,000 rules, iptables-nft", MANY, rules=LARGE, backend="nft"),
    _group("10 rules, iptables-legacy, IPv6", (BASE, "stateful", *APPLIED[:2]), family="ipv6"),
)
FULL = (
    _filled("500,000 entries, room for as many", (BASE, "stateful"), table.ROOM),
    _filled("500,000 entries, full", (BASE, "no rules again", "stateful", "NOTRACK by hand", *APPLIED), table.ENTRIES),
)
QUICK = (_group("10 rules, iptables-legacy", (BASE, "stateful", "apply stateless")),)


@contextmanager
def prepared(groups: Sequence[Group], files: Path) -> Iterator[dict[Variant, Ready]]:
    """Every variant of *groups* on a site of its own, proved."""
    files.mkdir()
    with ExitStack() as stack:
        made: dict[Variant, Ready] = {}
        for variant in dict.fromkeys(variant for group in groups for variant in group.variants):
            started = time.monotonic()
            made[variant] = stack.enter_context(ready(variant, files / str(len(made))))
            _say(f"{variant}: {made[variant].proof}, {time.monotonic() - started:.1f} s")
        yield made


def visited(one: Ready, seconds: float) -> Window:
    """One window of a variant; one that conntrack stalls gets a new client, and time."""
    stalled = one.variant.tracked and 0 < one.variant.limit <= one.variant.entries
    if not one.variant.entries:
        one.site.balancer.forget_connections()
    if stalled:
        with client(one.site, one.variant.family) as fresh:
            return fresh.window(STALLED)
    return one.client.window(seconds)


def measured(groups: Sequence[Group], rounds: int, seconds: float, chance: random.Random, files: Path
             ) -> list[dict[str, Any]]:
    """All of *groups* for *rounds* rounds; a list of cells."""
    with prepared(groups, files) as sites:
        seen: dict[tuple[Group, Variant], list[Window]] = {
            (group, variant): [] for group in groups for variant in group.variants}
        for number in range(rounds):
            for group in chance.sample(groups, len(groups)):
                with table.limited(group.limit):
                    for variant in chance.sample(group.variants, len(group.variants)):
                        seen[group, variant].append(visited(sites[variant], seconds))
            _say(f"round {number + 1} of {rounds}")
        return [_cell(group, sites[variant], windows, seen[group, group.variants[0]], chance)
                for (group, variant), windows in seen.items()]


def _cell(group: Group, one: Ready, windows: list[Window], base: list[Window], chance: random.Random
          ) -> dict[str, Any]:
    """What is kept of one variant in one group."""
    found: dict[str, Any] = {"group": group.name, **dataclasses.asdict(one.variant), "limit": group.limit,
                             "proof": dataclasses.asdict(one.proof)}  # fmt: skip
    for name in ("rate", "balancer", "whole", "busy"):
        values = [getattr(window, name) for window in windows]
        found[name] = summary([value for value in values if not math.isnan(value)] or [0.0])
        pairs = [value / getattr(other, name) for value, other in zip(values, base) if getattr(other, name)]
        ratios = [value for value in pairs if not math.isnan(value)]
        found[f"{name}_ratio"] = interval(ratios, chance.randrange(1 << 32)) if ratios else None
    for name in ("good", "bad", "again"):
        found[name] = sum(getattr(window, name) for window in windows)
    return {**found, "windows": [dataclasses.asdict(window) for window in windows]}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def about(rounds: int, seconds: float, seed: int) -> dict[str, Any]:
    """Where the figures come from, and how they were made."""
    python = sys.version.split()[0]
    haproxy = subprocess.run(["haproxy", "-v"], capture_output=True, text=True, check=True).stdout.split()[2]
    return {**kept.machine(python), "haproxy": haproxy, "rounds": rounds, "seconds": seconds, "seed": seed,
            "entries": table.ENTRIES, "buckets": table.BUCKETS, "interval": "percentile bootstrap over rounds, 95 %"}


def run(rounds: int, seconds: float, seed: int, stages: Sequence[Sequence[Group]]) -> dict[str, Any]:
    """Everything that is measured; the machine's settings are put back."""
    found: dict[str, Any] = {"machine": about(rounds, seconds, seed), "cells": []}
    chance = random.Random(seed)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as place, mount_points():
        for number, groups in enumerate(stages):
            with _roomy(groups):
                found["cells"] += measured(groups, rounds, seconds, chance, Path(place, str(number)))
    found["machine"]["minutes"] = (time.monotonic() - started) / 60
    found["machine"]["load_after"] = os.getloadavg()[0]
    return found


@contextmanager
def _roomy(groups: Sequence[Group]) -> Iterator[None]:
    """Room for every full table of *groups*, in a hash as crowded as one of them alone would make it."""
    tables = len({variant for group in groups for variant in group.variants if variant.entries})
    if not tables:
        yield  # the machine's settings are not touched
        return
    with table.kept_settings():
        table.put("buckets", table.BUCKETS * tables)
        table.put("max", table.ROOM)
        yield


def keep_rounds(found: dict[str, Any], place: Path) -> None:
    """Every window, for who wants to judge by other means; they leave *found*."""
    with (place / "effect-rounds.csv").open("w", encoding="ascii", newline="") as out:
        rows = csv.writer(out, lineterminator="\n")
        rows.writerow(["group", "kind", "round", *(field.name for field in dataclasses.fields(Window))])
        for cell in found["cells"]:
            for number, window in enumerate(cell.pop("windows")):
                values = (f"{value:.4g}" if isinstance(value, float) else value for value in window.values())
                rows.writerow([cell["group"], cell["kind"], number + 1, *values])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(prog="python -m bench.effect", description="What conntrack costs a balancer.")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default {ROUNDS}")
    parser.add_argument("--seed", type=int, default=7, help="of the order and of the intervals; default 7")
    parser.add_argument("--quick", action="store_true", help="three variants, two rounds: only to see that it works")
    parser.add_argument("--results", type=Path, default=kept.RESULTS, help="where to write; default bench/results")
    chosen = parser.parse_args(arguments)
    stages: Sequence[Sequence[Group]] = (QUICK,) if chosen.quick else (EMPTY, FULL)
    found = run(2 if chosen.quick else chosen.rounds, SECONDS, chosen.seed, stages)
    chosen.results.mkdir(exist_ok=True)
    keep_rounds(found, chosen.results)
    kept.keep("effect", found, effect_text.told(found), chosen.results)


if __name__ == "__main__":
    main()
