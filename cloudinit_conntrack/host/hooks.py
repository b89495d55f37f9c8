"""Which netfilter hooks conntrack has registered in a network namespace, where the kernel tells."""

from __future__ import annotations

from ..tracking import families_of, hooks_of
from . import kernel
from .process import find, run
from .root import HOST, Root


def conntrack_hooks(root: Root = HOST) -> tuple[str, ...] | None:
    """The functions of conntrack that are hooked in; ``None`` where that is not told."""
    text = listed_hooks(root)
    return None if text is None else hooks_of(text)


def hooked_families(root: Root = HOST, netns: str | None = None) -> tuple[tuple[str, bool | None], ...] | None:
    """For each family whether conntrack is hooked in; ``None`` where that is not told."""
    text = listed_hooks(root, netns)
    return None if text is None else families_of(text)


def listed_hooks(root: Root = HOST, netns: str | None = None) -> str | None:
    """What ``nft list hooks`` prints in this namespace, or in *netns*; ``None`` where it tells nothing.

    It is told from 5.14 on, with CONFIG_NETFILTER_NETLINK_HOOK.  Without, ``nft list hooks``
    prints nothing and succeeds, so an empty answer tells nothing; asking would load
    nfnetlink_hook, so it is asked only where that is there.
    """
    if not find("nft") or not kernel.available(root, "nfnetlink_hook"):
        return None
    done = run(["nft", "list", "hooks"], check=False, netns=netns)
    return done.stdout if done.status == 0 and "hook" in done.stdout else None
