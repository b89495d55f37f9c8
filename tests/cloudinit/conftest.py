"""Fixtures: each test runs once per cloud-init version, on a machine of its own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from chroots import SUITES, Suite, make_chroots
from machines import Machine, machine
from stateful_host import save_rules

PRODUCT = Path(os.environ.get("STANDIN", Path(__file__).parents[2]))
PACKAGES = Path("usr/lib/python3/dist-packages")


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
    """A machine with cloud-init and the stateful rules, without our package."""
    with machine(chroots[suite.name]) as made:
        with made.boot() as boot:
            save_rules(boot)
        yield made


@pytest.fixture
def installed(bare: Machine) -> Machine:
    """A machine with our package, listed in cloud.cfg as ``[conntrack, always]``."""
    packages = bare.root / PACKAGES
    shutil.copy(PRODUCT / "cc_conntrack.py", packages)
    shutil.copytree(
        PRODUCT / "cloudinit_conntrack", packages / "cloudinit_conntrack",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    with bare.boot() as boot:
        # As a Debian package's postinst does.
        boot.run("python3", "-m", "compileall", "-q", f"/{PACKAGES}/cc_conntrack.py", f"/{PACKAGES}/cloudinit_conntrack")
    _list_module(bare.root / "etc/cloud/cloud.cfg")
    return bare


def _list_module(config: Path) -> None:
    # First in its list, so that every other module of the stage comes after it.
    head, key, tail = config.read_text().partition("\ncloud_config_modules:\n")
    assert key, f"{config} has no cloud_config_modules"
    config.write_text(f"{head}{key} - [conntrack, always]\n{tail}")
