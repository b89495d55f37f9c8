"""Whole plans, compared with ``==``; and that a plan, done, leaves nothing to plan.

A folder ``plan/NAME`` is one case: ``desired.yaml`` is the section, ``host`` a small tree:
files of /etc, ``proc`` and ``sys`` of its kernel (without ``proc`` it is an image),
``live/BACKEND-FAMILY`` the loaded rules, ``live/native.json`` and ``.nft`` what nft lists,
``netns/NAME/BACKEND-FAMILY`` those of another network namespace, ``listed/NAME.json`` what
the saved nft file of that name loads, where that may be known.  ``expected.txt`` is the whole
plan.  A new answer is read before it is kept: it is what is done to somebody's host.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cloudinit_conntrack import kmod
from cloudinit_conntrack.actions import (
    Action,
    LoadNative,
    LoadRules,
    NativeImage,
    ProveLoading,
    RewriteNative,
    UnloadModule,
    WriteFile,
    inverse,
)
from cloudinit_conntrack.config import Desired, desired_from_text
from cloudinit_conntrack.host.haproxy import haproxy_files
from cloudinit_conntrack.host.kernel import observe_kernel
from cloudinit_conntrack.host.nftfile import saved_native
from cloudinit_conntrack.host.root import Root
from cloudinit_conntrack.host.saved import find_saved
from cloudinit_conntrack.host.sshd import sshd_ports
from cloudinit_conntrack.netfilter.iptables import parse_ruleset
from cloudinit_conntrack.netfilter.nft_ruleset import parse_nft
from cloudinit_conntrack.netfilter.nft_tables import alike, listed, only
from cloudinit_conntrack.netfilter.nft_tables import tables_of as native_tables
from cloudinit_conntrack.netfilter.nft_words import object_text
from cloudinit_conntrack.netfilter.ruleset import format_ruleset
from cloudinit_conntrack.plan import BLOCK_FILE, Plan, make_plan
from cloudinit_conntrack.planning.nativefiles import to_list
from cloudinit_conntrack.state import (
    BACKENDS,
    FAMILIES,
    FileImage,
    LiveRules,
    NativeFile,
    NativeRules,
    OtherNamespace,
    State,
)

CASES = sorted((Path(__file__).parent / "plan").iterdir())
NAMES = [case.name for case in CASES]


def desired_of(case: Path) -> Desired:
    return desired_from_text((case / "desired.yaml").read_bytes(), "desired.yaml")


def state_of(case: Path, desired: Desired) -> State:
    tree = case / "host"
    root = Root(str(tree))
    live = tuple(rules_in(tree / "live"))
    spaces = tuple(OtherNamespace(number, f"/run/netns/{space.name}", tuple(rules_in(space)))
                   for number, space in enumerate(sorted((tree / "netns").glob("*")), 1))  # fmt: skip
    kernel = observe_kernel(root, desired.modules.extra) if (tree / "proc").exists() else None
    notes = tuple((tree / "notes").read_text().splitlines()) if (tree / "notes").exists() else ()
    ports = sshd_ports(root, False)
    default = "nft" if any(rules.backend == "nft" and rules.text for rules in live) else "legacy"
    found = State(kernel, live, find_saved(root), root.read_image(BLOCK_FILE), (), spaces, ports, notes, default,
                  haproxy_files(desired.flows.haproxy_cfg, root), native_in(tree), saved_native(root))  # fmt: skip
    wanted = to_list(desired)
    files = (listed_in(tree, file) if wanted(found, file) else file for file in found.native_saved)
    return replace(found, native_saved=tuple(files))


def native_in(tree: Path) -> NativeRules | None:
    listing = tree / "live/native.json"
    return NativeRules(listing.read_text(), (tree / "live/native.nft").read_text()) if listing.exists() else None


def listed_in(tree: Path, file: NativeFile) -> NativeFile:
    """*file* as a look may know it: on a kernel that could load modules not at all."""
    listing = tree / "listed" / f"{Path(file.path).stem}.json"
    return replace(file, listing=listing.read_text()) if listing.exists() else file


def rules_in(place: Path) -> Iterator[LiveRules]:
    for backend in BACKENDS:
        for family in FAMILIES:
            file = place / f"{backend}-{family}"
            if file.exists():
                yield LiveRules(backend, family, file.read_text())


# --- a plan as text --------------------------------------------------------------------


def told(plan: Plan, desired: Desired) -> str:
    lines = [f"mode {plan.mode}", ""]
    for action in plan.actions:
        lines += [f"{action.verb} {action.where}", f"  because {action.reason}", *content_of(action, desired), ""]
    for title, items in (("blocked by", plan.blockers), ("widening", plan.widenings), ("finding", plan.findings)):
        for item in items:
            lines += [f"{title} {item.id}", f"  at {item.where}", f"  {item.reason}"]
            lines += [f"  -> {item.remedy}"] if item.remedy else []
            lines += [""]
    return "\n".join(lines)


def content_of(action: Action, desired: Desired) -> list[str]:
    if isinstance(action, WriteFile) and action.after is not None:
        text = action.after.content.decode()
        return block_of(text, desired) if action.path == BLOCK_FILE else [f"  | {line}" for line in text.split("\n")]
    if isinstance(action, LoadRules):
        tables = [f"  drops {table}" for table in action.dropped] + [f"  creates {table}" for table in action.created]
        return [f"  | {line}" for line in action.after.split("\n")] + tables
    if isinstance(action, LoadNative):
        return nft_lines(action.after.rules)
    if isinstance(action, RewriteNative):
        return [f"  head: {action.note}", *(nft_lines(action.after) if action.after else ["  (as apply finds it)"])]
    if isinstance(action, UnloadModule):
        found = [f"  {name}={value}" for name, value in action.parameters + action.sysctls]
        return found + (["  by force"] if action.force else [])
    return []


def nft_lines(listing: str) -> list[str]:
    entries = parse_nft(listing).entries
    return [f"  | {object_text(entry)}" for entry in entries if entry.kind not in ("metainfo", "table")]


def block_of(text: str, desired: Desired) -> list[str]:
    assert text == kmod.modprobe_conf(desired.modules.extra)
    return [f"  | (the block{''.join(' and ' + name for name in desired.modules.extra)})"]


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_plan(case: Path) -> None:
    desired = desired_of(case)
    assert told(make_plan(desired, state_of(case, desired)), desired) == (case / "expected.txt").read_text()


# --- a plan, done in thought -----------------------------------------------------------


def after(state: State, action: Action) -> State:
    """*state* when *action* is done, as the kernel would have it."""
    if isinstance(action, WriteFile):
        if action.path == BLOCK_FILE:
            assert state.block == action.before
            return replace(state, block=action.after)
        assert isinstance(action.after, FileImage)
        changed = [replace(s, image=action.after) if s.path == action.path else s for s in state.saved]
        assert [s.image for s in state.saved if s.path == action.path] == [action.before]
        return replace(state, saved=tuple(changed))
    if isinstance(action, LoadNative):
        assert state.native is not None
        return replace(state, native=NativeRules(exchanged(state.native.listing, action.before, action.after)))
    if isinstance(action, RewriteNative):
        return replace(state, native_saved=tuple(rewritten(file, action) for file in state.native_saved))
    if isinstance(action, LoadRules):
        return replace(state, live=tuple(loaded(state, action)))
    if isinstance(action, UnloadModule) and state.kernel is not None:
        modules = tuple(replace(m, holders=tuple(h for h in m.holders if h != action.name))
                        for m in state.kernel.modules if m.name != action.name)  # fmt: skip
        gone = action.name in kmod.ROOTS
        kernel = replace(state.kernel, modules=modules, conntrack="absent" if gone else state.kernel.conntrack)
        return replace(state, kernel=kernel)
    return state


def exchanged(listing: str, before: NativeImage, after: NativeImage) -> str:
    """*listing* with the tables of *after* in place of those of *before*, which must be there."""
    current, was, new = (parse_nft(text) for text in (listing, before.rules, after.rules))
    assert alike(only(current, native_tables(was)), was)
    left = only(current, set(native_tables(current)) - set(native_tables(was)) - set(native_tables(new)))
    entries = [replace(entry, before="", after="") for entry in (*left.entries, *new.entries)]
    return listed(left.with_entries(entries))


def rewritten(file: NativeFile, action: RewriteNative) -> NativeFile:
    """What apply makes of a file, as far as planning looks at it: its head, and words without conntrack."""
    if file.path != action.path:
        return file
    assert file.image == action.before
    image = replace(file.image, content=f"{action.note}\n".encode())
    return replace(file, image=image, text="", listing=action.after)


def loaded(state: State, action: LoadRules) -> Iterator[LiveRules]:
    """The live rules with the tables of *action* in place of those it replaces."""
    known = {(rules.backend, rules.family): rules.text for rules in state.live}
    tables = tables_of(known.pop((action.backend, action.family), ""), action.family)
    was = tables_of(action.before, action.family)
    assert {name: was[name] for name in was if name not in action.created} == {
        name: text for name, text in tables.items() if name in was
    }
    tables.update(tables_of(action.after, action.family))
    left = "".join(text for name, text in tables.items() if name not in action.dropped)
    yield from (LiveRules(backend, family, text) for (backend, family), text in known.items())
    yield LiveRules(action.backend, action.family, left)


def tables_of(text: str, family: str) -> dict[str, str]:
    ruleset = parse_ruleset(text, family)
    lines = {table: [x for x in ruleset.of_table(table) if x.kind != "comment"] for table in ruleset.tables()}
    return {table: format_ruleset(replace(ruleset, lines=tuple(kept))) for table, kept in lines.items()}


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_done_leaves_nothing_to_do(case: Path) -> None:
    desired = desired_of(case)
    state = state_of(case, desired)
    plan = make_plan(desired, state)
    for action in plan.actions:
        state = after(state, action)
    again = make_plan(desired, state)
    assert (again.mode, again.actions, again.blockers) == (plan.mode, (), plan.blockers)
    assert again.widenings == ()


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_undone_is_what_was(case: Path) -> None:
    """Each action undone, newest first, gives back every file and every live table."""
    desired = desired_of(case)
    found = state_of(case, desired)
    plan = make_plan(desired, found)
    state = found
    for action in plan.actions:
        state = after(state, action)
    for action in reversed(plan.actions):
        back = inverse(action)
        state = after(state, back) if back is not None else state
    assert (state.saved, state.block) == (found.saved, found.block)
    assert live_tables(state) == live_tables(found)
    if state.native is not None and found.native is not None:
        assert alike(parse_nft(state.native.listing), parse_nft(found.native.listing))


def live_tables(state: State) -> dict[tuple[str, str], dict[str, str]]:
    found = {(r.backend, r.family): tables_of(r.text, r.family) for r in state.live}
    return {key: tables for key, tables in found.items() if tables}


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_every_action_and_item_can_be_told_apart(case: Path) -> None:
    desired = desired_of(case)
    plan = make_plan(desired, state_of(case, desired))
    for group in (plan.actions, plan.blockers, plan.widenings, plan.findings):
        ids = [one.id for one in group]
        assert len(ids) == len(set(ids)), ids
    for item in (*plan.actions, *plan.blockers, *plan.widenings, *plan.findings):
        assert item.id and item.where and item.reason
    assert all(blocker.remedy for blocker in plan.blockers)


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_a_saved_file_is_proved_before_the_block(case: Path) -> None:
    """What the proof loads is what is on disk by then, and the block comes last."""
    desired = desired_of(case)
    state = state_of(case, desired)
    plan = make_plan(desired, state)
    blocking = [a for a in plan.actions if isinstance(a, WriteFile) and a.path == BLOCK_FILE and a.after]
    if not blocking:
        assert not [a for a in plan.actions if isinstance(a, ProveLoading)]
        return
    assert plan.actions[-1] == blocking[0]
    for action in plan.actions:
        state = after(state, action)
        if isinstance(action, ProveLoading) and action.family != "native":
            assert action.text == next(s.image.content.decode() for s in state.saved if s.path == action.path)
    proved = {a.path for a in plan.actions if isinstance(a, ProveLoading)}
    saved = {s.path for s in state.saved if s.kind == "rules"} | {file.path for file in state.native_saved}
    assert state.kernel is None or proved == saved
