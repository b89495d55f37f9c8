"""Which systemd units a tree has, starts at boot, refuses to start, and runs now.

Only files are read: ``systemctl`` would need a running systemd, and may start it over D-Bus.
An image tree has no systemd at all.  Sources: systemd.unit(5) "Unit File Load Path" and
"[Install]"; systemd-sysv-generator(8) for ``/etc/rc?.d``.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..state import Units
from .root import HOST, Root

# Where unit files are, in order of precedence.  /lib is another directory before "usrmerge" only.
PLACES = ("/etc/systemd/system", "/run/systemd/system", "/run/systemd/generator",
          "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system")
SUFFIXES = (".service", ".socket", ".timer", ".path", ".target", ".mount", ".swap", ".slice")
_DIRECTORIES = (".wants", ".requires")
_ETC = "/etc/systemd/system"
_MASKS = ("/etc/systemd/system", "/run/systemd/system")
_NULL = "/dev/null"
_RUNLEVELS = ("/etc/rc2.d", "/etc/rc3.d", "/etc/rc5.d", "/etc/rc.d/rc2.d", "/etc/rc.d/rc3.d", "/etc/rc.d/rc5.d")
_INIT_SCRIPTS = ("/etc/init.d", "/etc/rc.d/init.d")
# cgroup v2, the hybrid, and v1: a service that has a process has a directory here.
_CGROUPS = ("/sys/fs/cgroup/system.slice", "/sys/fs/cgroup/unified/system.slice", "/sys/fs/cgroup/systemd/system.slice")
_ACTIVE = "/run/systemd/units"  # "invocation:NAME" for each active unit, since systemd 236


def find_units(root: Root = HOST, live: bool = False) -> Units:
    """The units below *root*; *live*: also which ones are active on the running host.

    ``enabled`` is what some target, or another unit, pulls in and what is neither masked nor
    missing; an alias counts under both names.  Presets are not applied.
    """
    found = {place: root.links(place) for place in PLACES}
    files, aliases, masked = _unit_files(found)
    wanted = set(_wanted(root, found))
    wanted |= {aliases[name] for name in wanted if name in aliases}
    # An alias that ``systemctl enable`` made: D-Bus or another unit may start it.
    wanted |= {aliases[name] for name in aliases if name not in masked and found[_ETC].get(name)}
    scripts = {f"{name}.service" for place in _INIT_SCRIPTS for name in root.listdir(place)}
    installed = files | set(aliases) | scripts
    started = {name for name in _of_runlevels(root) if name in scripts and name not in files}
    enabled = {name for name in wanted if name in installed or _template(name) in installed}
    return Units(frozenset(installed), frozenset((enabled | started) - masked), frozenset(masked),
                 frozenset(_active(root)) if live else frozenset())


def _unit_files(found: dict[str, dict[str, str]]) -> tuple[set[str], dict[str, str], set[str]]:
    """Unit files by name, aliases (name -> the unit it stands for), and what is masked."""
    files: set[str] = set()
    aliases: dict[str, str] = {}
    masked: set[str] = set()
    for place in PLACES:
        for name in (n for n in found[place] if n.endswith(SUFFIXES) and n not in masked):
            target = found[place][name]
            if target == _NULL:
                if place in _MASKS:
                    masked.add(name)
                continue
            other = target.rpartition("/")[2]
            if other and other != name and other.endswith(SUFFIXES):
                aliases.setdefault(name, other)
            else:
                files.add(name)
    return files, aliases, masked | {alias for alias, name in aliases.items() if name in masked}


def _wanted(root: Root, found: dict[str, dict[str, str]]) -> Iterator[str]:
    """The names in every ``*.wants`` and ``*.requires``: the unit is found by its name, not by the link."""
    for place in PLACES:
        for directory in found[place]:
            if directory.endswith(_DIRECTORIES):
                yield from (name for name in root.listdir(f"{place}/{directory}") if name.endswith(SUFFIXES))


def _of_runlevels(root: Root) -> Iterator[str]:
    """``S10iptables`` starts ``iptables``, on a host without systemd and through its generator."""
    for place in _RUNLEVELS:
        for name in root.listdir(place):
            if name[:1] == "S" and name[1:3].isdigit() and name[3:]:
                yield f"{name[3:]}.service"


def _template(name: str) -> str:
    """``a@.service`` for the instance ``a@b.service``; empty for what is no instance."""
    prefix, at, rest = name.partition("@")
    return f"{prefix}@.{rest.rpartition('.')[2]}" if at else ""


def _active(root: Root) -> Iterator[str]:
    for name in root.listdir(_ACTIVE):
        if name.startswith("invocation:"):
            yield name.partition(":")[2]
    for place in _CGROUPS:
        yield from (name for name in root.listdir(place) if name.endswith(".service"))
