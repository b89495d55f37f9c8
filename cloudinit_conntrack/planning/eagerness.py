"""Kernels and options that track without being asked: where ``stateless`` cannot hold.

Up to 4.9 loading the module registered its hooks in every namespace; 4.10 to 4.13 did so
unless a sysctl said otherwise; since 4.14 ("netfilter: conntrack: do not enable connection
tracking unless needed") a rule must ask, unless ``enable_hooks`` is set.  Red Hat's 4.18 is
as new as its number here.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..kmod import is_conntrack_module, normal
from ..state import Surroundings
from .draft import Draft, Item
from .mending import enables_hooks, is_enabling
from .needs import release_of

LAZY = (4, 14)
_BOOT_FILES = ("/etc/default/grub", "/etc/kernel/cmdline")
_LOADING = ("modules_load", "modules-load", "rd.modules_load", "rd.modules-load")


def plan_eagerness(draft: Draft) -> None:
    """Blockers of mode ``stateless``, and what the command line loads in mode ``unload``."""
    if draft.desired.mode == "stateless":
        _plan_kernel(draft)
        _plan_options(draft)
    elif draft.desired.mode == "unload" and draft.desired.modules.block:
        for where, word in _boot_words(draft.state.surroundings):
            if _loads(word):
                what = f"{word} asks for a module of conntrack at boot; the block keeps it away, and the log says so"
                draft.findings.append(Item(f"boot:{where}:{word}", where, what, f"take it out of {where}"))


def _plan_kernel(draft: Draft) -> None:
    kernel = draft.state.kernel
    if kernel is None or release_of(kernel) >= LAZY or release_of(kernel) == (0, 0):
        return
    where = f"kernel {kernel.release}"
    if kernel.conntrack == "absent":
        draft.findings.append(Item("hooks:kernel", where, "before 4.14 everything is tracked as soon as anything loads "
                                   "conntrack, rules or not", "use 'mode: unload', which keeps it from being loaded"))
    else:
        remedy = "use 'mode: unload'" if kernel.conntrack == "loaded" else "use a kernel of 4.14 or newer"
        draft.blockers.append(Item("hooks:kernel", where, "before 4.14 everything is tracked while conntrack is there, "
                                   "rules or not: taking the rules away changes nothing", remedy))


def _plan_options(draft: Draft) -> None:
    around, kernel = draft.state.surroundings, draft.state.kernel
    for where, word in _boot_words(around):
        prefix, dot, option = word.partition(".")
        if dot and normal(prefix) == "nf_conntrack" and is_enabling(option):
            draft.blockers.append(Item(f"hooks:{where}:{word}", where, f"{word} tracks everything, rules or not",
                                       f"take it out of {where} (and run update-grub, or grub2-mkconfig), and reboot"))
    files = [f.path for f in around.files if "/modprobe" in f.path and enables_hooks(f.text)]
    if files and kernel is not None and kernel.conntrack == "loaded":
        what = ("nf_conntrack is loaded, and by this file with enable_hooks=1: it tracks everything, rules or not, "
                "until it is loaded anew")
        draft.blockers.append(Item("hooks:option", files[0], what,
                                   "use 'mode: unload'; or take the option out and reboot"))


def _boot_words(around: Surroundings) -> Iterator[tuple[str, str]]:
    """(where, word) of the running kernel's command line, and of the files that make the next one's."""
    seen: set[tuple[str, str]] = set()
    texts = [("/proc/cmdline", around.command_line)]
    for file in around.below(*_BOOT_FILES):
        lines = [line.partition("=")[2] if "grub" in file.path else line for line in file.text.split("\n")
                 if not line.lstrip().startswith("#")]
        texts.append((file.path, " ".join(lines)))
    for where, text in texts:
        for word in (raw.strip("\"'") for raw in text.split()):
            if (where, word) not in seen:
                seen.add((where, word))
                yield where, word


def _loads(word: str) -> bool:
    key, _, names = word.partition("=")
    return key in _LOADING and any(is_conntrack_module(name) for name in names.split(",") if name)
