"""Figures with their spread, and the files of ``bench/results`` that keep them."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
_TOOK = re.compile(r"(?:(\d+)min )?(?:([\d.]+)s)?(?:([\d.]+)ms)?$")


def machine(python: str) -> dict[str, Any]:
    """Where figures come from, and how busy it was; *python* is the version that ran."""
    return {"python": python, "kernel": platform.release(), "processors": os.cpu_count(), "load": os.getloadavg()[0],
            "date": time.strftime("%Y-%m-%d")}


def summary(values: Sequence[float], scale: float = 1.0) -> dict[str, float]:
    """Median and spread of *values*, each times *scale*."""
    return {"median": statistics.median(values) * scale, "least": min(values) * scale, "most": max(values) * scale}


def told(value: dict[str, float], digits: int) -> str:
    """A :func:`summary` for a reader."""
    return f"{value['median']:.{digits}f} ({value['least']:.{digits}f} to {value['most']:.{digits}f})"


def seconds(text: str) -> float:
    """``1min 2.345s``, ``2.345s`` or ``345ms`` as systemd-analyze writes it, in seconds."""
    found = _TOOK.match(text.strip())
    assert found is not None and text.strip(), text
    minutes, whole, thousandths = (float(part or 0) for part in found.groups())
    return 60 * minutes + whole + thousandths / 1000


def keep(name: str, found: dict[str, Any], text: str, results: Path = RESULTS) -> None:
    """Write ``NAME.json`` and ``NAME.md`` into *results*, and print the text."""
    results.mkdir(parents=True, exist_ok=True)
    (results / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")
    (results / f"{name}.md").write_text(text)
    print(text, end="")
