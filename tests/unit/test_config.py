"""The ``conntrack:`` section: golden cases, the schema beside the code, hostile input.

``config/bad/NAME.yaml`` holds one mistake and ``NAME.txt`` the one message it gives;
``config/good/NAME.yaml`` is read as ``NAME.json``.  Write a new golden answer by hand: it
is what a person meets.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cloudinit_conntrack
from cloudinit_conntrack.config import (
    DEFAULT_OUTBOUND,
    Desired,
    Flow,
    Flows,
    Guard,
    Modules,
    Rules,
    desired_from_section,
    desired_from_text,
)
from cloudinit_conntrack.document import MAX_BYTES, MAX_DEPTH, section_of
from cloudinit_conntrack.errors import ConfigError

HERE = Path(__file__).parent / "config"
ROOT = Path(__file__).parents[2]
SCHEMA: dict[str, Any] = json.loads((ROOT / "schema" / "conntrack.schema.json").read_text())
BAD = sorted((HERE / "bad").glob("*.yaml"))
GOOD = sorted((HERE / "good").glob("*.yaml"))
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))

# Mistakes that JSON schema has no words for, or that only show between keys.
BEYOND_SCHEMA = {
    "address-anyone-v6",
    "address-anyone",
    "address-host-bits-v6",
    "address-host-bits",
    "address-mapped",
    "address-octal",
    "address-prefix-too-long-v6",
    "address-prefix-too-long",
    "address-three-parts",
    "all-in-stateless",
    "all-in-unload",
    "extra-in-stateless",
    "fallback-in-stateless",
    "fallback-notrack-without-flows",
    "flow-port-range-reversed",
    "force-in-notrack",
    "haproxy-control-character",
    "haproxy-dots",
    "notrack-with-outbound-only",
    "notrack-without-flows",
    "port-is-a-float",
    "probe-bad-address",
    "probe-port-too-large",
    "range-reversed",
    "stateful-remove-in-notrack",
}


def names(path: Path) -> str:
    return path.stem


def message_of(text: bytes, name: str = "user-data") -> str:
    """The message that *text* is refused with; fails when it is accepted."""
    with pytest.raises(ConfigError) as caught:
        desired_from_text(text, name)
    return str(caught.value)


def assert_one_plain_line(message: str) -> None:
    assert message.isascii() and message.isprintable(), message
    assert len(message) <= 300, message


def schema_accepts(section: object) -> bool:
    return bool(jsonschema.Draft7Validator(SCHEMA).is_valid({"conntrack": section}))


# --- golden cases -------------------------------------------------------------------


@pytest.mark.parametrize("case", BAD, ids=names)
def test_one_mistake_gives_one_message(case: Path) -> None:
    message = message_of(case.read_bytes(), case.name)
    assert message + "\n" == case.with_suffix(".txt").read_text()
    assert_one_plain_line(message)
    # One message names one place: the path, or the file, and says once what may stand there.
    assert message.startswith(("conntrack", f"{case.name}:", "write_files[0]"))
    assert message.count("must be ") + message.count("must have ") <= 1


@pytest.mark.parametrize("case", GOOD, ids=names)
def test_good_section_is_read(case: Path) -> None:
    desired = desired_from_text(case.read_bytes(), case.name)
    answer = json.loads(case.with_suffix(".json").read_text())
    assert json.loads(json.dumps(dataclasses.asdict(desired))) == answer


@pytest.mark.parametrize("case", [*GOOD, *EXAMPLES], ids=names)
def test_file_is_read_as_cloud_init_reads_it(case: Path) -> None:
    text = case.read_bytes()
    section = yaml.safe_load(text)["conntrack"]
    assert desired_from_text(text, case.name) == desired_from_section(section)


def test_golden_folders_are_whole() -> None:
    assert len(BAD) >= 30 and len(GOOD) >= 5
    for folder, answer in (("bad", ".txt"), ("good", ".json")):
        stems = {path.stem for path in (HERE / folder).glob("*.yaml")}
        assert stems == {path.stem for path in (HERE / folder).glob(f"*{answer}")}


def test_of_two_mistakes_the_first_in_the_document_is_told() -> None:
    first = b"conntrack:\n  persist: 1\n  on_failure: 2\n"
    assert message_of(first).startswith("conntrack.persist: ")
    assert message_of(b"conntrack:\n  on_failure: 2\n  persist: 1\n").startswith("conntrack.on_failure: ")


def test_error_has_its_parts_and_exit_code() -> None:
    with pytest.raises(ConfigError) as caught:
        desired_from_section({"mode": "unload", "flows": {"frontends": [80, 70000]}})
    error = caught.value
    assert (error.where, error.what) == ("conntrack.flows.frontends[1]", "is 70000")
    assert error.remedy.startswith("must be a port from 1 to 65535")
    assert error.exit_code == 2


# --- values -------------------------------------------------------------------------


def test_smallest_section_is_all_defaults() -> None:
    assert desired_from_section({"mode": "unload"}) == Desired("unload")
    assert Desired("unload") == Desired(
        mode="unload",
        fallback="none",
        flows=Flows((), (), (), DEFAULT_OUTBOUND, False),
        rules=Rules("rewrite", "refuse"),
        modules=Modules(True, (), False),
        guard=Guard(None, ()),
        on_failure="rollback",
        persist=True,
    )


@pytest.mark.parametrize(
    ("address", "network", "family"),
    [
        ("10.0.0.0/16", "10.0.0.0/16", "ipv4"),
        ("10.0.0.1", "10.0.0.1/32", "ipv4"),
        ("2001:DB8:0::1", "2001:db8::1/128", "ipv6"),
        ("::/0", "::/0", "ipv6"),
    ],
)
def test_address_is_normalised_and_has_a_family(address: str, network: str, family: str) -> None:
    section = {"mode": "stateless", "flows": {"backends": [{"port": 80, "address": address}]}}
    assert desired_from_section(section).flows.backends == (Flow("tcp", (80, 80), network),)
    assert Flow("tcp", (80, 80), network).family == family
    assert Flow("tcp", (80, 80)).family is None


def test_protocol_defaults_by_direction() -> None:
    flows = {"frontends": [1], "backends": [2], "outbound": [3]}
    read = desired_from_section({"mode": "unload", "flows": flows}).flows
    assert read.frontends == (Flow("tcp", (1, 1)),)
    assert read.backends == (Flow("tcp", (2, 2)),)
    assert read.outbound == (Flow("udp", (3, 3)),)


# --- the schema ---------------------------------------------------------------------


KeyPath = tuple[str, ...]


def schema_keys(schema: dict[str, Any], path: KeyPath = ()) -> Iterator[tuple[KeyPath, dict[str, Any]]]:
    """Every key that the schema names, with its path; list entries and forms looked into."""
    for key, inner in schema.get("properties", {}).items():
        yield (*path, key), inner
        yield from schema_keys(inner, (*path, key))
    for inner in (*schema.get("anyOf", ()), *filter(None, [schema.get("items")])):
        yield from schema_keys(inner, path)


KEYS = dict(schema_keys(SCHEMA))


def every_object(schema: object) -> Iterator[dict[str, Any]]:
    """Every subschema that names properties."""
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict):
            yield schema
        for inner in schema.values():
            yield from every_object(inner)
    if isinstance(schema, list):
        for inner in schema:
            yield from every_object(inner)


def section_with(path: tuple[str, ...], value: Any, mode: str = "unload") -> Any:
    """A section in which *path*, counted from ``conntrack``, holds *value*."""
    keys = list(path)
    if len(keys) == 3:  # a key of a flow, which stands in a list
        value = [{"port": 80, keys.pop(): value}]
    for key in reversed(keys):
        value = {key: value}
    return {"mode": mode, **value}


def test_schema_is_draft_7_and_the_packaged_one() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    packaged = Path(cloudinit_conntrack.__file__).with_name("conntrack.schema.json")
    assert json.loads(packaged.read_text()) == SCHEMA


def test_schema_is_closed_everywhere() -> None:
    objects = list(every_object(SCHEMA))
    assert len(objects) == 9
    for found in objects:
        assert found["additionalProperties"] is False, found


@pytest.mark.parametrize("path", KEYS, ids=".".join)
def test_every_key_is_described_with_examples_that_pass(path: tuple[str, ...]) -> None:
    key = KEYS[path]
    assert key["description"].endswith(".")
    assert key["examples"]
    for example in key["examples"]:
        section = section_with(path[1:], example, mode="notrack" if path[-1] == "all" else "unload")
        assert schema_accepts(section)
        desired_from_section(section)


def test_schema_names_exactly_the_keys_that_are_read() -> None:
    def fields(kind: type[Any], path: tuple[str, ...]) -> set[tuple[str, ...]]:
        found = set()
        for field in dataclasses.fields(kind):
            found.add((*path, field.name))
            if dataclasses.is_dataclass(field.default):
                found |= fields(type(field.default), (*path, field.name))
        return found

    flow = {
        ("conntrack", "flows", direction, key)
        for direction in ("frontends", "backends", "outbound")
        for key in ("port", "protocol", "address")
    }
    assert set(KEYS) == {("conntrack",)} | fields(Desired, ("conntrack",)) | flow


def test_schema_defaults_are_the_defaults() -> None:
    defaults = {path: key["default"] for path, key in KEYS.items() if "default" in key}
    without = set(KEYS) - set(defaults)
    # Required, computed on the host, or meaning "any".
    assert {path[1:] for path in without if len(path) < 4} == {(), ("mode",), ("guard", "keep")}
    assert {path[-1] for path in without if len(path) == 4} == {"port", "address"}
    for path, default in defaults.items():
        read = desired_from_section(section_with(path[1:], default))
        plain = {"mode": "unload", "flows": {path[2]: [80]}} if len(path) == 4 else {"mode": "unload"}
        assert read == desired_from_section(plain), path


def test_schema_refuses_what_we_refuse() -> None:
    lenient = set()
    for case in BAD:
        try:
            section = section_of(case.read_bytes(), case.name)
        except ConfigError:
            continue  # no section to judge
        if schema_accepts(section):
            lenient.add(case.stem)
    assert lenient == BEYOND_SCHEMA


@pytest.mark.parametrize("case", GOOD, ids=names)
def test_schema_accepts_what_we_accept(case: Path) -> None:
    assert schema_accepts(section_of(case.read_bytes(), case.name))


# --- examples -----------------------------------------------------------------------


@pytest.mark.parametrize("example", EXAMPLES, ids=names)
def test_example_is_read_and_valid(example: Path) -> None:
    text = example.read_bytes()
    assert text.startswith(b"#cloud-config\n")
    desired_from_text(text, example.name)
    assert schema_accepts(yaml.safe_load(text)["conntrack"])


def test_examples_show_every_mode() -> None:
    modes = {desired_from_text(example.read_bytes(), example.name).mode for example in EXAMPLES}
    assert modes == {"notrack", "stateless", "unload"}


# --- hostile input ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"conntrack:\n  mode: un\x00load\n", "user-data:2: holds the character U+0000; remove it"),
        (b"conntrack:\n  mode: \x1b[2Junload\n", "user-data:2: holds the character U+001B; remove it"),
        (b"a: 1\nconntrack:\n  mode: \xff\n", "user-data:3: is not UTF-8; save it as UTF-8"),
        ("conntrack: {mode: unload}".encode("utf-16"), "user-data:1: is not UTF-8; save it as UTF-8"),
        (b"\x1f\x8b\x08\x00", "user-data: is compressed; unpack it first"),
        (b"#" * (MAX_BYTES + 1), "user-data: has more than 1048576 bytes; give the conntrack: section alone"),
    ],
)
def test_bytes_that_are_no_text(text: bytes, message: str) -> None:
    assert message_of(text) == message


def test_byte_order_mark_and_crlf_are_read() -> None:
    assert desired_from_text(b"\xef\xbb\xbfconntrack:\r\n  mode: unload\r\n", "x") == Desired("unload")


def test_other_user_data_keys_are_none_of_our_business() -> None:
    # A date that does not exist stops PyYAML's constructor; we never construct it.
    assert desired_from_text(b"since: 2024-02-30\nconntrack: {mode: unload}\n", "x") == Desired("unload")


SIZE = MAX_BYTES - 100
HOSTILE = {
    "brackets": "[" * SIZE,
    "braces": "{a: " * (SIZE // 4),
    "dashes": "- " * (SIZE // 2),
    "question marks": "? " * (SIZE // 2),
    "many values": "[" + "a," * (SIZE // 2) + "]",
    "many keys": "\n".join(f"key{number}: 1" for number in range(SIZE // 15)),
    "one scalar": "conntrack: " + "x" * SIZE,
    "long key": '"' + "k" * SIZE + '": 1',
    "many lines": "conntrack: |\n" + " x\n" * (SIZE // 4),
    "many blank lines": "conntrack: '" + "\n" * SIZE + "'",
    "many words": "conntrack: " + "x " * (SIZE // 2),
    "many escapes": 'conntrack: "' + "\\u202e" * (SIZE // 6) + '"',
    "many anchors": "".join(f"- &a{number} x\n" for number in range(SIZE // 20)),
    "huge number": "conntrack: " + "9" * SIZE,
    "huge sexagesimal number": "conntrack: 1" + ":1" * (SIZE // 2),
    "huge fraction": "conntrack: 1." + "9" * SIZE,
    "directives": "%A b\n" * (SIZE // 5),
    "alias chain": "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 5000)),
    "merge bomb": "a0: &a0 {x: 1}\n"
    + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12)),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_is_refused_in_bounded_time(text: str) -> None:
    assert len(text.encode()) <= MAX_BYTES
    start = time.process_time()
    assert_one_plain_line(message_of(text.encode()))
    assert time.process_time() - start < 10  # 1 s on a slow machine; a blow-up takes minutes


def test_nesting_up_to_the_limit_is_read() -> None:
    deep = "[" * (MAX_DEPTH - 2) + "]" * (MAX_DEPTH - 2)
    assert desired_from_text(f"x: {deep}\nconntrack: {{mode: unload}}".encode(), "x") == Desired("unload")


def test_values_that_hold_themselves() -> None:
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(ConfigError, match=r"conntrack\.flows\.frontends\[0\]: is a list"):
        desired_from_section({"mode": "unload", "flows": {"frontends": loop}})


KEYS_AND_VALUES = [
    "mode", "notrack", "stateless", "unload", "fallback", "none", "flows", "haproxy_cfg", "frontends",
    "backends", "outbound", "all", "port", "protocol", "tcp", "udp", "address", "rules", "stateful",
    "rewrite", "remove", "refuse", "nat", "modules", "block", "extra", "force", "guard", "keep", "probes",
    "on_failure", "rollback", "persist", "80", "8000-8010", "10.0.0.0/16", "10.0.0.1", "::1", "nf_nat",
    "/etc/a.cfg", "10.0.0.1:80", "[::1]:80", "lb:80",
]
WORDS = st.sampled_from(KEYS_AND_VALUES)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.integers(-1, 65537) | st.floats() | st.text() | WORDS
    | st.binary() | st.dates() | st.datetimes()
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.dictionaries(SCALARS | WORDS, inner) | st.dictionaries(WORDS, inner),
    max_leaves=20,
)
PORT = (
    st.sampled_from([1, 80, "80", 65535, "8000-8010", "8000:8010"])
    | st.integers(-1, 70000)
    | st.text("0189-:", max_size=11)
)
ADDRESS = st.sampled_from(["10.0.0.1", "10.0.0.0/16", "10.0.0.1/16", "::1", "2001:db8::/32", "::"]) | st.text(
    "0123456789abf.:/", max_size=20
)
FLOW = PORT | st.fixed_dictionaries(
    {"port": PORT}, optional={"protocol": st.sampled_from(["tcp", "udp", "icmp"]), "address": ADDRESS}
)
SECTIONS = st.fixed_dictionaries(
    {"mode": st.sampled_from(["notrack", "stateless", "unload"])},
    optional={
        "fallback": st.sampled_from(["none", "stateless", "notrack", "unload"]),
        "flows": st.fixed_dictionaries(
            {},
            optional={
                "haproxy_cfg": st.sampled_from(["/etc/a.cfg", ["/etc/a.cfg"], "a.cfg", []]),
                "frontends": st.lists(FLOW, max_size=4),
                "backends": st.lists(FLOW, max_size=4),
                "outbound": st.lists(FLOW, max_size=4),
                "all": st.booleans(),
            },
        ),
        "rules": st.fixed_dictionaries({}, optional={"nat": WORDS, "stateful": WORDS}),
        "modules": st.fixed_dictionaries({}, optional={"block": st.booleans(), "extra": st.lists(WORDS)}),
        "guard": st.fixed_dictionaries({}, optional={"keep": st.lists(PORT), "probes": st.lists(WORDS)}),
        "persist": st.booleans() | WORDS,
    },
)
THOROUGH = settings(deadline=None, max_examples=400, suppress_health_check=list(HealthCheck))


def outcome(section: object) -> Desired | str:
    """What a section is read as, or the message it is refused with."""
    try:
        return desired_from_section(section)
    except ConfigError as error:
        return str(error)


@THOROUGH
@given(VALUES | SECTIONS)
def test_any_value_is_read_or_refused_with_one_line(value: object) -> None:
    found = outcome(value)
    if isinstance(found, str):
        assert_one_plain_line(found)
        assert found.startswith("conntrack")
    else:
        assert schema_accepts(value)  # the schema is never stricter than the program


@THOROUGH
@given(st.dictionaries(WORDS, VALUES))
def test_any_value_below_a_known_key_is_read_or_refused(inner: dict[str, object]) -> None:
    found = outcome({"mode": "unload", **inner})
    assert isinstance(found, Desired) or found.startswith("conntrack")


@THOROUGH
@given(SECTIONS)
def test_text_and_section_are_read_alike(section: dict[str, object]) -> None:
    for text in (yaml.safe_dump({"conntrack": section}, sort_keys=False), json.dumps({"conntrack": section})):
        try:
            found: Desired | str = desired_from_text(text.encode(), "x")
        except ConfigError as error:
            found = str(error)
        assert found == outcome(section)


def dumped(value: object) -> bytes:
    return yaml.safe_dump({"conntrack": value}).encode()


@THOROUGH
@given(st.binary() | st.text().map(str.encode) | VALUES.map(dumped))
def test_any_bytes_are_read_or_refused_with_one_line(text: bytes) -> None:
    try:
        assert isinstance(desired_from_text(text, "x"), Desired)
    except ConfigError as error:
        assert_one_plain_line(str(error))


YAML_BITS = [
    "conntrack:", "mode: unload", "flows", "frontends", "\n", "\n  ", "\n    ", "- ", "? ", ": ", "&a ",
    "*a", "<<: ", "{", "}", "[", "]", ",", "'", '"', "|", ">", "#", "%", "@", "`", "\\", "!!set ", "!!int ",
    "!!bool ", "!!timestamp ", "!x ", "0x1f", "1:30", "1.5", "~", "=", "2001-13-45", "\t", "---", "...",
    "\xe9", "\u2028",
]


@settings(THOROUGH, max_examples=1500)
@given(st.lists(st.sampled_from(YAML_BITS), max_size=40).map("".join))
def test_any_yaml_is_read_or_refused_with_one_line(text: str) -> None:
    try:
        assert isinstance(desired_from_text(text.encode(), "x"), Desired)
    except ConfigError as error:
        assert_one_plain_line(str(error))
