"""Fixtures of the guest tests; the harness itself is in uml.py and full_guest.py."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import guest_image, later, layer
from .full_guest import FullGuest, NewGuest
from .uml import CHECKOUT

_said: list[str] = []


def pytest_collection_finish(session: pytest.Session) -> None:
    """Know which stories will be asked for; compile our code once, for all quick guests."""
    modules = dict.fromkeys(item.module for item in session.items if isinstance(item, pytest.Function))
    later.collect(value for module in modules for value in vars(module).values() if isinstance(value, later.Later))
    # A guest reads the checkout and must not write to it; its Python is Debian's.
    command = ["/usr/bin/python3", "-m", "compileall", "-q", str(CHECKOUT / "cloudinit_conntrack")]
    subprocess.run(command, check=False, capture_output=True, timeout=120)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the tests measured."""
    for line in _said:
        terminalreporter.write_line(f"measured: {line}")


@pytest.fixture(scope="session")
def measured() -> list[str]:
    """Lines for the end of the run's output: figures that no test asserts."""
    return _said


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
