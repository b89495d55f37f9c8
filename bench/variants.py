"""The rule-sets that are compared, as balancers have them, and how each comes onto a site.

Every variant first proves itself: it serves, and conntrack sees its connections or does not.  Those that come out of
``apply`` have the stateful rules first, and conntrack has to see the connections before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import table
from bench.balancer import CLIENT, Site, site
from bench.load import Client, client
from bench.rules import HEAD, TAIL, saved_rules
from tests.netns.applying import Machine

FAMILIES = ("ipv4", "ipv6")
SMALL, LARGE = 10, 1000
STATE = "-m state --state RELATED,ESTABLISHED"
NEW = "-A INPUT -p tcp -m state --state NEW -m tcp --dport {port} -j ACCEPT"
WORDS = {"ipv4": ("icmp", "icmp-host-prohibited"), "ipv6": ("ipv6-icmp", "icmp6-adm-prohibited")}
PROOF = 0.1  # seconds of load that prove a variant
TRIES = 20
APPLIED: dict[str, dict[str, object]] = {"notrack": {}, "stateless": {}, "unload": {"fallback": "stateless"}}


@dataclass(frozen=True)
class Variant:
    """A rule-set on a balancer: *kind* is one of ``KINDS`` or ``apply MODE``."""

    kind: str
    rules: int = SMALL
    backend: str = "legacy"
    family: str = "ipv4"
    entries: int = 0  # in the table, before the rules are what the variant says
    limit: int = 0  # of the table, when they become so; 0: the machine's

    @property
    def tracked(self) -> bool:
        """Whether conntrack is to see the clients' connections."""
        return self.kind == "stateful"


@dataclass(frozen=True)
class Proof:
    """Seen before anything was measured: answers, and clients' connections that conntrack knew before and after.

    *table* is how many entries the table held then.
    """

    answers: int
    tracked_before: int
    tracked: int
    table: int


@dataclass(frozen=True)
class Ready:
    """A variant that has proved itself, and its client."""

    variant: Variant
    site: Site
    client: Client
    proof: Proof


def stateful(count: int, family: str) -> str:
    """*count* rules as CentOS wrote them, all but the last few ahead of the one that lets port 80 in."""
    icmp, reject = WORDS[family]
    own = [f"-A INPUT -p {icmp} -j ACCEPT", *(NEW.format(port=port) for port in (22, 443, 8404, 80))]
    if count > SMALL:
        made = saved_rules(count - len(own)).splitlines()[len(HEAD):-len(TAIL)]
    else:
        made = [NEW.format(port=port) for port in (3389, 8443)]
    end = [f"-A INPUT -j REJECT --reject-with {reject}", "COMMIT"]
    return "\n".join([*HEAD, *made, *own, *end]) + "\n"


def stateless(text: str) -> str:
    """The same by hand, as recipes do it: answers are what is no lone SYN, and no rule asks for a state."""
    return text.replace(f"{STATE} ", "-p tcp ! --syn ").replace("-m state --state NEW ", "").replace(
        "-m conntrack --ctstate NEW ", "")


def notrack(text: str) -> str:
    """The same with the four raw rules of each port by hand, and the filter's answer to them."""
    raw = [f"-A {chain} -p tcp -m tcp --{side} {port} -j NOTRACK"
           for port in (80, 8080) for chain in ("PREROUTING", "OUTPUT") for side in ("dport", "sport")]
    return "\n".join(["*raw", ":PREROUTING ACCEPT [0:0]", ":OUTPUT ACCEPT [0:0]", *raw, "COMMIT", ""]) + \
        text.replace(f"{STATE} ", f"{STATE},UNTRACKED ").replace("--state NEW -m tcp --dport 80 ",
                                                                 "--state NEW,UNTRACKED -m tcp --dport 80 ")


def _as_is(text: str) -> str:
    return text


KINDS: dict[str, Callable[[str], str]] = {
    "no rules": lambda text: "", "no rules again": lambda text: "",
    "stateful": _as_is, "NOTRACK by hand": notrack, "stateless by hand": stateless,
}  # fmt: skip


@contextmanager
def ready(variant: Variant, files: Path) -> Iterator[Ready]:
    """A site with the variant's rules and table, proved."""
    applied = variant.kind.startswith("apply ")
    with site(files) as made:
        # before any client: of a connection that is open already, conntrack may take the answer for the beginning
        _load(made, variant, KINDS["stateful" if applied else variant.kind])
        with client(made, variant.family) as calls:
            yield Ready(variant, made, calls, _prepared(made, calls, variant, applied))


def _prepared(made: Site, calls: Client, variant: Variant, applied: bool) -> Proof:
    """The proof of the variant; its table is full before ``apply`` is run."""
    if not applied:
        proof = _proved(made, calls, variant, 0)
        table.fill(made.balancer, variant.entries)
        return proof
    before = _tracked(made, calls, variant)
    made.balancer.forget_connections()
    table.fill(made.balancer, variant.entries)
    with table.limited(variant.limit):
        _apply(made, variant)
        return _proved(made, calls, variant, before)


def _load(made: Site, variant: Variant, rewritten: Callable[[str], str]) -> None:
    for family in FAMILIES:
        text = rewritten(stateful(variant.rules if family == variant.family else SMALL, family))
        if text:
            made.balancer.load_rules(text, variant.backend, family)


def _apply(made: Site, variant: Variant) -> None:
    """Our own command, on a host whose saved rules are those that are loaded."""
    files = made.files / "machine"
    files.mkdir()
    machine = Machine(made.balancer, variant.backend, files)
    machine.furnish()
    for family, name in zip(FAMILIES, ("rules.v4", "rules.v6")):
        machine.put(f"etc/iptables/{name}", made.balancer.save_rules(variant.backend, family))
    mode = variant.kind.split()[1]
    machine.run(0, "apply", "-c", machine.config(mode, **APPLIED[mode]))


def _tracked(made: Site, calls: Client, variant: Variant) -> int:
    """Clients' connections that conntrack saw in a burst."""
    _served(calls, variant)
    found = len(made.balancer.tracked(f"src={CLIENT[variant.family]}"))
    _must(found > 0, variant, "conntrack does not see what it is to see before apply")
    return found


def _proved(made: Site, calls: Client, variant: Variant, before: int) -> Proof:
    _forget(made, variant)  # connections that were open while the rules changed
    answers = _served(calls, variant)
    found = len(made.balancer.tracked(f"src={CLIENT[variant.family]}"))
    _must((found > 0) == variant.tracked, variant, f"conntrack knows {found} connections of the client")
    return Proof(answers, before, found, table.count(made.balancer))


def _served(calls: Client, variant: Variant) -> int:
    """Good answers in a burst; a busy machine may need some tries."""
    for _ in range(TRIES):
        seen = calls.window(PROOF)
        _must(not seen.bad, variant, f"{seen.bad} answers were not 200")
        if seen.good:
            return seen.good
    raise RuntimeError(f"{variant}: it serves nobody")


def _forget(made: Site, variant: Variant) -> None:
    """No entry of the client is left; those of the full table are."""
    for side in ("-s", "-r") if variant.entries else ():
        made.balancer.run("conntrack", "-D", "-f", variant.family, side, CLIENT[variant.family], check=False)
    if not variant.entries:
        made.balancer.forget_connections()


def _must(true: bool, variant: Variant, said: str) -> None:
    if not true:
        raise RuntimeError(f"{variant}: {said}")
