"""The verb ``rewrite``: a filter that touches no host."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any, Union

from .config import Desired
from .errors import RulesSyntaxError
from .host.inputs import read_input
from .netfilter.difference import Difference
from .netfilter.iptables import LARGEST_FILE, parse_ruleset
from .netfilter.nft_ruleset import format_nft, parse_nft
from .netfilter.nft_stateless import make_stateless_nft
from .netfilter.nft_work import NftRewritten
from .netfilter.ruleset import format_ruleset
from .netfilter.stated import stated, stated_nft
from .netfilter.stateless import Policy, Rewritten, make_stateless
from .plan import rewrite_policy

BLOCKED = 3
Outcome = Union[Rewritten, NftRewritten]


def rewrite(options: argparse.Namespace, desired: Desired | None) -> int:
    """Read a rule-set, write the stateless one to stdout, notes to stderr; gives the exit code."""
    name = "<stdin>" if options.file == "-" else options.file
    policy = rewrite_policy(desired, None) if desired else Policy()
    text = _read(options.file)
    outcome: Outcome
    if options.backend == "nft":
        native = parse_nft(text, name)
        outcome = changed = make_stateless_nft(native, policy)
        difference, why_not = stated_nft(native, changed.ruleset)
    else:
        ruleset = parse_ruleset(text, options.family, name)
        outcome = rewritten = make_stateless(ruleset, policy)
        difference, why_not = stated(ruleset, rewritten.ruleset)
    if options.format == "json":
        print(json.dumps(to_json(outcome, difference), indent=2))
    elif not outcome.blockers:
        sys.stdout.write(_text(outcome))
    _tell(outcome, difference, why_not, name, options)
    if desired and desired.flows.haproxy_cfg:
        print(f"{', '.join(desired.flows.haproxy_cfg)}: not read, since 'rewrite' touches no host; name UDP that "
              "haproxy asks for in conntrack.flows.outbound", file=sys.stderr)
    return BLOCKED if outcome.blockers else 0


def _text(outcome: Outcome) -> str:
    return format_nft(outcome.ruleset) if isinstance(outcome, NftRewritten) else format_ruleset(outcome.ruleset)


def to_json(outcome: Outcome, difference: Difference | None) -> dict[str, Any]:
    """CONTRACT.md's JSON; bytes that are no UTF-8 stand as surrogates, as Python reads them back.

    ``widened`` and ``narrowed`` are the computed difference, ``null`` where it was not computed.
    """
    return {
        "widened": None if difference is None else [str(told) for told in difference.widened],
        "narrowed": None if difference is None else [str(told) for told in difference.narrowed],
        "ruleset": "" if outcome.blockers else _text(outcome),
        "changes": [
            {"line": c.line, "rule": c.rule, "becomes": list(c.becomes), "reason": c.reason, "widens": c.widens}
            for c in outcome.changes
        ],
        "blockers": [
            {"line": b.line, "rule": b.rule, "reason": b.reason, "remedy": b.remedy} for b in outcome.blockers
        ],
    }


def _read(path: str) -> str:
    content = read_input(path, LARGEST_FILE)
    if len(content) > LARGEST_FILE:
        raise RulesSyntaxError(f"larger than {LARGEST_FILE} bytes", f"{path}:1", "this is not a saved rule-set")
    return content.decode("utf-8", "surrogateescape")


def _tell(
    outcome: Outcome, difference: Difference | None, why_not: str, name: str, options: argparse.Namespace
) -> None:
    # a list of nft's objects stands on one line: what we name is the object's place in it
    place = f"{name}: object " if isinstance(outcome, NftRewritten) else f"{name}:"
    for blocker in outcome.blockers:
        print(f"{place}{blocker.line}: blocked: {blocker.rule.strip()}: {blocker.reason}; {blocker.remedy}",
              file=sys.stderr)
    for note in outcome.notes:
        print(note, file=sys.stderr)
    if outcome.blockers:
        return
    if difference is None and outcome.changes:
        print(f"{name}: {why_not}", file=sys.stderr)
    for change in outcome.changes:
        if change.widens and (difference is None or options.verbose):
            print(f"{place}{change.line}: widens: {change.widens}", file=sys.stderr)
        elif options.verbose:
            print(f"{place}{change.line}: {change.reason}", file=sys.stderr)
    for told in difference.widened if difference else ():
        print(f"{name}: accepted now and not before: {told}", file=sys.stderr)
    for told in difference.narrowed if difference else ():
        print(f"{name}: no longer accepted: {told}", file=sys.stderr)
