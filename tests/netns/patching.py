"""A plan's diffs put by patch(1) on what the host's own programs say, to be compared with what they say after apply."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .applying import Machine, uncounted
from .namespace import Namespace
from .topology import BACKENDS, FAMILIES

Texts = dict[str, bytes]
_NOTHING = re.compile(r"\*\S+\n(:\S+ ACCEPT \[0:0\]\n)*COMMIT\n")


def now(machine: Machine, actions: Iterable[dict[str, Any]]) -> Texts:
    """The files of *actions*, and every live table under ``live/``, by the programs that print them."""
    found = {path[1:]: file.read_bytes() for path in _paths(actions) if (file := machine.files / path[1:]).exists()}
    for backend in BACKENDS:
        for family in FAMILIES:
            place = f"live/{'ip6tables' if family == 'ipv6' else 'iptables'}-{backend}"
            text = uncounted(machine.place.save_rules(backend, family))
            found |= {f"{place}/{table.split()[0]}": f"*{table}".encode() for table in text.split("*")[1:]}
    for line in machine.place.run("nft", "list", "tables").stdout.splitlines():
        _, kind, name = line.split()
        if kind not in ("ip", "ip6") or name not in ("raw", "mangle", "nat", "filter"):  # those are iptables-nft's
            found[f"live/nft/{kind}/{name}"] = machine.place.run("nft", "list", "table", kind, name).stdout.encode()
    return found


def _paths(actions: Iterable[dict[str, Any]]) -> list[str]:
    return [action["path"] for action in actions if action["kind"] in ("file", "native-file")]


def patched(texts: Texts, actions: Iterable[dict[str, Any]], tree: Path) -> Texts:
    """*texts* with the diffs of *actions* put on them, in the empty directory *tree*."""
    for name, content in texts.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(content)
    text = "".join(action["diff"] or "" for action in actions)
    done = subprocess.run(["patch", "--strip=1", "--fuzz=0", "--force"], cwd=tree, input=text, text=True,
                          capture_output=True, timeout=60, check=False)  # fmt: skip
    assert done.returncode == 0 and "offset" not in done.stdout, done.stdout + done.stderr + text
    return {str(file.relative_to(tree)): file.read_bytes() for file in tree.rglob("*") if file.is_file()}


def filled(texts: Texts) -> Texts:
    """*texts* without the live tables that say nothing: built in, a legacy table can be emptied, not removed."""
    return {name: content for name, content in texts.items()
            if not (name.startswith("live/ip") and _NOTHING.fullmatch(content.decode()))}


def in_nfts_words(texts: Texts) -> Texts:
    """*texts* with native tables as nft prints them once it has loaded them."""
    found = dict(texts)
    place = Namespace("words")
    try:
        for name, content in texts.items():
            if name.startswith("live/nft/"):
                place.run("nft", "-f", "-", stdin=content.decode())
                listed = place.run("nft", "list", "ruleset").stdout
                listed = re.sub(r"packets \d+ bytes \d+| expires [0-9dhms]+|,", "", listed)
                lines = (" ".join(sorted(line.split())) for line in listed.splitlines())  # sets have no order
                found[name] = "\n".join(lines).encode()
                place.run("nft", "flush", "ruleset")
    finally:
        place.close()
    return found
