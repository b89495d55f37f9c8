"""The plots of ``bench/results``, drawn from its JSON alone: they can be made anew without measuring.

``python -m bench.plots [NAME ...]`` needs matplotlib (requirements.txt).  The same figures give the same bytes.  A
bench gets its plot by one function here, in ``PLOTS``.  Colours are Okabe's and Ito's, told apart by who confuses red
and green; shapes and words say the same.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.kept import RESULTS

STYLE = {"svg.hashsalt": "cloudinit-conntrack", "svg.fonttype": "path", "font.size": 9, "axes.spines.top": False,
         "axes.spines.right": False, "figure.facecolor": "white", "axes.axisbelow": True}  # fmt: skip
GREY, BLUE, ORANGE, GREEN, VERMILION = "#666666", "#0072B2", "#E69F00", "#009E73", "#D55E00"
LOOKS = {"no rules": (GREY, "o"), "stateful": (VERMILION, "X"), "NOTRACK by hand": (ORANGE, "^"),
         "stateless by hand": (ORANGE, "v"), "apply": (BLUE, "D")}  # fmt: skip
GOAL = 0.98
LEAST = 0.1  # what is less would leave no room for the others
Cell = dict[str, Any]


def effect(found: dict[str, Any]) -> Figure:
    """Rate and processor time beside "no rules", and below, what a full table leaves of the rate."""
    groups: dict[str, list[Cell]] = {}
    for cell in found["cells"]:
        groups.setdefault(cell["group"], []).append(cell)
    full = next((cells for name, cells in groups.items() if name.endswith(", full")), [])
    rows = sum(len(cells) for cells in groups.values()) + len(groups)
    figure = Figure(figsize=(10, 1.6 + 0.21 * rows + (0.4 + 0.3 * len(full))), layout="constrained")
    heights = [rows, max(4, 1.6 * len(full))]
    grid = figure.add_gridspec(2 if full else 1, 2, height_ratios=heights if full else [1])
    rate, cpu = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    _forest(rate, groups, "rate_ratio", "New connections per second, beside no rules")
    _forest(cpu, groups, "balancer_ratio", "Processor time of each connection, beside no rules")
    rate.axvline(GOAL, color=GREEN, linestyle="--", linewidth=1)
    rate.annotate(f"goal {GOAL}", (GOAL, 0), xytext=(-3, 6), textcoords="offset points", color=GREEN, ha="right",
                  xycoords=("data", "axes fraction"))  # fmt: skip
    cpu.tick_params(labelleft=False)
    if full:
        _cliff(figure.add_subplot(grid[1, :]), full)
    about = found["machine"]
    figure.suptitle(f"haproxy {about['haproxy']}, Linux {about['kernel']}, {about['processors']} processors, "
                    f"{about['rounds']} rounds; medians with 95 % intervals", fontsize=9, color=GREY)  # fmt: skip
    return figure


def _look(kind: str) -> tuple[str, str]:
    return next(look for name, look in LOOKS.items() if kind.startswith(name))


def _forest(axes: Axes, groups: dict[str, list[Cell]], key: str, title: str) -> None:
    """A row for each variant, under the name of its group."""
    at, places, names = 0, [], []
    for group, cells in groups.items():
        places.append(at)
        names.append(group)
        for cell in cells[1:]:
            at += 1
            places.append(at)
            names.append(cell["kind"])
            if cell[key] and cell[key]["median"] > LEAST:
                _dot(axes, at, cell[key], *_look(cell["kind"]))
            else:
                axes.annotate("stalled: see below", (0.02, at), xycoords=("axes fraction", "data"), va="center",
                              color=_look(cell["kind"])[0])  # fmt: skip
        at += 2
    axes.axvline(1.0, color=GREY, linewidth=1)
    axes.set_yticks(places, names)
    for name, label in zip(names, axes.get_yticklabels()):
        if name in groups:
            label.set_fontweight("bold")
    axes.set_ylim(at - 1, -1)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#dddddd")
    axes.set_title(title, fontsize=9, loc="left")


def _dot(axes: Axes, at: float, ratio: dict[str, float], colour: str, shape: str) -> None:
    axes.plot([ratio["low"], ratio["high"]], [at, at], color=colour, linewidth=2, solid_capstyle="butt")
    axes.plot([ratio["median"]], [at], color=colour, marker=shape, markersize=5, markeredgecolor="white",
              markeredgewidth=0.5)  # fmt: skip


def _cliff(axes: Axes, cells: list[Cell]) -> None:
    """Connections per second with a full table, on a logarithmic scale."""
    floor = 1.0
    for at, cell in enumerate(cells):
        rate = cell["rate"]["median"]
        axes.barh(at, max(rate, floor * 1.04), color=_look(cell["kind"])[0], height=0.7)
        axes.annotate(f"{rate:,.0f}", (max(rate, floor * 1.04), at), xytext=(4, 0), textcoords="offset points",
                      va="center")  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(floor, max(cell["rate"]["median"] for cell in cells) * 2)
    axes.set_yticks(range(len(cells)), [cell["kind"] for cell in cells])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#dddddd")
    axes.set_title(f"New connections per second while the table is full ({cells[-1]['entries']:,} entries)",
                   fontsize=9, loc="left")  # fmt: skip


def memory(found: dict[str, Any]) -> Figure:
    """What the entries take and give back."""
    figure = Figure(figsize=(7, 2.4), layout="constrained")
    axes = figure.subplots()
    rows = {"the entries' own slab": found["slabs"], "all slabs": found["all_slabs"],
            "given back when emptied": found["given_back"]}  # fmt: skip
    for at, (value, colour) in enumerate(zip(rows.values(), (ORANGE, VERMILION, BLUE))):
        spread = [[value["median"] - value["least"]], [value["most"] - value["median"]]]
        axes.barh(at, value["median"], color=colour, height=0.6, xerr=spread, capsize=3)
        axes.annotate(f"{value['median']:.0f} MiB", (value["most"], at), xytext=(6, 0), textcoords="offset points",
                      va="center")  # fmt: skip
    axes.barh(len(rows), found["hash"] / (1 << 20), color=GREY, height=0.6)
    axes.annotate(f"{found['hash'] / (1 << 20):.0f} MiB, entries or not", (found["hash"] / (1 << 20), len(rows)),
                  xytext=(6, 0), textcoords="offset points", va="center")  # fmt: skip
    axes.set_yticks(range(len(rows) + 1), [*rows, "the hash"])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.15)
    axes.set_xlabel("MiB (whiskers: least to most)")
    axes.set_title(f"The conntrack table at {found['entries']:,} entries", fontsize=9, loc="left")
    return figure


def handle(found: dict[str, Any]) -> Figure:
    """Wall time over the number of ports, ours and the recipe's, one panel for each version and mode."""
    panels: dict[tuple[str, str], list[Cell]] = {}
    for row in found["rows"]:
        panels.setdefault((row["version"], row["mode"]), []).append(row)
    figure = Figure(figsize=(3.4 * len(panels), 3.2), layout="constrained")
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, ((version, mode), rows) in zip(all_axes, panels.items()):
        ports = [row["ports"] for row in rows]
        for side, name, colour, shape in (("recipe", "shell recipe", ORANGE, "^"), ("handle", "handle()", BLUE, "D")):
            walls = [row[side]["wall"] for row in rows]
            below, above = zip(*((w["median"] - w["least"], w["most"] - w["median"]) for w in walls))
            axes.errorbar(ports, [wall["median"] for wall in walls], (below, above), color=colour, marker=shape,
                          capsize=3, label=name)  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(ports, [str(port) for port in ports])
        axes.set_xlabel("ports")
        axes.grid(color="#dddddd")
        axes.set_title(f"cloud-init {version}, {mode}", fontsize=9, loc="left")
    all_axes[0].set_ylabel("wall time, ms (least to most)")
    all_axes[0].legend(frameon=False)
    return figure


def start(found: dict[str, Any]) -> Figure:
    """Wall time and memory of each command."""
    rows = [row for row in found["rows"] if row["command"] != "bare"]
    figure = Figure(figsize=(9, 1.2 + 0.25 * len(rows)), layout="constrained")
    for axes, key, title, goal in zip(figure.subplots(1, 2, sharey=True), ("wall", "mib"),
                                      ("wall time, ms", "largest process, MiB"), (250, 40)):
        _bars(axes, rows, key)
        axes.axvline(goal, color=GREEN, linestyle="--", linewidth=1)
        axes.set_title(f"{title}; dashed: the goal for verify", fontsize=9, loc="left")
    return figure


def unit(found: dict[str, Any]) -> Figure:
    """The unit in its guest, and the same command outside."""
    outside = found["outside"]["boot"]
    rows = [{"command": name, "shown": value} for name, value in (
        ("blame, in the guest", found["blame"]), ("processor, in the guest", found["cpu"]),
        ("wall, outside", outside["wall"]), ("processor, outside", outside["cpu"]))]
    figure = Figure(figsize=(7, 2.2), layout="constrained")
    axes = figure.subplots()
    _bars(axes, rows, "shown")
    axes.set_xscale("log")
    axes.set_title("The boot service with nothing to do, ms; the guest is user-mode Linux", fontsize=9, loc="left")
    return figure


def speed(found: dict[str, Any]) -> Figure:
    """Processor time before and after, and what it is divided by."""
    rows = found["rows"]
    figure = Figure(figsize=(7, 1.2 + 0.25 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for at, row in enumerate(rows):
        before, after = (row["cpu"][side]["median"] for side in ("before", "after"))
        axes.plot([before, after], [at, at], color=GREY, linewidth=1)
        axes.plot([before], [at], color=ORANGE, marker="^")
        axes.plot([after], [at], color=BLUE, marker="D")
        axes.annotate(f"{row['cpu']['ratio']['median']:.1f} times", (max(before, after), at), xytext=(8, 0),
                      textcoords="offset points", va="center")  # fmt: skip
    axes.set_yticks(range(len(rows)), [f"{row['mode']}, {row['ports']} ports: {row['command']}" for row in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.2)
    axes.set_title("Processor time, ms: before (triangle) and after (diamond)", fontsize=9, loc="left")
    return figure


def _bars(axes: Axes, rows: list[Cell], key: str) -> None:
    """A bar for each row, least to most; ours are blue."""
    for at, row in enumerate(rows):
        value = row[key]
        spread = [[value["median"] - value["least"]], [value["most"] - value["median"]]]
        axes.barh(at, value["median"], color=GREY if row["command"] == "by hand" else BLUE, height=0.6, xerr=spread,
                  capsize=3)  # fmt: skip
        axes.annotate(f"{value['median']:,.0f}", (value["most"], at), xytext=(5, 0), textcoords="offset points",
                      va="center")  # fmt: skip
    names = [f"{row['mode']}, {row['ports']} ports: " if "ports" in row else "" for row in rows]
    axes.set_yticks(range(len(rows)), [name + row["command"] for name, row in zip(names, rows)])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.15)


PLOTS: dict[str, Callable[[dict[str, Any]], Figure]] = {
    "effect": effect, "memory": memory, "handle": handle, "start": start, "unit": unit, "speed": speed}


def draw(name: str, place: Path = RESULTS) -> Path:
    """Draw ``NAME.json`` of *place* into ``NAME.svg``; gives its path."""
    found = json.loads((place / f"{name}.json").read_text(encoding="utf-8"))
    drawn = place / f"{name}.svg"
    with matplotlib.rc_context(STYLE):
        PLOTS[name](found).savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    return drawn


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw what is asked for, or whatever has results."""
    parser = argparse.ArgumentParser(prog="python -m bench.plots", description="Draw the results again.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PLOTS)}; default: what has results")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where they are; default bench/results")
    chosen = parser.parse_args(arguments)
    unknown = sorted(set(chosen.names) - set(PLOTS))
    if unknown:
        parser.error(f"no plot of {', '.join(unknown)}")
    for name in chosen.names or [name for name in PLOTS if (chosen.results / f"{name}.json").exists()]:
        print(draw(name, chosen.results))


if __name__ == "__main__":
    main()
