"""What the running kernel says about connection tracking.  Only reads: nothing here loads a module."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache

from ..errors import HostError
from ..kmod import ROOTS, dependants, is_conntrack_module, normal, parse_proc_modules
from ..state import Kernel, Module
from .root import HOST, Root

_SYSCTLS = "/proc/sys/net/netfilter"
_OPTIONS = {"nf_conntrack_netlink": "NF_CT_NETLINK"}  # where the option is not the module's name
_MOST_CONFIG = 4 * 1024 * 1024


def observe_kernel(root: Root = HOST, extra: Iterable[str] = ()) -> Kernel:
    """The kernel below *root* (its ``/proc``, ``/sys``, ``/lib/modules``, ``/boot``).

    Parameters are read for conntrack's modules and for those named in *extra*.  A kernel
    without module support has no ``/proc/modules`` (CONFIG_MODULES unset).
    """
    release = _line(root, "/proc/sys/kernel/osrelease")
    listed = root.read_text("/proc/modules")
    known = dependants(root.read_text(f"/lib/modules/{release}/modules.dep") or "")
    wanted = {normal(name) for name in extra}.union(known)
    modules = tuple(_with_parameters(root, m) if m.name in wanted or is_conntrack_module(m.name) else m
                    for m in parse_proc_modules(listed or ""))
    conntrack = _conntrack(root, release, modules)
    return Kernel(
        release=release,
        modular=listed is not None,
        locked=_locked(root),
        conntrack=conntrack,
        proc_file=any(root.exists(f"/proc/net/{name}") for name in ROOTS),
        modules=modules,
        dependants=known,
        entries=_number(_line(root, f"{_SYSCTLS}/nf_conntrack_count")),
        forced_unload=_forced_unload(root, release),
        local_ports=_local_ports(root),
        sysctls=_sysctls(root) if conntrack == "loaded" else (),  # what is built in stays as it is
        socket_match=_socket_match(root, release),
    )


def available(root: Root, name: str) -> bool:
    """Whether the kernel has *name* right now, loaded or built in, so that using it loads nothing.

    Where nothing can be loaded (no module support, or ``kernel.modules_disabled``) the
    question does no harm, and the answer is yes.
    """
    listed = root.read_text("/proc/modules")
    if listed is None or _locked(root):
        return True
    if any(m.name == name for m in parse_proc_modules(listed)):
        return True
    return builtin(root, _line(root, "/proc/sys/kernel/osrelease"), name)


def builtin(root: Root, release: str, name: str) -> bool:
    """Whether *name* is compiled into the kernel.

    A built-in has a directory in ``/sys/module`` only if it has parameters, and never an
    ``initstate`` there (kernel/params.c, kernel/module/sysfs.c), hence the other sources.
    """
    place = f"/sys/module/{name}"
    if root.is_directory(place) and not root.exists(f"{place}/initstate"):
        return True
    shipped = root.read_text(f"/lib/modules/{release}/modules.builtin") or ""
    if any(normal(line.rpartition("/")[2].partition(".ko")[0]) == name for line in shipped.splitlines()):
        return True
    option = _OPTIONS.get(name, name.upper())
    return f"\nCONFIG_{option}=y\n" in f"\n{_config(root, release)}\n"


def _conntrack(root: Root, release: str, modules: tuple[Module, ...]) -> str:
    if any(m.name in ROOTS for m in modules):
        return "loaded"
    if any(builtin(root, release, name) for name in ROOTS):
        return "builtin"
    return "absent"


def _with_parameters(root: Root, module: Module) -> Module:
    """*module* with the parameters that can be read and given again; arrays may be empty."""
    place = f"/sys/module/{module.name}/parameters"
    found = ((name, _line(root, f"{place}/{name}")) for name in root.listdir(place))
    given = tuple((name, value) for name, value in found if value and value != "(null)")
    return Module(module.name, module.refcount, module.holders, given)


def _socket_match(root: Root, release: str) -> bool:
    """Whether a rule with ``-m socket`` can be loaded into a mangle table, for reassembly.

    Where nothing can be loaded any more, the match and the tables must be there already.
    """
    if _locked(root):
        there = [m.name for m in parse_proc_modules(root.read_text("/proc/modules") or "")]
        needed = ("xt_socket", "iptable_mangle", "ip6table_mangle")
        return all(name in there or builtin(root, release, name) for name in needed)
    return _obtainable(root, release, "xt_socket")


def _locked(root: Root) -> bool:
    return _line(root, "/proc/sys/kernel/modules_disabled") == "1"


def _obtainable(root: Root, release: str, name: str) -> bool:
    """Whether the module *name* can be loaded or is built in; yes where the kernel's modules are not listed."""
    listed = root.read_text(f"/lib/modules/{release}/modules.dep")
    if listed is None:
        return True
    return f"/{name}.ko" in listed or builtin(root, release, name)


def _sysctls(root: Root) -> tuple[tuple[str, str], ...]:
    """The writable ``net.netfilter.nf_conntrack_*``.  The frag6 ones belong to nf_defrag_ipv6 and stay."""
    names = (name for name in root.listdir(_SYSCTLS) if name.startswith("nf_conntrack_"))
    wanted = (n for n in names if n != "nf_conntrack_count" and not n.startswith("nf_conntrack_frag6_"))
    found = ((f"net.netfilter.{n}", _line(root, f"{_SYSCTLS}/{n}")) for n in wanted)
    return tuple((name, value) for name, value in found if value)


def _local_ports(root: Root) -> tuple[int, int]:
    fields = _line(root, "/proc/sys/net/ipv4/ip_local_port_range").split()
    if len(fields) == 2 and all(field.isdigit() for field in fields):
        return int(fields[0]), int(fields[1])
    return Kernel.local_ports


def _forced_unload(root: Root, release: str) -> bool | None:
    config = _config(root, release)
    return None if config is None else "\nCONFIG_MODULE_FORCE_UNLOAD=y\n" in f"\n{config}\n"


def _config(root: Root, release: str) -> str | None:
    """The kernel's build configuration, where a distribution keeps it (Fedora: with the modules)."""
    for path in (f"/boot/config-{release}", f"/lib/modules/{release}/config"):
        text = root.read_text(path)
        if text is not None:
            return text
    return _own_config(root)


@lru_cache(maxsize=1)
def _own_config(root: Root) -> str | None:
    """What the running kernel says of itself; it says the same each time."""
    packed = root.read_bytes("/proc/config.gz")
    if packed is None:
        return None
    import gzip  # here: most kernels have their configuration as a file, or not at all
    import io

    with suppress(OSError, EOFError), gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
        return file.read(_MOST_CONFIG).decode("ascii", "replace")
    return None


def _line(root: Root, path: str) -> str:
    """A one-line kernel file; empty when it is not there or not to be read, as some are even for root."""
    with suppress(HostError):
        return (root.read_text(path) or "").strip()
    return ""


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None
