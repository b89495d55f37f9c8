"""Work that makes many values and no cycle among them."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collector() -> Iterator[None]:
    """Let the collector of cycles rest: looking through all rules again and again takes a third of the time.

    Values go as ever when nobody holds them; the collector goes on afterwards if it was on.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            # what was made counts as old from here on, or the next collection would look through all of it
            gc.freeze()
            gc.unfreeze()
            gc.enable()
