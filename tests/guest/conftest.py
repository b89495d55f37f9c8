"""Fixtures of the guest tests; the harness itself is in uml.py and full_guest.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from . import guest_image, layer
from .full_guest import FullGuest, NewGuest


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
