"""A YAML text -> the value of its ``conntrack`` key.  Pure: bytes in, a Python value out.

User-data is hostile input.  The reader is PyYAML's safe loader in Python, the one that
cloud-init itself uses, so that both read a text alike; on top of it come limits on size,
depth and number of values (aliases counted as often as they are used), and a refusal of
everything that YAML 1.1 would quietly read as something else than it looks like.
Only the ``conntrack`` key is turned into Python values; the rest of a user-data file is
checked for its syntax and for duplicate keys, no more.
"""

from __future__ import annotations

import re

import yaml

from .errors import ConfigError
from .messages import joined, quoted

MAX_BYTES = 1 << 20  # the largest user-data of any cloud is far below
MAX_VALUES = 20_000
MAX_DEPTH = 50

# What YAML allows in a text, less the characters that make a terminal or an editor show
# text in another order than it is read (U+202A..202E, U+2066..2069).
_FORBIDDEN = re.compile(
    "[^\t\n\r\x20-\x7e\x85\xa0-\u2029\u202f-\u2065\u206a-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
)
_PLAIN_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,99})")
_TAG = "tag:yaml.org,2002:"

# First words of what cloud-init accepts beside #cloud-config.
_OTHER_KINDS = (
    ("#!", "a script"),
    ("content-type:", "a MIME multi-part message"),
    ("mime-version:", "a MIME multi-part message"),
    ("#cloud-boothook", "a boothook"),
    ("#cloud-config-archive", "a cloud-config archive"),
    ("#cloud-config-jsonp", "a JSON patch"),
    ("#part-handler", "a part handler"),
    ("## template:", "a jinja template"),
)


def section_of(text: bytes, name: str) -> object:
    """The value of the top-level ``conntrack`` key in the YAML (or JSON) document *text*.

    *name* is how messages call the document.  ConfigError, with ``NAME:LINE`` or the
    path, for a text that is no such document or goes beyond the limits.
    """
    try:
        loader, root = _read(text, name)
        for key, value in reversed(root.value):
            if key.tag == _TAG + "str" and key.value == "conntrack":
                return loader.build(value, "conntrack")
    except yaml.YAMLError as error:
        raise _syntax(error, name) from None
    raise _without_section([str(key.value)[:40] for key, _ in root.value[:100]], name)


def keys_of(text: bytes, name: str) -> tuple[str, ...]:
    """The top-level keys of the same kind of document.  ConfigError as in :func:`section_of`."""
    try:
        return tuple(str(key.value) for key, _ in _read(text, name)[1].value)
    except yaml.YAMLError as error:
        raise _syntax(error, name) from None


def _read(text: bytes, name: str) -> tuple[_Loader, yaml.MappingNode]:
    loader = _Loader(_decoded(text, name), name)
    root = loader.get_single_node()
    if not isinstance(root, yaml.MappingNode):
        raise _without_section([], name)
    loader.values = 0
    loader.check(root, "", 0)
    loader.flatten_mapping(root)
    return loader, root


def _decoded(text: bytes, name: str) -> str:
    if len(text) > MAX_BYTES:
        raise ConfigError(f"has more than {MAX_BYTES} bytes", name, "give the conntrack: section alone")
    if text.startswith(b"\x1f\x8b"):
        raise ConfigError("is compressed", name, "unpack it first")
    try:
        decoded = text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        raise ConfigError("is not UTF-8", f"{name}:{line}", "save it as UTF-8") from None
    odd = _FORBIDDEN.search(decoded)
    if odd:
        line = decoded.count("\n", 0, odd.start()) + 1
        raise ConfigError(f"holds the character U+{ord(odd.group()):04X}", f"{name}:{line}", "remove it")
    start = decoded[:100].lstrip().lower()
    for first, kind in _OTHER_KINDS:
        if start.startswith(first):
            raise ConfigError(f"is {kind}, not cloud-config", name, "give the #cloud-config part alone")
    return decoded


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with limits, and with paths in its complaints."""

    def __init__(self, text: str, name: str) -> None:
        super().__init__(text)
        self.name = name
        self.values = 0
        self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Count while the text is read: neither depth nor number may run away."""
        self.depth += 1
        self.count(self.depth, self.line + 1)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def count(self, depth: int, line: int) -> None:
        """One more value, at *depth*: ConfigError when that is too many or too deep."""
        self.values += 1
        if depth > MAX_DEPTH:
            what = f"is nested deeper than {MAX_DEPTH} levels"
            raise ConfigError(what, f"{self.name}:{line}", "flatten it")
        if self.values > MAX_VALUES:
            what = f"holds more than {MAX_VALUES} values, aliases written out"
            raise ConfigError(what, self.name, "give the conntrack: section alone")

    def check(self, node: yaml.Node, path: str, depth: int) -> None:
        """Walk *node* as if each alias were written out; refuse duplicate keys."""
        self.count(depth, _line(node))
        if isinstance(node, yaml.SequenceNode):
            for number, item in enumerate(node.value):
                self.check(item, f"{path}[{number}]", depth + 1)
        if isinstance(node, yaml.MappingNode):
            self.check_keys(node, path)
            for key, value in node.value:
                self.check(key, path, depth + 1)
                self.check(value, joined(path, key.value), depth + 1)

    def check_keys(self, node: yaml.MappingNode, path: str) -> None:
        """Refuse a key that stands twice: PyYAML would silently take the last."""
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            identity = (key.tag, key.value)
            if identity in lines:
                what = f"is given twice, in line {lines[identity]} and in line {_line(key)} of {self.name}"
                raise ConfigError(what, joined(path, key.value), "keep one")
            lines[identity] = _line(key)

    def build(self, node: yaml.Node, path: str) -> object:
        """The Python value of *node*: dict, list, str, int, float, bool or None."""
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.build(item, f"{path}[{number}]") for number, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            self.flatten_mapping(node)
            return dict(self.build_pair(key, value, path) for key, value in node.value)
        if isinstance(node, yaml.ScalarNode):
            return self.build_scalar(node, path)
        raise _strange_tag(node, path)

    def build_pair(self, key: yaml.Node, value: yaml.Node, path: str) -> tuple[object, object]:
        """One key of a mapping with its value."""
        if not isinstance(key, yaml.ScalarNode):
            what = f"has a key that is no plain word, in line {_line(key)}"
            raise ConfigError(what, path, "write key: value")
        place = joined(path, key.value)
        return self.build_scalar(key, place), self.build(value, place)

    def build_scalar(self, node: yaml.ScalarNode, path: str) -> object:
        """The value of a scalar, where YAML and the reader's eye agree on what it is."""
        if node.tag == _TAG + "str":
            return str(node.value)
        plain = self.resolve(yaml.ScalarNode, node.value, (True, False))  # type: ignore[no-untyped-call]
        if node.tag != plain:
            raise _strange_tag(node, path)
        if node.tag == _TAG + "null":
            return None
        if node.tag == _TAG + "bool":
            return bool(self.construct_yaml_bool(node))
        if node.tag == _TAG + "float":
            return float(self.construct_yaml_float(node))
        if node.tag == _TAG + "int":
            return self.build_integer(node, path)
        # A date: the only other thing that YAML 1.1 makes of an untagged scalar.
        raise ConfigError(f"is {quoted(node.value)}, a date to YAML", path, "quote it if it is meant as text")

    def build_integer(self, node: yaml.ScalarNode, path: str) -> int:
        """A plain decimal; not YAML 1.1's 022 (= 18), 20:22 (= 1222) or 0x50."""
        if not _PLAIN_INTEGER.fullmatch(node.value):
            what = f"is {quoted(node.value)} without quotes, which YAML may read as another number"
            raise ConfigError(what, path, 'write plain digits, a range as "8000-8010"')
        return int(node.value)


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _strange_tag(node: yaml.Node, path: str) -> ConfigError:
    tag = node.tag.replace(_TAG, "!!")
    return ConfigError(f"has the YAML tag {quoted(tag)} in line {_line(node)}", path, "remove the tag")


def _syntax(error: yaml.YAMLError, name: str) -> ConfigError:
    """PyYAML's complaint, several lines long, as one message."""
    words = [getattr(error, "context", None), getattr(error, "problem", None)]
    said = ", ".join(word for word in words if word) or "unreadable"
    mark = getattr(error, "problem_mark", None)
    where = f"{name}:{mark.line + 1}" if mark else name
    plain = said.encode("ascii", "backslashreplace").decode()[:160]
    return ConfigError(f"is not YAML: {plain}", where, "check indents, colons, quotes and brackets")


def _without_section(keys: list[str], name: str) -> ConfigError:
    """No ``conntrack`` among the top-level *keys*: say what comes nearest."""
    import difflib  # here: only for a message

    near = difflib.get_close_matches("conntrack", keys, 1)
    if near:
        remedy = f"did you mean conntrack: where {quoted(near[0])} stands?"
    elif "mode" in keys:
        remedy = "put a line conntrack: first and indent the rest below it"
    else:
        remedy = "add conntrack: with a mode: below it"
    return ConfigError("has no conntrack: section", name, remedy)
