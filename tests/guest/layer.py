"""What is laid over a full guest's disk: our package as a .deb would install it, and the list entry.

A layer, not a part of the cached image: a change of our code must not cost a new image.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from .uml import CHECKOUT, GuestError

PACKAGES = "usr/lib/python3/dist-packages"
COMMAND = '#!/bin/sh\nexec /usr/bin/python3 -m cloudinit_conntrack "$@"\n'
ENTRY = " - [conntrack, always]"


def insert_module(cloud_cfg: str) -> str:
    """*cloud_cfg* with our entry as the last of ``cloud_config_modules``; all else stays as it is.

    Last, so that everything that writes rules in the first boot has run.  The list form
    with a frequency is the one that no cloud-init version warns about.
    """
    lines = cloud_cfg.splitlines()
    at = lines.index("cloud_config_modules:") + 1
    while at < len(lines) and lines[at].lstrip().startswith("-"):
        at += 1
    return "\n".join([*lines[:at], ENTRY, *lines[at:]]) + "\n"


def make(layer: Path, image: Path) -> None:
    """Fill the directory *layer* for a guest that boots *image*."""
    packages = layer / PACKAGES
    shutil.copytree(
        CHECKOUT / "cloudinit_conntrack",
        packages / "cloudinit_conntrack",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    shutil.copy2(CHECKOUT / "cc_conntrack.py", packages)
    command = layer / "usr/bin/cloudinit-conntrack"
    command.parent.mkdir(parents=True)
    command.write_text(COMMAND)
    command.chmod(0o755)
    config = layer / "etc/cloud/cloud.cfg"
    config.parent.mkdir(parents=True)
    config.write_text(insert_module(_file_in(image, "/etc/cloud/cloud.cfg")))


def _file_in(image: Path, path: str) -> str:
    done = subprocess.run(
        ["debugfs", "-R", f"cat {path}", str(image)], capture_output=True, text=True, timeout=60, check=False
    )
    if not done.stdout:
        raise GuestError(f"debugfs cannot read {path} in {image}: {done.stderr.strip()}")
    return done.stdout
