"""Modules: asked about, loaded and unloaded, and judged by the kernel's own list.

Exit codes lie in both directions: ``modprobe -r`` of a module that is not there answers 0,
and ``--remove-holders`` answers 1 although everything went (kmod 30).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from ..errors import CommandError, HostError
from ..kmod import dependants, is_packet_filter_module, normal, parse_proc_modules
from ..state import Module, Resolution
from .process import Completed, failure, quoted, run
from .root import HOST, Root

# In kmod's order of precedence: the first file of a name wins (modprobe.d(5)).
_CONFIGURATION = ("/etc/modprobe.d", "/run/modprobe.d", "/usr/local/lib/modprobe.d",
                  "/usr/lib/modprobe.d", "/lib/modprobe.d")
_NOTHING = ("false", "true")  # "install X /bin/true" loads nothing either, and lies about it
_WORST = ("loads", "builtin", "blocked", "missing")
_TRIES = 5
_PAUSE = 0.2


def resolve(names: Iterable[str], root: Root = HOST,
            live: bool | None = None) -> tuple[Resolution, ...]:
    """What modprobe would do for each of *names*, by modprobe's own dry run.

    On the host (*live*; by default, where *root* is ``/``) it is asked about the running
    kernel.  In an image tree it is asked about every kernel there with the tree's own
    modprobe.d, and the answer that lets most through counts.  ``missing`` when there is no
    such module, or no kernel at all.
    """
    wanted = tuple(names)
    if root.is_host if live is None else live:
        return tuple(_ask(name, ()) for name in wanted)
    kernels = root.listdir("/lib/modules")
    releases = tuple(r for r in kernels if root.exists(f"/lib/modules/{r}/modules.dep.bin"))
    if not releases:
        return tuple(Resolution(name, "missing", "there is no kernel under /lib/modules") for name in wanted)
    with _copy(root, releases) as directory:
        # kmod 30: -d moves only /lib/modules, -C replaces all configuration directories.
        options = {r: ("-d", directory, "-C", f"{directory}/modprobe.d", "-S", r) for r in releases}
        return tuple(_worst([_ask(name, options[r], f"{r}: ") for r in releases]) for name in wanted)


def _ask(name: str, options: Sequence[str], prefix: str = "") -> Resolution:
    # Without -D a loaded module, or one that is built in, gives no answer at all.
    done = run(["modprobe", *options, "-n", "-v", "-D", name], check=False)
    effect, evidence = _judge(done, name)
    return Resolution(name, effect, prefix + evidence)


def _judge(done: Completed, name: str) -> tuple[str, str]:
    """The effect, and the line that decides it: an ``install`` line blocks dependent modules too."""
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    for line in lines:
        words = line.split()
        if words[0] == "install" and len(words) > 1 and os.path.basename(words[1]) in _NOTHING:
            return "blocked", line
    if lines:
        return ("builtin" if lines[-1].startswith("builtin") else "loads"), lines[-1]
    if done.status == 0:  # an alias whose modules are all blacklisted leaves nothing to do
        return "blocked", f"modprobe {name}: blacklisted"
    if "not found" in done.stderr:
        return "missing", done.stderr.strip().splitlines()[-1]
    raise failure(done)


def _worst(answers: list[Resolution]) -> Resolution:
    return min(answers, key=lambda answer: _WORST.index(answer.effect))


@contextmanager
def _copy(root: Root, releases: Iterable[str]) -> Iterator[str]:
    """What modprobe reads of the tree, copied: by itself it would follow the tree's links out of the root."""
    import tempfile  # here: an image tree alone needs it, and it takes a tenth of our start

    chosen: dict[str, bytes] = {}
    for place in _CONFIGURATION:
        for name in root.listdir(place):
            if name.endswith(".conf") and name not in chosen:
                chosen[name] = root.read_bytes(f"{place}/{name}") or b""
    with tempfile.TemporaryDirectory(prefix="cloudinit-conntrack-") as directory:
        for name, content in chosen.items():
            _put(f"{directory}/modprobe.d", name, content)
        for release in releases:
            _copy_kernel(root, f"/lib/modules/{release}", f"{directory}/lib/modules/{release}")
        os.makedirs(f"{directory}/modprobe.d", exist_ok=True)
        yield directory


def _copy_kernel(root: Root, place: str, copy: str) -> None:
    """The index of a kernel's modules, and an empty file for each module: kmod leaves out what is not there."""
    for name in root.listdir(place):
        if name.startswith("modules.") and not root.is_directory(f"{place}/{name}"):
            _put(copy, name, root.read_bytes(f"{place}/{name}") or b"")
    named: dict[str, set[str]] = {}
    for line in (root.read_text(f"{place}/modules.dep") or "").splitlines():
        directory, slash, name = line.partition(":")[0].rpartition("/")
        if slash and directory[:1] != "/" and ".." not in directory.split("/") and "\0" not in line:
            named.setdefault(directory, set()).add(name)
    for directory, names in named.items():
        for name in names.intersection(root.listdir(f"{place}/{directory}")):
            _put(f"{copy}/{directory}", name, b"")


def _put(directory: str, name: str, content: bytes) -> None:
    if not os.path.isdir(directory):
        os.makedirs(directory)
    with open(f"{directory}/{name}", "wb") as file:
        file.write(content)


def image_dependants(root: Root) -> tuple[str, ...]:
    """What needs conntrack in any kernel of an image tree, by each one's modules.dep; sorted."""
    texts = (root.read_text(f"/lib/modules/{release}/modules.dep") for release in root.listdir("/lib/modules"))
    return tuple(sorted({name for text in texts for name in dependants(text or "")}))


def loaded(name: str, root: Root = HOST) -> Module | None:
    """The module *name* as ``/proc/modules`` lists it now, or ``None``."""
    modules = parse_proc_modules(root.read_text("/proc/modules") or "")
    return next((m for m in modules if m.name == normal(name)), None)


def unload(name: str, root: Root = HOST) -> bool:
    """Unload *name* alone, none of its holders and dependencies; whether it is gone.

    A count that drops by itself (a closing socket, a dying namespace) is waited for, shortly.
    """
    return _remove(("rmmod", normal(name)), name, root)


def all_loaded(root: Root = HOST) -> tuple[Module, ...]:
    """The modules that are loaded now, as ``/proc/modules`` lists them; none in an image tree."""
    return parse_proc_modules((root.read_text("/proc/modules") if root.is_host else "") or "")


def unload_strays(before: Iterable[str], after: Iterable[str] | None, root: Root = HOST) -> None:
    """Unload the netfilter modules that were not there *before* and were *after* it, if nothing uses them.

    With *after* ``None``: whatever of them was not there before.  Best effort: an unused module does no harm.
    """
    known, own = set(before), None if after is None else set(after)
    for _ in range(64):
        strays = [m.name for m in all_loaded(root) if m.refcount == 0 and m.name not in known
                  and (own is None or m.name in own) and is_packet_filter_module(m.name)]
        if not any([unload(name, root) for name in strays]):
            return


def force_unload(name: str, root: Root = HOST) -> bool:
    """``rmmod -f``: only where the kernel has CONFIG_MODULE_FORCE_UNLOAD and the user asked for it.

    The kernel refuses all the same while a module depends on *name* (kernel/module/main.c).
    """
    return _remove(("rmmod", "-f", normal(name)), name, root)


def _remove(argv: tuple[str, ...], name: str, root: Root) -> bool:
    for attempt in range(_TRIES):
        found = loaded(name, root)
        if found is None:
            return True
        if found.holders:
            return False
        if attempt:
            time.sleep(_PAUSE)
        run(argv, check=False)
    return loaded(name, root) is None


def load(name: str, parameters: Sequence[tuple[str, str]] = (), root: Root = HOST) -> None:
    """Load *name* with *parameters* through modprobe; :class:`CommandError` when it is not there then."""
    argv = ("modprobe", normal(name), *(f"{key}={value}" for key, value in parameters))
    done = run(argv, check=False)
    if loaded(name, root) is None:
        raise CommandError(f"module {name} is not loaded; {failure(done).what}", quoted(argv),
                           "see dmesg, and modprobe -n -v " + name)


def set_sysctls(values: Iterable[tuple[str, str]], root: Root = HOST) -> tuple[str, ...]:
    """Set the sysctls *values*, as ``(name, value)``; gives one line for each that could not be set."""
    problems: list[str] = []
    for name, value in values:
        path = "/proc/sys/" + name.replace(".", "/")
        try:
            if (root.read_text(path) or "").strip() != value:
                root.write_kernel(path, value + "\n")
        except HostError as error:
            problems.append(f"{name} = {value}: {error}")
    return tuple(problems)
