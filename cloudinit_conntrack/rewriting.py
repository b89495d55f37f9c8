"""The verb ``rewrite``: a filter that touches no host."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from .config import Desired
from .errors import RulesSyntaxError, UsageError
from .host.inputs import read_input
from .netfilter.iptables import LARGEST_FILE, parse_ruleset
from .netfilter.replies import UdpFlow
from .netfilter.ruleset import format_ruleset
from .netfilter.stateless import Policy, Rewritten, make_stateless

BLOCKED = 3


def rewrite(options: argparse.Namespace, desired: Desired | None) -> int:
    """Read a rule-set, write the stateless one to stdout, notes to stderr; gives the exit code."""
    if options.backend == "nft":
        raise UsageError("native nftables rule-sets are not supported yet", "--backend nft",
                         "give iptables-save text")
    name = "<stdin>" if options.file == "-" else options.file
    ruleset = parse_ruleset(_read(options.file), options.family, name)
    policy = policy_of(desired) if desired else Policy()
    outcome = make_stateless(ruleset, policy)
    if options.format == "json":
        print(json.dumps(to_json(outcome), indent=2))
    elif not outcome.blockers:
        sys.stdout.write(format_ruleset(outcome.ruleset))
    _tell(outcome, name, options)
    return BLOCKED if outcome.blockers else 0


def policy_of(desired: Desired) -> Policy:
    """How *desired* wants rules rewritten, without a host to ask."""
    flows = desired.flows
    asked = tuple(UdpFlow(f.ports, f.address or "", f.family or "") for f in flows.outbound + flows.backends
                  if f.protocol == "udp")
    answered = tuple(UdpFlow(f.ports, "", f.family or "") for f in flows.frontends if f.protocol == "udp")
    return Policy(desired.rules.stateful, desired.rules.nat, asked, answered)


def to_json(outcome: Rewritten) -> dict[str, Any]:
    """CONTRACT.md's JSON; bytes that are no UTF-8 stand as surrogates, as Python reads them back."""
    return {
        "ruleset": "" if outcome.blockers else format_ruleset(outcome.ruleset),
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


def _tell(outcome: Rewritten, name: str, options: argparse.Namespace) -> None:
    for blocker in outcome.blockers:
        print(f"{name}:{blocker.line}: blocked: {blocker.rule.strip()}: {blocker.reason}; {blocker.remedy}",
              file=sys.stderr)
    for note in outcome.notes:
        print(note, file=sys.stderr)
    if outcome.blockers:
        return
    for change in outcome.changes:
        if change.widens:
            print(f"{name}:{change.line}: widens: {change.widens}", file=sys.stderr)
        elif options.verbose:
            print(f"{name}:{change.line}: {change.reason}", file=sys.stderr)
