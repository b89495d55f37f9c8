"""What the kernel itself says about a mode: modules, hooks, modprobe's answers, a packet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from . import kmod
from .errors import HostError
from .host import hooks, modules
from .host.root import Root
from .said import Evidence

# What a stateful rule, a nat table and the conntrack tool ask modprobe for.
ASKED = ("nf_conntrack", "xt_conntrack", "xt_state", "ipt_NOTRACK", "iptable_nat", "nft-expr-ct", "nfnetlink-subsys-1")
FAMILIES = ("ipv4", "ipv6")
Flow = tuple[str, str, int]  # a probe's: family, protocol, port


def gathered(mode: str, block: bool, flows: Iterable[Flow], root: Root, live: bool) -> tuple[Evidence, ...]:
    """The evidence for *mode*: that *block* keeps modules away, and with ``notrack`` that *flows* are not tracked."""
    found: list[Evidence] = []
    if mode == "unload":
        if live:
            found += _absent(root)
        if block:
            found += _blocked(root)
    elif live and mode == "stateless":
        found += [_unhooked(root), *_untracked(root, [(family, "udp", 9) for family in FAMILIES], "a probe datagram")]
    elif live and mode == "notrack":
        found += _untracked(root, tuple(flows))
    return tuple(found)


def _absent(root: Root) -> list[Evidence]:
    loaded = [m.name for m in kmod.parse_proc_modules(root.read_text("/proc/modules") or "")]
    left = [name for name in kmod.CONNTRACK_MODULES if name in loaded]
    files = [f"/proc/net/{name}" for name in kmod.ROOTS if root.exists(f"/proc/net/{name}")]
    return [
        Evidence("modules", not left, f"loaded: {', '.join(left)}" if left else "no conntrack module is loaded"),
        Evidence("proc", not files, f"{files[0]} is there" if files else "/proc/net/nf_conntrack is gone"),
    ]


def _unhooked(root: Root) -> Evidence:
    there = hooks.conntrack_hooks(root)
    if there is None:
        return Evidence("hooks", None, "this kernel does not list its hooks: the probe tells")
    what = f"conntrack is hooked in: {', '.join(there)}" if there else "no hook of conntrack is registered"
    return Evidence("hooks", not there, what)


def _blocked(root: Root) -> list[Evidence]:
    found = modules.resolve(ASKED, root)
    return [
        Evidence(f"modprobe:{r.name}", r.effect != "loads", f"modprobe {r.name}: {r.effect} ({r.evidence})")
        for r in found
    ]


def _untracked(root: Root, flows: Sequence[Flow], told: str = "") -> Iterator[Evidence]:
    if not root.exists("/proc/net/nf_conntrack"):
        answers: Iterable[bool | None] = [None] * len(flows)
        unknown = "no conntrack table to look into"
    else:
        from .host import probe  # here: it takes sockets, which mode 'unload' does without

        answers, unknown = probe.are_tracked(root, flows), "the probe could not be sent"
    for (family, protocol, port), tracked in zip(flows, answers):
        what = f"{told or f'a probe to {protocol} port {port}'} over {family}"
        found = unknown if tracked is None else ("left an entry" if tracked else "was not tracked")
        yield Evidence(f"probe:{family}:{protocol}:{port}", None if tracked is None else not tracked,
                       f"{what}: {found}" if tracked is None else f"{what} {found}")


def demand(found: tuple[Evidence, ...]) -> None:
    """Raise HostError where evidence speaks against the mode though nothing was left to do."""
    against = [e for e in found if e.holds is False]
    if against:
        raise HostError("nothing is left to do, and yet: " + "; ".join(e.what for e in against), "verify",
                        "look at 'cloudinit-conntrack status' for what holds or loads it")
