"""Before anything is done: native rules tried in a namespace of their own, and put into nft's words.

A plan says which rules are to be; how nft words them only nft knows.  What comes out is
what the journal holds, and so what undoing compares the host with.
"""

from __future__ import annotations

from dataclasses import replace

from .actions import Action, LoadNative, NativeImage, RewriteNative, WriteFile
from .errors import HostError
from .host import nft
from .netfilter.nft_ruleset import parse_nft
from .netfilter.nft_tables import listed, only, tables_of
from .netfilter.nft_text import tables_text
from .plan import Plan
from .planning.draft import decoded, new_image
from .planning.nativefiles import file_text


def rehearsed(plan: Plan) -> Plan:
    """*plan* with its native actions in nft's own words.

    HostError where nft does not load again what it prints: such rules could not be put back.
    """
    return replace(plan, actions=tuple(_rehearsed(action) for action in plan.actions))


def _rehearsed(action: Action) -> Action:
    if isinstance(action, LoadNative):
        made = nft.rehearse(action.before.text, action.after.rules)
        tables = tables_of(parse_nft(action.after.rules))
        text = tables_text(made.text)
        listing = listed(only(parse_nft(made.listing), tables))
        shown = "".join(text.get(table, "") for table in tables)
        return replace(action, after=NativeImage(action.after.rules, listing, shown))
    if isinstance(action, RewriteNative):
        if action.after is None:
            raise HostError("its rules are not known", action.path, "this is our defect: report it")
        made = nft.rehearse(action.text, action.after)
        content = file_text(decoded(action.before.content), action.text, action.note, made.text)
        image = new_image(action.before, content.encode("utf-8", "surrogateescape"))
        return WriteFile(action.path, action.before, image, action.reason)
    return action
