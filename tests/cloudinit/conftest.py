"""Fixtures: each test runs once per cloud-init version, on a machine of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path

import pytest
from chroots import SUITES, Suite, make_chroot
from installation import bare_machine, listed_layer, package_layer
from machines import Machine, machine

Installed = Callable[[Suite], AbstractContextManager[Machine]]
ChrootOf = Callable[[Suite], Path]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test that has a *suite* runs on all of them."""
    if "suite" in metafunc.fixturenames:
        names = [f"cloud-init-{suite.version}" for suite in SUITES]
        metafunc.parametrize("suite", SUITES, ids=names, scope="session")


@pytest.fixture(scope="session")
def chroot_of(request: pytest.FixtureRequest) -> ChrootOf:
    """The chroot of a version; making it takes half a minute once, so it shows."""
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def progress(line: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\n{line}", end="", flush=True)

    return lambda suite: make_chroot(suite, progress)


@pytest.fixture
def bare(suite: Suite, chroot_of: ChrootOf) -> Iterator[Machine]:
    """A machine with cloud-init and stateful rules, without our package."""
    with bare_machine(chroot_of(suite)) as made:
        yield made


@pytest.fixture(scope="session")
def packaged_on(chroot_of: ChrootOf, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Suite], Path]:
    """Makes layers with our package, which cloud-init does not list."""
    return cache(lambda suite: package_layer(chroot_of(suite), tmp_path_factory.mktemp(suite.name)))


@pytest.fixture(scope="session")
def installed_on(
    chroot_of: ChrootOf, packaged_on: Callable[[Suite], Path], tmp_path_factory: pytest.TempPathFactory
) -> Installed:
    """Makes machines with our package, listed in cloud.cfg as ``[conntrack, always]``."""

    @cache
    def layer(suite: Suite) -> Path:
        return listed_layer(chroot_of(suite), packaged_on(suite), tmp_path_factory.mktemp(f"{suite.name}-listed"))

    return lambda suite: machine(layer(suite), packaged_on(suite), chroot_of(suite))


@pytest.fixture
def packages(chroot_of: ChrootOf, packaged_on: Callable[[Suite], Path]) -> Installed:
    """Makes machines with our package, which cloud-init does not list."""
    return lambda suite: machine(packaged_on(suite), chroot_of(suite))


@pytest.fixture
def installed(suite: Suite, installed_on: Installed) -> Iterator[Machine]:
    """One that lists it."""
    with installed_on(suite) as made:
        yield made
