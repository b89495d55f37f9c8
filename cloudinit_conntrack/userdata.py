"""One user-data file that carries the program to a stock cloud image.

It is a boothook: cloud-init runs it at every boot, as early as it runs anything, and its schema has
no word on it.  Other user-data goes along as parts of one MIME message (cloud-init's own format).
What the reduced program does not know is refused here, where a person sees it, and not on the host.
"""

from __future__ import annotations

import ast
import base64
import bz2
import gzip
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from email import message_from_bytes
from email.message import Message
from email.mime.multipart import MIMEMultipart
from email.mime.nonmultipart import MIMENonMultipart
from typing import Any

from . import __version__
from .config import Desired, Flow
from .document import keys_of
from .errors import ConfigError, ConntrackError
from .planning.frontends import FRONT_ENDS
from .planning.needs import ROWS, always, docker_writes
from .planning.ufw import UNITS
from .reduce import CONFIG, reduced

MOST_BYTES = 16_384  # of Amazon EC2, before its own base64; the smallest of any cloud
FILES = ("door.py", "rules.py", "planning.py", "program.py")  # of carried/, each importing from those before it
_GZIP = 31  # zlib's window bits for a gzip file
_FIRST = "#cloud-boothook\n"
_HEAD = "#!/usr/bin/python3\n# cloudinit-conntrack {version}: written by 'cloudinit-conntrack userdata'; "\
        "'userdata --check FILE' says what is in it.\n"
_CALL = "import base64,bz2\nexec(bz2.decompress(base64.b85decode(\n'{program}')))\n"
_FORM = re.compile(r"# cloudinit-conntrack (\S+): [^\n]*\n[^\n]*\nexec\([^\n]*\n'([^'\n]*)'")
# cloud-init's kinds of user-data, by how they begin (cloudinit/handlers/__init__.py, INCLUSION_TYPES_MAP).
KINDS = (
    ("#cloud-config-archive", "cloud-config-archive"), ("#cloud-config-jsonp", "cloud-config-jsonp"),
    ("#cloud-config", "cloud-config"), ("#cloud-boothook", "cloud-boothook"), ("#include-once", "x-include-once-url"),
    ("#include", "x-include-url"), ("#part-handler", "part-handler"), ("## template: jinja", "jinja2"),
    ("#!", "x-shellscript"),
)
_INSTALL = "or install the package (a .deb, .rpm or image), which does all of it"


@dataclass(frozen=True)
class Carried:
    """What a user-data file holds: our part, and the kinds of the others."""

    version: str
    mode: str
    section: object
    program: str  # its source
    others: tuple[str, ...]
    size: int
    compressed: bool


def make_userdata(desired: Desired, section: object, sources: Mapping[str, str], merge: bytes = b"",
                  merge_name: str = "", compress: bool = False) -> bytes:
    """The user-data for *desired*, which was read from *section*, with the user-data *merge* beside it.

    *sources* are the texts of :data:`FILES`.  ConfigError for what the reduced program does not know and for
    a *merge* that is no user-data; ConntrackError where it comes out larger than :data:`MOST_BYTES`.
    """
    _refuse_left_out(desired)
    config = f"{CONFIG}={config_of(desired, section)!r}\n"
    program = config + reduced(sources[name] for name in FILES)
    packed = base64.b85encode(bz2.compress(program.encode())).decode("ascii")
    ours = _HEAD.format(version=__version__) + _CALL.format(program=packed)
    whole = _merged(ours, merge, merge_name) if merge else (_FIRST + ours).encode()
    if compress:
        whole = gzip.compress(whole, 9, mtime=0)
    if len(whole) > MOST_BYTES:
        remedy = ("shorten what --merge brings (a '#include' part may fetch it from elsewhere)" if compress
                  else "add --compress" + (", or shorten what --merge brings" if merge else ""))
        raise ConntrackError(f"is {len(whole):,} bytes, and EC2 takes {MOST_BYTES:,}", "the user-data", remedy)
    return whole


def config_of(desired: Desired, section: object) -> dict[str, Any]:
    """What the carried program is told: plain values, everything decided that can be decided here."""
    modes = [desired.mode] + ([desired.fallback] if desired.fallback != "none" else [])
    return {
        "mode": desired.mode, "fallback": desired.fallback,
        "frontends": _plain(desired.flows.frontends), "backends": _plain(desired.flows.backends),
        "outbound": _plain(desired.flows.outbound), "stateful": desired.rules.stateful,
        "block": desired.modules.block, "extra": list(desired.modules.extra),
        "probes": [list(probe) for probe in desired.guard.probes],
        "refused": {mode: refused_units(mode) for mode in modes}, "section": section,
    }


def refused_units(mode: str) -> list[str]:
    """The units that write rules of their own, or bring conntrack back, in *mode*."""
    units = [unit for program in FRONT_ENDS for unit in program.units] + list(UNITS)
    rows = [row for row in ROWS if mode in row.blocks and row.when in (always, docker_writes)]
    return list(dict.fromkeys(units + [unit for row in rows for unit in row.units]))


def _plain(flows: tuple[Flow, ...]) -> list[list[object]]:
    return [[f.protocol, *f.ports, f.address or ""] for f in flows]


def _refuse_left_out(desired: Desired) -> None:
    """ConfigError for the first thing in *desired* that the reduced program does not know."""
    left_out = (
        (desired.flows.haproxy_cfg, "flows.haproxy_cfg", f"name its ports as frontends and backends, {_INSTALL}"),
        (desired.flows.all, "flows.all", "'mode: stateless' comes to the same without NOTRACK rules"),
        (desired.rules.stateful == "remove", "rules.stateful", f"use rewrite, {_INSTALL}"),
        (desired.rules.nat == "remove", "rules.nat", f"use refuse, {_INSTALL}"),
        (desired.modules.force, "modules.force", f"leave it out, {_INSTALL}"),
        (desired.on_failure == "keep", "on_failure", f"use rollback, {_INSTALL}"),
        (not desired.persist, "persist", f"leave it out: user-data is applied at every boot, {_INSTALL}"),
    )
    for given, key, remedy in left_out:
        if given:
            what = "is left out of the reduced program that user-data carries"
            raise ConfigError(what, f"conntrack.{key}", remedy)


# --- other user-data beside it ---------------------------------------------------------


def _merged(ours: str, merge: bytes, name: str) -> bytes:
    """A MIME message with our part first, and everything that *merge* holds."""
    whole = MIMEMultipart(boundary="=-cloudinit-conntrack-=")
    whole.attach(_part(ours.encode(), "cloud-boothook", "cloudinit-conntrack"))
    for number, (kind, content, file) in enumerate(_parts(merge, name), 1):
        if kind == "cloud-config" and "conntrack" in keys_of(content, name):
            raise ConfigError("holds a conntrack: section too", name, "take it out there: -c gives the section")
        if content.startswith(_HEAD[:19].encode()) and _FORM.search(content.decode("utf-8", "replace")):
            raise ConfigError("carries the program already", name, "merge what it was made from")
        whole.attach(_part(content, kind, file or f"part-{number}"))
    return whole.as_bytes()


def _part(content: bytes, kind: str, file: str) -> Message:
    part = MIMENonMultipart("text", kind)
    try:
        part.set_payload(content.decode("ascii"))
        part["Content-Transfer-Encoding"] = "7bit"
    except UnicodeDecodeError:
        part.set_payload(base64.encodebytes(content).decode("ascii"))
        part.set_param("charset", "utf-8")
        part["Content-Transfer-Encoding"] = "base64"
    part.add_header("Content-Disposition", "attachment", filename=file)
    return part


def _parts(merge: bytes, name: str) -> list[tuple[str, bytes, str]]:
    """(kind, content, file name) of each part of user-data."""
    content = _unpacked(merge, name)
    if b"mime-version:" in content[:4096].lower():
        return _parts_of_mime(message_from_bytes(content), name)
    start = content[:64].decode("utf-8", "replace").lstrip("\ufeff").lower()
    kind = next((kind for first, kind in KINDS if start.startswith(first)), "")
    if not kind:
        raise ConfigError("is no user-data that cloud-init knows", name,
                          "begin it with #cloud-config, #! or another first line of cloud-init's")
    return [(kind, content, "")]


def _parts_of_mime(message: Message, name: str) -> list[tuple[str, bytes, str]]:
    found: list[tuple[str, bytes, str]] = []
    for part in message.walk():
        if part.is_multipart():
            continue
        content = part.get_payload(decode=True)
        if part.get_content_maintype() != "text" or not isinstance(content, bytes):
            raise ConfigError(f"has a part of the type {part.get_content_type()}", name, "give text parts only")
        kind = part.get_content_subtype()
        if kind == "plain":  # cloud-init looks at how it begins
            found += [(kind, body, part.get_filename() or file) for kind, body, file in _parts(content, name)]
        else:
            found.append((kind, content, part.get_filename() or ""))
    if not found:
        raise ConfigError("is a MIME message without parts", name, "give user-data")
    return found


def _unpacked(content: bytes, name: str) -> bytes:
    """*content*, or what gzip made it of, within bounds."""
    if not content.startswith(b"\x1f\x8b"):
        return content
    unpacker = zlib.decompressobj(_GZIP)
    try:
        found = unpacker.decompress(content, MOST_BYTES * 64)
    except zlib.error as error:
        raise ConfigError(f"is not whole ({error})", name, "compress it anew") from None
    if not unpacker.eof and not unpacker.unconsumed_tail:
        raise ConfigError("is not whole (it ends too early)", name, "compress it anew")
    if not unpacker.eof:
        raise ConfigError(f"unpacks to more than {MOST_BYTES * 64:,} bytes", name, "give user-data")
    return found


# --- looking at one --------------------------------------------------------------------


def carried(content: bytes, name: str) -> Carried:
    """What the user-data *content* carries; nothing of it is run.  ConfigError where it is none of ours."""
    parts = _parts(content, name)
    others = []
    ours = None
    for kind, body, file in parts:
        form = _FORM.search(body.decode("utf-8", "replace")) if kind == "cloud-boothook" else None
        if form and ours is None:
            ours = form
        else:
            others.append(f"{file}: {kind}" if file else kind)
    if ours is None:
        raise ConfigError("does not carry cloudinit-conntrack", name, "make one with 'cloudinit-conntrack userdata -c'")
    try:
        unpacker = bz2.BZ2Decompressor()
        program = unpacker.decompress(base64.b85decode(ours[2]), MOST_BYTES * 16).decode()
        whole = unpacker.eof
        ast.parse(program)
        config = ast.literal_eval(program.partition("\n")[0].partition("=")[2])
        found = Carried(ours[1], str(config["mode"]), config["section"], program, tuple(others), len(content),
                        content[:2] == b"\x1f\x8b")
    except (ValueError, SyntaxError, LookupError, TypeError, OSError, EOFError, MemoryError, RecursionError):
        whole = False
    if not whole:
        raise ConfigError("carries a damaged program", name, "make it anew with 'cloudinit-conntrack userdata -c'")
    return found


def told(found: Carried) -> str:
    """*found* for a person."""
    lines = [f"cloudinit-conntrack {found.version}  mode {found.mode}",
             f"  size     {found.size:,} of {MOST_BYTES:,} bytes{', compressed' if found.compressed else ''}",
             f"  section  {json.dumps(found.section)}",
             f"  program  {len(found.program.splitlines())} lines of Python"]
    lines += [f"  beside   {other}" for other in found.others]
    return "\n".join(lines) + "\n"
