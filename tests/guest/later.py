"""A guest is told its story once, when the first test asks what it saw.

``STORY = Later(function)`` at the top of a test module is enough.  All tests of a module run in one process
(:mod:`tests.conftest`), so two processes of tests keep two guests, and a guest keeps one core busy.
"""

from __future__ import annotations

from typing import Any, Callable, Generic, TypeVar

Result = TypeVar("Result")


class Later(Generic[Result]):
    """The result of *run*, which is called once; *first* for the modules that take longest."""

    def __init__(self, run: Callable[[], Result], first: bool = False) -> None:
        self.first = first
        self._run = run
        self._told: list[Callable[[], Result]] = []

    def result(self) -> Result:
        """What *run* gave, or raised."""
        if not self._told:
            self._told.append(self._tell())
        return self._told[0]()

    def _tell(self) -> Callable[[], Result]:
        try:
            found = self._run()
        except Exception as error:
            return _raising(error)  # for every test that asks
        return lambda: found


def _raising(error: Exception) -> Callable[[], Any]:
    first = error.__traceback__

    def again() -> Any:
        raise error.with_traceback(first)  # not behind all those of the tests before

    return again
