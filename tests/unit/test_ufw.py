"""ufw's files: what becomes of each, and of the whole that ufw-init loads; judged by words and by a real restore."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from fakehost import FakeHost, fake_host
from surrounded import ABSENT, Surrounded, ids

from cloudinit_conntrack.actions import ProveLoading
from cloudinit_conntrack.host import rules
from cloudinit_conntrack.netfilter import ufw
from cloudinit_conntrack.netfilter.iptables import parse_ruleset
from cloudinit_conntrack.netfilter.ruleset import format_ruleset
from cloudinit_conntrack.planning.ufw import UNTRACKED

__all__ = ["fake_host"]

# Written for these tests in the shape of ufw 0.36's files, much shorter.
BEFORE = """\
# our own shape of before.rules
*filter
:ufw-before-input - [0:0]
:ufw-before-output - [0:0]
:ufw-before-forward - [0:0]
:ufw-not-local - [0:0]
-A ufw-before-input -i lo -j ACCEPT
-A ufw-before-output -o lo -j ACCEPT

# connections
-A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-output -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-input -m conntrack --ctstate INVALID -j ufw-logging-deny
-A ufw-before-input -m conntrack --ctstate INVALID -j DROP
-A ufw-before-input -j ufw-not-local
-A ufw-not-local -m addrtype --dst-type LOCAL -j RETURN
-A ufw-not-local -j DROP

# the end
COMMIT
"""
AFTER = """\
*filter
:ufw-after-input - [0:0]
-A ufw-after-input -p udp --dport 137 -j ufw-skip-to-policy-input
COMMIT
"""
USER = """\
*filter
:ufw-user-input - [0:0]
:ufw-logging-deny - [0:0]
:ufw-user-limit - [0:0]
:ufw-user-limit-accept - [0:0]
### RULES ###

### tuple ### allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in
-A ufw-user-input -p tcp --dport 22 -j ACCEPT

### tuple ### limit tcp 80 0.0.0.0/0 any 0.0.0.0/0 in
-A ufw-user-input -p tcp --dport 80 -m conntrack --ctstate NEW -m recent --set
-A ufw-user-input -p tcp --dport 80 -m conntrack --ctstate NEW -m recent --update --hitcount 6 -j ufw-user-limit
-A ufw-user-input -p tcp --dport 80 -j ufw-user-limit-accept

### tuple ### allow udp 9443 0.0.0.0/0 any 0.0.0.0/0 in
-A ufw-user-input -p udp --dport 9443 -j ACCEPT
### END RULES ###
-I ufw-logging-deny -m conntrack --ctstate INVALID -j RETURN -m limit --limit 3/min --limit-burst 10
-A ufw-logging-deny -j LOG --log-prefix "[UFW BLOCK] " -m limit --limit 3/min --limit-burst 10
-A ufw-user-limit -j REJECT
-A ufw-user-limit-accept -j ACCEPT
COMMIT
"""
DEFAULTS = 'IPV6=no\nDEFAULT_INPUT_POLICY="DROP"\nDEFAULT_OUTPUT_POLICY="ACCEPT"\nDEFAULT_FORWARD_POLICY="DROP"\n'
FILES = {"/etc/ufw/before.rules": BEFORE, "/etc/ufw/after.rules": AFTER, "/etc/ufw/user.rules": USER}


def a_host(host: FakeHost, conf: str = "ENABLED=yes\nLOGLEVEL=low\n", defaults: str = DEFAULTS) -> Surrounded:
    for path, text in FILES.items():
        host.write(path, text, 0o640)
    host.write("/etc/ufw/ufw.conf", conf)
    host.write("/etc/default/ufw", defaults)
    here = Surrounded(host)
    here.enable("ufw.service")
    return here


def changed(before: str, after: str) -> tuple[list[str], list[str]]:
    """Lines only in *before*, and only in *after*."""
    old, new = before.splitlines(), after.splitlines()
    return [x for x in old if x not in new], [x for x in new if x not in old]


def test_each_file_is_rewritten_in_its_place(fake_host: FakeHost) -> None:
    here = a_host(fake_host)
    plan = here.plan("stateless")
    after = here.mend(plan, *FILES)
    gone, come = changed(BEFORE, after["/etc/ufw/before.rules"])
    assert len(gone) == 5 and all("conntrack" in line for line in gone)
    assert not [line for line in come if "conntrack" in line]
    assert after["/etc/ufw/after.rules"] == AFTER
    gone, come = changed(USER, after["/etc/ufw/user.rules"])
    assert len(gone) == 3 and all("conntrack" in line for line in gone)
    assert [line.split()[:2] for line in come] == [["-A", "ufw-user-input"]] * 2 + [["-A", "ufw-logging-deny"]] * 2
    assert all("--tcp-flags FIN,SYN,RST,ACK SYN -m recent" in line for line in come[:2])
    again = here.plan("stateless")
    assert again.actions == () and again.widenings == ()


def test_what_is_served_in_one_file_is_answered_by_another(fake_host: FakeHost) -> None:
    """UDP 9443 is named in user.rules; before.rules lets its answers out."""
    here = a_host(fake_host)
    text = here.mend(here.plan("stateless"), "/etc/ufw/before.rules")["/etc/ufw/before.rules"]
    assert "-A ufw-before-output -p udp -m udp --sport 9443 -j ACCEPT" in text.splitlines()
    assert not [line for line in text.splitlines() if "9443" in line and "before-input" in line]


def test_undone_byte_for_byte(fake_host: FakeHost) -> None:
    here = a_host(fake_host)
    plan = here.plan("stateless")
    here.mend(plan)
    here.undo(plan)
    for path, text in {**FILES, "/etc/default/ufw": DEFAULTS}.items():
        assert fake_host.read(path) == text


def test_the_policy_line_is_what_a_shell_makes_of_it(fake_host: FakeHost, tmp_path: Path) -> None:
    """ufw-init's two uses of the policy: compared with ACCEPT, and handed to printf unquoted."""
    shell = ('. "$1"; [ "$DEFAULT_OUTPUT_POLICY" = ACCEPT ] && echo tracks\n'
             '[ "$DEFAULT_INPUT_POLICY" = DROP ] && echo drops\n'
             'printf ":OUTPUT %s [0:0]\\n:INPUT %s [0:0]\\n" $DEFAULT_OUTPUT_POLICY $DEFAULT_INPUT_POLICY')  # fmt: skip
    here = a_host(fake_host)
    text = here.mend(here.plan("stateless"), "/etc/default/ufw")["/etc/default/ufw"]
    assert text == DEFAULTS + UNTRACKED
    results = []
    for content in (DEFAULTS, text):
        (tmp_path / "defaults").write_text(content)
        done = subprocess.run(["/bin/sh", "-euc", shell, "sh",
                               str(tmp_path / "defaults")], capture_output=True, text=True, check=False)  # fmt: skip
        results.append(done.stdout)
    assert results[0].startswith("tracks\n") and not results[1].startswith("tracks\n")
    assert results[1].endswith("drops\n:OUTPUT ACCEPT [0:0]\n:INPUT DROP [0:0]\n")


@pytest.mark.parametrize("policy", ["DROP", "REJECT"])
def test_no_policy_line_where_nothing_is_accepted_by_default(fake_host: FakeHost, policy: str) -> None:
    here = a_host(fake_host, defaults=DEFAULTS.replace("ACCEPT", policy))
    assert "file:/etc/default/ufw" not in {a.id for a in here.plan("stateless").actions}


@pytest.mark.parametrize("conf", ["ENABLED=no\n", "# ENABLED=yes\n", ""])
def test_not_enabled_is_left_alone(fake_host: FakeHost, conf: str) -> None:
    assert a_host(fake_host, conf).plan("stateless").actions == ()


def test_not_started_is_left_alone(fake_host: FakeHost) -> None:
    here = a_host(fake_host)
    (fake_host.tree / "etc/systemd/system/multi-user.target.wants/ufw.service").unlink()
    assert here.plan("stateless").actions == ()


def test_notrack_is_refused(fake_host: FakeHost) -> None:
    assert ids(a_host(fake_host).plan("notrack").blockers) == {"ufw"}


def test_a_policy_that_is_none_is_refused(fake_host: FakeHost) -> None:
    here = a_host(fake_host, defaults=DEFAULTS.replace("ACCEPT", "accept"))
    assert ids(here.plan("stateless").blockers) == {"ufw:policy"}


def test_nat_in_before_rules_is_refused_with_its_place(fake_host: FakeHost) -> None:
    here = a_host(fake_host)
    nat = "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -o eth0 -j MASQUERADE\nCOMMIT\n"
    fake_host.write("/etc/ufw/before.rules", nat + BEFORE)
    (blocker,) = here.plan("stateless").blockers
    assert blocker.where == "/etc/ufw/before.rules: table nat, chain POSTROUTING, rule 1"


def test_ssh_that_must_stay_reachable_is_seen_through_all_files(fake_host: FakeHost) -> None:
    """Port 22 is opened in user.rules, behind before.rules: no port is lost by the rewrite."""
    assert a_host(fake_host).plan("conntrack: {mode: stateless, guard: {keep: [22, 80]}}").blockers == ()


def test_no_handshake_is_let_in_and_the_widenings_are_said(fake_host: FakeHost) -> None:
    plan = a_host(fake_host).plan("stateless")
    said = [item.reason for item in plan.widenings]
    assert any("TCP segments with ACK or RST set" in text for text in said)
    assert not any("handshake" in text for text in said)


def test_a_later_ufw_command_is_warned_of(fake_host: FakeHost) -> None:
    (told,) = [x for x in a_host(fake_host).plan("stateless").findings if x.id == "ufw:later"]
    assert "ufw logging off" in told.remedy and "block" not in told.reason
    (told,) = [x for x in a_host(fake_host).plan("unload").findings if x.id == "ufw:later"]
    assert "under the block" in told.reason
    (told,) = [x for x in a_host(fake_host, "ENABLED=yes\nLOGLEVEL=off\n").plan("stateless").findings
               if x.id == "ufw:later"]
    assert told.reason.startswith("'ufw limit' writes") and "logging off" not in told.remedy


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_the_whole_loads_by_the_real_restore(
    fake_host: FakeHost, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What unload proves before it blocks: one text, loaded in a namespace of its own."""
    suffix = "" if family == "ipv4" else "6"
    here = a_host(fake_host, defaults=DEFAULTS.replace("no", "yes"))
    for path, text in FILES.items():
        text = text.replace("0.0.0.0/0", "::/0").replace("ufw-", "ufw6-") if suffix else text
        fake_host.write(path.replace(".rules", f"{suffix}.rules"), text)
    plan = here.plan("unload", ABSENT)
    (proof,) = [a for a in plan.actions if isinstance(a, ProveLoading) and a.family == family]
    monkeypatch.setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
    assert rules.load_in_private_namespace(proof.text, family) is None
    before = ufw.whole([parse_ruleset(t, family) for t in FILES.values()], family, ufw.Policies(), True)
    assert "conntrack" in format_ruleset(before) and "conntrack" not in proof.text


REAL = Path("/work/shared/real")


@pytest.mark.skipif(not REAL.is_dir(), reason="real files are not part of the project; the cases above are our own")
@pytest.mark.parametrize(
    ("before", "before6", "defaults"),
    [("ufw-0.36.2-before.rules", "ufw-0.36.2-before6.rules", "ufw-0.36.2-default-ufw"),
     ("ufw-before.rules-netwalker", "ufw-before6.rules-netwalker", "default-ufw-netwalker")],
)  # fmt: skip
def test_real_files(
    fake_host: FakeHost, before: str, before6: str, defaults: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of Debian 12, and of a device of 2009 (-m state, NEW in the files): rewritten, and loaded as one."""
    here = a_host(fake_host, defaults=(REAL / defaults).read_text())
    fake_host.write("/etc/ufw/before.rules", (REAL / before).read_bytes())
    fake_host.write("/etc/ufw/before6.rules", (REAL / before6).read_bytes())
    plan = here.plan("unload")
    assert plan.blockers == ()
    monkeypatch.setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
    for proof in (action for action in plan.actions if isinstance(action, ProveLoading)):
        assert rules.load_in_private_namespace(proof.text, proof.family) is None
        assert "conntrack" not in proof.text and "--state" not in proof.text
