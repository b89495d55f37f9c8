"""Fixtures of the tests that run the command as a host's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from . import applying


@pytest.fixture(scope="module")
def mount_points() -> Iterator[None]:
    """The directories over which :class:`applying.Machine` lays the test's own."""
    with applying.mount_points():
        yield
