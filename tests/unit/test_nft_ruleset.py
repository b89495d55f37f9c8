"""nft's JSON in and out: byte for byte where nothing changed, FILE:LINE where it is damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudinit_conntrack.errors import RulesSyntaxError
from cloudinit_conntrack.netfilter import nft_ruleset
from cloudinit_conntrack.netfilter.nft_ruleset import format_nft, made, parse_nft
from cloudinit_conntrack.netfilter.nft_words import object_text

LISTED = sorted(Path(__file__).parent.glob("nft/*/in.json"))


TABLE = '{"table": {"family": "ip", "name": "t"}}'
RULE = '{"rule": {"family": "ip", "table": "t", "chain": "c", "expr": '


def fails(text: str) -> str:
    with pytest.raises(RulesSyntaxError) as caught:
        parse_nft(text, "in")
    return str(caught.value)


def test_what_nft_lists_is_written_back_byte_for_byte() -> None:
    for path in LISTED:
        text = path.read_text()
        assert format_nft(parse_nft(text)) == text
        value = json.loads(text)
        for other in (json.dumps(value, indent=1), json.dumps(value, indent=4, ensure_ascii=False),
                      json.dumps(value, separators=(",", ":")), json.dumps(value, sort_keys=True)):  # fmt: skip
            assert format_nft(parse_nft(other)) == other
            assert format_nft(parse_nft("\n " + other + " \n\n")) == "\n " + other + " \n\n"


def test_what_we_make_looks_like_what_nft_writes() -> None:
    for path in LISTED:
        parsed = parse_nft(path.read_text())
        assert all(made(entry, entry.kind, entry.body).text == entry.text for entry in parsed.entries)


def test_an_empty_list() -> None:
    for text in ('{"nftables": []}', '{"nftables":[ \n ] }\n'):
        parsed = parse_nft(text)
        assert parsed.entries == () and format_nft(parsed) == text


def test_a_file_made_for_nft_f() -> None:
    text = '{"nftables": [{"flush": {"ruleset": null}}, {"add": {"table": {"family": "ip", "name": "t"}}}]}'
    parsed = parse_nft(text)
    assert [(entry.kind, entry.wrapped) for entry in parsed.entries] == [("flush", False), ("table", True)]
    assert made(parsed.entries[1], "table", parsed.entries[1].body).text == parsed.entries[1].text
    assert format_nft(parsed) == text


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "in:1: no JSON: Expecting value (column 1)"),
        ("*filter\nCOMMIT\n", "in:1: no JSON: Expecting value (column 1)"),
        ("[]", "in:1: no rule-set of nft (column 1)"),
        ('{"nftables": {}}', "in:1: no rule-set of nft"),
        ('{"x": 1, "nftables": []}', "in:1: no rule-set of nft"),
        ('{"nftables": []', "in:1: no JSON: Expecting value (column 15)"),
        ('{"nftables": [\nTABLE\n', "in:2: the array of objects is not closed (column 41)"),
        ('{"nftables": [TABLE]} x', "in:1: the array of objects is not closed"),
        ('{"nftables": [TABLE], "x": 1}', "in:1: the array of objects is not closed"),
        ('{"nftables": [\n\n{"table": {"family": "ip" "name": "t"}}]}', "in:3: no JSON: Expecting ',' delimiter"),
        ('{"nftables": [\n{"table": "t}]}', "in:2: no JSON: Unterminated string"),
        ('{"nftables": [,]}', "in:1: no JSON: Expecting value"),
        ('{"nftables": [5]}', "in:1: object 1: no object with one key"),
        ('{"nftables": [{"a": 1, "b": 2}]}', "in:1: object 1: no object with one key"),
        ('{"nftables": [{"table": {"family": "ip", "family": "ip", "name": "t"}}]}', "a key stands twice"),
        ('{"nftables": [{"delete": TABLE}]}', "unknown object or command 'delete'"),
        ('{"nftables": [{"insert": {"rule": {}}}]}', "unknown object or command 'insert'"),
        ('{"nftables": [{"table": null}]}', "object 1: table is no object"),
        ('{"nftables": [{"table": {"family": "ip"}}]}', "object 1: table has no name"),
        ('{"nftables": [{"rule": {"family": "ip", "table": "t"}}]}', "object 1: rule has no chain"),
        ('{"nftables": [{"chain": {"family": "ip", "table": "t", "name": "c", "hook": "x", "prio": ""}}]}', "base"),
        ('{"nftables": [RULE5}}]}', "expr is no array"),
        ('{"nftables": [RULE[5]}}]}', "no object with one key"),
        ('{"nftables": [RULE[{"match": {"op": "=="}}]}}]}',
         "match without left"),
        ('{"nftables": [RULE[{"jump": {"target": 5}}]}}]}',
         "jump: target is no text"),
        ('{"nftables": [{"counter": {"bytes": NaN}}]}', "NaN is no JSON number"),
        ('{"nftables": [{"counter": {"bytes": 1e999}}]}', "1e999 is no usable number"),
        ('{"nftables": [{"counter": {"x": "\\ud800"}}]}', "no UTF-8"),
        ('{"nftables": [{"counter": {"x": "\udc80"}}]}', "no UTF-8"),
        ('{"nftables": [{"counter": {"x": "\\u0000"}}]}', "NUL byte"),
        ('{"nftables": [\n{"counter": {"x": "\0"}}]}', "in:2: a NUL byte"),
        ('{"nftables": [\r\n]}', "in:1: a carriage return"),
        ('{"nftables": [{"counter": {"x": ' + "[" * 100 + "]" * 100 + "}}]}", "nested deeper than 64"),
        ('{"nftables": [{"counter": {"x": ' + "[" * 100_000, "nested too deeply"),
        ('{"nftables": [{"counter": {"x": ' + "1" * 5000 + "}}]}", "object 1:"),
    ],
)  # fmt: skip
def test_damage_is_told_with_its_place(text: str, said: str) -> None:
    message = fails(text.replace("TABLE", TABLE).replace("RULE", RULE))
    assert said in message and message.startswith("in:")
    assert len(message) < 400


def test_a_file_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nft_ruleset, "LARGEST_FILE", 50)
    assert "larger than 50 bytes" in fails('{"nftables": [' + " " * 40)


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"))
KEYS = st.sampled_from(("ct", "match", "key", "op", "x"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner),
    max_leaves=12,
)


@given(st.lists(VALUES, max_size=4), st.sampled_from((None, 2)))
def test_any_value_is_kept_or_refused_as_damage(values: list[object], indent: int | None) -> None:
    rules = [{"rule": {"family": "ip", "table": "t", "chain": "c", "expr": [{"counter": value}]}} for value in values]
    text = json.dumps({"nftables": rules}, indent=indent)
    parsed = parse_nft(text)
    assert format_nft(parsed) == text
    assert all(object_text(entry).startswith("ip t c ") for entry in parsed.entries)


@given(st.text(alphabet='{}[]",:0 \n\\truefalsnibx', max_size=60))
def test_no_text_is_more_than_damage(rest: str) -> None:
    text = '{"nftables": [' + rest
    try:
        assert format_nft(parse_nft(text, "in")) == text
    except RulesSyntaxError as error:
        assert error.where.startswith("in:")
