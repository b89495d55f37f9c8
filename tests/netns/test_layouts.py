"""Trees of Red Hat's layout: applied as an image, then loaded as their init script would, by the real restore.

The first case is ours; those of /work/shared/real are real distributions' files and run where
that folder is.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import reports

from . import rulesets
from .namespace import Namespace
from .topology import BACKENDS

CHECKOUT = Path(__file__).resolve().parents[2]
REAL = Path("/work/shared/real")
STATEFUL = re.compile(r"--state|--ctstate|conntrack|connmark|-j CT|NOTRACK")
SYSCONFIG = "etc/sysconfig"
CONFIG = """\
# Load additional iptables modules (nat helpers)
IPTABLES_MODULES="nf_conntrack_ftp xt_recent ip_nat_ftp"   # ours
IPTABLES_MODULES_UNLOAD="yes"
IPTABLES_SAVE_ON_STOP="yes"
"""
# name: IPv4 rules, IPv6 rules, iptables-config below /work/shared/real
LAYOUTS = {
    "el6": ("el6-system-config-firewall-ec2", "", "c6-iptables-config"),
    "el6-saved": ("el6-iptables-save-1.4.7", "", "c6-iptables-config"),
    "el7": ("c7-sysconfig_iptables", "c7-sysconfig_ip6tables", "c7-iptables-config"),
    "el8": ("el8-sysconfig-iptables", "el8-sysconfig-ip6tables", "el8-iptables-config"),
    "el9": ("el9-sysconfig-iptables", "el9-sysconfig-ip6tables", "el9-iptables-config"),
    "el5-style": ("el5style-amimoto-RH-Firewall", "", "planetlab-1.3.8-iptables-config"),
}


def tree(base: Path, ipv4: str, ipv6: str, config: str) -> Path:
    """A root with the files of iptables-services, its units enabled."""
    wants = base / "etc/systemd/system/basic.target.wants"
    for place in (base / SYSCONFIG, wants, base / "usr/lib/systemd/system"):
        place.mkdir(parents=True)
    for name, text in (("iptables", ipv4), ("ip6tables", ipv6), ("iptables-config", config)):
        if text:
            (base / SYSCONFIG / name).write_text(text)
    for unit in ("iptables.service", "ip6tables.service"):
        (base / "usr/lib/systemd/system" / unit).write_text("[Unit]\n")
        os.symlink(f"/usr/lib/systemd/system/{unit}", wants / unit)
    return base


def command(root: Path, verb: str, expected: int, *options: str) -> dict[str, list[dict[str, str]]]:
    words = [sys.executable, "-m", "cloudinit_conntrack", verb, "--root", str(root), "--format", "json", *options]
    done = subprocess.run(words, cwd=CHECKOUT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == expected, done.stdout + done.stderr
    return reports.read(done.stdout)


def apply(root: Path, mode: str) -> dict[str, list[dict[str, str]]]:
    section = root / "section.yaml"
    section.write_text(f"conntrack: {{mode: {mode}}}\n")
    return command(root, "apply", 0, "-c", str(section))


def everything(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in (root / "etc").rglob("*") if p.is_file()}


def judge(root: Path, ipv6: bool) -> None:
    """Apply, load what is saved with both back ends, look, and revert to every byte."""
    before = everything(root)
    for mode in ("stateless", "unload"):
        apply(root, mode)
        for family, name in (("ipv4", "iptables"), ("ipv6", "ip6tables"))[: 2 if ipv6 else 1]:
            text = (root / SYSCONFIG / name).read_text()
            for backend in BACKENDS:
                place = Namespace("boot")
                place.load_rules(text, backend, family)
                live = place.save_rules(backend, family)
                place.close()
                assert "-A INPUT" in live and not STATEFUL.search(live)
        assert command(root, "plan", 0)["actions"] == []
        command(root, "revert", 0)
        assert {path: content for path, content in everything(root).items() if path in before} == before


def test_our_own_layout(tmp_path: Path) -> None:
    rules = {family: rulesets.rules("centos-default", family) for family in ("ipv4", "ipv6")}
    root = tree(tmp_path, rules["ipv4"], rules["ipv6"], CONFIG)
    (root / SYSCONFIG / "iptables.fallback").write_text(rules["ipv4"])
    judge(root, ipv6=True)
    apply(root, "unload")
    config = (root / SYSCONFIG / "iptables-config").read_text()
    assert config == CONFIG.replace("nf_conntrack_ftp xt_recent ip_nat_ftp", "xt_recent")
    assert not STATEFUL.search((root / SYSCONFIG / "iptables.fallback").read_text())


@pytest.mark.skipif(not REAL.is_dir(), reason="real files are not part of the project; the case above is our own")
@pytest.mark.parametrize("name", LAYOUTS)
def test_real_layouts(tmp_path: Path, name: str) -> None:
    ipv4, ipv6, config = ((REAL / file).read_text() if file else "" for file in LAYOUTS[name])
    judge(tree(tmp_path, ipv4, ipv6, config), ipv6=bool(ipv6))
