"""One run of Packer's qemu builder on ``cloud_base.py``, and what is on a disk that came out of it."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from . import cloud_base
from .uml import CHECKOUT, GuestError

PACKER = CHECKOUT / "packer"
IMAGE = PACKER / "images" / "debian-12.pkrvars.hcl"
SECONDS = 1800.0


@dataclass(frozen=True)
class Bake:
    """What Packer gave: its exit status, all that it said, and the directory that its disk would be in."""

    status: int
    said: str
    output: Path
    seconds: float


def build_package(place: Path) -> Path:
    """Our .deb, built as for everybody.  Raises :class:`GuestError`."""
    done = subprocess.run([str(CHECKOUT / "packages" / "build"), str(place)], capture_output=True, text=True,
                          timeout=900, check=False)  # fmt: skip
    if done.returncode:
        raise GuestError(f"packages/build: status {done.returncode}\n{done.stderr[-3000:]}")
    return next(place.glob("*.deb"))


def make_seed(place: Path, more: str = "") -> None:
    """The key and the seed of a bake, as a person makes them; *more* is added to the user-data."""
    subprocess.run([str(PACKER / "seed.sh"), str(place)], check=True, timeout=60)
    with (place / "http" / "user-data").open("a") as user_data:
        user_data.write(more)


def bake(package: Path, output: Path, work: Path, more: str = "") -> Bake:
    """Bake *package* into a fresh base.  *output* and its neighbours are Packer's, *work* is ours."""
    started = time.monotonic()
    work.mkdir(parents=True)
    make_seed(work / "seed", more)
    cloud_base.disk(work / "base.raw")
    given = {"package": package, "output": output, "name": "stateless", "seed": work / "seed", "accelerator": "tcg",
             "qemu_url": work / "base.raw", "qemu_checksum": "none"}  # fmt: skip
    words = ["packer", "build", "-color=false", "-only=qemu.image", f"-var-file={IMAGE}"]
    words += [f"-var={name}={value}" for name, value in given.items()]
    # QEMU ends with Packer, and Packer with us, by whatever cause.
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child", *words, str(PACKER)]
    home = {"HOME": str(work), "PACKER_CACHE_DIR": str(work / "cache"), "CHECKPOINT_DISABLE": "1"}
    log = work / "packer.log"
    with log.open("w") as said:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT,
                              env={**os.environ, **home}, cwd=work, timeout=SECONDS, check=False,
                              start_new_session=True)  # fmt: skip
    (work / "base.raw").unlink()
    return Bake(done.returncode, log.read_text(errors="replace"), output, time.monotonic() - started)


class Disk:
    """The tree of a baked disk, read without booting it (debugfs)."""

    def __init__(self, qcow2: Path) -> None:
        self._place = tempfile.TemporaryDirectory(prefix="disk-")
        self._raw = Path(self._place.name) / "raw"
        subprocess.run(["qemu-img", "convert", "-O", "raw", str(qcow2), str(self._raw)], check=True, timeout=300)

    def _ask(self, request: str) -> subprocess.CompletedProcess[str]:
        place = f"{self._raw}?offset={cloud_base.START}"
        return subprocess.run(["debugfs", "-R", request, place], capture_output=True, text=True, timeout=60, check=True)

    def names(self, directory: str) -> set[str]:
        """What is in *directory*; nothing where it is not there."""
        rows = (line.split("/") for line in self._ask(f"ls -p {directory}").stdout.splitlines())
        return {row[5] for row in rows if len(row) > 5} - {".", ".."}

    def text(self, path: str) -> str:
        """The file *path*, which must be there."""
        done = self._ask(f"cat {path}")
        assert "File not found" not in done.stderr, path
        return done.stdout
