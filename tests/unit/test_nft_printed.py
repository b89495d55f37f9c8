"""What we say nft will print, judged by nft: loaded, our text is listed as what the rewrite makes is listed."""

from __future__ import annotations

import pytest
from nft_kernel import load
from test_nft_golden import FOLDERS, policy_of, rewritten

from cloudinit_conntrack.netfilter.nft_printed import table_texts
from cloudinit_conntrack.netfilter.nft_ruleset import format_nft, parse_nft
from cloudinit_conntrack.netfilter.nft_stateless import make_stateless_nft

TABLE = '{"table": {"family": "inet", "name": "t", "handle": 1}}'
CHAIN = '{"chain": {"family": "inet", "table": "t", "name": "c", "handle": 2}}'
RULE = '{"rule": {"family": "inet", "table": "t", "chain": "c", "handle": 3, "expr": [%s]}}'
PRINTED = "table inet t {\n\tchain c {\n\t\taccept\n\t}\n}\n"


def listing(*objects: str) -> str:
    return '{"nftables": [' + ", ".join(objects) + "]}"


def based(hook: str, priority: int, policy: str) -> str:
    more = f'"type": "filter", "hook": "{hook}", "prio": {priority}, "policy": "{policy}"'
    return CHAIN.replace('"handle": 2', f'"handle": 2, {more}')


def test_what_we_print_is_what_nft_lists_of_the_result() -> None:
    """Sets, maps, counters and comments of the old text stay; rules and chains that are new are nft's language."""
    folders = [folder for folder in FOLDERS if not rewritten(folder).blockers]
    texts = []
    for folder, loaded in zip(folders, load([(f / "in.nft").read_text() for f in folders], as_json=False)):
        after = make_stateless_nft(parse_nft(loaded.json), policy_of(folder)).ruleset
        printed = table_texts(loaded.text, loaded.json, format_nft(after))
        assert "".join(old for old, _ in printed.values()) == loaded.text, folder.name
        texts.append("".join(new for _, new in printed.values()))
    assert len(texts) >= 14 and any(text == (f / "out.nft").read_text() for f, text in zip(folders, texts))
    for folder, loaded in zip(folders, load(texts, as_json=False)):
        assert (loaded.code, loaded.error) == (0, ""), folder.name
        assert loaded.text == (folder / "out.nft").read_text(), folder.name


def test_a_table_that_comes_and_one_that_goes() -> None:
    base = based("output", -300, "accept")
    old, new = listing(TABLE, CHAIN, RULE % '{"accept": null}'), listing(TABLE, base, RULE % '{"notrack": null}')
    text = PRINTED.replace("\t\taccept", "\t\ttype filter hook output priority raw; policy accept;\n\t\tnotrack")
    assert table_texts("", listing(), new) == {("inet", "t"): ("", text)}
    assert table_texts(PRINTED, old, listing()) == {("inet", "t"): (PRINTED, "")}
    (loaded,) = load([text], as_json=False)
    assert loaded.text == text


@pytest.mark.parametrize(
    "hook, priority, name",
    [("prerouting", -100, "dstnat"), ("postrouting", 100, "srcnat"), ("input", 100, "100"), ("input", -150, "mangle"),
     ("output", 0, "filter"), ("forward", 50, "security"), ("input", 7, "filter + 7"),
     ("input", -160, "mangle - 10"), ("input", -161, "-161")],
)  # fmt: skip
def test_priorities_have_nfts_names(hook: str, priority: int, name: str) -> None:
    ((_, text),) = table_texts("", listing(), listing(TABLE, based(hook, priority, "drop"))).values()
    assert f"hook {hook} priority {name}; policy drop;" in text
    (loaded,) = load([text], as_json=False)
    assert loaded.text == text


@pytest.mark.parametrize(
    "printed, after, why",
    [
        ("", (TABLE, CHAIN), "not known"),
        (PRINTED.replace("\t\taccept\n", ""), (TABLE, CHAIN), "one line for each rule"),
        (PRINTED.replace("\t\taccept\n", "\t\taccept\n\t\taccept\n"), (TABLE, CHAIN), "one line for each rule"),
        (PRINTED, (TABLE.replace("}}", ', "flags": ["dormant"]}}'), CHAIN), "a new table"),
        (PRINTED, (TABLE, CHAIN.replace("}}", ', "hook": "input", "type": "filter"}}')), "a chain that changes"),
        (PRINTED, (TABLE, CHAIN, CHAIN.replace('"c"', '"d"').replace("}}", ', "dev": "lo"}}')), "a new chain"),
        (PRINTED, (TABLE, CHAIN, RULE % '{"unheard": {"of": 1}}'), "a new rule"),
        (PRINTED, (TABLE, CHAIN, '{"counter": {"family": "inet", "table": "t", "name": "x"}}'), "a new counter"),
    ],
)
def test_what_cannot_be_said_is_not_guessed(printed: str, after: tuple[str, ...], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        table_texts(printed, listing(TABLE, CHAIN, RULE % '{"accept": null}'), listing(*after))


def test_a_set_that_our_words_cut_short_is_not_shown() -> None:
    ports = ", ".join(map(str, range(1, 100)))
    field = '{"payload": {"protocol": "tcp", "field": "dport"}}'
    rule = RULE % f'{{"match": {{"op": "==", "left": {field}, "right": {{"set": [{ports}]}}}}}}'
    with pytest.raises(ValueError, match="a new rule"):
        table_texts(PRINTED, listing(TABLE, CHAIN, RULE % '{"accept": null}'), listing(TABLE, CHAIN, rule))
