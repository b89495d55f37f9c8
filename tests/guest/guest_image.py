"""The disk image of a full guest: Debian with systemd and cloud-init, built once and cached.

The cache's key is a hash over the recipe: the package list, the options, every file that
is put in.  Neither a date nor our own code is in it: what changes with each run (the
package under test, user-data) is laid over the image at the first boot (``full_guest.py``).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from .uml import HERE, GuestError

SUITE = "bookworm"
SIZE = "1200M"  # sparse; a third of it is used
PACKAGES = (
    "cloud-init",
    "dbus",
    "haproxy",
    "iproute2",
    "iptables",
    "kmod",
    "nftables",
    "openssh-server",
    "python3-jsonschema",
    "python3-yaml",
    "systemd",
    "systemd-sysv",
    "udev",
)
LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*")


@dataclass(frozen=True)
class Entry:
    """One file put into the image: a text, or a link when *link* is set."""

    path: str
    text: str = ""
    mode: int = 0o644
    link: str = ""


@dataclass(frozen=True)
class Recipe:
    """What an image is made from; *options* are mmdebstrap's.

    *brought*: files of this machine, each with its path in the image; an ``.ext4`` is brought as a tree.
    *commands* run in the image when all is in it.
    """

    suite: str
    packages: tuple[str, ...]
    entries: tuple[Entry, ...]
    alternatives: tuple[tuple[str, str], ...] = ()
    options: tuple[str, ...] = ()
    brought: tuple[tuple[Path, str], ...] = ()
    commands: tuple[tuple[str, ...], ...] = ()


# Not needed in a guest that lives for a minute, each measured with systemd-analyze.
MASKED = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "systemd-tmpfiles-clean.timer",
    "getty@tty1.service",
    "getty-static.service",
    "cloud-init-hotplugd.socket",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "proc-sys-fs-binfmt_misc.automount",
    "systemd-binfmt.service",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-journal-flush.service",
    "systemd-random-seed.service",
    "systemd-update-utmp.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-machine-id-commit.service",
    "systemd-firstboot.service",
    "systemd-sysusers.service",
    "systemd-pstore.service",
    "systemd-logind.service",
    "systemd-repart.service",
    "kmod-static-nodes.service",
)

# Each costs a tenth of a second at the boot and at every daemon-reload.
MASKED_GENERATORS = (
    "systemd-cryptsetup-generator",
    "systemd-debug-generator",
    "systemd-getty-generator",
    "systemd-gpt-auto-generator",
    "systemd-hibernate-resume-generator",
    "systemd-integritysetup-generator",
    "systemd-rc-local-generator",
    "systemd-run-generator",
    "systemd-system-update-generator",
    "systemd-sysv-generator",
    "systemd-veritysetup-generator",
)

CLOUD_CONFIG = """\
# The guest's own settings: one datasource, and nothing that only costs time here.
datasource_list: [NoCloud]
ssh_genkeytypes: [ed25519]
no_ssh_fingerprints: true
ssh: {emit_keys_to_console: false}
users: []
locale: false
grub_dpkg: {enabled: false}
growpart: {mode: "off"}
resize_rootfs: false
"""

# Coldplug of the network devices alone: systemd-networkd waits for udev to know them.
UDEV_TRIGGER = """\
[Service]
ExecStart=
ExecStart=-udevadm trigger --action=add --subsystem-match=net
"""

# User-mode Linux has nf_tables without an address family: the legacy back end alone works.
ALTERNATIVES = (("iptables", "/usr/sbin/iptables-legacy"), ("ip6tables", "/usr/sbin/ip6tables-legacy"))


def _from_here(name: str, path: str, mode: int) -> Entry:
    return Entry(path, (HERE / "image" / name).read_text(), mode)


def entries() -> tuple[Entry, ...]:
    """Every file that the recipe adds to the packages."""
    wants = "/etc/systemd/system/{}.wants/{}"
    return (
        _from_here("guest-init", "/usr/sbin/guest-init", 0o755),
        _from_here("guest-agent", "/usr/sbin/guest-agent", 0o755),
        _from_here("guest-agent.service", "/etc/systemd/system/guest-agent.service", 0o644),
        Entry(wants.format("sysinit.target", "guest-agent.service"), link="../guest-agent.service"),
        Entry(
            wants.format("multi-user.target", "systemd-networkd.service"),
            link="/usr/lib/systemd/system/systemd-networkd.service",
        ),
        Entry(
            wants.format("network-online.target", "systemd-networkd-wait-online.service"),
            link="/usr/lib/systemd/system/systemd-networkd-wait-online.service",
        ),
        Entry("/etc/systemd/system/systemd-udev-trigger.service.d/net.conf", UDEV_TRIGGER),
        Entry("/etc/cloud/cloud.cfg.d/90_guest.cfg", CLOUD_CONFIG),
        Entry("/etc/cloud/ds-identify.cfg", "policy: enabled\n"),
        Entry("/etc/sysctl.d/90-guest.conf", "net.ipv6.conf.default.accept_dad = 0\n"),
        Entry("/etc/fstab", ""),
        Entry("/etc/machine-id", "5f0c1b1e4d0a4f6f9d3b6a2c7e8d9f10\n"),
        *(Entry(f"/etc/systemd/system/{unit}", link="/dev/null") for unit in MASKED),
        *(Entry(f"/etc/systemd/system-generators/{name}", link="/dev/null") for name in MASKED_GENERATORS),
    )


def own() -> Recipe:
    """The guests of user-mode Linux, and the root that ``qemu.py`` runs scripts on."""
    return Recipe(SUITE, PACKAGES, entries(), ALTERNATIVES)


def _mmdebstrap(root: Path, recipe: Recipe) -> list[str]:
    command = ["mmdebstrap", "--quiet", "--variant=essential", f"--include={','.join(recipe.packages)}"]
    command += ["--dpkgopt=force-unsafe-io", '--aptopt=Apt::Install-Recommends "false"']
    command += [f"--dpkgopt=path-exclude={path}" for path in LEFT_OUT]
    return [*command, *recipe.options, recipe.suite, str(root)]


def _mkfs(root: Path, image: Path) -> list[str]:
    # No journal: the guest is always powered off in order, or thrown away.
    return ["mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-m", "0", "-d", str(root), str(image), SIZE]


def key(recipe: Recipe) -> str:
    """A hash of all that the image is made from."""
    nowhere = Path("/")
    made_from = (_mmdebstrap(nowhere, recipe), _mkfs(nowhere, nowhere), recipe.alternatives, recipe.entries,
                 *(path for _, path in recipe.brought), *recipe.commands)  # fmt: skip
    return hashlib.sha256(repr(made_from).encode()).hexdigest()[:20]


def cache_directory() -> Path:
    """Where images are kept: ``$XDG_CACHE_HOME`` or ``~/.cache``, then ``cloudinit-conntrack``."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "cloudinit-conntrack"


def image(say: Callable[[str], None] = lambda text: None, recipe: Recipe | None = None) -> Path:
    """The cached image of *recipe* (:func:`own`), built first where needed (half a minute and a download).

    *say* is told what is going on.  Two builders at once: the second waits for the first.
    Raises :class:`GuestError` when a tool is missing or fails.
    """
    recipe = recipe or own()
    path = cache_directory() / f"guest-{key(recipe)}.ext4"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            _build(path, recipe, say)
    return path


def _build(path: Path, recipe: Recipe, say: Callable[[str], None]) -> None:
    # Next to the cache, not in /tmp: that may be mounted nodev or be small.
    with tempfile.TemporaryDirectory(prefix="build-", dir=path.parent) as work:
        root = Path(work) / "root"
        say(f"building a Debian guest ({recipe.suite}, {len(recipe.packages)} packages and what they need)")
        _run(_mmdebstrap(root, recipe))
        for name, target in recipe.alternatives:
            _run(["chroot", str(root), "update-alternatives", "--quiet", "--set", name, target])
        for keyfile in (root / "etc/ssh").glob("ssh_host_*"):
            keyfile.unlink()  # cloud-init makes a host's own
        for source, place in recipe.brought:
            _bring(source, root / place.lstrip("/"))
        for entry in recipe.entries:
            _put(root, entry)
        for command in recipe.commands:
            _run(["chroot", str(root), *command])
        say("making its disk")
        _run(_mkfs(root, Path(work) / "image"))
        os.rename(Path(work) / "image", path)


def _bring(source: Path, target: Path) -> None:
    if source.suffix != ".ext4":
        shutil.copyfile(source, target)
        return
    target.mkdir(parents=True)
    _run(["debugfs", "-R", f"rdump / {target}", str(source)])
    (target / "lost+found").rmdir()


def _put(root: Path, entry: Entry) -> None:
    target = root / entry.path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink() or target.exists():
        target.unlink()
    if entry.link:
        target.symlink_to(entry.link)
    else:
        target.write_text(entry.text)
        target.chmod(entry.mode)


def _run(command: list[str]) -> None:
    if shutil.which(command[0]) is None:
        raise GuestError(f"{command[0]} is missing: apt-get install mmdebstrap e2fsprogs")
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode:
        raise GuestError(f"{command[0]} failed with status {done.returncode}:\n{done.stderr[-3000:]}")
