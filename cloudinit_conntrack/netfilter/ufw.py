"""ufw's rules files, rewritten one by one, and judged as the whole that ufw-init makes of them.

ufw-init (0.34 to 0.36.2, ``/lib/ufw/ufw-init-functions``) makes its chains and the jumps to
them, loads before.rules, after.rules and user.rules by ``iptables-restore -n``, and sets the
policies of the built-in chains.  Each file is iptables-save text, so the rewrite is the
common one; the chains around it tell which packets its rules meet.

One thing is in no file: where a policy is exactly ``ACCEPT``, ufw-init adds rules to
``ufw-track-*`` that accept NEW connections, only to have them tracked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from . import fragments, stateful
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
    """All that ufw-init loads, each table once; *tracking*: with the rules of ``ufw-track-*``."""
    frame = parse_ruleset(_frame(family, policies, tracking), family, "ufw")
    last = parse_ruleset(_last(family), family, "ufw")
    lines = [line for one in (frame, *files, last) for line in one.lines]
    tables = dict.fromkeys(line.table for line in lines if line.kind == "table")
    return frame.with_lines(x for table in tables for x in _one_table([y for y in lines if y.table == table]))


def _one_table(lines: Sequence[Line]) -> Iterator[Line]:
    """The lines of one table under one header, every chain declared once: the first declaration has the policy."""
    yield from [line for line in lines if line.kind == "table"][:1]
    yield from {x.chain: x for x in reversed(lines) if x.kind == "chain"}.values()
    yield from (line for line in lines if line.kind == "rule")
    yield from [line for line in lines if line.kind == "commit"][:1]


def rewritten(file: RuleSet, earlier: Sequence[RuleSet], later: Sequence[RuleSet], policies: Policies,
              policy: Policy) -> Rewritten:
    """*file* made stateless, between those that ufw loads *earlier* and *later*; the same object where nothing changes.

    What the others hold tells which packets its rules meet, and which UDP this host serves.
    """
    own = _appending(file)
    front = list(_outside(whole(earlier, file.family, policies, False).lines))
    front += _outside(x for one in later for x in one.lines if x.kind in ("table", "chain"))
    behind = _outside(x for one in later for x in one.lines if x.kind == "rule")
    both = file.with_lines((*_within(own, front), *behind))
    outcome = make_stateless(both, replace(policy, reassemble=False))
    if outcome.blockers or outcome.ruleset is both:
        return replace(outcome, ruleset=file)
    known = {(x.table, x.chain) for x in front}
    kept = tuple(x for x in outcome.ruleset.lines
                 if x.number != _OUTSIDE or (x.kind == "chain" and (x.table, x.chain) not in known))
    return replace(outcome, ruleset=file if kept == own.lines else file.with_lines(kept))


_OUTSIDE = -1


def _within(own: RuleSet, front: Sequence[Line]) -> Iterator[Line]:
    """*own* with the lines of *front* behind its headers: a header empties what stands before it."""
    headers = dict.fromkeys(x.table for x in front if x.kind == "table" and x.table not in own.tables())
    for table in headers:
        yield from _one_table([x for x in front if x.table == table])
    for line in own.lines:
        yield line
        if line.kind == "table":
            yield from (x for x in front if x.table == line.table and x.kind in ("chain", "rule"))


def _outside(lines: Iterable[Line]) -> Iterator[Line]:
    """*lines* with a number that tells them apart, without rules that the rewrite would have to change."""
    for line in lines:
        found = stateful.dependency(line.rule, line.table) if line.kind == "rule" else None
        if found is None or found.kind == "notrack":
            yield replace(line, number=_OUTSIDE)


def kept_whole(files: Sequence[RuleSet], policies: Policies) -> tuple[RuleSet, ...]:
    """*files* with a rule in the first that keeps fragments reassembled, where the rules need that.

    It stands in a chain of ufw's own, which every load empties: in mangle, one more would gather with each reload.
    """
    family = files[0].family
    after = whole(files, family, policies, False)
    if any("socket" in line.rule.matches for line in after.rules()) or not fragments.needs_reassembly(after):
        return tuple(files)
    chain = f"{_prefix(family)}-before-input"
    lines = list(files[0].lines)
    ends = [i for i, line in enumerate(lines) if line.kind == "commit" and line.table == "filter"]
    if not ends:
        return tuple(files)
    text = fragments.RULE.replace("PREROUTING", chain).partition(" -j ")[0]  # in filter it must not even accept
    lines.insert(ends[-1], Line(0, text, "rule", "filter", chain))
    return (files[0].with_lines(lines), *files[1:])


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
