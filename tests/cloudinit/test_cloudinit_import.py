"""``cc_conntrack`` can be imported anywhere: a module that cannot takes its whole stage down."""

from __future__ import annotations

import ast
import json

from chroots import Suite, numbers
from installation import MODULE
from machines import Machine

# What importing the module brings in, with cloud-init's loader having done its part or not.
IMPORTED = """
import json, sys
sys.path.insert(0, "/alone")
before = set(sys.modules)
import cc_conntrack
print(json.dumps({
    "file": cc_conntrack.__file__,
    "new": sorted(set(sys.modules) - before),
    "frequency": cc_conntrack.frequency,
    "meta": cc_conntrack.meta,
}))
"""
STANDARD_LIBRARY = {"contextlib", "functools", "logging"}


def test_the_cloud_init_is_the_one_meant(suite: Suite, bare: Machine) -> None:
    with bare.boot() as boot:
        version = boot.run("cloud-init", "--version").split()[-1]
    if suite.name == "sid":  # moves on
        assert numbers(version) >= numbers(suite.version)
    else:
        assert f"{version}.".startswith(f"{suite.version}.")


def test_its_syntax_is_python_3_6() -> None:
    tree = ast.parse(MODULE.read_text(), feature_version=(3, 6))
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    assert "handle" in names


def test_it_imports_nothing_but_the_standard_library_at_the_top() -> None:
    top = ast.parse(MODULE.read_text()).body
    imported = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "." for node in top if isinstance(node, ast.ImportFrom)}
    assert imported == STANDARD_LIBRARY


def test_it_can_be_imported_with_nothing_else_there(suite: Suite, bare: Machine) -> None:
    with bare.boot() as boot:
        boot.write("/alone/cc_conntrack.py", MODULE.read_text())
        found = json.loads(boot.run("python3", "-I", "-S", "-c", IMPORTED))
    assert found["file"] == "/alone/cc_conntrack.py"
    assert found["frequency"] == found["meta"]["frequency"] == "always"
    assert not [name for name in found["new"] if name.startswith(("cloudinit", "yaml", "jsonschema"))]


def test_importing_it_leaves_the_package_alone(suite: Suite, installed: Machine) -> None:
    with installed.boot() as boot:
        found = json.loads(boot.run("python3", "-c", IMPORTED))
    assert found["file"] == "/usr/lib/python3/dist-packages/cc_conntrack.py"
    assert not [name for name in found["new"] if name.startswith("cloudinit")]
