"""Loading native rules, undoing that, and proving a saved file: the native half of :mod:`.perform`."""

from __future__ import annotations

from collections.abc import Collection

from .actions import LoadNative, NativeImage
from .errors import CommandError, HostError
from .host import nft, nftfile
from .host.root import Root
from .netfilter.nft_ruleset import parse_nft
from .netfilter.nft_tables import TableName, alike, only, tables_of
from .netfilter.nft_text import restart_tables, tables_text
from .netfilter.nft_transaction import transaction


def is_as_planned(action: LoadNative) -> bool:
    """Whether the tables are as *action* found them, or as it leaves them."""
    current = _current(action)
    return _is(current, action.before) or _is(current, action.after)


def load(action: LoadNative) -> None:
    """Make the tables those of ``after``, whatever of them is there; what does not differ is not touched."""
    _change(_current(action), action.after.rules, _tables(action))


def _change(current: str, wanted: str, tables: Collection[TableName]) -> None:
    change = transaction(only(parse_nft(current), tables), only(parse_nft(wanted), tables))
    if change:
        nft.load_json(change)


def load_back(action: LoadNative) -> tuple[str, ...]:
    """The same for an inverse; gives notes.

    A table that somebody changed meanwhile is loaded whole, from what nft printed of it:
    then its sets lose what they learned since.  So are all where nft does not take its own JSON back.
    """
    current = _current(action)
    if _is(current, action.after):
        return ()  # it was never done
    changed = [t for t in _tables(action) if not any(_is(current, i, {t}) for i in (action.before, action.after))]
    if changed:
        _load_whole(action, changed)
    try:
        _change(current, action.after.rules, set(_tables(action)).difference(changed))
    except CommandError:
        _load_whole(action, _tables(action))
    names = ", ".join(" ".join(table) for table in changed)
    return (f"{action.where}: {names}: changed since; what was before apply is loaded again",) if changed else ()


def _load_whole(action: LoadNative, tables: Collection[TableName]) -> None:
    texts = tables_text(action.after.text)
    nft.load_text(restart_tables(tables) + "".join(texts.get(table, "") for table in tables))


def _is(current: str, image: NativeImage, tables: Collection[TableName] | None = None) -> bool:
    """Whether *tables*, or all, are as the image has them."""
    one, two = parse_nft(current), parse_nft(image.listing or image.rules)
    return alike(one, two) if tables is None else alike(only(one, tables), only(two, tables))


def _tables(action: LoadNative) -> tuple[TableName, ...]:
    found = [table for side in (action.before, action.after) for table in tables_of(parse_nft(side.rules))]
    return tuple(dict.fromkeys(found))


def _current(action: LoadNative) -> str:
    return nft.live_tables(_tables(action))


def prove_file(path: str, root: Root) -> None:
    """HostError where the nft file at *path*, as it is now, does not load in a namespace of its own."""
    for file in nftfile.saved_native(root):
        if file.path == path:
            found = nftfile.with_rules(file, root, live=True, looking=False)
            if found.problem:
                raise HostError(f"this saved rule-set does not load: {found.problem}", found.where or path,
                                "mend the file and apply again")
