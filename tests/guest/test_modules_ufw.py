"""The real ufw under the real block: its rules load without conntrack, at apply and at every later start."""

from __future__ import annotations

import subprocess
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path

import pytest

from .balancer import Story, run_balancer
from .later import Later

# Opened by 'ufw allow 22/tcp' and 'ufw limit 80/tcp': what the command writes between its marks.
OPENED = """\
### RULES ###

### tuple ### allow tcp 22 {any} any {any} in
-A {ufw}-user-input -p tcp --dport 22 -j ACCEPT

### tuple ### limit tcp 80 {any} any {any} in
-A {ufw}-user-input -p tcp --dport 80 -m conntrack --ctstate NEW -m recent --set
-A {ufw}-user-input -p tcp --dport 80 -m conntrack --ctstate NEW -m recent --update --hitcount 6 -j {ufw}-user-limit
-A {ufw}-user-input -p tcp --dport 80 -j {ufw}-user-limit-accept

### END RULES ###
"""
SCRIPT = """
mkdir -p /etc/systemd/system/multi-user.target.wants
ln -s /usr/lib/systemd/system/ufw.service /etc/systemd/system/multi-user.target.wants/
DIRECTORIES="$DIRECTORIES /etc/ufw"
step start sh /usr/lib/ufw/ufw-init start
look before
config 'mode: unload' 'guard: {keep: [22]}'
step apply cc apply -c $DESIRED
look after
step again sh /usr/lib/ufw/ufw-init force-reload
look again
step verify cc verify
step revert cc revert
look reverted
step later sh /usr/lib/ufw/ufw-init force-reload
"""


def ufw_files() -> dict[str, str]:
    """This machine's ufw package, as its postinst leaves it and two commands changed it."""
    with tempfile.TemporaryDirectory() as place:
        subprocess.run(["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", "ufw"], cwd=place, check=True,
                       capture_output=True, timeout=300)  # fmt: skip
        (deb,) = Path(place).glob("ufw_*.deb")
        content = subprocess.run(["dpkg", "--fsys-tarfile", deb], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=BytesIO(content)) as archive:
        found = {m.name[1:]: archive.extractfile(m) for m in archive.getmembers() if m.isfile()}
        texts = {name: file.read().decode() for name, file in found.items() if file and _wanted(name)}
    files = {f"/usr{name}" if name.startswith("/lib/") else name: text for name, text in texts.items()}
    for name in [name for name in files if name.startswith("/usr/share/ufw/iptables/")]:
        files[f"/etc/ufw/{Path(name).name}"] = files.pop(name)
    for name, ufw, any_ in (("user", "ufw", "0.0.0.0/0"), ("user6", "ufw6", "::/0")):
        head, commit, tail = files[f"/etc/ufw/{name}.rules"].partition("COMMIT\n")
        files[f"/etc/ufw/{name}.rules"] = head + OPENED.format(ufw=ufw, any=any_) + commit + tail
    return {**files, "/etc/ufw/ufw.conf": "ENABLED=yes\nLOGLEVEL=low\n"}


def _wanted(name: str) -> bool:
    places = ("/lib/", "/usr/lib/ufw/", "/usr/lib/systemd/", "/usr/share/ufw/iptables/", "/etc/default/ufw")
    return name.startswith(places)


STORY = Later(lambda: run_balancer(SCRIPT, ufw_files()))


@pytest.fixture
def story() -> Story:
    return STORY.result()


def test_it_tracked_before(story: Story) -> None:
    assert story.step("start").ok, story.step("start").output
    assert story.seen("before").stateful and "nf_conntrack" in story.seen("before").conntrack


def test_its_rules_are_stateless_and_the_modules_gone(story: Story) -> None:
    story.answer("apply", 0)
    now = story.seen("after")
    assert now.conntrack == () and now.stateful == ()
    assert any("-A ufw-user-input -p tcp -m tcp --dport 22 -j ACCEPT" in row for row in now.rules)


def test_it_starts_again_under_the_block(story: Story) -> None:
    ran = story.step("again")
    assert (ran.status, ran.output) == (0, "")
    now = story.seen("again")
    assert now.conntrack == () and now.stateful == ()
    for ufw in ("ufw", "ufw6"):
        assert f"-A {ufw}-user-input -p tcp -m tcp --dport 22 -j ACCEPT" in now.rules
    assert ":INPUT DROP" in " ".join(now.rules)
    assert story.answer("verify", 0)["actions"] == []


def test_revert_puts_everything_back(story: Story) -> None:
    story.answer("revert", 0)
    now, before = story.seen("reverted"), story.seen("before")
    assert now.files == before.files
    assert story.step("later").ok, story.step("later").output
