"""The Packer templates: valid for Debian's Packer, formatted, documented; the guest's scripts pass shellcheck.

``packer validate`` asks each builder for its own view of its values.  Two of them ask somebody else meanwhile: qemu
fetches the list of sums that an image file names (not here), and openstack logs in, at a stand-in of ours.
"""

from __future__ import annotations

import http.server
import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hcl2
import pytest

PACKER = Path(__file__).resolve().parents[2] / "packer"
IMAGES = sorted((PACKER / "images").glob("*.pkrvars.hcl"))
BUILDERS = ("qemu", "amazon-ebs", "openstack", "googlecompute", "azure-arm")
# What a builder must refuse, so that a template that asks nothing of it would be noticed.
WRONG = {
    "qemu": "accelerator=steam",
    "amazon-ebs": "amazon_type=",
    "openstack": "openstack_flavor=",
    "googlecompute": "google_account_project=",
    "azure-arm": "azure_location=",
}


class Keystone(http.server.BaseHTTPRequestHandler):
    """Gives everybody a token, and a catalog with a compute service (OpenStack's Identity API v3)."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        endpoint = {"interface": "public", "region": "here", "region_id": "here", "url": "http://127.0.0.1:9/"}
        token = {"expires_at": "2099-01-01T00:00:00.000000Z", "catalog": [{"type": "compute", "endpoints": [endpoint]}]}
        body = json.dumps({"token": token}).encode()
        self.send_response(201)
        self.send_header("X-Subject-Token", "a-token")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def keystone() -> Iterator[dict[str, str]]:
    """The environment of somebody who has an OpenStack."""
    with http.server.HTTPServer(("127.0.0.1", 0), Keystone) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield {"OS_AUTH_URL": f"http://127.0.0.1:{server.server_port}/v3", "OS_USERNAME": "me", "OS_PASSWORD": "secret",
               "OS_PROJECT_NAME": "mine", "OS_DOMAIN_NAME": "Default", "OS_REGION_NAME": "here"}  # fmt: skip
        server.shutdown()


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Values that each person gives: a package, and the seed that ``seed.sh`` makes."""
    place = tmp_path_factory.mktemp("packer")
    (place / "some.deb").touch()
    subprocess.run([str(PACKER / "seed.sh"), str(place / "seed")], check=True, timeout=60)
    return [f"-var=package={place / 'some.deb'}", f"-var=seed={place / 'seed'}", "-var=qemu_checksum=none"]


def packer(words: list[str], environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = ["packer", words[0], *words[1:]]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False,
                          env={**os.environ, "CHECKPOINT_DISABLE": "1", **(environment or {})})  # fmt: skip


def parsed(path: Path) -> dict[str, Any]:
    """The blocks and values of an HCL file, strings without their quotes."""
    with path.open() as file:
        found = hcl2.load(file)
    return dict(json.loads(re.sub(r'\\"', "", json.dumps(found))))


def names(blocks: list[dict[str, Any]]) -> dict[str, Any]:
    """The labelled *blocks* of one kind, by label."""
    return {name: body for block in blocks for name, body in block.items() if not name.startswith("__")}


VARIABLES = names(parsed(PACKER / "variables.pkr.hcl")["variable"])


# --- valid --------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.name.partition(".pkr")[0])
def test_every_builder_accepts_every_image(image: Path, given: list[str], keystone: dict[str, str]) -> None:
    done = packer(["validate", f"-var-file={image}", *given, str(PACKER)], keystone)
    assert done.returncode == 0, done.stdout + done.stderr
    # Packer's own words for a value that no variable takes.
    assert "Undefined variable" not in done.stdout + done.stderr


@pytest.mark.parametrize("builder", BUILDERS)
def test_each_builder_looks_at_its_values(builder: str, given: list[str], keystone: dict[str, str]) -> None:
    words = [f"-only={builder}.image", f"-var-file={IMAGES[0]}", *given, f"-var={WRONG[builder]}", str(PACKER)]
    done = packer(["validate", *words], keystone)
    assert done.returncode == 1 and "1 error(s) occurred" in done.stdout + done.stderr, done.stdout + done.stderr


@pytest.mark.parametrize("place", (PACKER, PACKER / "images", PACKER / "plugins"), ids=lambda place: place.name)
def test_the_templates_are_formatted(place: Path) -> None:
    done = packer(["fmt", "-check", "-diff", str(place)])
    assert done.returncode == 0, done.stdout + done.stderr


def test_scripts_pass_shellcheck() -> None:
    hooks = (PACKER / "diskimage-builder").glob("elements/*/*.d/*")
    scripts = [PACKER / "seed.sh", *(PACKER / "scripts").iterdir(), *hooks, PACKER / "mkosi" / "mkosi.finalize"]
    assert len(scripts) == 8 and all(os.access(path, os.X_OK) for path in scripts)
    done = subprocess.run(["shellcheck", *map(str, scripts)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


# --- whole --------------------------------------------------------------------------------------


def test_image_files_set_the_same_variables_and_leave_none_open() -> None:
    wanted = {name for name, body in VARIABLES.items() if "default" not in body} - {"package"}
    assert len(IMAGES) == 7
    for image in IMAGES:
        assert {name for name in parsed(image) if not name.startswith("__")} == wanted, image.name


def test_each_builder_has_its_plugin_for_newer_packer() -> None:
    """From 1.7 on Packer brings none; the block for that stands where Packer 1.6 is not sent."""
    (block,) = parsed(PACKER / "plugins" / "plugins.pkr.hcl")["packer"]
    plugins = {name: body for name, body in block["required_plugins"][0].items() if not name.startswith("__")}
    assert {name.partition("-")[0] for name in BUILDERS} == set(plugins)
    assert all(body["source"] == f"github.com/hashicorp/{name}" for name, body in plugins.items())
    sources = names(parsed(PACKER / "sources.pkr.hcl")["source"])
    (build,) = parsed(PACKER / "build.pkr.hcl")["build"]
    assert set(sources) == set(BUILDERS) and build["sources"] == [f"source.{name}.image" for name in BUILDERS]


def test_the_readme_names_every_variable_and_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", (PACKER / "README.md").read_text(), re.MULTILINE))
    assert set(rows) == set(VARIABLES)
    for name, default in rows.items():
        shown = VARIABLES[name].get("default", "-")
        assert default.strip("`") == (str(shown) or '""'), name
