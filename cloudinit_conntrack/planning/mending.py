"""Lines of other programs' files that would bring conntrack back, or miss it: taken out, nothing else touched.

A line that goes stays as a comment with our mark, so that a reader sees what was there.
Every other byte stays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from ..kmod import is_conntrack_module, normal
from ..state import FileImage, FoundFile
from .draft import Draft, Item, write_file

MARK = "#cloudinit-conntrack: "
# nf_conntrack_frag6_* belongs to nf_defrag_ipv6 and stays.  A key with "-" before it may fail (sysctl.d(5)).
_KEY = re.compile(r"net[./](?:nf_conntrack_max|(?:ipv4[./])?netfilter[./](?:nf|ip)_conntrack_(?!frag6_)"
                  r"|ipv4[./]ip_conntrack_)")
_TRUE = ("1", "y", "yes", "on", "true")
_VENDOR = ("/usr/local/lib/", "/usr/lib/", "/lib/")


def plan_mending(draft: Draft) -> None:
    """Edits of sysctl.d, modules-load.d, modprobe.d and waagent.conf for the desired mode."""
    mode, around = draft.desired.mode, draft.state.surroundings
    if mode == "notrack":
        return
    for file in around.files:
        place = _in_etc(file.path)
        if mode == "unload" and (place.startswith("/etc/sysctl.d/") or file.path == "/etc/sysctl.conf"):
            _mend(draft, file, commented(file.text, _sets_conntrack),
                  "it sets values of conntrack, which are not there any more: sysctl would fail")
        elif mode == "unload" and (place.startswith("/etc/modules-load.d/") or file.path == "/etc/modules"):
            _mend(draft, file, commented(file.text, _loads_conntrack), "it loads conntrack at every boot")
        elif mode == "stateless" and (place.startswith("/etc/modprobe.d/") or file.path == "/etc/modprobe.conf"):
            _mend(draft, file, without_hooks_option(file.text), "enable_hooks=1 tracks everything, rules or not")
        elif file.path == "/etc/waagent.conf":
            _plan_waagent(draft, file)


def _mend(draft: Draft, file: FoundFile, text: str, reason: str) -> None:
    """Write *text*: over the file, or in /etc where it takes the place of the package's."""
    if text == file.text:
        return
    place = _in_etc(file.path)
    content = text.encode("utf-8", "surrogateescape")
    if place == file.path:
        write_file(draft, place, file.image, content, reason)
        return
    image = replace(FileImage(b""), mode=file.image.mode, uid=file.image.uid, gid=file.image.gid)
    write_file(draft, place, None, content, f"{reason}; it takes the place of {file.path}", image)


def _in_etc(path: str) -> str:
    """Where an administrator's version of a package's file belongs: the same name in /etc wins."""
    for vendor in _VENDOR:
        if path.startswith(vendor):
            return f"/etc/{path[len(vendor):]}"
    return path


def commented(text: str, wanted: Callable[[str], bool]) -> str:
    """*text* with the lines that are *wanted* behind :data:`MARK`."""
    return "\n".join(MARK + line if wanted(line) else line for line in text.split("\n"))


def _sets_conntrack(line: str) -> bool:
    return _KEY.match(line.strip()) is not None and "=" in line


def _loads_conntrack(line: str) -> bool:
    """Lines of /etc/modules may give parameters behind the name (modules(5)); modules-load.d(5) may not."""
    words = line.split()
    return bool(words) and not words[0].startswith(("#", ";")) and is_conntrack_module(words[0])


# --- modprobe.d ------------------------------------------------------------------------


def enables_hooks(text: str) -> bool:
    """Whether modprobe.d *text* loads nf_conntrack with ``enable_hooks``."""
    return without_hooks_option(text) != text


def without_hooks_option(text: str) -> str:
    """*text* of modprobe.d(5) without ``enable_hooks=1``; a line that has nothing left becomes a comment."""
    return "\n".join(_without_option(line) for line in text.split("\n"))


def _without_option(line: str) -> str:
    words = list(_spans(line))
    names = [line[start:end] for start, end in words]
    if names[:1] != ["options"] or len(names) < 3 or normal(names[1]) != "nf_conntrack":
        return line
    drop = [i for i, name in enumerate(names) if i > 1 and is_enabling(name)]
    if not drop:
        return line
    if len(drop) == len([n for n in names[2:] if n != "\\"]):
        return MARK + line
    for i in reversed(drop):
        line = line[:words[i - 1][1]] + line[words[i][1]:]
    return line


def is_enabling(option: str) -> bool:
    """Whether *option* is ``enable_hooks`` switched on; a bare bool parameter is on (kernel/params.c)."""
    name, equals, value = option.partition("=")
    return normal(name) == "enable_hooks" and (not equals or value.strip("\"'").lower() in _TRUE)


def _spans(line: str) -> Iterator[tuple[int, int]]:
    """Where each word of *line* starts and ends."""
    for match in re.finditer(r"[^ \t\r]+", line):
        yield match.span()


# --- waagent ---------------------------------------------------------------------------


def _plan_waagent(draft: Draft, file: FoundFile) -> None:
    text = without_waagent_firewall(file.text)
    if text == file.text:
        return
    _mend(draft, file, text, "the Azure agent adds rules that match connection states at every start")
    draft.findings.append(Item(
        "waagent", file.path, "its rules kept all users but root from the wire server 168.63.129.16",
        "keep that by a rule of your own: iptables -A OUTPUT -d 168.63.129.16 -p tcp -m owner ! --uid-owner 0 -j DROP"))


def without_waagent_firewall(text: str) -> str:
    """waagent.conf with ``OS.EnableFirewall=n`` (azurelinuxagent/common/conf.py: KEY=VALUE, ``#`` ends the value)."""
    return "\n".join(_firewall_off(line) for line in text.split("\n"))


def _firewall_off(line: str) -> str:
    key, equals, rest = line.partition("=")
    value = rest.partition("#")[0]
    if not equals or key.strip() != "OS.EnableFirewall" or value.strip(" \t\r\"").lower() != "y":
        return line
    at = len(key) + 1 + rest.lower().index("y")
    return f"{line[:at]}n{line[at + 1:]}"
