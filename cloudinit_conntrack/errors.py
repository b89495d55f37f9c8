"""What can go wrong, in three parts: what is wrong, where, and what to do now.

Every error that a person may meet is a :class:`ConntrackError`.  The command line
prints it as one message and turns its class into an exit code; nothing below the
command line ever exits.
"""

from __future__ import annotations


class ConntrackError(Exception):
    """Base of all our errors.

    *what* says what is wrong, *where* names the place (a path such as
    ``conntrack.flows.frontends[1]``, ``FILE:LINE``, a command), *remedy* says what to
    do now.  *where* and *remedy* may be empty.
    """

    exit_code = 1

    def __init__(self, what: str, where: str = "", remedy: str = "") -> None:
        super().__init__(what, where, remedy)
        self.what = what
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}; {self.remedy}" if self.remedy else text

    def __repr__(self) -> str:
        # cloud-init puts the repr of an exception into its status
        return f"{type(self).__name__}({str(self)!r})"


class ConfigError(ConntrackError):
    """The ``conntrack:`` section cannot be used.  Exit code 2, nothing was changed."""

    exit_code = 2


class UsageError(ConntrackError):
    """The command line cannot be used.  Exit code 2."""

    exit_code = 2


class RulesSyntaxError(ConntrackError):
    """A saved rule-set cannot be parsed; *where* is ``FILE:LINE``.  Exit code 1."""


class HaproxyError(ConntrackError):
    """haproxy's configuration cannot be read, or does not say what we need; *where* is ``FILE:LINE``."""


class HostError(ConntrackError):
    """The host does not do what we asked: a command failed, a file cannot be written."""


class CommandError(HostError):
    """A command failed.  The message holds the quoted command, its status and stderr."""


class BusyError(HostError):
    """Another run of ours holds the lock."""


class UnconfirmedError(ConntrackError):
    """An earlier apply still waits to be confirmed.  Exit code 3, nothing was changed."""

    exit_code = 3


class JournalError(ConntrackError):
    """The journal is torn, foreign, or of another version."""


class RollbackError(ConntrackError):
    """An apply failed, and undoing it failed in part as well; *what* lists both."""


def words_of(error: BaseException) -> str:
    """What *error* says; Python's own says nothing when the memory has run out."""
    return "out of memory" if isinstance(error, MemoryError) else str(error)
