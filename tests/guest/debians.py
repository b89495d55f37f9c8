"""Whole Debian systems in QEMU: the suite's own kernel, systemd, cloud-init, iptables and firewall.

The first process of ``qemu.py`` becomes systemd.  Beside the host stands another one, a network
namespace behind a veth pair: 10.93.0.1 and fd93::1; the host has 10.93.0.2 and fd93::2.
``/root/before`` runs as cloud-init's config stage begins, the script of a boot when all stages are over.
"""

from __future__ import annotations

import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from . import initramfs, layer
from .guest_image import CLOUD_CONFIG, MASKED, MASKED_GENERATORS, UDEV_TRIGGER, Entry, Recipe, image
from .guest_image import SUITE as OWN_SUITE
from .kernels import Kernel, kernel
from .outside import Outside
from .qemu import Machine, run_qemu
from .uml import PRELUDE, QuickResult

COMMON = (
    "ca-certificates", "cloud-init", "dbus", "haproxy", "iproute2", "kmod", "openssh-server", "procps",
    "python3-jsonschema", "python3-yaml", "systemd", "systemd-sysv", "udev",
)  # fmt: skip
FIREWALLS = {
    "bullseye": ("iptables", "iptables-persistent", "netfilter-persistent", "usrmerge"),  # later suites are merged
    "bookworm": ("firewalld", "netbase", "nftables"),  # and no iptables at all
    "trixie": ("ufw",),
}
# bullseye outlives the date in its Release file.
OPTIONS = ('--aptopt=Acquire::Check-Valid-Until "false"',)
# Every module that the kernel loads from its first moment on goes to /sys/kernel/tracing/trace.
APPEND = "trace_event=module:module_load net.ifnames=0 systemd.show_status=no random.trust_cpu=on mitigations=off"
# Under load the kernel may find its timer dead, and stop.
APPEND += " no_timer_check"
BY_DEBIAN = " boot=guest root=guest init=/usr/sbin/guest-second"  # for its own initramfs: see debian-boot
SECOND = """\
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C TERM=dumb
cd /root
steps=/run/guest/share/steps
mkdir -p $steps
cat /proc/modules >$steps/start,modules.out 2>$steps/start,modules.err
echo $? >$steps/start,modules.status
cp -a /run/guest/share/files/. /
[ -e /root/prepare ] && sh -ex /root/prepare >/run/guest/share/prepare.log 2>&1
rm -f /root/prepare
exec /sbin/init
"""
STORY_UNIT = """\
[Unit]
Description=What the tests look at
After=cloud-final.service cloudinit-conntrack.service

[Service]
Type=oneshot
Environment=HOME=/root LC_ALL=C TERM=dumb PATH=/usr/sbin:/usr/bin:/sbin:/bin
WorkingDirectory=/root
ExecStart=/bin/sh /run/guest/share/end
"""
BEFORE = """\
[Unit]
After=ssh.service haproxy.service far.service netfilter-persistent.service nftables.service ufw.service
After=firewalld.service

[Service]
ExecStartPre=/bin/sh /root/before
"""
FAR_UNIT = """\
[Unit]
Description=The host at the other end
After=network-pre.target

[Service]
ExecStartPre=/bin/sh -ex /root/far
ExecStart=ip netns exec out /usr/bin/python3 /root/server.py
"""
FAR = """\
ip netns add out
ip link add veth0 type veth peer name veth1
ip link set veth1 netns out
ip address add 10.93.0.2/24 dev veth0
ip -6 address add fd93::2/64 dev veth0 nodad
ip link set veth0 up
ip -n out link set lo up
ip -n out address add 10.93.0.1/24 dev veth1
ip -n out -6 address add fd93::1/64 dev veth1 nodad
ip -n out link set veth1 up
modprobe virtio_net
until [ -e /sys/class/net/eth0 ]; do sleep 0.2; done
ip address add 10.0.2.15/24 dev eth0
ip link set eth0 up
"""
# The page comes from the other host: haproxy is a client, too.
HAPROXY = """\
global
    maxconn 100
defaults
    mode http
    timeout connect 9s
    timeout client 9s
    timeout server 9s
frontend web
    bind 0.0.0.0:80
    bind 0.0.0.0:8404
    http-response set-header server haproxy
    default_backend far
frontend web6
    bind :::80 v6only
    bind :::8404 v6only
    http-response set-header server haproxy
    default_backend far6
backend far
    server far 10.93.0.1:9000
backend far6
    server far6 fd93::1:9000
"""
FAR_SERVER = """\
import http.server, socket, threading
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"the far host asked by " + self.client_address[0].encode())
    def log_message(self, *words):
        pass
class Six(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
threading.Thread(target=Six(("fd93::1", 9000), Page).serve_forever).start()
http.server.ThreadingHTTPServer(("10.93.0.1", 9000), Page).serve_forever()
"""
# Says for each ADDRESS-PORT what a client there gets: the first line, the server's name, the last line.
CLIENT = """\
import re, socket, sys, threading
def ask(name, answers):
    address, _, port = name.rpartition("-")
    try:
        with socket.create_connection((address, int(port)), 5) as connection:
            connection.settimeout(20)
            connection.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
            text = connection.recv(1000).decode()
            while text.startswith("HTTP"):
                more = connection.recv(1000).decode()
                if not more: break
                text += more
            lines = text.split("\\r\\n")
            server = re.search(r"server: (\\S*)", text, re.IGNORECASE)
            answers[name] = " ".join((lines[0], server[1] if server else "-", lines[-1]))
    except OSError as error:
        answers[name] = f"shut: {error}"
answers = {}
threads = [threading.Thread(target=ask, args=(name, answers)) for name in sys.argv[1:]]
for thread in threads: thread.start()
for thread in threads: thread.join()
for name in sys.argv[1:]: print(name, answers[name])
"""
WORDS = (
    PRELUDE
    + """\
cc() { verb=$1; shift; cloudinit-conntrack $verb --format json "$@"; }
cc_here() { /usr/bin/python3 -m cloudinit_conntrack "$@" --format json; } # this checkout's, where it is on PYTHONPATH
files() {
    find /etc -type f -exec sha256sum {} + | sort -k2
    # Whole seconds, and no time of links: the tar that is the disk between two boots keeps no more.
    find /etc /usr /boot -xdev \\( -name __pycache__ -o -path /usr/lib/modules -o -name 'initrd.img-*' \\
        -o -name guest-second \\) -prune -o -type f -printf '%p mode=%m owner=%U:%G mtime=%Ts\\n' \\
        -o -type l -printf '%p owner=%U:%G link=%l\\n' | sort
}
images() {
    for image in /boot/initrd.img-*; do echo "$image: $(lsinitramfs "$image" | sort | tr '\\n' ' ')"; done
}
trace() {
    mountpoint -q /sys/kernel/tracing || mount -t tracefs tracefs /sys/kernel/tracing
    cat /sys/kernel/tracing/trace
}
look() {
    step "$1,trace" trace; step "$1,modules" cat /proc/modules; step "$1,kernel" journalctl -k -o cat
    step "$1,rules" rules; step "$1,failed" systemctl --failed --plain --no-legend
}
traffic() {
    n=0; until ip netns exec out ss -Hltn 'sport = :9000' | grep -q fd93; do
        n=$((n + 1)); [ $n -lt 60 ] || break; sleep 0.5; done
    set -- $1 10.93.0.2 fd93::2
    step "$1,in" ip netns exec out python3 /root/client.py $2-22 $2-80 $2-8404 $3-22 $3-80 $3-8404
    step "$1,out" python3 /root/client.py 10.93.0.1-9000 fd93::1-9000 127.0.0.1-80 ::1-80
    step "$1,listening" ss -Hltn 'sport = :8404'
    step "$1,entries" cat /proc/net/nf_conntrack
}
"""
)


HOST = {
    "/etc/haproxy/haproxy.cfg": HAPROXY,
    "/root/far": FAR,
    "/root/server.py": FAR_SERVER,
    "/root/client.py": CLIENT,
    # An emulated machine beside others is twenty times slower than a real one.
    "/etc/systemd/system.conf.d/slow.conf": "[Manager]\nDefaultTimeoutStartSec=900\n",
    "/etc/systemd/system/cloudinit-conntrack.service.d/slow.conf": "[Service]\nTimeoutStartSec=900\n",
}
# Not needed by a guest, ten seconds of it.
NEEDLESS = ("ldconfig.service", "systemd-journal-catalog-update.service", "systemd-hwdb-update.service")


@dataclass(frozen=True)
class Debian:
    """One suite as a host: *files* are its firewall's, *prepare* (sh) runs before systemd, at the first boot.

    With *kernels*, suites, these kernels are in its /boot with initramfs that load conntrack.  A *stock* image
    never sees our package.
    """

    suite: str
    rules: str  # sh: what shows the live rules
    files: Mapping[str, str]
    prepare: str = ""
    kernels: tuple[str, ...] = ()
    stock: bool = False


def recipe(suite: str, kernels: tuple[str, ...] = ()) -> Recipe:
    """The image of *suite*: what a cloud image holds, and its firewall; nothing of ours."""
    wants = "/etc/systemd/system/{}.wants/{}"
    found = (
        Entry("/etc/systemd/system/story.service", STORY_UNIT),
        Entry(wants.format("cloud-init.target", "story.service"), link="../story.service"),
        Entry("/etc/systemd/system/far.service", FAR_UNIT),
        Entry(wants.format("multi-user.target", "far.service"), link="../far.service"),
        Entry("/etc/systemd/system/cloud-config.service.d/before.conf", BEFORE),
        Entry("/etc/systemd/system/systemd-udev-trigger.service.d/net.conf", UDEV_TRIGGER),
        Entry("/etc/cloud/cloud.cfg.d/90_guest.cfg", CLOUD_CONFIG + "network: {config: disabled}\n"),
        Entry("/etc/cloud/ds-identify.cfg", "policy: enabled\n"),
        Entry("/etc/fstab", ""),
        Entry("/etc/machine-id", "5f0c1b1e4d0a4f6f9d3b6a2c7e8d9f10\n"),
        *(Entry(f"/etc/systemd/system/{unit}", link="/dev/null") for unit in (*MASKED, *NEEDLESS)),
        *(Entry(f"/etc/systemd/system-generators/{name}", link="/dev/null") for name in MASKED_GENERATORS),
    )
    plain = Recipe(suite, (*COMMON, *FIREWALLS[suite]), found, options=OPTIONS)
    return _with_kernels(plain, tuple(map(kernel, kernels))) if kernels else plain


def _with_kernels(plain: Recipe, kernels: tuple[Kernel, ...]) -> Recipe:
    brought = tuple((k.vmlinuz, f"/boot/vmlinuz-{k.release}") for k in kernels)
    brought += tuple((k.modules, f"/usr/lib/modules/{k.release}") for k in kernels)
    entries = (
        Entry("/etc/initramfs-tools/conf.d/guest", "MODULES=list\n"),
        Entry("/etc/initramfs-tools/modules", "virtio_pci\nvirtio_blk\noverlay\next4\nnf_conntrack\n"),
    )
    made = tuple(("update-initramfs", "-c", "-k", k.release) for k in kernels)
    return replace(plain, packages=(*plain.packages, "initramfs-tools"), entries=(*plain.entries, *entries),
                   brought=brought, commands=made)  # fmt: skip


def bake(debian: Debian, disk: Path, script: str) -> QuickResult:
    """Put our package and *debian*'s files into an image, which *disk* holds then, and run *script* (sh) beside it.

    The image is at /mnt; nothing of it runs.
    """
    made = image(recipe=recipe(debian.suite))
    with tempfile.TemporaryDirectory(prefix="debian-") as name:
        tree = Path(name) / "tree"
        _layer(tree, made, debian.suite)
        given = {**HOST, **debian.files, "/root/prepare": debian.prepare}
        words = "sh -ex /root/prepare; rm /root/prepare; mount --bind / /mnt\n"
        words += 'modules=/usr/lib/modules/$(uname -r); mount --bind "$modules" "/mnt$modules"\n'
        return run_qemu(f"{WORDS}{words}{script}\numount -R /mnt", kernel(debian.suite), files=given, disk=disk,
                        tree=tree, machine=Machine(image=made), timeout=600)  # fmt: skip


def boot(
    debian: Debian, disk: Path, before: str, script: str, suite: str = "", outside: Outside | None = None
) -> QuickResult:
    """The next boot of the host whose changes *disk* holds; its first when there is no such file.

    *before* and *script* (sh) have the words above; at the first boot *debian*'s files and our package are put in.
    *suite*: of another kernel than the host's own.
    """
    words = f"rules() {{\n{debian.rules}\n}}\n{WORDS}"
    made = image(recipe=recipe(debian.suite, debian.kernels))
    booted = kernel(suite or debian.suite)
    machine = Machine(SECOND, made, APPEND, memory=1024)
    if debian.kernels:
        found = initramfs.debians(_file(f"/boot/initrd.img-{booted.release}", made, disk))
        machine = replace(machine, append=APPEND + BY_DEBIAN, initramfs=found)
    given = {"/root/before": words + before}
    with tempfile.TemporaryDirectory(prefix="debian-") as name:
        tree = Path(name) / "tree"
        if not disk.exists():
            if not debian.stock:
                _layer(tree, made, debian.suite)
            given = {**given, **HOST, **debian.files, "/root/prepare": debian.prepare}
        return run_qemu(words + script, booted, files=given, disk=disk, machine=machine, outside=outside,
                        tree=tree if tree.exists() else None, timeout=2400)  # fmt: skip


def _layer(tree: Path, made: Path, suite: str) -> None:
    """Our package, compiled as a .deb would do it where this machine has the same Python."""
    layer.make(tree, made)
    if suite == OWN_SUITE:
        words = ["/usr/bin/python3", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
        subprocess.run([*words, str(tree / layer.PACKAGES)], check=True, timeout=120)


def _file(path: str, made: Path, disk: Path) -> bytes:
    """A file of the host: what was written since, or the image's."""
    if disk.exists():
        with tarfile.open(disk) as written:
            names = set(written.getnames())
            member = f"disk/upper{path}"
            content = written.extractfile(member) if member in names else None
            if content:
                return content.read()
    with tempfile.NamedTemporaryFile() as dumped:
        subprocess.run(["debugfs", "-R", f"dump {path} {dumped.name}", str(made)], check=True, capture_output=True)
        return Path(dumped.name).read_bytes()
