"""The schemas of what the command prints: closed, described, and strict enough to refuse a mutation."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from cloudinit_conntrack import kinds, planned, report
from cloudinit_conntrack.actions import (
    Action,
    DeleteEntries,
    Link,
    LoadModule,
    LoadNative,
    LoadRules,
    NativeImage,
    ProveLoading,
    ProveStarting,
    RefreshInitramfs,
    RewriteNative,
    UnloadModule,
    WriteFile,
)
from cloudinit_conntrack.config import Desired
from cloudinit_conntrack.plan import Item, Plan
from cloudinit_conntrack.said import Evidence, Node, Run
from cloudinit_conntrack.state import FileImage, State
from cloudinit_conntrack.tracking import Counters, Space
from tests import reports

FILE = FileImage(b"a\n", 0o640, 1, 2)
TABLE = "*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n"
NATIVE = NativeImage('{"nftables": [{"table": {"family": "inet", "name": "lb", "handle": 1}}]}')
ACTIONS: tuple[Action, ...] = (
    WriteFile("/a", FILE, None, "why"),
    RewriteNative("/etc/nftables.conf", FILE, "", None, "why"),
    LoadRules("nft", "ipv6", TABLE, TABLE, "why", ("filter",), ()),
    LoadNative(NATIVE, NATIVE, "why"),
    UnloadModule("nf_conntrack", "why", (("hashsize", "1"),), (("net.netfilter.nf_conntrack_max", "2"),)),
    LoadModule("nf_conntrack", "why"),
    DeleteEntries((("tcp", 80, 81, ""), ("udp", 53, 53, "10.0.0.0/8")), "why"),
    ProveLoading("/etc/nftables.conf", "native", "", "why"),
    Link("/etc/systemd/l", "", "/a", "why"),
    ProveStarting(("/usr/bin/python3", "--version"), "why"),
    RefreshInitramfs(("update-initramfs", "-u"), "/boot/initrd.img", "why"),
)
PLAN = Plan("unload", ACTIONS, (Item("b", "there", "it cannot be", "do that"),), (Item("w", "there", "more"),),
            (Item("f", "there", "know"),))  # fmt: skip
SIGHT = report.Sight(
    (Node("a", "conntrack", "what", children=(Node("b", "saved", "what", "/a:1", "take it out"),)),), Counters(1, 2, 3),
    (Space(1, "this host", "", None, (("ipv4", True), ("ipv6", None), ("bridge", False))),))  # fmt: skip
WHOLE = report.to_json(dataclasses.replace(
    report.of_plan(PLAN, "blocked", (Evidence("e", None, "who knows"),)), facts=(("kernel", "6.1"),), message="said",
    sight=SIGHT, run=Run("0.1.0", "lb-1", "2026-01-02T03:04:05Z", 0.25)))
CARRIED = {"schema": 1, "mode": "unload", "outcome": "failed", "message": "", "findings": [],
           "actions": [{"id": "0", "where": "/a", "reason": "why"}],
           "blockers": [{"id": "0", "where": "host", "reason": "why"}],
           "widenings": [{"id": "0", "where": "rules", "reason": "why"}]}  # fmt: skip
REWRITTEN = {"ruleset": "*filter\nCOMMIT\n", "widened": ["more"], "narrowed": None,
             "changes": [{"line": 1, "rule": "-A a", "becomes": ["-A b"], "reason": "why", "widens": None}],
             "blockers": [{"line": 2, "rule": "-A c", "reason": "why", "remedy": "what"}]}  # fmt: skip
SAMPLES = {"report": (WHOLE, reports.REPORT), "carried": (CARRIED, reports.REPORT),
           "rewrite": (REWRITTEN, reports.REWRITE)}  # fmt: skip
Path = tuple[Any, ...]
# Lists and mappings of which any number is right, and of which no key is needed.
OPTIONAL = {("message",), ("tree",), ("counters",), ("namespaces",), ("run",)}
FRACTIONS = {("run", "seconds")}
OPEN = {"facts", "parameters", "sysctls", "counters"}


def test_there_is_a_sample_of_every_kind() -> None:
    assert {type(action) for action in ACTIONS} == set(kinds.KINDS)
    assert len(set(kinds.KINDS.values())) == len(kinds.KINDS)


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_are_valid(name: str) -> None:
    reports.valid(*SAMPLES[name])


def below(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every value in *value*, with the keys and places that lead to it."""
    yield path, value
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from below(item, (*path, key))


def at(value: Any, path: Path) -> Any:
    for key in path:
        value = value[key]
    return value


def mutations(sample: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """*sample* with one key less, with one more, with a value of another type."""
    for path, value in below(sample):
        told = "/".join(map(str, path))
        if isinstance(value, dict) and not OPEN & set(path):
            changed = copy.deepcopy(sample)
            at(changed, path)["more"] = 1
            yield f"more in {told}", changed
        if path and isinstance(path[-1], str) and not OPEN & set(path[:-1]):
            if path not in OPTIONAL:
                changed = copy.deepcopy(sample)
                del at(changed, path[:-1])[path[-1]]
                yield f"without {told}", changed
            changed = copy.deepcopy(sample)
            at(changed, path[:-1])[path[-1]] = 1.5 if path not in FRACTIONS else "1.5"
            yield f"another type as {told}", changed


MUTATIONS = [(f"{name}: {told}", changed, by)
             for name, (sample, by) in SAMPLES.items() for told, changed in mutations(sample)]  # fmt: skip


def test_mutations_are_many() -> None:
    assert len(MUTATIONS) > 300


def test_every_mutation_is_refused() -> None:
    taken = [told for told, changed, by in MUTATIONS if by.is_valid(changed)]
    assert not taken


@pytest.mark.parametrize(
    "path, value",
    [
        (("schema",), 2),
        (("outcome",), "fine"),
        (("mode",), "stateful"),
        (("actions", 0, "kind"), "rules"),
        (("actions", 0, "before", "mode"), "644"),
        (("actions", 0, "path"), "a"),
        (("actions", 2, "tables"), ["filters"]),
        (("actions", 4, "diff"), "text"),
        (("actions", 6, "flows", 0, "ports"), [0, 1]),
        (("evidence", 0, "holds"), "yes"),
        (("facts", "kernel"), 6),
        (("counters", "drop"), -1),
        (("tree", 0, "children", 0, "kind"), "line"),
        (("namespaces", 0, "hooks", "ipv4"), "yes"),
    ],
)
def test_other_mutations_are_refused(path: Path, value: Any) -> None:
    changed = copy.deepcopy(WHOLE)
    at(changed, path[:-1])[path[-1]] = value
    with pytest.raises(AssertionError):
        reports.valid(changed)


def test_a_plan_with_changes_says_what_they_are() -> None:
    plan = Plan("unload", (ACTIONS[4],))
    whole = report.to_json(dataclasses.replace(
        report.of_plan(plan, "changes"), planned=planned.of_plan(plan, Desired("unload"), State(None))))
    for missing in (("desired",), ("flows",), ("kept_ports",), ("actions", 0, "diff"), ("actions", 0)):
        changed = copy.deepcopy(whole)
        del at(changed, missing[:-1])[missing[-1]]
        assert not reports.REPORT.is_valid(changed), missing


# --- the schemas themselves ----------------------------------------------------------------


def schemas_in(schema: Any) -> Iterator[dict[str, Any]]:
    """Every schema in *schema*: those of properties, of definitions, of items, of alternatives."""
    yield schema
    for key in ("properties", "definitions"):
        for inner in schema.get(key, {}).values():
            yield from schemas_in(inner)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from schemas_in(schema[key])
    for inner in (*schema.get("oneOf", ()), *schema.get("anyOf", ()), *schema.get("allOf", ())):
        yield from schemas_in(inner)


@pytest.mark.parametrize("by", [reports.REPORT, reports.REWRITE, reports.FLEET], ids=["report", "rewrite", "fleet"])
def test_every_object_is_closed_and_every_property_described(by: jsonschema.Draft7Validator) -> None:
    schema: Any = by.schema
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    for found in schemas_in(schema):
        if "properties" in found:
            assert found["additionalProperties"] is False, found
        for name, inner in found.get("properties", {}).items():
            said = schema["definitions"][inner["$ref"].rpartition("/")[2]] if "$ref" in inner else inner
            assert said.get("description", "").endswith("."), (name, inner)
