"""ufw's rules files, rewritten one by one, and judged as the whole that ufw-init makes of them.

ufw-init (0.34 to 0.36.2, ``/lib/ufw/ufw-init-functions``) makes its chains and the jumps to
them, loads before.rules, after.rules and user.rules by ``iptables-restore -n``, and sets the
policies of the built-in chains.  Each file is iptables-save text, so the rewrite is the
common one; the chains around it tell which packets its rules meet.

One thing is in no file: where a policy is exactly ``ACCEPT``, ufw-init adds rules to
``ufw-track-*`` that accept NEW connections, only to have them tracked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from . import stateful
from .iptables import parse_ruleset
from .ruleset import Line, RuleSet
from .stateless import Policy, Rewritten, make_stateless

FILES = ("before", "after", "user")
_WAYS = ("input", "output", "forward")
# In the order in which a packet meets them.
_PRIMARY = ("before-logging", "before", "after", "after-logging", "reject", "track")
_SECONDARY = ("logging-deny", "logging-allow", "user-limit", "user-limit-accept")


@dataclass(frozen=True)
class Policies:
    """``DEFAULT_INPUT_POLICY`` and its like of /etc/default/ufw: ``ACCEPT``, ``DROP`` or ``REJECT``."""

    input: str = "DROP"
    output: str = "ACCEPT"
    forward: str = "DROP"

    def of(self, way: str) -> str:
        """The policy of ``input``, ``output`` or ``forward``."""
        return {"input": self.input, "output": self.output, "forward": self.forward}[way]


def _prefix(family: str) -> str:
    return "ufw" if family == "ipv4" else "ufw6"


def _frame(family: str, policies: Policies, tracking: bool) -> str:
    """What ufw-init makes by itself, but for the jumps that it adds last."""
    ufw = _prefix(family)
    builtin = [f":{way.upper()} {'ACCEPT' if policies.of(way) == 'ACCEPT' else 'DROP'} [0:0]" for way in _WAYS]
    names = [f"{kind}-{way}" for way in _WAYS for kind in (*_PRIMARY, "skip-to-policy", "user", "user-logging")]
    chains = [f":{ufw}-{name} - [0:0]" for name in (*names, *_SECONDARY)]
    jumps = [f"-A {way.upper()} -j {ufw}-{kind}-{way}" for way in _WAYS for kind in _PRIMARY]
    rules = [f"-A {ufw}-skip-to-policy-{way} -j {policies.of(way)}" for way in _WAYS]
    rules += [f"-A {ufw}-reject-{way} -j REJECT" for way in _WAYS if policies.of(way) == "REJECT"]
    rules += [f"-A {ufw}-track-{way} -p {protocol} -m conntrack --ctstate NEW -j ACCEPT"
              for way in _WAYS for protocol in ("tcp", "udp") if tracking and policies.of(way) == "ACCEPT"]
    return "\n".join(["*filter", *builtin, *chains, *jumps, *rules, "COMMIT", ""])


def _last(family: str) -> str:
    """The jumps that ufw-init adds behind what the files hold."""
    ufw = _prefix(family)
    jumps = [f"-A {ufw}-before-{way} -j {ufw}-user-{way}" for way in _WAYS]
    return "\n".join(["*filter", *jumps, "COMMIT", ""])


def parse_file(text: str, family: str, path: str) -> RuleSet:
    """One of ufw's rules files.  Raises RulesSyntaxError with FILE:LINE."""
    return parse_ruleset(text, family, path)


def whole(files: Iterable[RuleSet], family: str, policies: Policies, tracking: bool) -> RuleSet:
    """All that ufw-init loads, as one rule-set; *tracking*: with the rules of ``ufw-track-*``."""
    frame = parse_ruleset(_frame(family, policies, tracking), family, "ufw")
    lines = [line for one in files for line in one.lines]
    return frame.with_lines((*frame.lines, *lines, *parse_ruleset(_last(family), family, "ufw").lines))


def rewritten(file: RuleSet, others: Iterable[RuleSet], policies: Policies, policy: Policy) -> Rewritten:
    """*file* made stateless, among the *others* that ufw loads with it; the same object where nothing changes."""
    family = file.family
    around = [*whole((), family, policies, False).lines, *(line for one in others for line in one.lines)]
    # Chains and jumps around the file tell what its rules meet; numbers below 0 tell them apart from it.
    outside = [replace(line, number=-1) for line in around if _is_frame(line)]
    own = _appending(file)
    both = file.with_lines((*outside, *own.lines))
    outcome = make_stateless(both, policy)
    if outcome.blockers or outcome.ruleset is both:
        return replace(outcome, ruleset=file)
    lines = tuple(line for line in outcome.ruleset.lines if line.number >= 0)
    return replace(outcome, ruleset=file if lines == own.lines else file.with_lines(lines))


def _is_frame(line: Line) -> bool:
    """Whether *line* is structure: a table, a chain, a jump to a chain, or what keeps fragments whole."""
    if line.kind in ("table", "chain", "commit"):
        return True
    return line.kind == "rule" and stateful.dependency(line.rule, line.table) is None and (
        line.rule.target.startswith("ufw") or "socket" in line.rule.matches)


def _appending(file: RuleSet) -> RuleSet:
    """*file* with ``-A`` for the ``-I`` of a stateful rule that is the first of a chain which the file declares.

    A declaration empties the chain, so both put the rule at the same place; ufw writes its logging rules so.
    """
    declared = {(x.table, x.chain) for x in file.lines if x.kind == "chain"}
    seen: set[tuple[str, str]] = set()
    lines: list[Line] = []
    for line in file.lines:
        key = (line.table, line.chain)
        first = line.kind == "rule" and key in declared and key not in seen
        if first and line.text.startswith("-I ") and stateful.dependency(line.rule, line.table):
            line = replace(line, text="-A " + line.text[3:])
        if line.kind == "rule":
            seen.add(key)
        lines.append(line)
    return file.with_lines(lines) if tuple(lines) != file.lines else file
