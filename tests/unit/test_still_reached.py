"""After an apply: what took a connection from outside before must take one again, soon or a little later."""

from __future__ import annotations

import pytest

from cloudinit_conntrack import verify
from cloudinit_conntrack.errors import HostError
from cloudinit_conntrack.host.outside import Answers
from cloudinit_conntrack.host.root import HOST
from cloudinit_conntrack.verify import Before

SSH, SSH6, WEB = ("10.0.0.1", 22), ("fd00::1", 22), ("10.0.0.1", 80)
BEFORE = Before(outside=Answers(frozenset((SSH, SSH6, WEB))))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> list[set[int]]:
    """The ports that are asked, each time; the parameter says who answers then."""
    answers = iter(request.param)
    told: list[set[int]] = []

    def asking(_: object, ports: set[int], seconds: float) -> Answers:
        told.append(set(ports))
        return Answers(frozenset(next(answers)))

    monkeypatch.setattr(verify, "answers_outside", asking)
    return told


@pytest.mark.parametrize("asked", [[(SSH, SSH6, WEB)]], indirect=True)
def test_all_answer_at_once(asked: list[set[int]]) -> None:
    assert len(verify._still_reached(BEFORE, HOST)) == 3
    assert asked == [{22, 80}]


@pytest.mark.parametrize("asked", [[(SSH, WEB), (SSH6,)]], indirect=True)
def test_who_is_silent_is_asked_once_more(asked: list[set[int]]) -> None:
    """A busy machine may need longer than a moment."""
    assert {evidence.holds for evidence in verify._still_reached(BEFORE, HOST)} == {True}
    assert asked == [{22, 80}, {22}]


@pytest.mark.parametrize("asked", [[(SSH6,), (SSH, SSH6)]], indirect=True)
def test_who_stays_silent_undoes_everything(asked: list[set[int]]) -> None:
    with pytest.raises(HostError, match=r"10\.0\.0\.1 port 80 took a fresh TCP connection") as caught:
        verify._still_reached(BEFORE, HOST)
    assert "port 22" not in caught.value.what and caught.value.where == "guard"
    assert asked == [{22, 80}, {22, 80}]
