"""Fixtures: the packages, built once, and machines of three Debian releases."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cloudinit.chroots import SUITES, make_chroot
from tests.cloudinit.machines import Machine, machine

from .building import Dist, build, older

# Packagers' tools, a second build, every test in every release: minutes, and asked for by PACKAGED.
THOROUGHLY = bool(os.environ.get("PACKAGED"))
collect_ignore = [] if THOROUGHLY else ["test_packages_thoroughly.py"]
RELEASES = {suite.name: suite for suite in SUITES if suite.name != "sid"}


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Dist:
    """The packages of this tree, or those in the directory that PACKAGES names."""
    ready = os.environ.get("PACKAGES")
    return Dist(Path(ready).resolve()) if ready else build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="session")
def old_deb(dist: Dist, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The .deb as version 0.0.1, with a module that is gone since."""
    return older(dist.deb, tmp_path_factory.mktemp("older"))


@pytest.fixture(params=RELEASES)
def clean(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A machine of each release, with cloud-init, that never saw our package."""
    with machine(make_chroot(RELEASES[request.param], print)) as made:
        yield made


@pytest.fixture(params=RELEASES if THOROUGHLY else ["bookworm"])
def somewhere(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """The same, in one release: for what does not depend on its dpkg, its Python and its cloud-init."""
    with machine(make_chroot(RELEASES[request.param], print)) as made:
        yield made


@pytest.fixture
def bullseye() -> Iterator[Machine]:
    """One with Python 3.9, which is RHEL 9's."""
    with machine(make_chroot(RELEASES["bullseye"], print)) as made:
        yield made
