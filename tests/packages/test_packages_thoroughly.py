"""What takes tools that only packagers have, or a second build: asked for by ``PACKAGED`` (``make packaged``)."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from .building import Dist, build, run
from .test_packages_manual import generated, options, verbs
from .test_packages_python import version

LINTIAN = ("lintian", "--allow-root", "--pedantic", "--display-info", "--display-experimental")


def unpacked(dist: Dist, place: Path) -> Path:
    """The source that the sdist holds."""
    place.mkdir(exist_ok=True)
    run("tar", "-xz", "-C", str(place), "-f", str(dist.sdist))
    return place / f"cloudinit_conntrack-{version()}"


def digests(dist: Dist) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in dist.directory.iterdir()}


def test_the_sdist_alone_gives_the_same_bytes_elsewhere(dist: Dist, tmp_path: Path) -> None:
    """At another place, with other permissions and dates of the files, in another time zone and language."""
    tree = unpacked(dist, tmp_path / "a place of its own")
    for path in tree.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(path.stat().st_mode | 0o060)
    again = build(tmp_path / "dist", tree, TZ="Asia/Tokyo", LANG="de_DE.UTF-8", HOME="/nonexistent", USER="someone")
    assert len(digests(dist)) == 5
    assert digests(again) == digests(dist)


def test_lintian_has_nothing_to_say_about_the_package(dist: Dist) -> None:
    assert run(*LINTIAN, str(dist.deb), timeout=300) == ""


def test_lintian_has_nothing_to_say_about_the_source(dist: Dist, tmp_path: Path) -> None:
    tree = unpacked(dist, tmp_path)
    run("env", f"--chdir={tmp_path}", "dpkg-source", "--build", tree.name)
    assert run(*LINTIAN, str(tmp_path / f"cloudinit-conntrack_{version()}.dsc"), timeout=300) == ""


def test_groff_reads_the_page_without_a_warning(tmp_path: Path) -> None:
    page = tmp_path / "cloudinit-conntrack.8"
    page.write_text(generated("manual.py"))
    shown = run("sh", "-c", 'groff -man -Tutf8 -ww "$1" 2>&1', "sh", str(page))
    assert "warning" not in shown and "error" not in shown
    assert run("lexgrog", str(page)).endswith(f'"cloudinit-conntrack - {page_title()}"\n')


def page_title() -> str:
    return "make a Linux load balancer stateless, prove it, and undo it"


@pytest.fixture
def completion(tmp_path: Path) -> Path:
    """The completions of zsh and fish, as files."""
    for shell in ("zsh", "fish"):
        (tmp_path / shell).write_text(generated("completion.py", shell))
    return tmp_path


def test_zsh_reads_its_completion(completion: Path) -> None:
    assert run("zsh", "--no-rcs", "-n", str(completion / "zsh")) == ""


def test_fish_completes_verbs_options_and_values(completion: Path) -> None:
    def offered(line: str) -> list[str]:
        script = f"source {completion}/fish; complete --do-complete 'cloudinit-conntrack {line}'"
        return [found.partition("\t")[0] for found in run("fish", "--no-config", "--command", script).splitlines()]

    assert shutil.which("fish")
    assert sorted(offered("")) == sorted(verbs())
    for verb in verbs():
        assert {*offered(f"{verb} --"), *offered(f"{verb} -")} >= options(verb), verb
    assert sorted(offered("plan --format ")) == ["json", "text"]
