"""What an action changes, as a unified diff that patch(1) and git-apply(1) take.  Pure.

Files stand under their own paths, live rules under ``live/``, each table as a file of its own:
``live/iptables-nft/filter`` is what ``iptables-nft-save -t filter`` prints, without its comments and
with all counters 0, ``live/nft/inet/lb`` what ``nft list table inet lb`` does.
Text is Python's: bytes that are no UTF-8 stand as surrogates.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from . import linediff
from .actions import Action, LoadNative, LoadRules, RefreshInitramfs, RewriteNative, WriteFile
from .netfilter.nft_printed import table_texts
from .state import FileImage

_COUNTED = re.compile(r"^\[\d+:\d+\][ \t]+", re.MULTILINE)
_POLICY_COUNTS = re.compile(r"^(:\S+ \S+) \[\d+:\d+\]", re.MULTILINE)
_ESCAPES = {"\t": "\\t", "\n": "\\n", '"': '\\"', "\\": "\\\\"}
_WORDED = "apply writes what nft itself prints of the new rules, which nft has to be asked for"
_UNKNOWN = f"{_WORDED}; what the file loads is not known yet, since looking could load kernel modules"


@dataclass(frozen=True)
class Diff:
    """What changes in a text: *parts* of a unified diff, one for each file or table.

    Without a part *why* says why, where something like a text changes all the same.
    """

    parts: tuple[str, ...] = ()
    why: str = ""

    @property
    def text(self) -> str | None:
        """The whole diff, ``None`` where there is none."""
        return "".join(self.parts) or None


def of(action: Action) -> Diff:
    """What *action* changes; neither a text nor a reason where that is no text (a module, a proof, a link)."""
    if isinstance(action, WriteFile):
        return of_file(action.path, action.before, action.after)
    if isinstance(action, LoadRules):
        return of_rules(action)
    if isinstance(action, LoadNative):
        return of_native(action)
    if isinstance(action, RewriteNative):
        return Diff(why=_UNKNOWN if action.after is None else _WORDED)
    if isinstance(action, RefreshInitramfs):
        return Diff(why=f"binary: written by '{' '.join(action.argv)}'")
    return Diff()


# --- files -----------------------------------------------------------------------------


def of_file(path: str, before: FileImage | None, after: FileImage | None) -> Diff:
    """What becomes of the file *path*."""
    if b"\0" in (before.content if before else b"") + (after.content if after else b""):
        return Diff(why=f"binary: {_size(before)} bytes become {_size(after)}")
    owners = [f"{image.uid}:{image.gid}" for image in (before, after) if image is not None]
    moved = f"owner {owners[0]} becomes {owners[1]}: {path}\n" if len(set(owners)) == 2 else ""
    modes = [f"100{image.mode:03o}" if image is not None else "" for image in (before, after)]
    texts = [image.content.decode("utf-8", "surrogateescape") if image is not None else "" for image in (before, after)]
    return _whole([moved + _one(path.lstrip("/"), texts[0], texts[1], modes[0], modes[1])])


def _whole(parts: Iterable[str]) -> Diff:
    found = tuple(filter(None, parts))
    return Diff(found, "" if found else "no letter of it changes")


def _size(image: FileImage | None) -> int:
    return len(image.content) if image else 0


def _one(name: str, old: str, new: str, old_mode: str, new_mode: str) -> str:
    """The part of a diff that is about one file; an empty mode is a file that is not there."""
    names = _quoted(f"a/{name}"), _quoted(f"b/{name}")
    hunks = linediff.hunks(linediff.lines_of(old), linediff.lines_of(new))
    head = [f"diff --git {names[0]} {names[1]}"]
    if not hunks and old_mode == new_mode:
        return ""
    if not old_mode:
        head.append(f"new file mode {new_mode}")
    elif not new_mode:
        head.append(f"deleted file mode {old_mode}")
    elif old_mode != new_mode:
        head += [f"old mode {old_mode}", f"new mode {new_mode}"]
    if hunks:
        head.append(f"--- {names[0] if old_mode else '/dev/null'}")
        head.append(f"+++ {names[1] if new_mode else '/dev/null'}")
    return "\n".join(head) + "\n" + hunks


def _quoted(name: str) -> str:
    """*name* in quotes, with C's escapes, where patch or git could misread a letter of it: a blank, no ASCII."""
    if all("!" <= letter <= "~" and letter not in '"\\' for letter in name):
        return name
    octets = name.encode("utf-8", "surrogateescape").decode("latin-1")
    return '"' + "".join(_ESCAPES.get(o) or (o if " " <= o <= "~" else f"\\{ord(o):03o}") for o in octets) + '"'


# --- live rules ------------------------------------------------------------------------

_TABLE = "100644"


def of_rules(action: LoadRules) -> Diff:
    """What becomes of live iptables rules, table by table in the order in which they are loaded."""
    old, new = saved_tables(action.before), saved_tables(action.after)
    program = f"{'ip6tables' if action.family == 'ipv6' else 'iptables'}-{action.backend}"
    parts = [_one(f"live/{program}/{table}", "" if table in action.created else old.get(table, ""),
                  "" if table in action.dropped else new.get(table, ""),
                  "" if table in action.created else _TABLE, "" if table in action.dropped else _TABLE)
             for table in dict.fromkeys((*new, *old))]
    return _whole(parts)


def saved_tables(text: str) -> dict[str, str]:
    """Table -> its part of iptables-save *text*, as the save program prints it, without comments and counts."""
    found: dict[str, list[str]] = {}
    for line in _POLICY_COUNTS.sub(r"\1 [0:0]", _COUNTED.sub("", text)).split("\n"):
        if line.startswith("*"):
            current = found.setdefault(line[1:].strip(), [])
        if line.strip() and not line.startswith("#"):
            current.append(f"{line}\n")
    return {table: "".join(_by_chain(lines)) for table, lines in found.items()}


def _by_chain(lines: list[str]) -> list[str]:
    """The rules chain by chain: the save programs go from chain to chain, whatever was loaded in which order."""
    if not all(line.startswith(("*", ":", "-A ", "COMMIT")) for line in lines):
        return lines  # as somebody wrote it: only a restore program knows what becomes of it
    rules = [line for line in lines if line.startswith("-")]
    order = {line[1:].split(None, 1)[0]: number for number, line in enumerate(lines) if line.startswith(":")}
    rules.sort(key=lambda line: order.get(line.split(None, 2)[1], len(order)))
    return [line for line in lines if line.startswith(("*", ":"))] + rules + ["COMMIT\n"]


def of_native(action: LoadNative) -> Diff:
    """What becomes of live native rules, table by table; new rules are in our words, which nft takes."""
    try:
        texts = table_texts(action.before.text, action.before.rules, action.after.rules)
    except ValueError as error:
        return Diff(why=f"{error}; apply asks nft for the words")
    return _whole(_one(f"live/nft/{family}/{name}", old, new, _TABLE if old else "", _TABLE if new else "")
                  for (family, name), (old, new) in texts.items())
