"""A machine with our package on it, as the .deb and ``enable`` leave it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from machines import Machine, machine
from stateful_host import save_rules

PRODUCT = Path(__file__).parents[2]
MODULE = PRODUCT / "cc_conntrack.py"
PACKAGE = PRODUCT / "cloudinit_conntrack"

# Debian's place for packaged modules, on the path of cloud-init's Python in every version.
DIST_PACKAGES = "/usr/lib/python3/dist-packages"


@contextmanager
def bare_machine(chroot: Path) -> Iterator[Machine]:
    """A machine with cloud-init and saved stateful rules, without our package."""
    with machine(chroot) as made:
        with made.boot() as boot:
            save_rules(boot)
        yield made


def package_layer(chroot: Path, layer: Path) -> Path:
    """Put our package on the bare machine, and have it listed nowhere.

    *layer* becomes all that then differs from *chroot*, to mount machines with.
    """
    with bare_machine(chroot) as made:
        target = made.root / DIST_PACKAGES.lstrip("/")
        shutil.copy(MODULE, target)
        shutil.copytree(PACKAGE, target / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
        with made.boot() as boot:  # compiled once, as a Debian package's postinst does
            names = (MODULE.name, PACKAGE.name)
            boot.run("python3", "-m", "compileall", "-q", *(f"{DIST_PACKAGES}/{name}" for name in names))
        _keep(made, layer)
    return layer


def listed_layer(chroot: Path, package: Path, layer: Path) -> Path:
    """On top of *package*: ``[conntrack, always]`` in cloud.cfg, by hand."""
    with machine(package, chroot) as made:
        _list_module(made.root / "etc/cloud/cloud.cfg")
        _keep(made, layer)
    return layer


def _keep(made: Machine, layer: Path) -> None:
    subprocess.run(["cp", "-a", f"{made.changed}/.", layer], check=True, timeout=60)


def _list_module(config: Path) -> None:
    # First in its list, so that every other module of the stage comes after it.
    head, key, tail = config.read_text().partition("\ncloud_config_modules:\n")
    assert key, f"{config} has no cloud_config_modules"
    config.write_text(f"{head}{key} - [conntrack, always]\n{tail}")
