"""What all tests share: the examples of property tests, the order of work, and the figures at the end.

Tests run side by side (pytest-xdist, ``--dist loadgroup --no-loadscope-reorder``), one process for each core.  Those
that share what is dear to make are one group, which stays in one process; what takes longest comes first, so that
the many short tests fill up the end.  ``@pytest.mark.alone`` is for what only an idle machine can judge.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

_said: list[str] = []


@pytest.fixture(scope="session")
def measured() -> list[str]:
    """Lines for the end of the run's output: figures that no test asserts."""
    return _said


@pytest.fixture(scope="session", autouse=True)
def reports_are_as_their_schema_says() -> Iterator[None]:
    """Whatever a test lets our code report in this process, the schema knows; what other processes print is read
    by :mod:`tests.reports`, which asks it too.
    """
    from cloudinit_conntrack import report
    from tests import reports

    given = report.to_json

    def judged(found: report.Report) -> dict[str, object]:
        return reports.valid(given(found))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(report, "to_json", judged)
        yield


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    """A process of tests has ended (a hook of pytest-xdist): what it measured."""
    _said.extend(getattr(node, "workeroutput", {}).get("measured", ()))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand over to the process that prints what was measured in this one."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["measured"] = _said


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the tests measured."""
    for line in _said:
        terminalreporter.write_line(f"measured: {line}")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Guests first, then the groups, then everything else, each in its own order."""
    for item in items:
        group = _group_of(item)
        if group:
            item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=_turn)


def _group_of(item: pytest.Item) -> str:
    """The name of those that share with *item* a guest's story, a chroot or a cache; empty for none."""
    folder, module = item.path.parent.name, item.path.stem
    if folder == "guest":
        return module
    if folder == "cloudinit" and isinstance(item, pytest.Function) and hasattr(item, "callspec"):
        suite = item.callspec.params.get("suite") or item.callspec.params.get("version")
        return f"cloud-init-{suite.version}" if suite else ""
    if folder == "packages":
        return folder
    return module if (folder, module) == ("unit", "test_tools") else ""


def _turn(item: pytest.Item) -> int:
    folder = item.path.parent.name
    if folder == "guest":
        stories = (value for value in vars(getattr(item, "module", None)).values() if hasattr(value, "first"))
        return 0 if any(story.first for story in stories) else 2
    return 1 if folder == "cloudinit" else 3 if item.get_closest_marker("xdist_group") else 4
