"""A few of the lockout campaign's rule-sets; ``make lockout`` tries hundreds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from . import lockout
from .topology import BACKENDS

CASES = range(9000, 9008)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nobody_is_locked_out(backend: str, tmp_path: Path) -> None:
    """ssh works before, during and after apply and revert, or the rules are refused and stay as they are."""
    with lockout.campaign(backend, tmp_path) as made:
        told = Counter(made.judge(lockout.case(number)) for number in CASES)
    assert told["applied"] >= 2, told  # what is refused or was shut proves little
