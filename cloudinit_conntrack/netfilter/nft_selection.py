"""From "these parts of traffic, not those" to nft rules: the same decisions as :mod:`.selection` takes."""

from __future__ import annotations

from dataclasses import dataclass

from .nft_kinds import Kind
from .nft_match import Test, field_ranges
from .nft_pieces import Piece, pieces_for


@dataclass(frozen=True)
class Selection:
    """What a rule shall match: *chosen* kinds.  *pieces* are ``None`` where the chosen ones have
    no match of their own; *around* are then the pieces that must go around the rule.
    *matched* and *missed* are the kinds that get to the rule, and do or do not match."""

    pieces: tuple[Piece, ...] | None
    around: tuple[Piece, ...] = ()
    chosen: tuple[Kind, ...] = ()
    matched: tuple[Kind, ...] = ()
    missed: tuple[Kind, ...] = ()


def select(
    kinds: tuple[Kind, ...], states: frozenset[str], decided: frozenset[Kind], accepts: bool, tests: tuple[Test, ...]
) -> Selection:
    """Choose pieces that match the *kinds* standing for *states* and no other one.

    Kinds in *decided* never get here, so they may go either way; and what may come in
    uninvited may come in invited (see :func:`.selection.select`).
    """
    chosen, refused = _sorted(kinds, states, decided, accepts, field_ranges(tests, "l4proto") is None)
    here = tuple(kind for kind in kinds if kind not in decided)
    if not chosen:
        return Selection((), missed=here)
    pieces = pieces_for(kinds, chosen, refused, tests)
    if pieces is None:
        around = pieces_for(kinds, refused, chosen, tests) or ()
        unwanted = frozenset(refused)
        return Selection(None, around, chosen, tuple(k for k in here if k not in unwanted), refused)
    taken = {kind for piece in pieces for kind in piece.kinds}
    return Selection(pieces, (), chosen, tuple(k for k in here if k in taken), tuple(k for k in here if k not in taken))


def _sorted(
    kinds: tuple[Kind, ...], states: frozenset[str], decided: frozenset[Kind], accepts: bool, any_protocol: bool
) -> tuple[tuple[Kind, ...], tuple[Kind, ...]]:
    """The kinds that must match, and those that must not; the others do not matter."""
    open_door = accepts and "NEW" in states
    chosen: list[Kind] = []
    refused: list[Kind] = []
    for kind in kinds:
        part = kind.part
        if kind in decided or (part.group == "icmp" and part.name == "rest"):
            continue
        if part.state in states:
            chosen += [] if part.rare and accepts and not open_door else [kind]
        elif open_door and (part.reply is not None or (any_protocol and part.group == "icmp")):
            continue
        elif not (part.rare and accepts):
            refused.append(kind)
    return tuple(chosen), tuple(refused)
