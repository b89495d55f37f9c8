"""nft's JSON in words: the syntax of nft(8), for people and as a stable name of a condition.

What we do not know is written as compact JSON, so no text ever hides a difference.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Callable

from .nft_ruleset import Entry, Json

_BARE_META = frozenset(("iif", "oif", "iifname", "oifname", "iiftype", "oiftype", "iifgroup", "oifgroup"))
_QUOTED = frozenset(("iif", "oif", "iifname", "oifname", "ibrname", "obrname", "iifkind", "oifkind", "sdif",
                     "sdifname"))
# Longer sets are shown by their first elements.
_MOST_SHOWN, _FIRST_SHOWN = 64, 16
_BITS = frozenset(("|", "&", "^", "<<", ">>"))
_FLAGGED = frozenset(("flags", "state", "status"))


def rule_text(entry: Entry) -> str:
    """A rule with its place: ``inet filter input ct state new accept``."""
    return " ".join((*entry.place, statements_text(entry)))


def statements_text(entry: Entry) -> str:
    """The statements of a rule, comment included."""
    words = [statement_text(statement) for statement in entry.statements]
    comment = entry.body.get("comment")
    return " ".join(words + ([f"comment {_quoted(comment)}"] if isinstance(comment, str) else []))


def object_text(entry: Entry) -> str:
    """Any entry in a few words: ``chain ip nat prerouting { type nat hook prerouting priority -100 }``."""
    if entry.kind == "rule":
        return rule_text(entry)
    base = entry.base
    hook = f" {{ type {base.kind} hook {base.hook} priority {base.priority}; policy {base.policy}; }}" if base else ""
    where = entry.table if entry.kind == "table" else entry.place
    return " ".join((entry.kind, *where)) + hook


def statement_text(statement: Mapping[str, Json]) -> str:
    """One statement."""
    kind, body = next(iter(statement.items()))
    writer = _STATEMENTS.get(kind)
    try:
        return writer(body) if writer else (kind if body is None else _raw(statement))
    except (LookupError, TypeError, ValueError, AttributeError):
        return _raw(statement)


def expression_text(value: Json) -> str:
    """One expression."""
    if isinstance(value, bool):
        return "exists" if value else "missing"
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, str):
        return value if value.startswith("@") or _is_bare(value) else _quoted(value)
    if isinstance(value, list):
        return ",".join(expression_text(item) for item in value)
    if not isinstance(value, dict) or len(value) != 1:
        return _raw(value)
    kind, body = next(iter(value.items()))
    try:
        if kind in _BITS:
            return f" {kind} ".join(_operand(item, kind) for item in body)
        writer = _EXPRESSIONS.get(kind)
        return writer(body) if writer else _raw(value)
    except (LookupError, TypeError, ValueError, AttributeError):
        return _raw(value)


def _raw(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _is_bare(text: str) -> bool:
    return bool(text) and all(letter.isalnum() or letter in "._-:/" for letter in text)


def _quoted(text: str) -> str:
    return f'"{text}"'


def _operand(value: Json, beside: str = "") -> str:
    """An operand of *beside*, in parentheses where it is an operation of another kind."""
    text = expression_text(value)
    if isinstance(value, list):
        return "(" + " | ".join(expression_text(item) for item in value) + ")"
    kind = next(iter(value), "") if isinstance(value, dict) else ""
    return f"({text})" if kind in _BITS and (kind, beside) != ("|", "|") else text


# --- expressions -----------------------------------------------------------------------


def _payload(body: Json) -> str:
    if "base" in body:
        return f"@{body['base']},{body['offset']},{body['len']}"
    return f"{body['protocol']} {body['field']}"


def _meta(body: Json) -> str:
    return str(body["key"]) if body["key"] in _BARE_META else f"meta {body['key']}"


def _ct(body: Json) -> str:
    return " ".join(["ct", *([body["dir"]] if "dir" in body else []), body["key"]])


def _set(body: Json) -> str:
    if not isinstance(body, list):
        return _member(body)
    shown = [_member(item) for item in body[:_MOST_SHOWN]]
    if len(body) > _MOST_SHOWN:  # the digest tells two such sets apart
        digest = hashlib.sha256(_raw(body).encode("utf-8", "surrogateescape")).hexdigest()[:8]
        shown[_FIRST_SHOWN:] = [f"... {len(body) - _FIRST_SHOWN} more ({digest})"]
    return f"{{ {', '.join(shown)} }}"


def _member(item: Json) -> str:
    if isinstance(item, list) and len(item) == 2:
        value = item[1]
        verdict = isinstance(value, dict) and next(iter(value), "") in _STATEMENTS
        return f"{expression_text(item[0])} : {statement_text(value) if verdict else expression_text(value)}"
    return _operand(item).strip("()") if isinstance(item, dict) else expression_text(item)


def _element(body: Json) -> str:
    words = [expression_text(body["val"])]
    words += [f"{key} {body[key]}s" for key in ("timeout", "expires") if key in body]
    words += [statement_text({key: body[key]}) for key in ("counter", "limit", "quota") if key in body]
    words += [f"comment {_quoted(body['comment'])}"] if "comment" in body else []
    return " ".join(words)


def _listed(value: Json) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def _fields(word: str) -> Callable[[Json], str]:
    return lambda body: " ".join([word, str(body["name"]), *([str(body["field"])] if "field" in body else [])])


def _hash(word: str) -> Callable[[Json], str]:
    def text(body: Json) -> str:
        words = [word, *([expression_text(body["expr"])] if "expr" in body else [])]
        words += [body["mode"]] if "mode" in body else []
        words += ["mod", str(body["mod"])]
        words += ["seed", str(body["seed"])] if "seed" in body else []
        return " ".join(words + (["offset", str(body["offset"])] if body.get("offset") else []))

    return text


_EXPRESSIONS: Mapping[str, Callable[[Json], str]] = {
    "payload": _payload,
    "meta": _meta,
    "ct": _ct,
    "set": _set,
    "elem": _element,
    "range": lambda b: f"{expression_text(b[0])}-{expression_text(b[1])}",
    "prefix": lambda b: f"{expression_text(b['addr'])}/{b['len']}",
    "concat": lambda b: " . ".join(expression_text(item) for item in b),
    "map": lambda b: f"{expression_text(b['key'])} map {expression_text(b['data'])}",
    "exthdr": lambda b: " ".join([str(b["name"]), str(b["field"])]) if "field" in b else f"exthdr {b['name']}",
    "tcp option": _fields("tcp option"),
    "ip option": _fields("ip option"),
    "sctp chunk": _fields("sctp chunk"),
    "fib": lambda b: " ".join(["fib", " . ".join(_listed(b["flags"])), b["result"]]),
    "rt": lambda b: " ".join(["rt", *([b["family"]] if "family" in b else []), b["key"]]),
    "ipsec": lambda b: f"ipsec {b['dir']} {b['key']}",
    "socket": lambda b: f"socket {b['key']}",
    "osf": lambda b: f"osf {b['key']}",
    "numgen": _hash("numgen"),
    "jhash": _hash("jhash"),
    "symhash": _hash("symhash"),
}


# --- statements ------------------------------------------------------------------------


def _match(body: Json) -> str:
    op, left, right = body["op"], body["left"], body["right"]
    kind, inner = next(iter(left.items())) if isinstance(left, dict) and left else ("", {})
    a_set = (isinstance(right, dict) and "set" in right) or (isinstance(right, str) and right.startswith("@"))
    bits = kind in ("payload", "ct") and inner.get("field", inner.get("key")) in _FLAGGED and not a_set
    plain = op == "in" or (op == "==" and not bits and kind not in _BITS)
    return " ".join((expression_text(left), *(() if plain else (op,)), _right(left, right)))


def _right(left: Json, right: Json) -> str:
    meta = left.get("meta") if isinstance(left, dict) else None
    named = isinstance(left, dict) and ("osf" in left or left.get("ct") == {"key": "helper"})
    if isinstance(right, str) and (named or (isinstance(meta, dict) and meta.get("key") in _QUOTED)):
        return right if right.startswith("@") else _quoted(right)
    if isinstance(right, list) and isinstance(left, dict) and next(iter(left), "") in _BITS:
        return _operand(right)
    return expression_text(right)


def _counter(body: Json) -> str:
    if isinstance(body, str):
        return f"counter name {_quoted(body)}"
    return "counter" if body is None else f"counter packets {body['packets']} bytes {body['bytes']}"


def _limit(body: Json) -> str:
    if isinstance(body, str):
        return f"limit name {_quoted(body)}"
    unit = "" if body.get("rate_unit", "packets") == "packets" else f" {body['rate_unit']}"
    text = f"limit rate {'over ' if body.get('inv') else ''}{body['rate']}{unit}/{body['per']}"
    burst = body.get("burst")
    return f"{text} burst {burst} {body.get('burst_unit', 'packets')}" if burst else text


def _quota(body: Json) -> str:
    if isinstance(body, str):
        return f"quota name {_quoted(body)}"
    used = f" used {body['used']} {body.get('used_unit', 'bytes')}" if body.get("used") else ""
    return f"quota {'over ' if body.get('inv') else ''}{body['val']} {body.get('val_unit', 'bytes')}{used}"


def _log(body: Json) -> str:
    words = ["log"]
    for key, value in (body or {}).items():
        listed = value if isinstance(value, list) else [value]
        words += [key, _quoted(value) if key == "prefix" else ",".join(str(item) for item in listed)]
    return " ".join(words)


def _reject(body: Json) -> str:
    if not body:
        return "reject"
    return " ".join(["reject with", body["type"], *([expression_text(body["expr"])] if "expr" in body else [])])


def _nat(word: str) -> Callable[[Json], str]:
    def text(body: Json) -> str:
        body = body or {}
        words = [word, *([body["family"]] if "family" in body else [])]
        address = expression_text(body["addr"]) if "addr" in body else ""
        address = f"[{address}]" if ":" in address and "port" in body else address
        port = f":{expression_text(body['port'])}" if "port" in body else ""
        words += ["to", address + port] if address or port else []
        flags = body.get("flags", [])
        return " ".join(words + ([",".join(flags) if isinstance(flags, list) else str(flags)] if flags else []))

    return text


def _dynamic(body: Json) -> str:
    inner = body.get("stmt", [])
    stated = [statement_text(one) for one in (inner if isinstance(inner, list) else [inner])]
    return f"{body['op']} {body['set']} {{ {' '.join([expression_text(body['elem']), *stated])} }}"


def _meter(body: Json) -> str:
    size = f" size {body['size']}" if "size" in body else ""
    return f"meter {body['name']}{size} {{ {expression_text(body['key'])} {statement_text(body['stmt'])} }}"


def _count(body: Json) -> str:
    return f"ct count {'over ' if body.get('inv') else ''}{body['val']}"


def _queue(body: Json) -> str:
    flags = (body or {}).get("flags", [])
    words = ["queue", *(["flags", ",".join(flags) if isinstance(flags, list) else flags] if flags else [])]
    return " ".join(words + (["to", expression_text(body["num"])] if body and "num" in body else []))


def _synproxy(body: Json) -> str:
    if isinstance(body, str):
        return f"synproxy name {_quoted(body)}"
    words = [f"{key} {body[key]}" for key in ("mss", "wscale") if key in (body or {})]
    return " ".join(["synproxy", *words, *_listed((body or {}).get("flags", []))])


def _device(body: Json) -> list[str]:
    return ["device", expression_text(body["dev"])] if "dev" in body else []


def _last(word: str) -> Callable[[Json], str]:
    return lambda body: f"{word} {_quoted(body)}"


_STATEMENTS: Mapping[str, Callable[[Json], str]] = {
    "match": _match,
    "accept": lambda b: "accept",
    "drop": lambda b: "drop",
    "return": lambda b: "return",
    "continue": lambda b: "continue",
    "jump": lambda b: f"jump {b['target']}",
    "goto": lambda b: f"goto {b['target']}",
    "counter": _counter,
    "limit": _limit,
    "quota": _quota,
    "log": _log,
    "reject": _reject,
    "mangle": lambda b: f"{expression_text(b['key'])} set {expression_text(b['value'])}",
    "vmap": lambda b: f"{expression_text(b['key'])} vmap {expression_text(b['data'])}",
    "set": _dynamic,
    "meter": _meter,
    "ct count": _count,
    "ct helper": _last("ct helper set"),
    "ct timeout": _last("ct timeout set"),
    "ct expectation": _last("ct expectation set"),
    "snat": _nat("snat"),
    "dnat": _nat("dnat"),
    "masquerade": _nat("masquerade"),
    "redirect": _nat("redirect"),
    "flow": lambda b: f"flow {b['op']} {b['flowtable']}",
    "queue": _queue,
    "xt": lambda b: f"xt {b['type']} {b['name']}",
    "synproxy": _synproxy,
    "dup": lambda b: " ".join(["dup to", expression_text(b["addr"]), *_device(b)]),
    "fwd": lambda b: " ".join(["fwd to", *([expression_text(b["addr"])] if "addr" in b else []), *_device(b)]),
    "reset": lambda b: f"reset {expression_text(b)}",
}
