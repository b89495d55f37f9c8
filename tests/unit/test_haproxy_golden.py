"""Whole configurations: what we make of them, and what haproxy itself says to them.

A folder ``haproxy/NAME`` is one case, read as ``haproxy -f NAME`` reads a directory;
``expected`` is our answer.  The haproxy of this machine must accept the configuration,
unless ``refused`` names a part of the message by which it refuses just this.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from cloudinit_conntrack.errors import HaproxyError
from cloudinit_conntrack.haproxy.flows import HaproxyFlows, haproxy_flows
from cloudinit_conntrack.haproxy.merging import flow_text
from cloudinit_conntrack.host.haproxy import haproxy_files
from cloudinit_conntrack.host.root import Root

HERE = Path(__file__).parent / "haproxy"
CASES = sorted(HERE.iterdir())
NO_LISTENER = "Configuration file has no error but will not start (no listener)"
NAMES = [case.name for case in CASES]


def derived(case: Path) -> HaproxyFlows:
    files = haproxy_files([f"/{case.name}"], Root(str(case.parent)))
    return haproxy_flows([(file.path.rpartition("/")[2], file.content or b"") for file in files])


def told(case: Path) -> str:
    """Our whole answer as a text."""
    try:
        found = derived(case)
    except HaproxyError as error:
        return f"refused {error.where}\n  {error.what}\n  -> {error.remedy}\n"
    lines = [f"{name} {flow_text(flow)}" for name in ("frontends", "backends", "outbound", "logs")
             for flow in getattr(found, name)]  # fmt: skip
    lines += [f"foreign source {where}" for where in found.foreign]
    lines += [f"note {note.where}\n  {note.what}" for note in found.notes]
    return "".join(f"{line}\n" for line in lines)


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_flows(case: Path) -> None:
    assert told(case) == (case / "expected").read_text()


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a certificate, in which haproxy is run."""
    made = tmp_path_factory.mktemp("haproxy")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test",
                    "-keyout", "key.pem", "-out", "cert.pem"], cwd=made, check=True, capture_output=True,
                   timeout=60)  # fmt: skip
    (made / "site.pem").write_bytes((made / "cert.pem").read_bytes() + (made / "key.pem").read_bytes())
    return made


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_haproxy_agrees(case: Path, place: Path) -> None:
    program = shutil.which("haproxy")
    assert program, "haproxy is missing: run 'make prepare'"
    done = subprocess.run([program, "-W", "-c", "-f", str(case)], cwd=place, capture_output=True, text=True, timeout=60,
                          env={"PATH": os.environ["PATH"]}, check=False)  # fmt: skip
    said = done.stdout + done.stderr
    refused = case / "refused"
    if not refused.exists():
        assert done.returncode == 0 or NO_LISTENER in said, said
        return
    assert done.returncode != 0, said
    assert refused.read_text().strip() in said, said


def test_there_are_enough_cases() -> None:
    accepted = [case for case in CASES if not (case / "refused").exists()]
    assert len(CASES) >= 60
    assert len(accepted) >= 40
