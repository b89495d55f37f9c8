"""ufw, where it is enabled: its rules files, and the one line that keeps it from tracking."""

from __future__ import annotations

import shlex
from functools import partial

from .. import guard
from ..actions import ProveLoading
from ..netfilter import ufw
from ..netfilter.ruleset import RuleSet, format_ruleset
from ..state import FoundFile, State
from .draft import Draft, Item, decoded, place_of, planned, write_file
from .flows import rewrite_policy
from .judging import Place, say_blockers, say_closed, say_difference, say_notes

CONF, DEFAULTS = "/etc/ufw/ufw.conf", "/etc/default/ufw"
UNITS = ("ufw.service",)

# ufw-init compares the policy with "ACCEPT" to see whether to add rules that track, and hands it, unquoted,
# to printf: a blank behind the word keeps the policy and leaves the rules out.  ufw's own Python reads only
# lines of the form NAME=word, and 'ufw default' replaces only those, so it sees neither.
UNTRACKED = """\
# Written by cloudinit-conntrack: a blank behind ACCEPT keeps the policy, and keeps ufw from tracking for it.
[ "$DEFAULT_INPUT_POLICY" != ACCEPT ] || DEFAULT_INPUT_POLICY="ACCEPT "
[ "$DEFAULT_OUTPUT_POLICY" != ACCEPT ] || DEFAULT_OUTPUT_POLICY="ACCEPT "
[ "$DEFAULT_FORWARD_POLICY" != ACCEPT ] || DEFAULT_FORWARD_POLICY="ACCEPT "
"""


def plan_ufw(draft: Draft) -> None:
    """What becomes of ufw's files; nothing where ufw is not enabled."""
    around = draft.state.surroundings
    conf, defaults = around.file(CONF), around.file(DEFAULTS)
    if conf is None or defaults is None or not is_enabled(draft.state):
        return
    if draft.desired.mode == "notrack":
        draft.blockers.append(Item("ufw", CONF, "ufw writes its chains anew at every reload, without the rules that "
                                   "accept the untracked flows",
                                   "'ufw disable', and let saved rules (netfilter-persistent) take its place"))
        return
    policies = ufw.Policies(*(_value(defaults, f"DEFAULT_{way}_POLICY") for way in ("INPUT", "OUTPUT", "FORWARD")))
    if {policies.input, policies.output, policies.forward} - {"ACCEPT", "DROP", "REJECT"}:
        draft.blockers.append(Item("ufw:policy", DEFAULTS, "a default policy is none of ACCEPT, DROP and REJECT",
                                   "set it by 'ufw default'"))
        return
    families = ("ipv4", "ipv6") if _value(defaults, "IPV6").lower() == "yes" else ("ipv4",)
    untracked = UNTRACKED in defaults.text
    changed = [_plan_family(draft, family, policies, untracked) for family in families]
    if not untracked and "ACCEPT" in (policies.input, policies.output, policies.forward):
        _keep_from_tracking(draft, defaults)
        changed.append(True)
    if any(changed):
        draft.findings.append(_what_ufw_does_later(draft, conf))


def is_enabled(state: State) -> bool:
    """Whether ufw's own configuration enables it, and anything starts it: its unit, or its chains are loaded."""
    conf = state.surroundings.file(CONF)
    if conf is None or state.surroundings.file(DEFAULTS) is None or _value(conf, "ENABLED").lower() != "yes":
        return False
    return state.surroundings.units.starts(*UNITS) or any(":ufw-" in live.text for live in state.live)


def _value(file: FoundFile, name: str) -> str:
    """What the shell would make of the last assignment ``NAME=word``; empty when there is none."""
    found = ""
    for line in file.text.split("\n"):
        key, equals, rest = line.strip().partition("=")
        if equals and key == name:
            try:
                words = shlex.split(rest, comments=True)
            except ValueError:
                words = []
            found = words[0] if words else ""
    return found


def _plan_family(draft: Draft, family: str, policies: ufw.Policies, untracked: bool) -> bool:
    """Plan the three files of *family*; whether one changes."""
    suffix = "" if family == "ipv4" else "6"
    found = [draft.state.surroundings.file(f"/etc/ufw/{name}{suffix}.rules") for name in ufw.FILES]
    files = [file for file in found if file is not None]
    before = [ufw.parse_file(file.text, family, file.path) for file in files]
    after: list[RuleSet] = []
    policy = rewrite_policy(draft.desired, draft.state.kernel)
    for number, ruleset in enumerate(before):
        outcome = ufw.rewritten(ruleset, after, before[number + 1:], policies, policy)
        place = Place(files[number].path, files[number].path, partial(place_of, ruleset))
        say_blockers(draft, outcome.blockers, place)
        say_notes(draft, ((place.where, note) for note in outcome.notes), place.key)
        after.append(outcome.ruleset)
    if policy.reassemble and any(one is not other for one, other in zip(before, after)):
        after = list(ufw.kept_whole(after, policies))
    _prove(draft, family, after, policies)
    changed = [number for number, ruleset in enumerate(after) if ruleset is not before[number]]
    if not changed:
        return False
    _judge(draft, family, ufw.whole(before, family, policies, not untracked),
           ufw.whole(after, family, policies, False))
    for number in changed:
        content = format_ruleset(after[number]).encode("utf-8", "surrogateescape")
        write_file(draft, files[number].path, files[number].image, content,
                   "ufw loads rules from it that depend on conntrack")
    return True


def _prove(draft: Draft, family: str, after: list[RuleSet], policies: ufw.Policies) -> None:
    if draft.desired.mode == "unload" and draft.state.kernel is not None:
        text = format_ruleset(ufw.whole(after, family, policies, False))
        draft.proofs.append(ProveLoading(f"/etc/ufw ({family})", family, text,
                                         "rules that do not load under the block leave ufw's ports closed at boot"))


def _judge(draft: Draft, family: str, before: RuleSet, after: RuleSet) -> None:
    """What all files together let through otherwise, and that no port that must stay is closed."""
    from ..netfilter.stated import stated  # here: a boot with nothing to do needs none of it

    where = f"ufw, {family}"
    say_closed(draft, guard.closed_ports(before, after, guard.kept_ports(draft.desired, draft.state)), where,
               "'ufw allow' the port, or take it out of guard.keep")
    say_difference(draft, stated(before, after), (), Place(where, where, str))


def _keep_from_tracking(draft: Draft, defaults: FoundFile) -> None:
    text = decoded(planned(draft, DEFAULTS, defaults.image).content)
    content = f"{text}{'' if text.endswith(chr(10)) or not text else chr(10)}{UNTRACKED}"
    write_file(draft, DEFAULTS, defaults.image, content.encode("utf-8", "surrogateescape"),
               "ufw adds rules that track what a policy of ACCEPT lets out")


def _what_ufw_does_later(draft: Draft, conf: FoundFile) -> Item:
    """The ``ufw`` command writes its logging rules and ``ufw limit`` anew, with connection states."""
    quiet = _value(conf, "LOGLEVEL").lower() == "off"
    what = "'ufw limit' writes" if quiet else "'ufw allow', 'limit', 'logging', 'enable' and 'reload' write"
    risk = "; the next start of ufw could not load them under the block" if draft.desired.mode == "unload" else ""
    tip = "" if quiet else ", and after 'ufw logging off' only 'ufw limit' does"
    return Item("ufw:later", "/etc/ufw/user.rules", f"{what} rules with connection states back into user.rules{risk}",
                f"run 'cloudinit-conntrack apply' after such a command ('verify' tells){tip}")
