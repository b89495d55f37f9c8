"""Which netfilter hooks conntrack has registered in this network namespace, where the kernel tells."""

from __future__ import annotations

from . import kernel
from .process import find, run
from .root import HOST, Root

# net/netfilter/nf_conntrack_proto.c and nf_conntrack_bridge.c; up to 6.1 confirming was a function per family.
_FUNCTIONS = frozenset((
    "ipv4_conntrack_in", "ipv4_conntrack_local", "ipv6_conntrack_in", "ipv6_conntrack_local", "nf_confirm",
    "ipv4_confirm", "ipv6_confirm", "nf_ct_bridge_pre", "nf_ct_bridge_post", "nf_ct_bridge_in",
))
_MODULES = frozenset(("[nf_conntrack]", "[nf_conntrack_bridge]"))


def conntrack_hooks(root: Root = HOST) -> tuple[str, ...] | None:
    """The functions of conntrack that are hooked in; ``None`` where that is not told.

    It is told from 5.14 on, with CONFIG_NETFILTER_NETLINK_HOOK.  Without, ``nft list hooks``
    prints nothing and succeeds, so an empty answer tells nothing; asking would load
    nfnetlink_hook, so it is asked only where that is there.
    """
    if not find("nft") or not kernel.available(root, "nfnetlink_hook"):
        return None
    done = run(["nft", "list", "hooks"], check=False)
    if done.status != 0 or "hook" not in done.stdout:
        return None
    return hooks_of(done.stdout)


def hooks_of(text: str) -> tuple[str, ...]:
    """Conntrack's functions in the answer *text* of ``nft list hooks``, each once."""
    found: dict[str, None] = {}
    for words in (line.split() for line in text.splitlines()):
        functions = [word for word in words if word in _FUNCTIONS]
        if functions or _MODULES.intersection(words):
            found[functions[0] if functions else " ".join(words[1:])] = None
    return tuple(found)
