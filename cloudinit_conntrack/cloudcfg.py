"""cloud-init's configuration files: which modules they list, and the files of ours that go beside them.

Pure.  cloud-init reads ``cloud.cfg`` and then the ``*.cfg`` of ``cloud.cfg.d``, sorted by name.  Of a list that
several set the last one counts, whole (``util.py``: ``read_conf_with_confd``, measured alike on 20.4, 22.4, 25.1 and
26.2; only a ``merge_how`` in the file that is overridden changes that).  So a drop-in that adds a module has to
repeat all others, and goes stale when the list that it was made from changes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

import yaml

from .document import value_of
from .errors import ConfigError
from .state import FileImage

BASE = "/etc/cloud/cloud.cfg"
DIRECTORY = "/etc/cloud/cloud.cfg.d"
DROP_IN = f"{DIRECTORY}/99-cloudinit-conntrack.cfg"
CLEAN_DIRECTORY = "/etc/cloud/clean.d"
CLEAN = f"{CLEAN_DIRECTORY}/50-cloudinit-conntrack"
KEY = "cloud_config_modules"
KEYS = ("cloud_init_modules", KEY, "cloud_final_modules")
# With the frequency: of a bare name that it does not know, cloud-init 22.4 to 23.3 warns at every boot.
ENTRY = ["conntrack", "always"]

_MODULE = "cc_conntrack"
_MOST_BYTES = 1 << 20
_MOST_VALUES = 2000
_TEMPLATE = re.compile(r"##\s*template:", re.IGNORECASE)
_PLAIN = re.compile(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*")
_WORDS_OF_YAML = ("y", "n", "yes", "no", "on", "off", "true", "false", "null")
_DIGEST = "# Digest of the lines below: "


@dataclass(frozen=True)
class ConfigFile:
    """One file of cloud-init's configuration.

    *lists* are the module lists that it sets, by key, with their entries as YAML gives them.  *directory* is its
    ``conf_d``, ``None`` where it says nothing.  *merges*: it says itself how it is merged.  *unknown*: it sets lists
    that cannot be told from here (a template, or more than a list of modules can be).  *problem*: it is no YAML
    mapping, so cloud-init passes over it.
    """

    path: str
    lists: tuple[tuple[str, tuple[object, ...]], ...] = ()
    directory: str | None = None
    merges: bool = False
    unknown: bool = False
    problem: str = ""

    def list(self, key: str) -> tuple[object, ...] | None:
        """The list *key*, or ``None`` where this file does not set it."""
        return next((entries for name, entries in self.lists if name == key), None)


@dataclass(frozen=True)
class Importing:
    """Whether cloud-init's own Python finds us.  *asked*: it said so itself; else its usual paths were looked through.

    *python* is its version, empty where that is not known; *words* how it is started; *missing* what it does not
    find, *broken* why our module cannot be imported; *elsewhere* where a missing module lies, unseen by it.
    """

    asked: bool
    words: tuple[str, ...]
    python: str = ""
    missing: tuple[str, ...] = ()
    broken: str = ""
    elsewhere: str = ""
    problem: str = ""


@dataclass(frozen=True)
class CloudInit:
    """cloud-init as it is in a tree.  *program* is its path, empty where it is not installed.

    *files* are its configuration in the order in which it is read, without *drop_in*, which is at our place; *script*
    is at the place of ours in ``clean.d``, a *clean_directory* that may be missing.  *cleaner* is how a script starts
    us.
    """

    program: str
    files: tuple[ConfigFile, ...] = ()
    drop_in: FileImage | None = None
    script: FileImage | None = None
    clean_directory: bool = False
    importing: Importing | None = None
    cleaner: tuple[str, ...] = ()


def parse(path: str, content: bytes) -> ConfigFile:
    """The configuration file *path*."""
    text = content.decode("utf-8", "replace")
    if _TEMPLATE.match(text):
        return ConfigFile(path, unknown=any(key in text for key in KEYS))
    try:
        if len(content) > _MOST_BYTES:
            raise ValueError(f"it has more than {_MOST_BYTES} bytes")
        value = value_of(text, path)
    except (ConfigError, yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        return ConfigFile(path, problem=" ".join(str(error).split())[:160] or "it cannot be read")
    if value is None:
        return ConfigFile(path)
    if not isinstance(value, dict):
        return ConfigFile(path, problem="it is no YAML mapping")
    lists = tuple((key, _entries(value[key])) for key in KEYS if key in value)
    if any(_is_large(entries) for _, entries in lists):
        return ConfigFile(path, unknown=True)
    directory = str(value["conf_d"] or "").strip().rstrip("/") if "conf_d" in value else None
    return ConfigFile(path, lists, directory, merges=bool(lists) and ("merge_how" in value or "merge_type" in value))


def _entries(value: object) -> tuple[object, ...]:
    """As cloud-init takes the value of a list (``util.get_cfg_option_list``)."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (str(value),)


def _is_large(entries: tuple[object, ...]) -> bool:
    """Whether *entries*, aliases written out, are more than a list of modules can be."""
    left, todo = _MOST_VALUES, list[object](entries)
    while todo and left:
        left -= 1
        value = todo.pop()
        if isinstance(value, dict):
            todo += [*value, *value.values()]
        elif isinstance(value, (list, tuple, set)):
            todo += value
    return bool(todo)


def effective(files: Iterable[ConfigFile], key: str) -> tuple[tuple[object, ...], str]:
    """The list *key* that cloud-init goes by, and the file that it comes from; empty where none sets it."""
    found: tuple[tuple[object, ...], str] = ((), "")
    for file in files:
        entries = file.list(key)
        found = found if entries is None else (entries, file.path)
    return found


def listed_by(files: Iterable[ConfigFile]) -> str:
    """The file whose list, among those that count, names our module; empty where none does."""
    known = tuple(files)
    for entries, path in (effective(known, key) for key in KEYS):
        if names_us(entries):
            return path
    return ""


def names_us(entries: Iterable[object]) -> bool:
    """Whether a module list names our module, in any of the forms that cloud-init takes."""
    return any(_module_of(entry) == _MODULE for entry in entries)


def _module_of(entry: object) -> str:
    """``cc_conntrack`` for conntrack, as cloud-init names modules (``_read_modules``, ``form_module_name``)."""
    if isinstance(entry, dict):
        entry = entry.get("name")
    elif isinstance(entry, list):
        entry = entry[0] if entry else None
    if not isinstance(entry, str):
        return ""
    name = entry.replace("-", "_").strip()
    name = name[:-3] if name.lower().endswith(".py") else name
    return name if name.startswith("cc_") else f"cc_{name}"


# --- the files that are ours -----------------------------------------------------------

_DROP_IN_MARK = '# Written by "cloudinit-conntrack enable".'
_DROP_IN_HEAD = (_DROP_IN_MARK + """  To undo: run "cloudinit-conntrack disable".
#
# A list in a file like this one replaces the whole list, so here are all modules of
#   {source}
# with ours behind them.  When that list has changed, "cloudinit-conntrack status" says so, and
# "cloudinit-conntrack enable" makes this file anew.  Changes of your own belong there, not here.
""")
_SCRIPT_MARK = "# Written by \"cloudinit-conntrack enable\" for \"cloud-init clean\""
_SCRIPT_HEAD = "#!/bin/sh\n" + _SCRIPT_MARK + """ (22.3 and newer run it).
# To undo: run "cloudinit-conntrack disable".
"""
_MADE_WITH_IT = "# The directory was made with it.\n"
_SCRIPT = """\
# A clone of this image must not inherit what was written down about this host alone: rules and
# modules to put back, results, what earlier boots have seen.  The section stays, and what
# "cloudinit-conntrack revert" needs to restore the files of the image.
# cloud-init clean must go on, whatever is left of us.
[ -e {script}/__main__.py ] || [ -f {script} ] || exit 0
{python} -I -S {script} forget ||
    echo "cloudinit-conntrack: something of this host may be left in the image" >&2
exit 0
"""


def drop_in_text(entries: Iterable[object], source: str) -> str:
    """The drop-in that lists *entries*, which come from the file *source*, and our module.

    ValueError for an entry that YAML could not be told.
    """
    listed = [*entries, ENTRY]
    body = f"{KEY}:\n" + "".join(f"- {_said(entry)}\n" for entry in listed)
    if yaml.safe_load(body)[KEY] != listed:
        raise ValueError("YAML has no words for it")
    return _with_digest(_DROP_IN_HEAD.format(source=source or "(no file sets it)"), body)


def script_text(cleaner: tuple[str, ...], made_directory: bool) -> str:
    """The script for ``cloud-init clean``; *cleaner* is (Python, our package)."""
    python, script = cleaner
    head = _SCRIPT_HEAD + (_MADE_WITH_IT if made_directory else "")
    return _with_digest(head, _SCRIPT.format(python=python, script=script))


def made_directory(script: str) -> bool:
    """Whether the directory of our *script* was made for it."""
    return _MADE_WITH_IT in script


def is_ours(text: str) -> bool:
    """Whether we wrote this drop-in or script, whatever became of it since."""
    return text.startswith((_DROP_IN_MARK, "#!/bin/sh\n" + _SCRIPT_MARK))


def is_untouched(text: str) -> bool:
    """Whether this is, to the byte, what we wrote."""
    head, digest, rest = text.partition(_DIGEST)
    return is_ours(text) and bool(digest) and rest[:17] == f"{_sum(head + rest[17:])}\n"


def _with_digest(head: str, body: str) -> str:
    return f"{head}{_DIGEST}{_sum(head + body)}\n{body}"


def _sum(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _said(entry: object) -> str:
    """One entry as YAML: plain words as everybody writes them, the rest as JSON, which YAML reads alike."""
    if isinstance(entry, str) and _PLAIN.fullmatch(entry) and entry not in _WORDS_OF_YAML:
        return entry
    if isinstance(entry, list) and all(isinstance(word, str) for word in entry):
        return f"[{', '.join(_said(word) for word in entry)}]"
    try:
        return json.dumps(entry)
    except TypeError as error:
        raise ValueError(str(error)) from None
