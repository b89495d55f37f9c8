"""A Debian 12 disk such as clouds give: a boot loader, a kernel of its own, cloud-init, sshd; and haproxy.

Made from packages as the other guests' images are (``guest_image.py``) and cached with them; nothing of ours is in
it.  Its saved rules are stateful, and it has what every image must lose: a machine-id.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from .debians import APPEND, COMMON, HOST, NEEDLESS, OPTIONS
from .full_stories import NFT
from .guest_image import MASKED, MASKED_GENERATORS, Entry, Recipe, image
from .uml import GuestError

MACHINE_ID = "5f0c1b1e4d0a4f6f9d3b6a2c7e8d9f10"
PACKAGES = (*COMMON, "apt", "initramfs-tools", "linux-image-cloud-amd64", "netbase", "nftables", "sudo")
GRUB = Path("/usr/lib/grub/i386-pc/boot.img")
# grub-mkimage(1): what it takes to read /boot/grub/grub.cfg and a kernel from an ext4 in a partition.
GRUB_MODULES = ("biosdisk", "part_msdos", "ext2", "normal", "configfile", "linux")
GRUB_CFG = f"""\
set timeout=0
menuentry Debian {{
    linux /vmlinuz root=/dev/vda1 rw console=ttyS0 quiet {APPEND}
    initrd /initrd.img
}}
"""
START = 1 << 20  # of the one partition, in bytes
SECTOR = 512

CLOUD_CFG = """\
datasource_list: [NoCloud, None]
ssh_genkeytypes: [ed25519]
locale: false
grub_dpkg: {enabled: false}
growpart: {mode: "off"}
resize_rootfs: false
"""
HAPROXY = """\
global
    maxconn 100
defaults
    mode http
    timeout connect 9s
    timeout client 9s
    timeout server 9s
frontend web
    bind :::80 v4v6
    http-response set-header server haproxy
    default_backend page
backend page
    server page 127.0.0.1:9000
"""
PAGE_UNIT = """\
[Unit]
Description=The server behind haproxy

[Service]
ExecStart=/usr/bin/python3 -m http.server 9000 --bind 127.0.0.1 --directory /srv
"""
# These make an image's clones differ from one another, so they stay.
IDENTITY = ("systemd-machine-id-commit.service", "systemd-firstboot.service", "systemd-random-seed.service")


def recipe() -> Recipe:
    """The tree of the one partition."""
    wants = "/etc/systemd/system/{}.wants/{}"
    system = "/usr/lib/systemd/system/"
    networkd, online = "systemd-networkd.service", "systemd-networkd-wait-online.service"
    found = (
        Entry("/boot/grub/grub.cfg", GRUB_CFG),
        Entry("/etc/initramfs-tools/conf.d/guest", "MODULES=list\n"),
        Entry("/etc/initramfs-tools/modules", "virtio_pci\nvirtio_blk\next4\n"),
        Entry("/etc/cloud/cloud.cfg.d/90_base.cfg", CLOUD_CFG),
        Entry("/etc/haproxy/haproxy.cfg", HAPROXY),
        Entry("/etc/nftables.conf", NFT),
        Entry(wants.format("sysinit.target", "nftables.service"), link=f"{system}nftables.service"),
        Entry(wants.format("multi-user.target", networkd), link=system + networkd),
        Entry(wants.format("network-online.target", online), link=system + online),
        Entry("/etc/systemd/system/page.service", PAGE_UNIT),
        Entry(wants.format("multi-user.target", "page.service"), link="../page.service"),
        Entry("/srv/index.html", "the base"),
        Entry("/etc/systemd/system.conf.d/slow.conf", HOST["/etc/systemd/system.conf.d/slow.conf"]),
        Entry("/etc/fstab", ""),
        Entry("/etc/machine-id", f"{MACHINE_ID}\n"),
        *(Entry(f"/etc/systemd/system/{unit}", link="/dev/null")
          for unit in (*MASKED, *NEEDLESS) if unit not in IDENTITY),
        *(Entry(f"/etc/systemd/system-generators/{name}", link="/dev/null") for name in MASKED_GENERATORS),
    )  # fmt: skip
    return Recipe("bookworm", PACKAGES, found, options=OPTIONS, commands=(("update-initramfs", "-u"),))


def disk(target: Path) -> None:
    """Write the raw disk to *target*: boot loader, partition table, the tree's file system.

    Raises :class:`GuestError` when a tool is missing.
    """
    if not GRUB.exists():
        raise GuestError("GRUB is missing: apt-get install grub-pc-bin")
    tree = image(recipe=recipe())
    words = ["dd", f"if={tree}", f"of={target}", f"bs={START}", "seek=1", "conv=sparse", "status=none"]
    subprocess.run(words, check=True, timeout=300)
    size = tree.stat().st_size
    os.truncate(target, START + size)
    core = target.with_suffix(".core")
    words = ["grub-mkimage", "-O", "i386-pc", "-o", str(core), "-p", "(hd0,msdos1)/boot/grub", *GRUB_MODULES]
    subprocess.run(words, check=True, timeout=60)
    with target.open("r+b") as file:
        file.write(GRUB.read_bytes()[:440] + bytes(6) + _partition(size) + bytes(48) + b"\x55\xaa" + core.read_bytes())
    core.unlink()


def _partition(size: int) -> bytes:
    """An entry of the MBR's table: active, Linux; first sector and number of sectors count, cylinders do not."""
    chs = b"\xfe\xff\xff"
    sectors = b"".join((number // SECTOR).to_bytes(4, "little") for number in (START, size))
    return b"\x80" + chs + b"\x83" + chs + sectors
