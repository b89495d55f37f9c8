"""cloud-init's face: the config module that reads ``conntrack:`` from cloud-config.

cloud-init imports every listed module before it runs any of them, outside its own
error handling, so a module that fails to import takes the whole boot stage with it
(no users, no ssh keys).  Hence: standard library only, Python 3.6 syntax, no import of
``cloudinit``, and nothing of ours is imported before :func:`handle` runs.

Called as ``handle(name, cfg, cloud, log, args)`` up to cloud-init 23.1 and by keyword,
without *log*, from 23.2 on.  A five-parameter signature draws a deprecation there, so
the signature shows four and a wrapper drops the logger that older versions pass.
"""

import contextlib
import functools
import logging

LOG = logging.getLogger(__name__)

# "always", not "once-per-instance": cloud-init marks a per-instance module as run before
# it runs, so a failed apply would never be tried again.  A second run finds nothing to do.
frequency = "always"
distros = ["all"]
meta = {
    "id": "cc_conntrack",
    "distros": distros,
    "frequency": frequency,
    "activate_by_schema_keys": ["conntrack"],
}


def _without_logger(function):
    @functools.wraps(function)
    def call(*args, **kwargs):
        if len(args) == 5:
            args = args[:3] + args[4:]
        return function(*args, **kwargs)

    return call


class _Event:
    """What cloud-init's own reporting hears of one apply: ``STAGE/config-conntrack/apply``, start and finish.

    Alike in every version from 20.4 to 26.2 (cloudinit/reporting/events.py); 26.2 adds the duration itself.  cloud-init
    gives no guarantee for its API to modules that it does not ship, so nothing in here can fail an apply.
    """

    def __init__(self, cloud):
        self._reported = None
        with self._harmless():
            from cloudinit.reporting.events import ReportEventStack

            self._reported = ReportEventStack("config-conntrack/apply", "applying the conntrack section",
                                              parent=getattr(cloud, "reporter", None))
            self._reported.__enter__()

    def finish(self, conclusion):
        """Tell how it ended."""
        if self._reported is not None:
            with self._harmless():
                self._reported.result = conclusion.result
                self._reported.message = conclusion.description
                self._reported.post_files = list(conclusion.files)
                self._reported.__exit__(None, None, None)

    @staticmethod
    @contextlib.contextmanager
    def _harmless():
        try:
            yield
        except ImportError:
            LOG.debug("cloud-init's reporting is not there")
        except Exception as error:
            LOG.debug("cloud-init's reporting failed: %r", error)


@_without_logger
def handle(name, cfg, cloud, args):
    """Apply the ``conntrack`` section of *cfg*; do nothing where there is none.

    Raises the package's own error when the section cannot be applied: cloud-init then
    reports the stage as failed, the host is as it was, and the next boot tries again.
    """
    if "conntrack" not in cfg:
        LOG.debug("%s: no conntrack section", name)
        return
    from cloudinit_conntrack import boot

    event = _Event(cloud)
    for line in boot.apply_section(cfg["conntrack"], conclude=event.finish):
        LOG.info("%s: %s", name, line)
