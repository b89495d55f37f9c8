"""Fixtures of the tests that read upstream's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from .debian_source import source_tree

_said: list[str] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the tests measured."""
    for line in _said:
        terminalreporter.write_line(f"measured: {line}")


@pytest.fixture(scope="session")
def measured() -> list[str]:
    """Lines for the end of the run's output: figures that no test asserts."""
    return _said


@pytest.fixture(scope="session")
def tree() -> Path:
    """The sources of the iptables that is installed here."""
    return source_tree("iptables")
