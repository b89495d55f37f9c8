"""Fixtures: each test runs once per cloud-init version, on a machine of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chroots import SUITES, Suite, make_chroots
from installation import bare_machine, installed_machine
from machines import Machine


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test that has a *suite* runs on all of them."""
    if "suite" in metafunc.fixturenames:
        names = [f"cloud-init-{suite.version}" for suite in SUITES]
        metafunc.parametrize("suite", SUITES, ids=names, scope="session")


@pytest.fixture(scope="session")
def chroots(request: pytest.FixtureRequest) -> dict[str, Path]:
    """The chroots of all versions; making them takes minutes once, so it shows."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def progress(line: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\n{line}", end="", flush=True)

    return make_chroots(SUITES, progress)


@pytest.fixture
def bare(suite: Suite, chroots: dict[str, Path]) -> Iterator[Machine]:
    """A machine with cloud-init and stateful rules, without our package."""
    with bare_machine(chroots[suite.name]) as machine:
        yield machine


@pytest.fixture
def installed(suite: Suite, chroots: dict[str, Path]) -> Iterator[Machine]:
    """A machine with our package, listed in cloud.cfg as ``[conntrack, always]``."""
    with installed_machine(chroots[suite.name]) as machine:
        yield machine
