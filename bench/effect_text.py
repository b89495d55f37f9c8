"""The results of ``bench.effect`` for a reader."""

from __future__ import annotations

from typing import Any

HEAD = """\
# What conntrack costs a balancer

A real haproxy {haproxy} between a client and a server, in network namespaces of one machine: Linux {kernel},
{processors} processors, load {load:.1f} at the start and {load_after:.1f} at the end, {date}; {minutes:.0f} minutes.
{rounds} rounds in random order (seed {seed}), windows of {seconds} s; medians, in brackets their 95 % interval
(percentile bootstrap over rounds). *Ratio* is to "no rules" of the same round. *Balancer* is the processor time of
haproxy with its softirqs, for each connection; *whole* is that of client, balancer and server together. "No rules
again" is the same as "no rules": its interval is what a ratio is worth here. *Tracked* is what conntrack knew of the
client's connections in a burst before the measurement (in brackets: before `apply`). On this kernel, which has
conntrack built in, `unload` settles for `stateless`. How it is measured: docs/explanation/what-it-costs.md.
"""
COLUMNS = ("variant", "connections/s", "ratio", "balancer µs", "ratio", "whole µs", "ratio", "tracked", "not 200",
           "SYN again")  # fmt: skip


def told(found: dict[str, Any]) -> str:
    """The Markdown of ``results/effect.md``."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for cell in found["cells"]:
        groups.setdefault(cell["group"], []).append(cell)
    return HEAD.format(**found["machine"]) + "".join(_table(name, cells) for name, cells in groups.items())


def _table(name: str, cells: list[dict[str, Any]]) -> str:
    rule = "|".join(["---", *["---:"] * (len(COLUMNS) - 1)])
    rows = "".join(f"| {' | '.join(_row(cell))} |\n" for cell in cells)
    return f"\n## {name}\n\n| {' | '.join(COLUMNS)} |\n|{rule}|\n{rows}"


def _row(cell: dict[str, Any]) -> tuple[str, ...]:
    proof = cell["proof"]
    before = f" ({proof['tracked_before']})" if cell["kind"].startswith("apply") else ""
    figures = [text for name, digits in (("rate", 0), ("balancer", 1), ("whole", 1))
               for text in (f"{cell[name]['median']:,.{digits}f}", ratio(cell[f"{name}_ratio"]))]
    return (cell["kind"], *figures, f"{proof['tracked']}{before}", str(cell["bad"]), str(cell["again"]))


def ratio(found: dict[str, float] | None) -> str:
    """A ratio with its interval."""
    return f"{found['median']:.3f} ({found['low']:.3f} to {found['high']:.3f})" if found else "none"
