"""enable and disable: our module in this image's cloud-init, and out of it again.

Two files: a drop-in that repeats the distribution's own list of modules with ours behind it, and a script that
``cloud-init clean`` runs.  They are written by the actions of a plan, script first: after a power cut between them
there is a script that is harmless, and no module that the script would not know of.  Neither is in the journal:
``revert`` undoes what was done to the host, and leaves cloud-init's list alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from . import perform
from .actions import WriteFile
from .cloudcfg import (
    BASE,
    CLEAN,
    CLEAN_DIRECTORY,
    DIRECTORY,
    DROP_IN,
    KEY,
    CloudInit,
    ConfigFile,
    Importing,
    drop_in_text,
    effective,
    is_ours,
    is_untouched,
    listed_by,
    made_directory,
    names_us,
    parse,
    script_text,
)
from .errors import ConntrackError, HostError
from .host.cloudinit import observe_cloud_init
from .host.root import Root
from .perform import KEPT
from .planning.draft import decoded, new_image
from .report import Report
from .said import Item
from .service import can_be_written
from .state import FileImage, Program

OLDEST_PYTHON = (3, 9)
_BY_HAND = f"list '- [conntrack, always]' in {KEY} by hand"


@dataclass(frozen=True)
class Wiring:
    """What is to be done to cloud-init's files, or what stands against it; *findings* are good to know."""

    actions: tuple[WriteFile, ...] = ()
    blockers: tuple[Item, ...] = ()
    findings: tuple[Item, ...] = ()


def enable(root: Root) -> Report:
    """List our module in the cloud-init of *root*."""
    return _done(plan_enable, observe_cloud_init(root), root, "enabled")


def disable(root: Root) -> Report:
    """Take out again what :func:`enable` put in."""
    return _done(plan_disable, observe_cloud_init(root, asking=False), root, "disabled")


def _done(again: Callable[[CloudInit], Wiring], found: CloudInit, root: Root, outcome: str) -> Report:
    """Do what *again* plans for *found*; done is when it plans nothing more."""
    wiring = again(found)
    if wiring.blockers:
        return Report("", "blocked", blockers=wiring.blockers, findings=wiring.findings)
    if not wiring.actions:
        return Report("", "nothing-to-do", findings=wiring.findings)
    done: list[WriteFile] = []
    try:
        for action in wiring.actions:
            done.append(action)
            _perform(action, root)
        if again(observe_cloud_init(root, asking=False)).actions:
            raise HostError("cloud-init's files are not as planned", DROP_IN, "this may be our defect: report it")
    except ConntrackError:
        for action in reversed(done):
            perform.undo(replace(action, before=action.after, after=action.before), root)
        raise
    return Report("", outcome, wiring.actions, findings=wiring.findings)


def _perform(action: WriteFile, root: Root) -> None:
    perform.check(action, root)
    if action.path.startswith(f"{KEPT}/"):
        root.make_private_dir(KEPT)
    perform.perform(action, root)
    if action.path == CLEAN and action.after is None and made_directory(_text(action.before)):
        root.remove_directory(CLEAN_DIRECTORY)


# --- enable ----------------------------------------------------------------------------


def plan_enable(found: CloudInit) -> Wiring:
    """How our module comes into the list.  Pure."""
    if not found.program:
        return Wiring(blockers=(Item("cloud-init:none", BASE, "there is no cloud-init here",
                                     "install cloud-init first, or use 'cloudinit-conntrack apply' without it"),))
    if found.files[0].problem:
        return Wiring(blockers=_unread(found.files[:1]))
    findings = _unread(found.files)
    if found.importing and not found.importing.asked:
        findings += (Item("cloud-init:unasked", found.program, "its Python could not be started here, so its usual "
                          "paths were looked through", "look at 'cloudinit-conntrack status' where the image runs"),)
    by_hand = listed_by(found.files)
    if by_hand:
        note = Item("cloud-init:listed", by_hand, "our module is listed here by hand, so nothing is added")
        return Wiring(_removed(found, DROP_IN, "the module is listed elsewhere"), (), (*findings, note))
    blockers = (*_places_taken(found), *_unclear(found), *_not_importable(found.importing))
    if blockers:
        return Wiring((), blockers, findings)
    try:
        actions = (*_script(found), *_drop_in(found))
    except ValueError as error:
        return Wiring((), (Item("cloud-init:list", effective(found.files, KEY)[1],
                                f"an entry of {KEY} cannot be repeated: {error}", _BY_HAND),), findings)
    touched = found.drop_in is not None and not is_untouched(_text(found.drop_in))
    note = Item("cloud-init:changed", DROP_IN, "it was changed by hand since, and lists our module: it is left alone")
    return Wiring(actions, (), (*findings, note) if touched else findings)


def _unread(files: tuple[ConfigFile, ...]) -> tuple[Item, ...]:
    return tuple(Item(f"cloud-init:unread:{file.path}", file.path, f"cloud-init passes over this file ({file.problem})",
                      "mend it") for file in files if file.problem)


def _drop_in(found: CloudInit) -> tuple[WriteFile, ...]:
    before = found.drop_in
    if before is not None and not is_untouched(_text(before)):
        return ()
    entries, source = effective(found.files, KEY)
    content = drop_in_text(entries, source).encode()
    if before is not None and before.content == content:
        return ()
    after = new_image(before, content) if before else FileImage(content)
    reason = f"the modules of {source}, and ours last" if source else "no file sets this list: our module alone"
    return (WriteFile(DROP_IN, before, after, reason),)


def _script(found: CloudInit) -> tuple[WriteFile, ...]:
    before = found.script
    if before is not None and not is_untouched(_text(before)):
        return ()  # somebody's own by now
    if not found.cleaner or not can_be_written(Program(*found.cleaner)):
        return ()
    made = made_directory(_text(before)) if before else not found.clean_directory
    content = script_text(found.cleaner, made).encode()
    if before is not None and (before.content, before.mode) == (content, 0o755):
        return ()
    after = replace(new_image(before, content) if before else FileImage(content), mode=0o755)
    return (WriteFile(CLEAN, before, after, "'cloud-init clean' drops what was written down about this host alone"),)


def _places_taken(found: CloudInit) -> tuple[Item, ...]:
    """Blockers for a drop-in that is not as we wrote it, and does not list our module."""
    if found.drop_in is None or is_untouched(_text(found.drop_in)):
        return ()
    if names_us(parse(DROP_IN, found.drop_in.content).list(KEY) or ()):
        return ()
    return (Item("cloud-init:place", DROP_IN, "this file is not as we wrote it, and does not list our module",
                 "move what it says into a file that sorts before it, remove it, and run enable again"),)


def _unclear(found: CloudInit) -> tuple[Item, ...]:
    """Blockers for a list that is not known, or that would be taken instead of ours."""
    directory = found.files[0].directory
    if directory is not None and directory != DIRECTORY:
        return (Item("cloud-init:conf_d", BASE, f"its conf_d says that {DIRECTORY} is not read", f"{_BY_HAND} here"),)
    return tuple(item for file in found.files for item in _unclear_file(file))


def _unclear_file(file: ConfigFile) -> tuple[Item, ...]:
    if file.unknown:
        return (Item(f"cloud-init:unclear:{file.path}", file.path,
                     "it sets module lists that cannot be told from here (a template, or far too large)",
                     f"{_BY_HAND} in it"),)
    if file.list(KEY) is None:
        return ()
    if file.merges:
        return (Item(f"cloud-init:merge:{file.path}", file.path,
                     f"it sets {KEY} and says itself how it is merged, so that a list behind it may not replace it",
                     f"{_BY_HAND} in it"),)
    if comes_later(file.path):
        return (Item(f"cloud-init:later:{file.path}", file.path,
                     f"it sets {KEY} and sorts after our file, so that its list would count",
                     f"{_BY_HAND} in it, or rename it so that it sorts before {DROP_IN.rpartition('/')[2]}"),)
    return ()


def comes_later(path: str) -> bool:
    """Whether cloud-init reads the file *path* of its configuration after our drop-in."""
    return path != BASE and path.rpartition("/")[2] > DROP_IN.rpartition("/")[2]


def _not_importable(importing: Importing | None) -> tuple[Item, ...]:
    """A blocker where cloud-init would not find our module.

    One that is missing degrades each boot; one that cannot be imported takes the whole stage with it.
    """
    problem = problem_of(importing)
    return (problem,) if problem else ()


def problem_of(importing: Importing | None) -> Item | None:
    """Why cloud-init's own Python cannot import us; ``None`` where it can."""
    if importing is None:
        return None
    where = " ".join(importing.words) or "cloud-init"
    python = importing.words[0] if importing.words else "its Python"
    if importing.problem:
        return Item("cloud-init:python", where, f"cloud-init's own Python cannot be asked ({importing.problem})",
                    "see whether 'cloud-init --version' works")
    if importing.python and tuple(map(int, importing.python.split("."))) < OLDEST_PYTHON:
        return Item("cloud-init:python", where, f"cloud-init runs on Python {importing.python}, and 3.9 is needed",
                    "use 'cloudinit-conntrack apply -c FILE' instead: its own service applies at every boot")
    if importing.missing:
        unseen = f"; {importing.elsewhere} is not on its path" if importing.elsewhere else ""
        how = f"{python} -m pip install --prefix /usr" if importing.elsewhere.startswith("/usr/local/") else (
            f"the .deb or .rpm, or {python} -m pip install")
        return Item("cloud-init:import", where,
                    f"cloud-init's own Python does not find {', '.join(importing.missing)}{unseen}",
                    f"install it for that Python: {how}")
    if importing.broken:
        return Item("cloud-init:import", where,
                    f"cloud-init's own Python cannot import cc_conntrack: {importing.broken}", "install it anew")
    return None


# --- disable ---------------------------------------------------------------------------


def plan_disable(found: CloudInit) -> Wiring:
    """How our files go.  What somebody changed is kept aside; what is not ours stays.  Pure."""
    actions = (*_removed(found, DROP_IN, "cloud-init lists our module no more"),
               *_removed(found, CLEAN, "nothing of ours is left for 'cloud-init clean' to drop"))
    findings = [Item("cloud-init:kept", action.path, f"{action.reason}: that version is kept here")
                for action in actions if action.after is not None]
    for path, image in ((DROP_IN, found.drop_in), (CLEAN, found.script)):
        if image is not None and not is_ours(_text(image)):
            findings.append(Item(f"cloud-init:foreign:{path}", path, "we did not write this file: it is left alone",
                                 "remove it by hand if nobody needs it"))
    by_hand = listed_by(found.files)
    if by_hand:
        findings.append(Item("cloud-init:listed", by_hand, "our module is listed here by hand",
                             "take it out by hand: a module that is listed and not there degrades each boot"))
    return Wiring(actions, (), tuple(findings))


def _removed(found: CloudInit, path: str, reason: str) -> tuple[WriteFile, ...]:
    image = found.drop_in if path == DROP_IN else found.script
    text = _text(image)
    if image is None or not is_ours(text):
        return ()
    aside = f"{KEPT}/{path.strip('/').replace('/', '_')}"
    kept = () if is_untouched(text) else (WriteFile(aside, None, image, f"{path} was changed by hand"),)
    return (*kept, WriteFile(path, image, None, reason))


def _text(image: FileImage | None) -> str:
    return decoded(image.content) if image else ""


# --- what status says ------------------------------------------------------------------


def looked_at(root: Root) -> tuple[tuple[tuple[str, str], ...], tuple[Item, ...]]:
    """Facts and findings about cloud-init for ``status``.  Changes nothing; in an image tree it starts nothing."""
    try:
        return facts_of(observe_cloud_init(root, asking=root.is_host))
    except HostError as error:
        return (), (Item("cloud-init", error.where, error.what, error.remedy),)


def facts_of(found: CloudInit) -> tuple[tuple[tuple[str, str], ...], tuple[Item, ...]]:
    """What there is to say of *found*.  Pure."""
    if not found.program:
        return (), _left_behind(found)
    ours = parse(DROP_IN, found.drop_in.content) if found.drop_in else None
    read = found.files if ours is None else tuple(
        sorted((*found.files, ours), key=lambda file: (file.path != BASE, file.path.rpartition("/")[2])))
    where = listed_by(read)
    if not where:
        overridden = tuple(item for file in found.files if ours for item in _unclear_file(file))
        return (("cloud-init", "does not list our module ('cloudinit-conntrack enable')"),), overridden
    problem = problem_of(found.importing)
    unread = _unread(found.files)
    stale = _stale(found, ours) if where == DROP_IN and not found.files[0].problem else ()
    return (("cloud-init", f"runs our module ({where})"),), (*((problem,) if problem else ()), *unread, *stale)


def _stale(found: CloudInit, ours: ConfigFile | None) -> tuple[Item, ...]:
    """A finding where the list that our drop-in repeats has changed."""
    if ours is None:
        return ()
    entries, source = effective(found.files, KEY)
    listed = tuple(entry for entry in ours.list(KEY) or () if not names_us((entry,)))
    if listed == entries:
        return ()
    lost = [str(entry) for entry in entries if entry not in listed]
    more = [str(entry) for entry in listed if entry not in entries]
    what = "; ".join(filter(None, (f"not run: {', '.join(lost)}" if lost else "",
                                   f"gone from there: {', '.join(more)}" if more else "")))
    remedy = "run 'cloudinit-conntrack enable' again"
    if not is_untouched(_text(found.drop_in)):
        remedy = "this file was changed by hand: make them alike, or remove it and run 'cloudinit-conntrack enable'"
    return (Item("cloud-init:stale", DROP_IN, f"{KEY} of {source} has changed since ({what or 'another order'})",
                 remedy),)


def _left_behind(found: CloudInit) -> tuple[Item, ...]:
    return tuple(Item(f"cloud-init:left:{path}", path, "there is no cloud-init here any more",
                      "run 'cloudinit-conntrack disable'")
                 for path, image in ((DROP_IN, found.drop_in), (CLEAN, found.script)) if image is not None)
