"""Fixtures of the tests that read upstream's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from .debian_source import source_tree


@pytest.fixture(scope="session")
def tree() -> Path:
    """The sources of the iptables that is installed here."""
    return source_tree("iptables")
