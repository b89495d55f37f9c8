"""Observing the whole host once: everything a plan needs, nothing changed, nothing loaded.

What a plan must not guess raises (rules that cannot be read, a saved file that is a link);
what may be missing on a healthy host becomes a note.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from ..errors import HostError
from ..kmod import BLOCK_PATH, INSTALL_BLOCKED
from ..state import Kernel, NativeFile, OtherNamespace, Resolution, SavedFile, State, Surroundings
from .haproxy import haproxy_files
from .initramfs import observe_initramfs
from .kernel import observe_kernel
from .modules import all_loaded, image_dependants, resolve, unload_strays
from .namespaces import other_namespaces
from .native import native_rules
from .nftfile import saved_native, with_rules
from .root import HOST, Root
from .rules import default_backend, live_rules
from .saved import find_saved
from .service import observe_service
from .sshd import sshd_ports
from .surroundings import find_surroundings, restored

UNANSWERED = "whether modules are blocked is not known"
Wanted = Callable[[State, NativeFile], bool]


def observe(
    root: Root = HOST, live: bool = True, extra: Iterable[str] = (), haproxy: Iterable[str] = (),
    wanted: Wanted | None = None, looking: bool = True, resolving: int | None = None,
) -> State:
    """The host below *root*: its files, and with *live* its kernel, rules and processes.

    *extra* are more modules to ask modprobe about (``conntrack.modules.extra``), *haproxy* the
    paths of haproxy's configuration (``conntrack.flows.haproxy_cfg``).  *resolving*: how many
    of these names modprobe is asked about, by default all.  No plan needs an answer; one tells
    whether modprobe can give any, or else there is a note.  *wanted* says which saved nft files
    are to be loaded, to know their rules: while *looking* only where that cannot load a module.
    :class:`HostError` where going on would mean guessing.
    """
    names = INSTALL_BLOCKED + tuple(extra)
    # The nft files of an image tree are loaded here too, where nothing of it may stay.
    loading, kernels = not (live and looking), root if live else HOST
    before = tuple(module.name for module in all_loaded(kernels)) if loading else ()
    asked = names[:resolving]
    found = _live(root, names, asked) if live else _image(root, asked)
    state = replace(found, haproxy=haproxy_files(haproxy, root))
    files = tuple(with_rules(file, root, live, looking) if wanted and wanted(state, file) else file
                  for file in state.native_saved)
    if files == state.native_saved:
        return state
    kernel = state.kernel
    if loading:  # and loading may have loaded modules
        unload_strays(before, None, kernels)
    if kernel is not None and loading:
        kernel = observe_kernel(root, names)
    return replace(state, native_saved=files, kernel=kernel)


def _image(root: Root, names: tuple[str, ...]) -> State:
    around = find_surroundings(root, False)
    resolutions, notes = _resolutions(names, root, False)
    return State(None, saved=_saved(root, around), block=root.read_image(BLOCK_PATH), resolutions=resolutions,
                 sshd_ports=sshd_ports(root, False), notes=notes, native_saved=saved_native(root),
                 boot=observe_service(root, False), initramfs=observe_initramfs(root, False),
                 surroundings=around, shipped=image_dependants(root))


def _live(root: Root, names: tuple[str, ...], asked: tuple[str, ...]) -> State:
    around = find_surroundings(root, True)
    kernel = observe_kernel(root, names)
    rules = live_rules(root)
    resolutions, notes = _resolutions(asked, root, True)
    namespaces, unread = _namespaces(kernel, root)
    native, unreadable = native_rules(rules, root)
    return State(kernel, rules, _saved(root, around), root.read_image(BLOCK_PATH), resolutions, namespaces,
                 sshd_ports(root, True), (*unreadable, *notes, *unread), default_backend(), native=native,
                 native_saved=saved_native(root), boot=observe_service(root, True),
                 initramfs=observe_initramfs(root, True), surroundings=around)


def _saved(root: Root, around: Surroundings) -> tuple[SavedFile, ...]:
    """The saved files of the usual places, and those that a script restores."""
    found = find_saved(root)
    known = {saved.path for saved in found}
    return found + tuple(saved for saved in restored(root, around) if saved.path not in known)


def _resolutions(names: tuple[str, ...], root: Root, live: bool) -> tuple[tuple[Resolution, ...], tuple[str, ...]]:
    try:
        return resolve(names, root, live), ()
    except HostError as error:
        return (), (f"{UNANSWERED}: {error}",)


def _namespaces(kernel: Kernel, root: Root) -> tuple[tuple[OtherNamespace, ...], tuple[str, ...]]:
    """Other namespaces matter only where there is a conntrack that their rules could hold."""
    return ((), ()) if kernel.conntrack == "absent" else other_namespaces(root)
