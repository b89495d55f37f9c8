"""What happens on the whole Debians of ``test_full_debians.py``: the hosts, their boots, and what was looked at.

| host | firewall | boots |
|---|---|---|
| bullseye | netfilter-persistent, iptables; conntrack in the initramfs | first; second, with a newer kernel |
| bookworm | firewalld, which we refuse; then nftables.service instead | first, second |
| trixie | ufw | first, second |
| stock | bullseye's netfilter-persistent, an image that never sees our package: user-data carries it | first, second |
| baked | bookworm's nftables.service, in an image with ``apply --root`` | first |

The second boot reverts.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cloudinit_conntrack import userdata
from cloudinit_conntrack.config import desired_from_section

from .balancer import RULES, with_web
from .debians import Debian, bake, boot
from .outside import Outside
from .seed_case import without_counters
from .uml import QuickResult, Ran

SECTION = "conntrack:\n  mode: unload\n"
SEED = "/var/lib/cloud/seed/nocloud"
META = {f"{SEED}/meta-data": "instance-id: guest-1\nlocal-hostname: guest\n"}
FROM_USER_DATA = {**META, f"{SEED}/user-data": f"#cloud-config\n{SECTION}"}
KEPT = "/etc/cloud/cloud.cfg.d/95_conntrack.cfg"
FROM_CONFIG = {**META, f"{SEED}/user-data": "#cloud-config\n{}\n", KEPT: SECTION}

NFT = """\
#!/usr/sbin/nft -f

flush ruleset

table inet filter {
	chain input {
		type filter hook input priority filter; policy drop;
		ct state established,related accept
		ct state invalid drop
		iif "lo" accept
		meta l4proto { icmp, ipv6-icmp } accept
		tcp dport { 22, 80 } ct state new accept
	}
	chain forward {
		type filter hook forward priority filter;
	}
	chain output {
		type filter hook output priority filter;
	}
}
"""
ZONE = """\
<?xml version="1.0" encoding="utf-8"?>
<zone>
  <short>Public</short>
  <service name="ssh"/>
  <service name="http"/>
</zone>
"""
IPTABLES = "iptables-save; ip6tables-save"
NFTABLES = "nft -s list ruleset"


CARRIED = "/usr/local/sbin/cloudinit-conntrack"


def carried_user_data(section: dict[str, object]) -> str:
    """What ``userdata`` writes for *section*."""
    place = Path(userdata.__file__).parent / "carried"
    sources = {name: (place / name).read_text("utf-8") for name in userdata.FILES}
    return userdata.make_userdata(desired_from_section(section), section, sources).decode("ascii")


def iptables_rules(icmp: str, prohibited: str) -> str:
    return with_web(RULES.format(icmp=icmp, prohibited=prohibited))


BULLSEYE = Debian("bullseye", IPTABLES, {
    **FROM_USER_DATA,
    "/etc/iptables/rules.v4": iptables_rules("icmp", "icmp-host-prohibited"),
    "/etc/iptables/rules.v6": iptables_rules("ipv6-icmp", "icmp6-adm-prohibited"),
}, kernels=("bullseye", "bookworm"))  # fmt: skip
BOOKWORM = Debian("bookworm", NFTABLES, {
    **FROM_USER_DATA, "/etc/firewalld/zones/public.xml": ZONE, "/root/nftables.conf": NFT, "/root/section": SECTION,
})  # fmt: skip
TRIXIE = Debian(
    "trixie",
    IPTABLES,
    FROM_CONFIG,
    """\
ufw allow 22/tcp
ufw allow 80/tcp
sed -i s/^ENABLED=no/ENABLED=yes/ /etc/ufw/ufw.conf
""",
)
BAKED = Debian(
    "bookworm",
    NFTABLES,
    {**FROM_CONFIG, "/etc/nftables.conf": NFT},
    """\
systemctl disable firewalld.service
systemctl enable nftables.service
""",
)

STOCK = Debian("bullseye", IPTABLES, {
    **META, f"{SEED}/user-data": carried_user_data({"mode": "unload", "flows": {"frontends": [80]}}),
    "/etc/iptables/rules.v4": iptables_rules("icmp", "icmp-host-prohibited"),
    "/etc/iptables/rules.v6": iptables_rules("ipv6-icmp", "icmp6-adm-prohibited"),
}, stock=True)  # fmt: skip

BEFORE = """\
traffic before
look before
step before,files files
"""
FIRST = """\
uname -r
step cloudinit cloud-init --version
step stages cat /run/cloud-init/result.json
step status cloud-init status --long
look first
traffic first
step verify cc verify
"""
REFUSED = """\
# It takes its name on the bus, and so counts as started, before its rules are loaded.
n=0; until nft list ruleset | grep -q 'dport 80 accept'; do n=$((n + 1)); [ $n -lt 60 ] || break; sleep 1; done
traffic host
look host
step host,files files
"""
REPLACED = """\
step refusal cat /run/cloud-init/result.json
look refused
step refused,files files
traffic refused
step plan cc plan -c /root/section
systemctl disable --now firewalld.service
cp /root/nftables.conf /etc/nftables.conf
systemctl enable --now nftables.service
traffic before
look before
step before,files files
step apply cc apply -c /root/section
"""
EARLY = "look early\n"
SECOND = """\
uname -r
look second
traffic second
step firewall systemctl show -p ActiveState,Result,ExecMainStatus --value $FIREWALL
step service systemctl show -p ActiveState,Result --value cloudinit-conntrack.service
step order systemctl show -p ExecMainExitTimestampMonotonic --value cloudinit-conntrack.service
step network systemctl show -p ActiveEnterTimestampMonotonic --value network-pre.target
step journal journalctl -o cat -u cloudinit-conntrack.service
step modprobe modprobe nf_conntrack
step answer modprobe -n -v nf_conntrack
step stateful $STATEFUL
look blocked
step verify cc verify
"""
REVERT = """\
step revert cc revert
look end
step end,files files
traffic end
step left ls /var/lib/cloudinit-conntrack
"""

STATEFUL = {
    "netfilter-persistent": "iptables -A INPUT -m state --state NEW",
    "nftables": "nft add rule inet filter input ct state new accept",
    "ufw": "iptables -A INPUT -m conntrack --ctstate NEW",
}


@dataclass(frozen=True)
class Told:
    """The boots of one host, by name, and what this machine met at its ports meanwhile."""

    suite: str
    boots: Mapping[str, QuickResult]
    met: Mapping[str, Outside] = field(default_factory=dict)

    def step(self, name: str, boot: str) -> Ran:
        told = self.boots[boot]
        assert name in told.steps, f"no step {name}:\n{told.output}\n{told.console[-3000:]}"
        return told.steps[name]

    def trace(self, name: str, boot: str) -> set[str]:
        """Every module that this boot had loaded by then, once at least."""
        found = re.findall(r"module_load: (\S+)", self.step(f"{name},trace", boot).stdout)
        assert "overlay" in found, "the trace did not begin with the kernel"
        return set(found)

    def modules(self, name: str, boot: str) -> set[str]:
        return {line.split()[0] for line in self.step(f"{name},modules", boot).stdout.splitlines()}

    def rules(self, name: str, boot: str) -> list[str]:
        return without_counters(self.step(f"{name},rules", boot).stdout)

    def files(self, name: str, boot: str) -> str:
        """Without what systemd-update-done(8) writes at each boot."""
        lines = self.step(f"{name},files", boot).stdout.splitlines()
        return "\n".join(line for line in lines if "/etc/.updated" not in line)


class Host:
    """One host's boots, each told in turn."""

    def __init__(self, debian: Debian, firewall: str) -> None:
        self._debian = debian
        self._words = f"FIREWALL={firewall}.service STATEFUL='{STATEFUL[firewall]}'\n"
        self._boots: dict[str, QuickResult] = {}
        self._met: dict[str, Outside] = {}
        self._place = tempfile.TemporaryDirectory(prefix="debian-disk-")
        self.disk = Path(self._place.name) / "disk.tar"

    def bake(self, script: str) -> None:
        self._boots["image"] = bake(self._debian, self.disk, script)

    def boot(self, name: str, before: str, script: str, suite: str = "") -> None:
        outside = self._met[name] = Outside((22, 80))
        self._boots[name] = boot(self._debian, self.disk, before, self._words + script, suite, outside)

    def told(self) -> Told:
        self._place.cleanup()
        return Told(self._debian.suite, self._boots, self._met)


def bullseye() -> Told:
    host = Host(BULLSEYE, "netfilter-persistent")
    host.boot("first", BEFORE + "step before,images images\n", FIRST + "step first,images images\n")
    host.boot("second", EARLY, SECOND + REVERT + "step end,images images\n", "bookworm")
    return host.told()


def stock() -> Told:
    """No "before": cloud-init runs a boothook earlier than anything that could look; the trace tells."""
    host = Host(STOCK, "netfilter-persistent")
    host.boot("first", EARLY, FIRST.replace("cc verify", f"{CARRIED} verify"))
    second = SECOND.replace("cc verify", f"{CARRIED} verify")
    host.boot("second", EARLY, f"{second}step revert {CARRIED} revert\nlook end\ntraffic end\nstep rules cat "
              "/etc/iptables/rules.v4 /etc/iptables/rules.v6\n")
    return host.told()


def bookworm() -> Told:
    host = Host(BOOKWORM, "nftables")
    host.boot("first", REFUSED, REPLACED + FIRST)
    host.boot("second", EARLY, SECOND + REVERT)
    return host.told()


def trixie() -> Told:
    host = Host(TRIXIE, "ufw")
    host.boot("first", BEFORE, FIRST)
    host.boot("second", EARLY, SECOND + REVERT)
    return host.told()


def baked() -> Told:
    host = Host(BAKED, "nftables")
    host.bake(f"step apply cc_here apply --root /mnt -c {KEPT}\nstep verify cc_here verify --root /mnt\n")
    host.boot("first", EARLY, SECOND + FIRST)
    return host.told()
