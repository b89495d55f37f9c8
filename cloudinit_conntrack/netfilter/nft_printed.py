"""What ``nft list table`` is going to print of tables that are to change.

How nft words a rule only nft knows, and asking it may load modules.  So what stays is what nft
printed, line by line, and what is new is said in our words (:mod:`.nft_words`), which nft takes.
Where that cannot be done a ValueError says why.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from .nft_ruleset import Entry, NftRuleSet, parse_nft
from .nft_tables import TableName, only, tables_of
from .nft_text import tables_text
from .nft_words import statements_text

# JSON in the middle of words: something that nft_words.py has no words for; or a long set cut short.
_NO_WORDS = re.compile(r'\{"|\["|\.\.\. \d+ more \(')
_HEADS = ("type ", "comment ", "flags ", "devices ")
_PLAIN_CHAIN = {"family", "table", "name", "handle", "type", "hook", "prio", "policy"}
Lines = list[str]
Name = tuple[str, str]


def table_texts(printed: str, before: str, after: str) -> dict[TableName, tuple[str, str]]:
    """Table -> (what nft printed of it, what it is going to print); an empty text is a table that is not there.

    *printed* is nft's text of the tables in the listing *before*, *after* the JSON of what they become.
    """
    old, new = parse_nft(before), parse_nft(after)
    there = tables_text(printed)
    names = dict.fromkeys(tables_of(old) + tables_of(new))
    return {name: (there.get(name, ""), _expected(there.get(name, ""), only(old, (name,)), only(new, (name,))))
            for name in names}


def _expected(text: str, old: NftRuleSet, new: NftRuleSet) -> str:
    if not new.entries:
        return ""
    head, blocks = _blocks(text)
    if old.entries and not head:
        raise ValueError("what nft prints of a table is not known")
    known = {entry.text for entry in old.entries}
    wanted = {_name(entry): entry for entry in new.entries if entry.kind != "rule"}
    for entry in wanted.values():
        if entry.kind != "chain" and entry.text not in known and not _is_plain_table(entry):
            raise ValueError(f"a new {entry.kind} cannot be said in nft's words")
    head = head or [f"table {' '.join(new.entries[0].table)} {{"]
    kept = [name for name in blocks if name in wanted]
    added = [name for name in wanted if name not in blocks and name[0] == "chain"]
    parts = [_chain(blocks.get(name), wanted[name], old, new) if name[0] == "chain" else blocks[name]
             for name in (*kept, *added)]
    body = "\n\n".join("\n".join(part) for part in parts)
    return "\n".join(head) + (f"\n{body}" if body else "") + "\n}\n"


def _is_plain_table(entry: Entry) -> bool:
    return entry.kind == "table" and set(entry.body) <= {"family", "name", "handle"}


def _name(entry: Entry) -> Name:
    return entry.kind, "" if entry.kind == "table" else entry.place[2]


def _blocks(text: str) -> tuple[Lines, dict[Name, Lines]]:
    """The first lines of a table, and its chains, sets and so on by kind and name."""
    head: Lines = []
    blocks: dict[Name, Lines] = {}
    block: Lines | None = None
    for line in text.splitlines()[:-1]:  # the last one closes the table
        if block is None and line.startswith("\t") and line.endswith(" {"):
            kind, _, name = line[1:-2].rpartition(" ")
            block = blocks.setdefault((kind, name), [])
        if block is not None:
            block.append(line)
        elif line:
            head.append(line)
        if line == "\t}":
            block = None
    return head, blocks


def _chain(block: Lines | None, entry: Entry, old: NftRuleSet, new: NftRuleSet) -> Lines:
    """The lines of the chain *entry* of *new*, which was *block* before."""
    rules = new.rules.get(entry.place, ())
    if block is None:
        return [f"\tchain {entry.place[2]} {{", *_definition(entry), *map(_worded, rules), "\t}"]
    if entry.text not in {e.text for e in old.of_kind("chain")}:
        raise ValueError("a chain that changes cannot be said in nft's words")
    were = old.rules.get(entry.place, ())
    inner = block[1:-1]
    first = len(inner) - len(were)
    if first < 0 or any(not line.startswith(_HEADS, 2) for line in inner[:first]):
        raise ValueError("what nft prints of a chain is not one line for each rule")
    known = {rule.text: line for rule, line in zip(were, inner[first:])}
    return [block[0], *inner[:first], *(known.get(rule.text) or _worded(rule) for rule in rules), block[-1]]


def _definition(entry: Entry) -> Iterator[str]:
    base = entry.base
    if not set(entry.body) <= _PLAIN_CHAIN:
        raise ValueError("a new chain cannot be said in nft's words")
    if base is not None:
        yield f"\t\ttype {base.kind} hook {base.hook} priority {_priority(base.hook, base.priority, entry.family)}; " \
              f"policy {base.policy};"


_PRIORITIES = {-300: "raw", -150: "mangle", 0: "filter", 50: "security"}


def _priority(hook: str, priority: int, family: str) -> str:
    """As nft prints it: the standard ones by name, and what is near to them (nft(8), families ip, ip6 and inet)."""
    if family not in ("ip", "ip6", "inet"):
        return str(priority)
    names = {**_PRIORITIES, **({-100: "dstnat"} if hook == "prerouting" else {}),
             **({100: "srcnat"} if hook == "postrouting" else {})}
    for standard, name in names.items():
        more = priority - standard
        if abs(more) <= 10:
            return f"{name} {'+' if more > 0 else '-'} {abs(more)}" if more else name
    return str(priority)


def _worded(rule: Entry) -> str:
    words = statements_text(rule)
    if _NO_WORDS.search(words):
        raise ValueError("a new rule cannot be said in nft's words")
    return f"\t\t{words}"
