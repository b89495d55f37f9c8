"""What a clone of this host's disk must not inherit, dropped: ``cloud-init clean`` calls it before an image is taken.

| kept | dropped |
|---|---|
| the section, for every boot | what revert would do to the kernel: live rules, modules and their settings, boot ids |
| what revert restores of files and links | what earlier boots have seen (``seen.json``), the last good rules |
| what revert kept aside (``kept/``) | the last report, the saved files that did not load in this boot |

So a clone comes up as an image that was made by ``apply --root``: ``revert`` gives it the files that the image had,
byte for byte, and never the rules of the host that the image was taken from.
"""

from __future__ import annotations

from . import journal
from .errors import UnconfirmedError
from .host import goodrules, journalfile, pending
from .host.root import Root
from .state import FileImage


def forget(root: Root) -> bool:
    """Drop what is this host's alone; whether there was anything.  Files and rules of the host stay as they are.

    UnconfirmedError while an apply waits to be confirmed; JournalError for a damaged journal, which is left as it is.
    """
    if not root.is_directory(journalfile.DIRECTORY) and not root.is_directory(journalfile.REPORTS):
        return False
    with journalfile.alone(root):
        if pending.read(root) is not None:
            raise UnconfirmedError("an apply waits to be confirmed, so nothing is dropped", pending.PATH,
                                   "run 'cloudinit-conntrack confirm' or 'revert', and then 'cloud-init clean' again")
        changed = _forget_kernel(root)
        for path in (journalfile.SEEN, journalfile.RESULT):
            changed = root.exists(path) or changed
            root.remove(path)
        changed = bool(root.listdir(goodrules.DIRECTORY)) or root.exists(goodrules.REFUSED) or changed
        goodrules.forget(root)
    return changed


def _forget_kernel(root: Root) -> bool:
    before = root.read_image(journalfile.JOURNAL)
    if before is None:
        return False
    after = journal.files_alone(journalfile.read(root))
    if after == before.content:
        return False
    if after:
        root.write_image(journalfile.JOURNAL, FileImage(after, 0o600))
    else:
        root.remove(journalfile.JOURNAL)
    return True
