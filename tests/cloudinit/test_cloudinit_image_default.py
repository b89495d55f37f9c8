"""examples/image-default: a section baked into an image, and a server's own over it, merged by real cloud-init."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from operator import attrgetter
from typing import Any

import pytest
from chroots import SUITES, Suite
from installation import PRODUCT
from machines import Boot, Machine
from stages import Outcome, seed
from stateful_host import load_rules, tracked
from test_cloudinit_channels import DROP_IN, assert_clean, boot_stateful

InstalledOn = Callable[[Suite], AbstractContextManager[Machine]]
ENDS = (SUITES[0], SUITES[-1])  # the oldest and the newest: how they merge is what matters, and each costs a boot
EXAMPLE = PRODUCT / "examples" / "image-default"
IMAGE = (EXAMPLE / "95_conntrack.cfg").read_text(encoding="utf-8")
SERVER = (EXAMPLE / "user-data.yaml").read_text(encoding="utf-8")


def kept(boot: Boot) -> dict[str, Any]:
    """The section that the run kept for later boots: what cloud-init had merged."""
    found = json.loads(boot.read("/var/lib/cloudinit-conntrack/desired.json"))
    section = found.get("section", found)
    assert isinstance(section, dict)
    return section


def boot_of_image(boot: Boot, suite: Suite) -> Outcome:
    boot.write(DROP_IN, IMAGE)
    _, outcome, after = boot_stateful(boot, suite)
    assert after.stateful == [] and after.filters
    assert not tracked(boot)
    return outcome


@pytest.mark.parametrize("version", ENDS, ids=attrgetter("version"))
def test_the_image_alone(version: Suite, installed_on: InstalledOn) -> None:
    """95_conntrack.cfg; this kernel cannot unload conntrack, so it settles for stateless."""
    with installed_on(version) as machine, machine.boot() as boot:
        seed(boot)
        assert_clean(boot_of_image(boot, version))
        assert kept(boot)["flows"]["frontends"] == [80, 443]


def in_user_data(boot: Boot) -> None:
    seed(boot, user_data=SERVER)


def in_a_later_file(boot: Boot) -> None:
    """As the comment in the example says: without a warning of the schema."""
    section = SERVER.partition("\n\n")[2]
    content = "".join(f"    {line}\n" for line in section.splitlines())
    path = DROP_IN.replace("95_", "96_")
    seed(boot, user_data=f"#cloud-config\nwrite_files:\n- path: {path}\n  content: |\n{content}")


@pytest.mark.parametrize("give", [in_user_data, in_a_later_file])
def test_user_data_over_it(suite: Suite, installed: Machine, give: Any) -> None:
    """user-data.yaml over 95_conntrack.cfg: nested keys merge, lists are replaced."""
    with installed.boot() as boot:
        give(boot)
        outcome = boot_of_image(boot, suite)
        section = kept(boot)
        if give is in_a_later_file or not suite.rejects_unknown_keys:
            assert_clean(outcome)
    assert section["fallback"] == "stateless", "from the image"
    assert section["flows"]["outbound"] == [53, 123, 67], "from the image, beside a key of the server's"
    assert section["flows"]["frontends"] == [8443], "replaced, not added to"
    assert section["guard"]["keep"] == [22, 9443]


@pytest.mark.parametrize("version", ENDS, ids=attrgetter("version"))
def test_two_that_do_not_fit_together_stop_the_run(version: Suite, installed_on: InstalledOn) -> None:
    """'fallback' of the image is no key for the server's mode: the host is left as it was."""
    with installed_on(version) as machine, machine.boot() as boot:
        seed(boot, user_data="#cloud-config\nconntrack: {mode: stateless}\n")
        boot.write(DROP_IN, IMAGE)
        load_rules(boot)
        before, outcome, after = boot_stateful(boot, version)
        assert after == before and tracked(boot)
        assert any("conntrack.fallback" in error for error in outcome.errors)
