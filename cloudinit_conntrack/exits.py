"""Exit codes, and how every way into the command ends: one message, never a traceback."""

from __future__ import annotations

import sys

from .errors import ConntrackError
from .host import inputs

TYPE_CHECKING = False
if TYPE_CHECKING:  # a boot does without typing
    from collections.abc import Callable

DONE, FAILED, USAGE, BLOCKED, DRIFT = 0, 1, 2, 3, 4


def exit_code(run: Callable[[], int]) -> int:
    """What *run* gives, or the code of its failure.  Every failure is one message on stderr."""
    streams = (sys.stdin, sys.stdout, sys.stderr)
    if any(stream is None for stream in streams):  # closed by the caller: notes would land in the wrong one
        return USAGE
    # A rule-set may hold bytes that are no UTF-8 (old comments): they go through unchanged.
    for stream in streams:
        stream.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
    try:
        code = run()
        sys.stdout.flush()  # now, while a failure of it can still be told
        return code
    except ConntrackError as error:
        print(f"cloudinit-conntrack: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("cloudinit-conntrack: interrupted; what was begun is undone", file=sys.stderr)
        return FAILED
    except MemoryError:
        print("cloudinit-conntrack: out of memory; free some memory and run again", file=sys.stderr)
        return FAILED
    except BrokenPipeError:
        inputs.swallow_output()
        return FAILED
    except OSError as error:  # our own output has no room, or a temporary file has none
        inputs.swallow_output()
        print(f"cloudinit-conntrack: {error}", file=sys.stderr)
        return FAILED
