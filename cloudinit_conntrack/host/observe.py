"""Observing the whole host once: everything a plan needs, nothing changed, nothing loaded.

What a plan must not guess raises (rules that cannot be read, a saved file that is a link);
what may be missing on a healthy host becomes a note.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import HostError
from ..kmod import BLOCK_PATH, INSTALL_BLOCKED
from ..state import Kernel, OtherNamespace, Resolution, SavedFile, State, Surroundings
from .haproxy import haproxy_files
from .kernel import observe_kernel
from .modules import resolve
from .namespaces import other_namespaces
from .native import native_notes
from .root import HOST, Root
from .rules import default_backend, live_rules
from .saved import find_saved
from .sshd import sshd_ports
from .surroundings import find_surroundings, restored


def observe(
    root: Root = HOST, live: bool = True, extra: Iterable[str] = (), haproxy: Iterable[str] = ()
) -> State:
    """The host below *root*: its files, and with *live* its kernel, rules and processes.

    *extra* are more modules to ask modprobe about (``conntrack.modules.extra``), *haproxy* the
    paths of haproxy's configuration (``conntrack.flows.haproxy_cfg``).
    :class:`HostError` where going on would mean guessing.
    """
    names = INSTALL_BLOCKED + tuple(extra)
    around = find_surroundings(root, live)
    saved = _saved(root, around)
    if not live:
        resolutions, notes = _resolutions(names, root, live)
        return State(None, saved=saved, block=root.read_image(BLOCK_PATH), resolutions=resolutions,
                     sshd_ports=sshd_ports(root, live), notes=notes, haproxy=haproxy_files(haproxy, root),
                     surroundings=around)
    kernel = observe_kernel(root, names)
    rules = live_rules(root)
    resolutions, notes = _resolutions(names, root, live)
    namespaces, unread = _namespaces(kernel, root)
    return State(kernel, rules, saved, root.read_image(BLOCK_PATH), resolutions, namespaces,
                 sshd_ports(root, live), (*native_notes(rules, root), *notes, *unread),
                 default_backend() or State.default_backend, haproxy_files(haproxy, root), around)


def _saved(root: Root, around: Surroundings) -> tuple[SavedFile, ...]:
    """The saved files of the usual places, and those that a script restores."""
    found = find_saved(root)
    known = {saved.path for saved in found}
    return found + tuple(saved for saved in restored(root, around) if saved.path not in known)


def _resolutions(names: tuple[str, ...], root: Root, live: bool) -> tuple[tuple[Resolution, ...], tuple[str, ...]]:
    try:
        return resolve(names, root, live), ()
    except HostError as error:
        return (), (f"whether modules are blocked is not known: {error}",)


def _namespaces(kernel: Kernel, root: Root) -> tuple[tuple[OtherNamespace, ...], tuple[str, ...]]:
    """Other namespaces matter only where there is a conntrack that their rules could hold."""
    return ((), ()) if kernel.conntrack == "absent" else other_namespaces(root)
