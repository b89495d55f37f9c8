"""Guests run ahead of the tests that look at what they saw, two at a time.

A guest keeps one core busy; on two, all stories are told in half the time.
``STORY = Later(function)`` at the top of a test module is enough: once a test asks for a
result, the stories of all collected modules are told, in turn.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import Future
from typing import Any, Callable, Generic, TypeVar

Result = TypeVar("Result")

AT_ONCE = 2


class Later(Generic[Result]):
    """The result of *run*, which is called once, in another thread; *first* for what takes longest."""

    def __init__(self, run: Callable[[], Result], first: bool = False) -> None:
        self.first = first
        self._run = run
        self._future: Future[Result] = Future()

    def tell(self) -> None:
        """Thread body."""
        try:
            self._future.set_result(self._run())
        except BaseException as error:
            self._future.set_exception(error)  # for the tests that ask

    def result(self) -> Result:
        """What *run* gave, or raised."""
        _start()
        return self._future.result()


_waiting: list[Later[Any]] = []
_turn = threading.Lock()


def collect(stories: Iterable[Later[Any]]) -> None:
    """These will be asked for."""
    _waiting.extend(sorted(stories, key=lambda story: not story.first))


def _start() -> None:
    if _turn.acquire(blocking=False):  # once, and never given back
        for _ in range(AT_ONCE):
            # Daemons: at the end of the run, whatever its reason, they and their guests just end.
            threading.Thread(target=_work, daemon=True).start()


def _work() -> None:
    while True:
        try:
            story = _waiting.pop(0)
        except IndexError:
            return
        story.tell()
