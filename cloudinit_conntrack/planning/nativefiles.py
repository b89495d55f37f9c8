"""Saved files in nft's language: which of them there is something to do about, and what.

Such a file is in a language of its own, so what it holds is known only when nft has loaded
it, which may load modules.  Planning therefore reads its words first
(:mod:`..netfilter.nft_text`) and asks for its rules only where these say that there may be
something to do (:func:`to_list`).  Where looking would load a module, the plan says that
apply will work it out; for a file that apply has written, the words are enough: in the
modes without conntrack none of them needs it, and with ``notrack`` the head of the file
names what it was written for.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
from typing import Callable

from ..actions import RewriteNative
from ..config import Desired
from ..netfilter.nft_ruleset import parse_nft
from ..netfilter.nft_tables import listed, place_of
from ..netfilter.nft_text import (
    Word,
    flushes_all,
    header_of,
    renewed_tables,
    restart_tables,
    stateful_words,
    tables_text,
    words_of,
)
from ..state import NativeFile, State
from .draft import Draft, Item, decoded
from .haproxy import with_haproxy
from .judging import Place
from .native import change, judge, report, summary, uses_own_table

MARK = "# cloudinit-conntrack:"


def plan_native_file(draft: Draft, file: NativeFile) -> None:
    """One saved file."""
    if not needs_rules(draft.desired, draft.state, file):
        return
    note = _note(draft.desired, draft.state)
    if _cannot_matter(draft.state, file):
        draft.findings.append(Item(f"unloadable:{file.path}", file.path,
                                   f"this kernel cannot load this file, and no service does: {file.problem}",
                                   "nothing to do now; with a kernel that can, apply again before nftables.service is "
                                   "enabled"))
        return
    if file.problem:
        draft.blockers.append(Item(f"nftables:{file.path}", file.where or file.path,
                                   f"nft cannot load this file: {file.problem}",
                                   "mend the file, see that 'nft -c -f' takes it, and apply again"))
        return
    if file.listing is None:
        _unlisted(draft, file, note)
        return
    before = parse_nft(file.listing, file.path)
    outcome = change(draft, before, file.path)
    place = Place(file.path, file.path, partial(place_of, before))
    report(draft, outcome, before, place)
    if outcome.ruleset is before or outcome.blockers:
        return
    judge(draft, before, outcome, place)
    if file.included:
        draft.findings.append(Item(f"included:{file.path}", file.path,
                                   f"the files that it includes become a part of it: {', '.join(file.included)}",
                                   "change your rules in this file from now on, or revert"))
    draft.files.append(RewriteNative(file.path, file.image, file.text, listed(outcome.ruleset),
                                     summary(outcome, draft.desired.mode), note))


def loaded_at_boot(state: State) -> bool:
    """Whether a boot loads the saved nft files: Debian and Red Hat install them, and their service disabled."""
    return state.surroundings.units.starts("nftables.service")


def _cannot_matter(state: State, file: NativeFile) -> bool:
    """Whether *file*, which asks for no connection's state, is loaded by nobody on a kernel that could not do it.

    User-mode Linux has nf_tables without any family of tables.
    """
    return ("Operation not supported" in file.problem and not stateful_words(words_of(file.text))
            and not loaded_at_boot(state))


def _unlisted(draft: Draft, file: NativeFile, note: str) -> None:
    """What can be said of a file whose rules are not known: only apply may load it."""
    words = stateful_words(words_of(file.text))
    if not words and not uses_own_table(draft.state):
        draft.findings.append(Item(f"unread:{file.path}", file.path, "whether the flows come through its rules is not "
                                   "looked at: loading it could load kernel modules", "apply looks at it"))
        return
    what = f"it says {_named(words)}" if words else "it does not stop the tracking of the flows"
    reason = f"{what}; what becomes of its rules is worked out by apply, since loading it could load kernel modules"
    draft.files.append(RewriteNative(file.path, file.image, file.text, None, reason, note))


def _named(words: tuple[Word, ...]) -> str:
    names = [f"{word.text!r} (line {word.line})" for word in words[:3]]
    return ", ".join(names) + (f" and {len(words) - 3} more" if len(words) > 3 else "")


# --- which files have to be loaded ---------------------------------------------------------


def needs_rules(desired: Desired, state: State, file: NativeFile) -> bool:
    """Whether there may be something to do about *file*, by its words and its head alone."""
    if desired.mode != "notrack":
        return bool(stateful_words(words_of(file.text)))
    return _note(desired, state) not in decoded(file.image.content).splitlines()


def _note(desired: Desired, state: State) -> str:
    """The line in the head of a file that ``notrack`` wrote: for these flows, and no others."""
    if desired.mode != "notrack":
        return f"{MARK} made stateless; 'cloudinit-conntrack revert' puts the former text back"
    ports = state.kernel.local_ports if state.kernel else ()
    meant = repr((desired.flows.frontends, desired.flows.backends, desired.flows.all, uses_own_table(state), ports))
    digest = hashlib.sha256(meant.encode()).hexdigest()[:12]
    return f"{MARK} with the bypass {digest}; 'cloudinit-conntrack revert' puts the former text back"


def to_list(desired: Desired) -> Callable[[State, NativeFile], bool]:
    """Which saved files have to be loaded to plan *desired*, its fallback too."""
    modes = [desired.mode] + ([desired.fallback] if desired.fallback != "none" else [])
    each = [replace(desired, mode=mode) for mode in modes]
    return lambda state, file: any(needs_rules(with_haproxy(one, state).desired, state, file) for one in each)


# --- what is written ---------------------------------------------------------------------


def file_text(former: str, whole: str, note: str, printed: str) -> str:
    """A saved file anew: its head, *note*, what it empties first, and *printed*, what nft lists of its rules.

    *former* is its text, *whole* the same with what it includes.
    """
    head = "".join(line for line in header_of(former).splitlines(True) if not line.startswith(MARK))
    words = words_of(whole)
    renewed = renewed_tables(words)
    names = [name for name in tables_text(printed) if name in renewed]
    first = "flush ruleset\n" if flushes_all(words) else restart_tables(names)
    top = head.rstrip("\n")
    return f"{top}\n{note}\n\n{first}\n{printed}" if top else f"{note}\n\n{first}\n{printed}"
