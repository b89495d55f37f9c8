"""What was found on a host, as values.

Everything here is filled in by :mod:`cloudinit_conntrack.host` and read by the pure
floors.  Nothing in this file touches a file, a process or a clock.
"""

from __future__ import annotations

from dataclasses import dataclass

FAMILIES = ("ipv4", "ipv6")
BACKENDS = ("legacy", "nft")


@dataclass(frozen=True)
class FileImage:
    """One regular file, whole: enough to put it back byte for byte.

    *mode* holds the permission bits, times are nanoseconds since the epoch, *xattrs*
    the extended attributes (a SELinux label among them) as ``(name, value)``.
    """

    content: bytes
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    atime_ns: int = 0
    mtime_ns: int = 0
    xattrs: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True)
class LiveRules:
    """The rules in the kernel, of one back end and family, in one network namespace.

    *text* is what ``iptables-save -c`` printed; an empty text means no table is there.
    """

    backend: str
    family: str
    text: str


@dataclass(frozen=True)
class NativeRules:
    """Live native nftables rules, without the tables that iptables-nft owns.

    *listing* is what ``nft -j list ruleset`` printed of them, *text* what ``nft list
    ruleset`` did; where there is no table, the listing is an empty array.
    """

    listing: str
    text: str = ""


@dataclass(frozen=True)
class NativeFile:
    """A saved file in nft's language, read at boot by ``nft -f``.

    *text* is its content with the files that it includes in their places, *included* their
    paths.  *listing* is the JSON of what it loads, ``None`` where that was not tried;
    *problem* is nft's own error, at *where* (``FILE:LINE``), for a file that does not load.
    """

    path: str
    image: FileImage
    text: str
    included: tuple[str, ...] = ()
    listing: str | None = None
    problem: str = ""
    where: str = ""


@dataclass(frozen=True)
class SavedFile:
    """A file that is read at boot.

    *kind* is ``rules`` (iptables-save text), ``iptables-config`` (shell assignments of
    Red Hat's service) or ``ufw-defaults``.  *path* is absolute, as seen inside the root.
    """

    path: str
    kind: str
    family: str
    image: FileImage


@dataclass(frozen=True)
class SourceFile:
    """A file of another program's configuration, which we read and never write.

    *content* is ``None`` where there is no file, or a directory without one.
    """

    path: str
    content: bytes | None


@dataclass(frozen=True)
class Module:
    """One line of ``/proc/modules``, with what ``/sys/module`` adds.

    *refcount* counts all users; *holders* names the modules among them, so
    ``refcount - len(holders)`` users are rules, processes or sockets.
    """

    name: str
    refcount: int
    holders: tuple[str, ...]
    parameters: tuple[tuple[str, str], ...] = ()

    @property
    def other_users(self) -> int:
        """Users that are not modules; 0 or more."""
        return max(0, self.refcount - len(self.holders))


@dataclass(frozen=True)
class Resolution:
    """What modprobe would do for one name: ``blocked``, ``loads``, ``builtin``, ``missing``.

    *evidence* is the first line that modprobe printed.
    """

    name: str
    effect: str
    evidence: str


@dataclass(frozen=True)
class OtherNamespace:
    """Another network namespace, with the rules that live in it.

    *owner* reads like ``pid 812 (containerd-shim)`` or ``/run/netns/blue``; *native* says
    which of its native nftables tables use conntrack, and where.
    """

    inode: int
    owner: str
    rules: tuple[LiveRules, ...] = ()
    native: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kernel:
    """The running kernel, as far as connection tracking goes.

    *conntrack* is ``absent``, ``loaded`` or ``builtin``.  *modular* says whether this kernel
    can load and unload modules at all; *locked* is ``kernel.modules_disabled``.
    *entries* is the table's count in this namespace, ``None`` when it cannot be read.
    *forced_unload* is CONFIG_MODULE_FORCE_UNLOAD, ``None`` when the configuration is not there.
    *socket_match* says whether ``-m socket`` (xt_socket) can be had.
    *sysctls* are the ``net.netfilter.nf_conntrack_*`` values, to be set again by ``revert``.
    """

    release: str
    modular: bool
    locked: bool
    conntrack: str
    proc_file: bool
    modules: tuple[Module, ...] = ()
    dependants: tuple[str, ...] = ()
    entries: int | None = None
    forced_unload: bool | None = None
    local_ports: tuple[int, int] = (32768, 60999)
    sysctls: tuple[tuple[str, str], ...] = ()
    socket_match: bool = True

    def module(self, name: str) -> Module | None:
        """The loaded module *name*, or ``None``."""
        return next((m for m in self.modules if m.name == name), None)


@dataclass(frozen=True)
class Units:
    """The units of systemd (and init scripts, as ``NAME.service``), by name.

    *installed* have a file; *enabled* start at boot or are pulled in by what does; *masked*
    never start; *active* run now (empty for an image tree).
    """

    installed: frozenset[str] = frozenset()
    enabled: frozenset[str] = frozenset()
    masked: frozenset[str] = frozenset()
    active: frozenset[str] = frozenset()

    def starts(self, *names: str) -> bool:
        """Whether one of *names* (``docker.socket``) starts at boot, or runs already."""
        return any(name in self.enabled or name in self.active for name in names)


@dataclass(frozen=True)
class Program:
    """What runs this program: an interpreter, and the package's directory or a zip file with it."""

    python: str
    script: str


@dataclass(frozen=True)
class BootService:
    """How this host starts us at boot.

    *unit* is our unit file in /etc, *packaged* the path of one that a package brought, *link*
    what the link that enables it says; *taken*: something else has the place of our unit (a mask).
    *program* is what the unit runs or is to run, *after* the units that load saved rules,
    *late* those of them that start too late to be waited for; *loaded* are the saved files that
    the enabled ones load.
    """

    systemd: bool = True
    unit: FileImage | None = None
    packaged: str = ""
    link: str = ""
    taken: bool = False
    program: Program | None = None
    after: tuple[str, ...] = ()
    late: tuple[str, ...] = ()
    loaded: tuple[str, ...] = ()


@dataclass(frozen=True)
class Initramfs:
    """An initramfs whose configuration names conntrack modules, so that it loads them.

    *names* are (module, file that names it); *tool* is the command that writes *image* again, empty
    when there is none.  *stale*: the image is older than our block, and does not hold it.
    """

    tool: tuple[str, ...]
    image: str
    names: tuple[tuple[str, str], ...]
    stale: bool


@dataclass(frozen=True)
class FoundFile:
    """A file of other programs that may matter, as found; *path* is absolute, as seen inside the root."""

    path: str
    image: FileImage

    @property
    def text(self) -> str:
        """The content, with bytes that are no UTF-8 kept."""
        return self.image.content.decode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class Surroundings:
    """What else lives on the host: its units, the files that may bring conntrack back, the kernel's command line."""

    units: Units = Units()
    files: tuple[FoundFile, ...] = ()
    command_line: str = ""

    def file(self, path: str) -> FoundFile | None:
        """The file *path*, or ``None``."""
        return next((f for f in self.files if f.path == path), None)

    def below(self, *places: str) -> tuple[FoundFile, ...]:
        """The files in the directories *places* (which end in ``/``), or named so."""
        return tuple(f for f in self.files if f.path.startswith(places))


@dataclass(frozen=True)
class State:
    """The whole host as observed once.  *kernel* is ``None`` for an image tree (``--root``).

    *default_backend* is what plain ``iptables`` is here: ``legacy`` or ``nft``; empty where
    there is no iptables.  *native* is ``None`` where nft is not there or its rules cannot be
    read (a note says so).
    *haproxy* are the files that ``flows.haproxy_cfg`` names, in haproxy's order.
    *shipped* are the modules that need conntrack in any kernel of an image tree.
    """

    kernel: Kernel | None
    live: tuple[LiveRules, ...] = ()
    saved: tuple[SavedFile, ...] = ()
    block: FileImage | None = None
    resolutions: tuple[Resolution, ...] = ()
    namespaces: tuple[OtherNamespace, ...] = ()
    sshd_ports: tuple[int, ...] = (22,)
    notes: tuple[str, ...] = ()
    default_backend: str = "legacy"
    haproxy: tuple[SourceFile, ...] = ()
    native: NativeRules | None = None
    native_saved: tuple[NativeFile, ...] = ()
    boot: BootService | None = None
    initramfs: Initramfs | None = None
    surroundings: Surroundings = Surroundings()
    shipped: tuple[str, ...] = ()
