"""The boot service: the text of its unit, what it is ordered against, what of it can be read back.

Pure; systemd.unit(5), systemd.service(5), systemd.special(7) "network-pre.target".
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from .state import Program

NAME = "cloudinit-conntrack.service"
UNIT = f"/etc/systemd/system/{NAME}"
PACKAGED = (f"/usr/lib/systemd/system/{NAME}", f"/lib/systemd/system/{NAME}")
LINK = f"/etc/systemd/system/sysinit.target.wants/{NAME}"
PACKAGED_LINKS = tuple(f"{path.rpartition('/')[0]}/sysinit.target.wants/{NAME}" for path in PACKAGED)

# What loads saved rules at boot, as distributions ship it: before network-pre.target, or (ufw
# 0.36 of Debian 11) with no default dependencies and before network.target.
FIREWALLS = ("netfilter-persistent.service", "nftables.service", "ufw.service", "firewalld.service", "ipset.service")
# Red Hat's names, which people also give to units of their own: trusted only where they are seen.
HAND_MADE = ("iptables.service", "ip6tables.service")

_MARK = "# Written by cloudinit-conntrack (conntrack.persist)"
_TEXT = _MARK + """; changes here are overwritten.
# To undo: run "cloudinit-conntrack revert".  The state it keeps: /var/lib/cloudinit-conntrack.
[Unit]
Description=Keep connection tracking as configured, before the network starts
ConditionPathExists=/var/lib/cloudinit-conntrack/desired.json
# The package was removed: rules stay as they are, and no boot has a failed unit.
ConditionPathExists={script}
RequiresMountsFor=/var/lib/cloudinit-conntrack {script}
# Behind whatever loads saved rules, so that it sees them; before the first packet.
DefaultDependencies=no
After=local-fs.target systemd-modules-load.service{after}
Wants=network-pre.target
Before=network-pre.target cloud-init-local.service
Conflicts=shutdown.target
Before=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
SyslogIdentifier=cloudinit-conntrack
# Without "site": the packages of this Python are not needed, and what they run at every start takes time.
ExecStart={python} -I -S {script} apply
# The network waits for us, but not for ever: an initramfs may have to be written.  Python rolls back on SIGINT.
TimeoutStartSec=660
KillSignal=SIGINT
KillMode=mixed
# What stays open is for update-initramfs and dracut, which we may have to run (AF_ALG: encrypted disks).
ProtectHome=read-only
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictNamespaces=net
RestrictAddressFamilies=AF_UNIX AF_NETLINK AF_INET AF_INET6 AF_ALG
SystemCallArchitectures=native
SystemCallFilter=~@clock @cpu-emulation @debug @obsolete @raw-io @reboot @swap
SystemCallErrorNumber=EPERM
# Rules, modules, other network namespaces (and whose they are), files of any owner.
CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW CAP_SYS_MODULE CAP_SYS_ADMIN CAP_SYS_PTRACE CAP_KILL CAP_MKNOD
CapabilityBoundingSet=CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_FSETID CAP_CHOWN CAP_SETFCAP CAP_MAC_ADMIN

[Install]
WantedBy=sysinit.target
"""
_PLAIN = re.compile(r"/[A-Za-z0-9._/+-]+")  # needs no quoting in a unit


def unit_text(program: Program, after: tuple[str, ...]) -> str:
    """The unit that runs *program* behind the units *after*."""
    return _TEXT.format(python=program.python, script=program.script, after="".join(f" {name}" for name in after))


def is_ours(text: str) -> bool:
    """Whether we wrote this unit; another one under the same name is the administrator's."""
    return text.startswith(_MARK)


def program_of(text: str) -> Program | None:
    """The program that a unit of ours runs, or ``None``."""
    for key, value in _settings(text):
        words = value.split()
        if key == "ExecStart" and len(words) > 3 and words[-1] == "apply":
            return Program(words[0], words[-2])
    return None


def can_be_written(program: Program) -> bool:
    """Whether the paths of *program* stand in a unit as they are."""
    return all(_PLAIN.fullmatch(path) for path in (program.python, program.script))


def comes_early(text: str) -> bool:
    """Whether a unit is ordered before the network by itself.

    Only then may we stand between it and network-pre.target: a service that starts later,
    as one with default dependencies does beside cloud-init, would close a cycle.
    """
    before: set[str] = set()
    defaults = True
    for key, value in _settings(text):
        if key == "Before":
            before.update(value.split())
        elif key == "DefaultDependencies":
            defaults = value.lower() not in ("no", "false", "off", "0")
    return "network-pre.target" in before or (not defaults and "network.target" in before)


def _settings(text: str) -> Iterator[tuple[str, str]]:
    for line in text.replace("\\\n", " ").splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith(("#", ";")):
            yield key.strip(), value.strip()
