"""Observing the whole host once: everything a plan needs, nothing changed, nothing loaded.

What a plan must not guess raises (rules that cannot be read, a saved file that is a link);
what may be missing on a healthy host becomes a note.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import HostError
from ..kmod import BLOCK_PATH, INSTALL_BLOCKED
from ..state import Kernel, OtherNamespace, Resolution, State
from .haproxy import haproxy_files
from .initramfs import observe_initramfs
from .kernel import observe_kernel
from .modules import resolve
from .namespaces import other_namespaces
from .native import native_notes
from .root import HOST, Root
from .rules import default_backend, live_rules
from .saved import find_saved
from .service import observe_service
from .sshd import sshd_ports


def observe(
    root: Root = HOST, live: bool = True, extra: Iterable[str] = (), haproxy: Iterable[str] = ()
) -> State:
    """The host below *root*: its files, and with *live* its kernel, rules and processes.

    *extra* are more modules to ask modprobe about (``conntrack.modules.extra``), *haproxy* the
    paths of haproxy's configuration (``conntrack.flows.haproxy_cfg``).
    :class:`HostError` where going on would mean guessing.
    """
    names = INSTALL_BLOCKED + tuple(extra)
    if not live:
        resolutions, notes = _resolutions(names, root, live)
        return State(None, saved=find_saved(root), block=root.read_image(BLOCK_PATH), resolutions=resolutions,
                     sshd_ports=sshd_ports(root, live), notes=notes, haproxy=haproxy_files(haproxy, root),
                     boot=observe_service(root, live), initramfs=observe_initramfs(root, live))
    kernel = observe_kernel(root, names)
    rules = live_rules(root)
    resolutions, notes = _resolutions(names, root, live)
    namespaces, unread = _namespaces(kernel, root)
    return State(kernel, rules, find_saved(root), root.read_image(BLOCK_PATH), resolutions, namespaces,
                 sshd_ports(root, live), (*native_notes(rules, root), *notes, *unread),
                 default_backend() or State.default_backend, haproxy_files(haproxy, root),
                 boot=observe_service(root, live), initramfs=observe_initramfs(root, live))


def _resolutions(names: tuple[str, ...], root: Root, live: bool) -> tuple[tuple[Resolution, ...], tuple[str, ...]]:
    try:
        return resolve(names, root, live), ()
    except HostError as error:
        return (), (f"whether modules are blocked is not known: {error}",)


def _namespaces(kernel: Kernel, root: Root) -> tuple[tuple[OtherNamespace, ...], tuple[str, ...]]:
    """Other namespaces matter only where there is a conntrack that their rules could hold."""
    return ((), ()) if kernel.conntrack == "absent" else other_namespaces(root)
