"""The command ``cloudinit-conntrack``: verbs, options, exit codes."""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import replace
from typing import Callable, NoReturn

from . import __version__, lastgood, report, transaction, verify
from .config import Desired, desired_from_section
from .errors import UsageError
from .exits import BLOCKED, DONE, DRIFT, FAILED, exit_code
from .host import inputs, journalfile, pending
from .host.root import Root
from .host.stamp import clock, run_since
from .plan import Item, make_plan
from .report import Report
from .run import applied, kept, mode_of

EPILOG = "exit codes: 0 done or nothing to do, 1 failed, 2 wrong usage or config, 3 blocked, 4 drift"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, self.prog, f"see '{self.prog} --help'")


class _Listing(argparse.HelpFormatter):
    """The list of verbs with each verb's words beside it: argparse forgets that verbs are indented twice."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog)
        self._action_max_length = max(map(len, VERBS)) + 4


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = _Parser(prog="cloudinit-conntrack", description="Make this host stateless, prove it, and undo it.",
                     epilog=EPILOG, allow_abbrev=False, formatter_class=_Listing)
    parser.add_argument("--version", action="version", version=f"cloudinit-conntrack {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser)
    for name, (_, words) in VERBS.items():
        verb = verbs.add_parser(name, help=words, description=words, epilog=EPILOG, allow_abbrev=False)
        _common(verb)
        if name == "rewrite":
            verb.add_argument("--family", choices=("ipv4", "ipv6"), default="ipv4", help="of the rules (%(default)s)")
            verb.add_argument("--backend", choices=("iptables", "nft"), default="iptables",
                              help="iptables-save text, or JSON of 'nft -j list ruleset' (%(default)s)")
            verb.add_argument("file", nargs="?", default="-", metavar="FILE", help="the rule-set; '-' is stdin")
        if name == "status":
            _status_options(verb)
        if name == "userdata":
            _userdata_options(verb)
        if name == "metrics":
            verb.add_argument("-o", "--output", metavar="OUT", help="replace that file at once, instead of printing")
        if name == "fleet-report":
            verb.add_argument("files", nargs="+", metavar="FILE",
                              help="a node's result.json, a directory of them, or '-'; the name tells the node")
        if name == "apply":
            verb.add_argument("--confirm-within", metavar="TIME", type=_seconds, default=0.0,
                              help="undo it after TIME (90s, 5m), unless 'confirm' comes over a new connection")
    for name in HIDDEN:
        _common(verbs.add_parser(name))  # without help it is not listed
    return parser


def _status_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--watch", metavar="SECONDS", nargs="?", const=2.0, type=_every,
                      help="draw it again every SECONDS (2), with rates, until Ctrl-C")
    verb.add_argument("--picture", metavar="FILE",
                      help="also write the tree as a picture: FILE.dot, or FILE.svg where Graphviz is installed")


def _every(text: str) -> float:
    seconds = float(text) if re.fullmatch(r"\d{1,4}(\.\d{1,3})?", text) else 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0.1 to 3600")
    return seconds


def _userdata_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--merge", metavar="FILE", help="more user-data to carry along: cloud-config, a script, MIME")
    verb.add_argument("--compress", action="store_true", help="with gzip, which cloud-init unpacks")
    verb.add_argument("-o", "--output", metavar="OUT", help="write it there instead of standard output")
    verb.add_argument("--check", metavar="FILE", help="say what the user-data FILE carries, and write none")


def _seconds(text: str) -> float:
    """``90``, ``90s``, ``5m`` or ``1h`` in seconds."""
    found = re.fullmatch(r"(\d{1,6})(s|m|h|)", text)
    seconds = int(found.group(1)) * {"": 1, "s": 1, "m": 60, "h": 3600}[found.group(2)] if found else 0
    if not 5 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time from 5s to 24h, such as 90s or 5m")
    return float(seconds)


def _common(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("-c", "--config", metavar="FILE", help="a conntrack: section or user-data; '-' is stdin")
    verb.add_argument("--root", metavar="DIR", default="/", help="work on this file tree, without a live kernel")
    verb.add_argument("--format", choices=("text", "json"), default="text", help="how to answer (%(default)s)")
    verb.add_argument("-v", "--verbose", action="store_true", help="say more")


def main(argv: list[str] | None = None) -> int:
    """Run the command; gives the exit code.  Every failure is one message on stderr."""
    return exit_code(lambda: _run(argv))


def _run(argv: list[str] | None) -> int:
    options = make_parser().parse_args(argv)
    if not options.verb:
        raise UsageError("no verb given", "cloudinit-conntrack", f"expected one of {', '.join(VERBS)}")
    return (HIDDEN.get(options.verb) or VERBS[options.verb][0])(options)


# --- verbs -----------------------------------------------------------------------------


def _status(options: argparse.Namespace) -> int:
    from . import looking  # here: it loads what draws, which the boot service can do without

    root, live = _root(options)
    looking.status(options, root, live)
    return DONE


def _plan(options: argparse.Namespace) -> int:
    root, live = _root(options)
    from . import planned  # here: no other verb shows diffs

    desired, _ = _desired(options, root)
    state = verify.observed(desired, root, live)
    plan = make_plan(desired, state)
    outcome = "blocked" if plan.blockers else ("changes" if plan.actions else "nothing-to-do")
    _print(replace(report.of_plan(plan, outcome), planned=planned.of_plan(plan, desired, state)), options)
    return BLOCKED if plan.blockers else (DRIFT if plan.actions else DONE)


def _apply(options: argparse.Namespace) -> int:
    root, live = _root(options)
    if options.confirm_within and not live:
        raise UsageError("nobody logs into an image tree to confirm", "--confirm-within", "leave it out with --root")
    given_up = transaction.settle(root, _progress(options)) if options.config is None and live else ()
    if given_up and journalfile.kept_desired(root) is None:  # it was the first one
        _print(kept(Report("", "reverted", message="; ".join(given_up)), root, clock()), options)
        return DONE
    desired, section = _desired(options, root)
    found, error = applied(desired, section, root, live, _progress(options), options.confirm_within, given_up)
    if error is not None and options.format == "text":
        raise error
    _print(found, options)
    if error is not None:
        print(f"cloudinit-conntrack: {error}", file=sys.stderr)
        return error.exit_code
    return BLOCKED if found.outcome == "blocked" else DONE


def _verify(options: argparse.Namespace) -> int:
    root, live = _root(options)
    began = clock()
    desired, _ = _desired(options, root)
    found = verify.look(desired, root, live)
    refused = lastgood.standing(root) if live else ()
    holds = found.holds and not refused
    told = report.of_plan(found.plan, "verified" if holds else "drift", found.evidence)
    _print(replace(told, findings=refused + told.findings, run=run_since(began, root) if live else None), options)
    return DONE if holds else DRIFT


def _revert(options: argparse.Namespace) -> int:
    root, live = _root(options)
    began = clock()
    found = transaction.revert(root, _progress(options))
    items = [Item(f"kept:{n}", "revert", note) for n, note in enumerate(found.notes, 1)]
    outcome = "failed" if found.problems else ("reverted" if found.actions else "nothing-to-do")
    told = Report("", outcome, found.actions, findings=tuple(items), message="; ".join(found.problems))
    _print(kept(told, root, began) if live and outcome != "nothing-to-do" else told, options)
    return FAILED if found.problems else DONE


def _confirm(options: argparse.Namespace) -> int:
    root, live = _root(options)
    if not live:
        raise UsageError("nothing waits in an image tree", "cloudinit-conntrack confirm", "leave out --root")
    transaction.confirm(root)
    _print(kept(Report(mode_of(journalfile.kept_desired(root)), "confirmed"), root, clock()), options)
    return DONE


def _await(options: argparse.Namespace) -> int:
    root, _ = _root(options)
    notes = transaction.await_confirmation(root, _progress(options))
    if notes:
        _print(kept(Report("", "reverted", message="; ".join(notes)), root, clock()), options)
    return DONE


def _enable(options: argparse.Namespace) -> int:
    from . import enable  # here: it loads YAML, which the boot service can do without

    root, _ = _root(options)
    found = (enable.enable if options.verb == "enable" else enable.disable)(root)
    _print(found, options)
    return BLOCKED if found.outcome == "blocked" else DONE


def _forget(options: argparse.Namespace) -> int:
    from .forget import forget  # here: an image is made of a host once

    _print(Report("", "forgotten" if forget(_root(options)[0]) else "nothing-to-do"), options)
    return DONE


def _rewrite(options: argparse.Namespace) -> int:
    from .rewriting import rewrite  # here: no other verb needs all of nftables' language

    if options.config == "-" and options.file == "-":
        raise UsageError("both the configuration and the rules are standard input", "cloudinit-conntrack rewrite",
                         "name a file for one of them")
    return rewrite(options, desired_from_section(_section(options)) if options.config is not None else None)


def _userdata(options: argparse.Namespace) -> int:
    from .carrying import make  # here: no other verb needs MIME and the parser of Python

    return make(options)


def _metrics(options: argparse.Namespace) -> int:
    from .measuring import measure  # here: a boot measures nothing

    root, live = _root(options)
    if not live or options.format == "json":
        raise UsageError("metrics are Prometheus text about the running host", "cloudinit-conntrack metrics",
                         "leave out --root and --format")
    section = _section(options) if options.config is not None else None
    return measure(root, section, options.output)


def _fleet_report(options: argparse.Namespace) -> int:
    from .comparing import compare  # here: it looks at no host

    if options.config is not None or options.root != "/":
        raise UsageError("only reports are read, and no host is looked at", "cloudinit-conntrack fleet-report",
                         "leave out --config and --root")
    return compare(options.files, options.format == "json", options.verbose)


Verb = Callable[[argparse.Namespace], int]
VERBS: dict[str, tuple[Verb, str]] = {
    "status": (_status, "what is tracked now, and why: who holds conntrack, with what frees it"),
    "plan": (_plan, "what apply would do, and why; changes nothing"),
    "apply": (_apply, "do the plan as one transaction: whole, or rolled back whole"),
    "verify": (_verify, "look again: verified is nothing left to do, and the kernel agrees"),
    "revert": (_revert, "undo what apply did, newest first"),
    "confirm": (_confirm, "keep what 'apply --confirm-within' did, over a new connection"),
    "enable": (_enable, "list the module in this image's cloud-init, behind the distribution's own"),
    "disable": (_enable, "take out again what enable put in"),
    "rewrite": (_rewrite, "a saved rule-set in, a stateless one out; touches no host"),
    "userdata": (_userdata, "write user-data that carries the whole program to a stock cloud image"),
    "metrics": (_metrics, "what monitoring asks, as Prometheus text for node_exporter's textfile collector"),
    "fleet-report": (_fleet_report, "the reports of many nodes: which differ from the others, and why"),
}
# Verbs that programs call: the process that waits for a confirmation, the script that 'cloud-init clean' runs.
HIDDEN: dict[str, Verb] = {pending.VERB: _await, "forget": _forget}


# --- what the verbs share --------------------------------------------------------------


def _root(options: argparse.Namespace) -> tuple[Root, bool]:
    """The tree to work on, and whether its kernel is the running one."""
    root = inputs.tree(options.root)
    if root.is_host and not inputs.is_superuser():
        raise UsageError("only root can read the kernel's rules", f"cloudinit-conntrack {options.verb}", "use sudo")
    return root, root.is_host


def _desired(options: argparse.Namespace, root: Root) -> tuple[Desired, object]:
    """The configuration of -c, or else the one that an earlier apply kept."""
    if options.config is None:
        section = journalfile.kept_desired(root)
        if section is None:
            raise UsageError("no configuration", f"cloudinit-conntrack {options.verb}",
                             "give one with -c FILE (nothing was applied here before)")
        return desired_from_section(section), section
    section = _section(options)
    return desired_from_section(section), section


def _section(options: argparse.Namespace) -> object:
    """The conntrack section that -c names."""
    from .document import MAX_BYTES, section_of  # here: it loads YAML, which the boot service can do without

    name = "<stdin>" if options.config == "-" else options.config
    return section_of(inputs.read_input(options.config, MAX_BYTES), name)


def _print(found: Report, options: argparse.Namespace) -> None:
    if options.format == "json":
        sys.stdout.write(report.json_text(found))
    else:
        sys.stdout.write(report.text(found, inputs.wants_colour(sys.stdout), options.verbose))


def _progress(options: argparse.Namespace) -> transaction.Progress:
    shown = options.verbose or (sys.stderr.isatty() and options.format == "text")

    def tell(line: str) -> None:
        if shown:
            print(f"  {line} ...", file=sys.stderr)

    return tell
