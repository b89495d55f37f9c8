"""Desired against found: what to do, in which order and why, or why not.

Pure: :func:`make_plan` is the one definition of "right".  ``plan`` prints it, ``apply``
performs it, and a host is verified when planning it again gives nothing to do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from . import guard, kmod
from .actions import Action, DeleteEntries, LoadRules, ProveLoading, UnloadModule, WriteFile
from .config import Desired
from .config import Flow as ConfigFlow
from .errors import ConntrackError
from .holders import force_note, foreign_holders
from .netfilter import notrack
from .netfilter.iptables import parse_ruleset
from .netfilter.replies import UdpFlow
from .netfilter.ruleset import RuleSet, format_ruleset
from .netfilter.stated import stated
from .netfilter.stateless import Policy, Rewritten, make_stateless
from .netfilter.tables import split_tables
from .shellvars import clean_modules_line
from .state import FileImage, Kernel, LiveRules, SavedFile, State

BLOCK_FILE = kmod.BLOCK_PATH


@dataclass(frozen=True)
class Item:
    """A blocker, a widening or a finding: a stable *id*, where, why, and what to do."""

    id: str
    where: str
    reason: str
    remedy: str = ""


@dataclass(frozen=True)
class Plan:
    """What apply would do.  With blockers nothing is done at all.

    *mode* is the mode that the plan establishes; it differs from the desired one where
    ``fallback`` settled for less.
    """

    mode: str
    actions: tuple[Action, ...] = ()
    blockers: tuple[Item, ...] = ()
    widenings: tuple[Item, ...] = ()
    findings: tuple[Item, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether the host is as desired."""
        return not self.actions and not self.blockers


@dataclass
class _Draft:
    """A plan while it is being made."""

    desired: Desired
    state: State
    files: list[Action]
    rules: list[Action]
    blockers: list[Item]
    widenings: list[Item]
    findings: list[Item]


def make_plan(desired: Desired, state: State) -> Plan:
    """The plan for *desired* on *state*; where unloading is impossible, ``fallback``'s plan."""
    plan = _plan_mode(desired, state)
    module_blockers = [b for b in plan.blockers if b.id.startswith("module:")]
    if desired.mode != "unload" or desired.fallback == "none" or not module_blockers:
        return plan
    if len(module_blockers) < len(plan.blockers):
        return plan
    settled = _plan_mode(replace(desired, mode=desired.fallback, fallback="none"), state)
    why = tuple(
        Item(b.id, b.where, f"{b.reason}; settled for {desired.fallback}, as 'fallback' says", b.remedy)
        for b in module_blockers
    )
    return replace(settled, findings=why + settled.findings)


def _plan_mode(desired: Desired, state: State) -> Plan:
    draft = _Draft(desired, state, [], [], [], [], [])
    _unsupported(draft)
    if desired.persist or state.kernel is None:
        for saved in state.saved:
            _plan_saved(draft, saved)
    for live in _live_to_plan(desired, state):
        _plan_live(draft, live)
    modules: list[Action] = []
    if desired.mode == "unload" and state.kernel is not None:
        modules = _unloading(draft, state.kernel)
    block = _blocking(draft)
    entries = _entries(draft)
    actions = draft.files + draft.rules + modules + block + entries
    if desired.mode == "notrack":
        actions = block + draft.files + draft.rules + entries
    if draft.blockers:  # nothing is done, so nothing is widened
        return Plan(desired.mode, (), tuple(draft.blockers), (), tuple(draft.findings))
    return Plan(desired.mode, tuple(actions), (), tuple(draft.widenings), tuple(draft.findings))


def _unsupported(draft: _Draft) -> None:
    if draft.desired.flows.haproxy_cfg:
        draft.blockers.append(Item("config:haproxy_cfg", "conntrack.flows.haproxy_cfg",
                                   "this release cannot read haproxy.cfg yet",
                                   "name the ports in flows.frontends and flows.backends"))
    for number, note in enumerate(draft.state.notes, 1):
        if note.startswith("native nftables"):
            draft.blockers.append(Item(f"nftables:{number}", "nft list ruleset", note,
                                       "this release rewrites iptables rules; make them stateless by hand first"))
        else:
            draft.findings.append(Item(f"note:{number}", "host", note))


# --- rules -----------------------------------------------------------------------------


def _live_to_plan(desired: Desired, state: State) -> tuple[LiveRules, ...]:
    """The live rule-sets to look at; for notrack also an empty one of the default back end."""
    found = tuple(live for live in state.live if live.text.strip())
    if desired.mode != "notrack" or state.kernel is None:
        return found
    have = {live.family for live in found}
    extra = tuple(LiveRules(state.default_backend, f, "") for f in ("ipv4", "ipv6") if f not in have)
    return found + extra


def _change(draft: _Draft, ruleset: RuleSet, live_backend: str) -> Rewritten:
    desired = draft.desired
    if desired.mode == "notrack":
        return notrack.add_bypass(ruleset, _bypass(draft, ruleset.family), _nat_somewhere(draft, ruleset.family))
    own = notrack.strip_own(ruleset)
    # A live legacy table goes with its module only; yet with "unload" revert must bring it back.
    drop_nat = not live_backend or desired.mode == "unload"
    return make_stateless(own, replace(rewrite_policy(desired, draft.state.kernel), drop_empty_nat=drop_nat))


def rewrite_policy(desired: Desired, kernel: Kernel | None) -> Policy:
    """How *desired* wants rule-sets rewritten; without a *kernel* to ask, what most hosts have."""
    flows = desired.flows
    policy = Policy(desired.rules.stateful, desired.rules.nat, _asked(desired), _udp(flows.frontends))
    if kernel is None:
        return policy
    return replace(policy, local_ports=kernel.local_ports, reassemble=kernel.socket_match)


def _asked(desired: Desired) -> tuple[UdpFlow, ...]:
    return _udp(desired.flows.outbound + desired.flows.backends)


def _udp(flows: tuple[ConfigFlow, ...]) -> tuple[UdpFlow, ...]:
    return tuple(UdpFlow(f.ports, f.address or "", f.family or "") for f in flows if f.protocol == "udp")


def _bypass(draft: _Draft, family: str) -> notrack.Bypass:
    flows = draft.desired.flows
    kernel = draft.state.kernel
    ports = kernel.local_ports if kernel else Policy().local_ports
    return notrack.Bypass(_flows(flows.frontends, family), _flows(flows.backends, family), flows.all, ports,
                          _asked(draft.desired))


def _flows(flows: tuple[ConfigFlow, ...], family: str) -> tuple[notrack.Flow, ...]:
    return tuple(notrack.Flow(f.protocol, f.ports, f.address or "") for f in flows if f.family in (None, family))


def _nat_somewhere(draft: _Draft, family: str) -> bool:
    """Whether any rule-set of *family*, live or saved, translates addresses."""
    texts = [live.text for live in draft.state.live if live.family == family]
    texts += [_text(s.image.content) for s in draft.state.saved if s.kind == "rules" and s.family == family]
    for text in texts:
        try:
            if "*nat" in text and notrack.has_nat(parse_ruleset(text, family)):
                return True
        except ConntrackError:
            continue  # told where the rule-set itself is planned
    return False


def _plan_live(draft: _Draft, live: LiveRules) -> None:
    where = f"live iptables-{live.backend} {live.family}"
    before = parse_ruleset(live.text, live.family, where)
    outcome = _change(draft, before, live.backend)
    key = f"{live.backend}:{live.family}"
    _report(draft, outcome, where, key, before)
    if outcome.ruleset is before or outcome.blockers:
        return
    _guard(draft, before, outcome.ruleset, where)
    _state_difference(draft, before, outcome, where, key)
    old, new, dropped, created = split_tables(before, outcome.ruleset)
    reason = _summary(outcome, draft.desired.mode)
    draft.rules.append(LoadRules(live.backend, live.family, old, new, reason, dropped, created))


def _plan_saved(draft: _Draft, saved: SavedFile) -> None:
    if saved.kind != "rules":
        _plan_module_list(draft, saved)
        return
    before = parse_ruleset(_text(saved.image.content), saved.family, saved.path)
    outcome = _change(draft, before, "")
    _report(draft, outcome, saved.path, saved.path, before)
    if outcome.ruleset is before or outcome.blockers:
        return
    _guard(draft, before, outcome.ruleset, saved.path)
    _state_difference(draft, before, outcome, saved.path, saved.path)
    content = format_ruleset(outcome.ruleset).encode("utf-8", "surrogateescape")
    reason = _summary(outcome, draft.desired.mode)
    draft.files.append(WriteFile(saved.path, saved.image, _written(saved.image, content), reason))


def _text(content: bytes) -> str:
    return content.decode("utf-8", "surrogateescape")


def _written(image: FileImage, content: bytes) -> FileImage:
    """*image* with other content, and the time of its writing: backups must see that it changed."""
    return replace(image, content=content, atime_ns=0, mtime_ns=0)


def _summary(outcome: Rewritten, mode: str) -> str:
    if mode == "notrack":
        count = len(outcome.changes)
        return f"{count} {'rule is' if count == 1 else 'rules are'} added so that the flows bypass conntrack"
    changes = [change for change in outcome.changes if change.rule]  # the others are rules that are added
    count = len(changes)
    if not count:
        return "our own rules of 'mode: notrack' are taken out: NOTRACK holds conntrack in use"
    fates = {"rewritten" if change.becomes else "removed": None for change in changes}
    what = "rule that depends on conntrack is" if count == 1 else "rules that depend on conntrack are"
    return f"{count} {what} {' or '.join(sorted(fates, reverse=True))}"


def _report(draft: _Draft, outcome: Rewritten, where: str, key: str, before: RuleSet) -> None:
    for blocker in outcome.blockers:
        place = f"{where}: {_place(before, blocker.line)}"
        draft.blockers.append(Item(f"rule:{key}:{blocker.line}", place, f"{blocker.rule.strip()}: {blocker.reason}",
                                   blocker.remedy))
    for number, note in enumerate(outcome.notes, 1):
        draft.findings.append(Item(f"note:{key}:{number}", where, note))


def _state_difference(draft: _Draft, before: RuleSet, outcome: Rewritten, where: str, key: str) -> None:
    """Say which packets are let through otherwise than before, computed from the two rule-sets.

    A handshake that the rewrite newly let in would be our defect: it blocks.  The bypass
    opens what the configuration names, and says so.
    """
    difference, why_not = stated(before, outcome.ruleset)
    if difference is None:
        draft.findings.append(Item(f"difference:{key}", where, why_not))
        for number, change in enumerate(outcome.changes):
            if change.widens:
                place = f"{where}: {_place(before, change.line)}" if change.line else where
                draft.widenings.append(Item(f"widening:{key}:{change.line or f'new{number}'}", place, change.widens))
        return
    for number, told in enumerate(difference.widened, 1):
        draft.widenings.append(Item(f"widening:{key}:{number}", where, str(told)))
    for number, told in enumerate(difference.narrowed, 1):
        draft.findings.append(Item(f"narrowing:{key}:{number}", where, f"no longer accepted: {told}"))
    if draft.desired.mode != "notrack":
        for told in difference.handshakes[:3]:
            draft.blockers.append(Item(f"handshake:{key}", where, f"the new rules would let in {told}",
                                       "this is our defect: report it with the rule-set"))


def _place(ruleset: RuleSet, number: int) -> str:
    """``table filter, chain INPUT, rule 3`` for the line *number*."""
    line = next((x for x in ruleset.lines if x.number == number), None)
    if line is None or line.kind != "rule":
        return f"line {number}"
    same = [x.number for x in ruleset.rules(line.table) if x.chain == line.chain]
    return f"table {line.table}, chain {line.chain}, rule {same.index(number) + 1}"


def _guard(draft: _Draft, before: RuleSet, after: RuleSet, where: str) -> None:
    keep = draft.desired.guard.keep
    ports = draft.state.sshd_ports if keep is None else keep
    for port, reason in guard.closed_ports(before, after, ports, _bypassing(draft.desired, ports)):
        draft.blockers.append(Item(f"guard:{where}:{port}", where, reason,
                                   "add an accept rule for the port, or take it out of guard.keep"))
    if draft.desired.mode == "notrack":
        return
    tcp = [f.ports[0] for f in draft.desired.flows.frontends if f.protocol == "tcp"]
    closed = ", ".join(str(port) for port in tcp if guard.is_closed(before, port))
    if closed:
        draft.findings.append(Item(f"closed:{where}", where, f"frontend port {closed}: closed, before and after",
                                   "add an accept rule if clients shall reach it"))


def _bypassing(desired: Desired, ports: tuple[int, ...]) -> frozenset[int]:
    """Those of the TCP *ports* whose packets conntrack does not see any more, so that they have no state."""
    if desired.mode != "notrack":
        return frozenset()
    flows = [f.ports for f in desired.flows.frontends if f.protocol == "tcp" and f.address is None]
    return frozenset(p for p in ports if desired.flows.all or any(first <= p <= last for first, last in flows))


def _plan_module_list(draft: _Draft, saved: SavedFile) -> None:
    if draft.desired.mode == "notrack":
        return
    cleaned, removed = clean_modules_line(_text(saved.image.content))
    if not removed:
        return
    image = _written(saved.image, cleaned.encode("utf-8", "surrogateescape"))
    names = ", ".join(removed)
    draft.files.append(WriteFile(saved.path, saved.image, image, f"it loads {names} at every start of the firewall"))
    helpers = [n for n in removed if n.startswith(("nf_conntrack_", "ip_conntrack_", "nf_nat_", "ip_nat_"))]
    if helpers:
        draft.findings.append(Item(f"helper:{saved.path}", saved.path,
                                   f"{', '.join(helpers)} helped connections that its rules called RELATED; "
                                   "without conntrack they are not recognised", "allow their ports by rules"))


# --- modules ---------------------------------------------------------------------------


def _unloading(draft: _Draft, kernel: Kernel) -> list[Action]:
    if kernel.conntrack == "builtin":
        draft.blockers.append(Item("module:builtin", f"kernel {kernel.release}",
                                   "nf_conntrack is built into this kernel and cannot be unloaded",
                                   "use 'mode: stateless': this kernel then tracks nothing"))
        return []
    order = kmod.unload_order(kernel.modules, draft.desired.modules.extra)
    if order and kernel.locked:
        draft.blockers.append(Item("module:locked", "kernel.modules_disabled = 1",
                                   "this kernel refuses to unload modules until the next boot",
                                   "apply before modules_disabled is set, after a reboot; or use 'mode: stateless'"))
        return []
    if order:
        _held(draft, kernel, order)
    actions: list[Action] = []
    for name in order:
        module = kernel.module(name)
        parameters = module.parameters if module else ()
        sysctls = kernel.sysctls if name == "nf_conntrack" else ()
        reason = "it is conntrack" if name == "nf_conntrack" else "it holds nf_conntrack, or stands in its way"
        if name in draft.desired.modules.extra:
            reason = "modules.extra names it"
        actions.append(UnloadModule(name, reason, parameters, sysctls, draft.desired.modules.force))
    return actions


def _held(draft: _Draft, kernel: Kernel, order: tuple[str, ...]) -> None:
    """Blockers for what keeps the modules of *order* in use, and stays when all of *order* go."""
    foreign = foreign_holders(draft.state)
    for holder in foreign:
        draft.blockers.append(Item(f"module:{holder.id}", holder.where, holder.what, holder.remedy))
    for module in (m for m in kernel.modules if m.name in order):
        others = ", ".join(h for h in module.holders if h not in order)
        if others:
            draft.blockers.append(Item(f"module:extra:{module.name}", f"module {module.name}", f"{others} needs it",
                                       f"take {module.name} out of modules.extra, or name what needs it there too"))
    if draft.desired.modules.force and (foreign or kernel.forced_unload is False):
        draft.findings.append(Item("force", "conntrack.modules.force", force_note(kernel),
                                   "free the modules as the blockers say, if there are any"))


def _blocking(draft: _Draft) -> list[Action]:
    """Write the block (unload) or take our own away (notrack needs the module)."""
    desired, found = draft.desired, draft.state.block
    if desired.mode == "notrack" and found is not None:
        return [WriteFile(BLOCK_FILE, found, None, "NOTRACK needs nf_conntrack, which this file blocks")]
    if desired.mode != "unload" or not desired.modules.block or not desired.persist:
        return []
    content = kmod.modprobe_conf(desired.modules.extra).encode()
    if found is not None and found.content == content:
        return []
    proofs: list[Action] = []
    if draft.state.kernel is not None:
        proofs = [_proof(draft, saved) for saved in draft.state.saved if saved.kind == "rules"]
    image = _written(found, content) if found else FileImage(content)
    return [*proofs, WriteFile(BLOCK_FILE, found, image, "no rule, service or program loads conntrack again")]


def _proof(draft: _Draft, saved: SavedFile) -> ProveLoading:
    written = {a.path: a.after for a in draft.files if isinstance(a, WriteFile)}
    image = written.get(saved.path) or saved.image
    reason = "a saved rule-set that needs conntrack would not load under the block, and the host would boot open"
    return ProveLoading(saved.path, saved.family, _text(image.content), reason)


def _entries(draft: _Draft) -> list[Action]:
    """Entries that the flows had stay until their timeout, up to five days, unless deleted."""
    kernel, flows = draft.state.kernel, draft.desired.flows
    if draft.desired.mode != "notrack" or kernel is None or kernel.conntrack == "absent" or not draft.rules:
        return []
    named = tuple((f.protocol, f.ports[0], f.ports[1], f.address or "") for f in flows.frontends + flows.backends)
    return [DeleteEntries(() if flows.all else named, "new NOTRACK rules do not end entries that are there")]
