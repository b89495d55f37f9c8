"""Fixtures of the guest tests; the harness itself is in uml.py and full_guest.py."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import guest_image, layer
from .full_guest import FullGuest, NewGuest
from .uml import CHECKOUT

# Half an hour on two cores, a quarter of one, a few minutes: make guests, make image, make autoscaling.
ASKED_FOR = {"FULL_GUESTS": "test_full_debians.py", "IMAGE": "test_image.py", "AUTOSCALING": "test_full_gate.py"}
collect_ignore = [module for asked, module in ASKED_FOR.items() if not os.environ.get(asked)]


def pytest_collection_finish() -> None:
    """Compile our code once, for all quick guests."""
    # A guest reads the checkout and must not write to it; its Python is Debian's.
    command = ["/usr/bin/python3", "-m", "compileall", "-q", str(CHECKOUT / "cloudinit_conntrack")]
    subprocess.run(command, check=False, capture_output=True, timeout=120)


@pytest.fixture(scope="session")
def image() -> Path:
    """The cached disk image of a full guest; building it takes half a minute."""
    return guest_image.image()


@pytest.fixture
def new_guest(image: Path, tmp_path: Path) -> Iterator[NewGuest]:
    """Makes full guests from user-data, our package installed; ends them after the test."""
    guests: list[FullGuest] = []

    def make(user_data: str) -> FullGuest:
        tree = tmp_path / f"layer{len(guests)}"
        layer.make(tree, image)
        guests.append(FullGuest(image, tmp_path / f"guest{len(guests)}", user_data, tree))
        return guests[-1]

    yield make
    for guest in guests:
        guest.kill()
