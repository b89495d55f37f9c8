"""A boot never comes up without its firewall because a saved file no longer loads.

Apply proves that each saved file loads before it writes the block.  Later somebody may change
one into something that needs conntrack: under the block the kernel refuses it at the next
boot, and the host would be up without these rules.  So the rules of each saved file that
were last seen to load are kept.  A boot that finds a file refused, and its rules missing,
loads the kept ones; the file stays as it is, and apply fails and says so.

In the order of a boot: the distribution's service ran before us and failed.  One that runs
later fails as well and takes nothing away: ``iptables-restore`` changes no table that it
cannot load, ``nft -f`` nothing at all, and systemd runs no ``ExecStop=`` of a service that
failed to start (systemd.service(5)).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .errors import ConntrackError, HostError
from .host import goodrules, modules, nft, nftfile, rules
from .host.goodrules import Good, Refused, digest
from .host.root import Root
from .host.saved import PLACES
from .host.service import observe_service
from .host.surroundings import find_surroundings
from .kmod import BLOCK_PATH
from .netfilter.iptables import parse_ruleset
from .netfilter.nft_text import restart_tables, tables_text
from .netfilter.ruleset import format_ruleset
from .netfilter.tables import filled, tables_alone
from .planning.draft import Item, decoded
from .scripts import restored_files
from .state import NativeFile

_NATIVE = "native"
_REMEDY = ("mend the file: take out what needs conntrack ('cloudinit-conntrack plan' names it), then run "
           "'cloudinit-conntrack apply'; if it must stay, 'cloudinit-conntrack revert'")


@dataclass(frozen=True)
class AtBoot:
    """A saved file that a boot loads, of *family* or ``native``: *text* is what it loads, *problem* why it cannot."""

    path: str
    family: str
    text: str
    problem: str = ""


def settle(root: Root, verified: bool) -> tuple[tuple[Item, ...], bool]:
    """After an apply, under the block: keep what loads, and stand in for what does not.

    *verified*: the host is as desired, so what loads is worth keeping.  Gives an item for each
    saved file that does not load, and whether kept rules were loaded, because theirs were missing.
    Loads rules in namespaces of their own, too, so what modules that needs goes again.
    """
    if root.read_bytes(BLOCK_PATH) is None:
        goodrules.forget(root)
        return (), False
    before = tuple(module.name for module in modules.all_loaded(root))
    refused, changed = [], False
    for file in _at_boot(root):
        good = goodrules.read(file.path, root)
        if good is not None and good.digest == digest(file.text):
            continue
        try:
            found = _seen_to_load(file)
        except ConntrackError as error:
            told, loaded = _stood_in(file, good, error.what, root)
            refused.append(Refused(file.path, digest(file.text), told))
            changed = changed or loaded
            continue
        if verified:
            goodrules.keep(file.path, found, root)
    goodrules.note(refused, root)
    modules.unload_strays(before, None, root)
    return tuple(_item(one) for one in refused), changed


def standing(root: Root) -> tuple[Item, ...]:
    """The saved files that did not load when apply last looked, as far as they are still the same.  Only reads."""
    noted = goodrules.noted(root)
    if not noted:
        return ()
    now = {file.path: digest(file.text) for file in _at_boot(root)}
    return tuple(_item(one) for one in noted if now.get(one.path) == one.digest)


def _item(refused: Refused) -> Item:
    return Item(f"unloadable:{refused.path}", refused.path, refused.reason, _REMEDY)


def _at_boot(root: Root) -> Iterator[AtBoot]:
    """The files that an enabled service or a script loads at boot; links are followed, as the loaders do."""
    around = find_surroundings(root, True)
    loaded = observe_service(root).loaded
    places = {path: family for path, kind, family in PLACES if kind == "rules" and path in loaded}
    for script in around.files:
        for path, family in restored_files(script):
            places.setdefault(path, family)
    for path, family in places.items():
        content = root.read_bytes(path)
        if content is not None:
            yield AtBoot(path, family, decoded(content))
    if around.units.starts("nftables.service"):
        yield from (_native(file) for file in nftfile.saved_native(root))


def _native(file: NativeFile) -> AtBoot:
    return AtBoot(file.path, _NATIVE, file.text, file.problem)


def _seen_to_load(file: AtBoot) -> Good:
    """What to keep of *file*.  ConntrackError where it does not load."""
    if file.problem:
        raise HostError(file.problem, file.path)
    if file.family != _NATIVE:
        problem = rules.load_in_private_namespace(file.text.encode("utf-8", "surrogateescape"), file.family)
        if problem:
            raise HostError(problem, file.path)
        return Good(digest(file.text), file.text)
    try:
        with nft.loaded(file.text) as place:
            printed = nft.printed(place, stateless=True)
        with nft.loaded(printed):  # the tables alone: 'flush ruleset' would take away what others loaded meanwhile
            return Good(digest(file.text), printed)
    except nft.NotLoadedError as error:
        raise HostError(error.what, file.path) from None


# --- standing in ---------------------------------------------------------------------------


def _stood_in(file: AtBoot, good: Good | None, problem: str, root: Root) -> tuple[str, bool]:
    """Load *good* where its rules are missing; gives the sentence that says what is so, and whether it loaded them."""
    told = f"this saved file does not load at boot ({problem})"
    if good is None:
        return f"{told}, and no version of it that did is kept", False
    try:
        missing = _missing_native(good) if file.family == _NATIVE else _missing(file.family, good, root)
        if not missing:
            return f"{told}; the rules that are live stay, and the next boot would load its last good ones", False
        if file.family == _NATIVE:
            nft.load_text(missing)
        else:
            rules.restore(rules.default_backend(file.family), file.family, missing)
    except ConntrackError as error:
        return f"{told}, and its last good rules could not be loaded: {error}", False
    return f"{told}: its last good rules are loaded instead", True


def _missing(family: str, good: Good, root: Root) -> str:
    """The tables of *good* of which nothing is live, as text; empty where each is there."""
    wanted = parse_ruleset(good.text, family, "the last good rules")
    there = {table for live in rules.live_rules(root) if live.family == family
             for table in filled(parse_ruleset(live.text, family, "live rules"))}
    lost = [table for table in filled(wanted) if table not in there]
    return format_ruleset(tables_alone(wanted, lost)) if lost else ""


def _missing_native(good: Good) -> str:
    there = tables_text(nft.printed())
    wanted = tables_text(good.text)
    lost = {table: text for table, text in wanted.items() if table not in there}
    return restart_tables(lost) + "".join(lost.values()) if lost else ""
