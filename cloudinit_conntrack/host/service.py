"""How this host starts us at boot: our unit, what enables it, and what it must come after."""

from __future__ import annotations

import os
import sys

from ..service import (
    FIREWALLS,
    HAND_MADE,
    LINK,
    NAME,
    PACKAGED,
    PACKAGED_LINKS,
    UNIT,
    comes_early,
    is_ours,
    program_of,
)
from ..state import BootService, FileImage, Program
from .process import run
from .root import HOST, Root
from .units import PLACES

_BOOTED = "/run/systemd/system"  # sd_booted(3)
_SYSTEMD = ("/usr/lib/systemd/systemd", "/lib/systemd/systemd")
_PACKAGE = "cloudinit_conntrack"
_PYTHONS = ("/usr/bin/python3", "/usr/libexec/platform-python")
_ENABLED = "/etc/systemd/system"
_LOADERS = (
    ("/etc/sysconfig/iptables", ("iptables.service",)),
    ("/etc/sysconfig/ip6tables", ("ip6tables.service",)),
    ("/etc/iptables/rules.v4", ("netfilter-persistent.service",)),
    ("/etc/iptables/rules.v6", ("netfilter-persistent.service",)),
)
_LIBRARIES = ("/usr/lib", "/usr/local/lib", "/usr/lib64")


def observe_service(root: Root = HOST, live: bool = True) -> BootService:
    """The boot service of *root*; in an image tree, what the tree's own files say."""
    if not (root.is_directory(_BOOTED) if live else any(map(root.exists, _SYSTEMD))):
        return BootService(systemd=False)
    taken = bool(root.link_text(UNIT))
    unit = None if taken else root.read_image(UNIT)
    after, late = _firewalls(root)
    link = root.link_text(LINK) or next(filter(None, map(root.link_text, PACKAGED_LINKS)), "")
    return BootService(True, unit, next(filter(root.exists, PACKAGED), ""), link, taken,
                       _recorded(unit, root) or (running_program() if live else installed_program(root)), after, late,
                       _loaded(root))


def has_failed(root: Root) -> bool | None:
    """Whether the boot service has failed, as systemd says; ``None`` without a systemd that answers."""
    if not root.is_directory(_BOOTED):
        return None
    done = run(["systemctl", "show", "--property=ActiveState", NAME], timeout=10, check=False)
    found = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
    return found["ActiveState"] == "failed" if done.status == 0 and "ActiveState" in found else None


def _recorded(unit: FileImage | None, root: Root) -> Program | None:
    """The program that the unit names, if it is still there: however we are run now, it need not change."""
    text = unit.content.decode("utf-8", "replace") if unit else ""
    found = program_of(text) if is_ours(text) else None
    return found if found and root.exists(found.python) and _is_program(found.script, root) else None


def _is_program(script: str, root: Root) -> bool:
    return root.exists(f"{script}/__main__.py") or (root.exists(script) and not root.is_directory(script))


def running_program() -> Program | None:
    """This process: its interpreter, and where the package was found (a directory, or in a zip file)."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    parent = os.path.dirname(package)
    script = parent if os.path.isfile(parent) else package
    return Program(os.path.abspath(sys.executable), script) if sys.executable else None


def installed_program(root: Root) -> Program | None:
    """The package as it is installed in an image tree, for the tree's own Python."""
    python = next(filter(root.exists, _PYTHONS), "")
    places = [f"{library}/{name}/{kind}" for library in _LIBRARIES for name in root.listdir(library)
              if name.startswith("python3") for kind in ("dist-packages", "site-packages")]
    script = next((f"{p}/{_PACKAGE}" for p in places if root.exists(f"{p}/{_PACKAGE}/__main__.py")), "")
    return Program(python, script) if python and script else None


def _firewalls(root: Root) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The units to come after, and those that start too late for that."""
    after: list[str] = []
    late: list[str] = []
    for name in FIREWALLS + HAND_MADE:
        text = _unit(name, root)
        if text is None:
            if name in FIREWALLS:  # installed later, it is in the form that its package has
                after.append(name)
        else:
            (after if comes_early(text) else late).append(name)
    return tuple(after), tuple(late)


def _loaded(root: Root) -> tuple[str, ...]:
    """The saved files whose service is enabled, by the links that ``systemctl enable`` makes."""
    wants = [name for name in root.listdir(_ENABLED) if name.endswith(".wants")]
    return tuple(path for path, names in _LOADERS
                 if any(root.link_text(f"{_ENABLED}/{want}/{name}") for want in wants for name in names))


def _unit(name: str, root: Root) -> str | None:
    """The text of the unit *name* with its drop-ins; ``None`` where there is none."""
    path = next((f"{place}/{name}" for place in PLACES if root.exists(f"{place}/{name}")), "")
    if not path:
        return None
    dropped = [f"{place}/{name}.d/{file}" for place in PLACES for file in root.listdir(f"{place}/{name}.d")]
    return "\n".join(root.read_text(p) or "" for p in (path, *dropped))
