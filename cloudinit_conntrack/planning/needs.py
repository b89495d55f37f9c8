"""Programs that bring conntrack back, or that cannot live without it: one table.

A row is recognised by a unit that starts at boot or runs now, and by what its files say.
Sources are the programs' own documentation or code, named in each row; what was measured
is in docs/reference/matrix.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..state import Kernel, State, Surroundings
from .draft import Draft, Item

BOTH = ("stateless", "unload")
UNLOAD = ("unload",)


def always(_: Surroundings) -> bool:
    return True


@dataclass(frozen=True)
class Row:
    """A program: the *units* that start it, what it *does*, and in which modes that *blocks*.

    In the modes of *told* it is only worth saying.  *when* looks at its files: a row that does not
    apply there says nothing.  What no unit of its own starts has a *place* instead.
    """

    name: str
    units: tuple[str, ...]
    does: str
    remedy: str
    source: str
    blocks: tuple[str, ...] = BOTH
    told: tuple[str, ...] = ()
    when: Callable[[Surroundings], bool] = always
    place: str = ""


# --- what the files say ----------------------------------------------------------------


def _has(paths: tuple[str, ...], *wanted: str) -> Callable[[Surroundings], bool]:
    """Whether a file at *paths* has a line, not a comment, with one of the words *wanted*."""

    def applies(around: Surroundings) -> bool:
        return any(_names(file.text, wanted) for file in around.below(*paths))

    return applies


def _names(text: str, wanted: tuple[str, ...]) -> bool:
    lines = (line.strip() for line in text.split("\n"))
    return any(word in line for line in lines if not line.startswith(("#", ";", "!", "//")) for word in wanted)


def docker_left_alone(around: Surroundings) -> bool:
    """Whether daemon.json keeps docker from writing rules (https://docs.docker.com/engine/network/firewall-iptables)."""
    file = around.file("/etc/docker/daemon.json")
    try:
        found = json.loads(file.text) if file else {}
    except ValueError:
        return False
    return isinstance(found, dict) and found.get("iptables") is False and found.get("ip6tables", True) is False


def docker_writes(around: Surroundings) -> bool:
    return not docker_left_alone(around)


def _shares(around: Surroundings) -> bool:
    """A connection profile with ``method=shared`` (nm-settings(5))."""
    files = around.below("/etc/NetworkManager/system-connections/")
    return any(_setting(line) == ("method", "shared") for file in files for line in file.text.split("\n"))


def _masquerades(around: Surroundings) -> bool:
    """``IPMasquerade=`` in a network file (systemd.network(5)); empty, no and false mean it does not."""
    files = around.below("/etc/systemd/network/")
    found = (_setting(line) for file in files for line in file.text.split("\n"))
    return any(key == "ipmasquerade" and value in ("yes", "true", "1", "on", "ipv4", "ipv6", "both")
               for key, value in found)


def _setting(line: str) -> tuple[str, str]:
    key, _, value = line.partition("=")
    return key.strip().lower(), value.strip().lower()


def _nat_network(around: Surroundings) -> bool:
    """An autostarted libvirt network that forwards by NAT (https://libvirt.org/formatnetwork.html)."""
    files = around.below("/etc/libvirt/qemu/networks/autostart/")
    return any("mode='nat'" in f.text or 'mode="nat"' in f.text for f in files)


def _quadlet_needs_nat(around: Surroundings) -> bool:
    """A quadlet that is not on the host's own network (podman-systemd.unit(5), ``Network=``)."""
    files = around.below("/etc/containers/systemd/")
    return any(not any(_setting(line) in (("network", "host"), ("network", "none")) for line in f.text.split("\n"))
               for f in files)


_SAYS_VIRTUAL_SERVER = _has(("/etc/keepalived/keepalived.conf",), "virtual_server")
_HAS_IPVS_RULES = _has(("/etc/ipvsadm.rules", "/etc/sysconfig/ipvsadm"), "-A ", "--add-service ")
_CNI_NAT = _has(("/etc/cni/net.d/",), "portmap", '"ipMasq": true', '"ipMasq":true')
_COLLECTD = _has(("/etc/collectd",), "LoadPlugin conntrack", 'LoadPlugin "conntrack"', "<LoadPlugin conntrack")
_ULOGD = _has(("/etc/ulogd.conf",), ":NFCT")
_FAIL2BAN = _has(("/etc/fail2ban/",), "firewallcmd", "conntrack")
_TUNED = _has(("/etc/tuned/", "/usr/lib/tuned/"), "net.netfilter.nf_conntrack", "nf_conntrack_hashsize", "hashsize")

_NO_NAT = "its networks translate addresses, and that is what conntrack is for"
_OR_NOTRACK = "or keep conntrack for it with 'mode: notrack'"

ROWS: tuple[Row, ...] = (
    Row("docker", ("docker.service", "docker.socket"), f"docker writes nat rules at every start; {_NO_NAT}",
        f"'systemctl disable --now docker docker.socket', {_OR_NOTRACK}",
        "moby: libnetwork/iptables", when=docker_writes),
    Row("docker", ("docker.service", "docker.socket"),
        "docker is told not to write rules (daemon.json); swarm's overlay networks would all the same",
        "do not use published ports or overlay networks on this host",
        "moby#36362", (), BOTH, docker_left_alone),
    Row("podman", ("podman-restart.service",), f"podman starts containers at boot; {_NO_NAT}",
        f"run them with '--network host', 'systemctl disable podman-restart', {_OR_NOTRACK}",
        "podman-restart(1), netavark"),
    Row("quadlet", (), f"a container in /etc/containers/systemd starts at boot; {_NO_NAT}",
        f"give it 'Network=host', {_OR_NOTRACK}",
        "podman-systemd.unit(5)", when=_quadlet_needs_nat, place="/etc/containers/systemd"),
    Row("containerd", ("containerd.service", "crio.service"), "a network in /etc/cni/net.d translates addresses",
        f"take 'portmap' and 'ipMasq' out of it, {_OR_NOTRACK}",
        "cni plugins: bridge, portmap", when=_CNI_NAT),
    Row("kubernetes", ("kubelet.service", "k3s.service", "k3s-agent.service", "rke2-server.service",
                       "rke2-agent.service", "snap.microk8s.daemon-kubelite.service"),
        "a Kubernetes node translates every service address (kube-proxy, or what stands for it)",
        "use 'mode: notrack' for haproxy's flows on this node",
        "kube-proxy reads nf_conntrack_max (kops#17968)"),
    Row("libvirt", ("libvirtd.service", "libvirtd.socket", "virtnetworkd.service", "virtnetworkd.socket"),
        "libvirt starts a network with forward mode 'nat'",
        f"'virsh net-autostart --disable default' and 'virsh net-destroy default', {_OR_NOTRACK}",
        "libvirt: network/bridge_driver_linux.c", when=_nat_network),
    Row("lxc", ("lxc-net.service",), "lxc-net masquerades for its bridge",
        f"'systemctl disable --now lxc-net', {_OR_NOTRACK}",
        "lxc: /usr/libexec/lxc/lxc-net"),
    Row("lxd", ("snap.lxd.daemon.service", "snap.lxd.daemon.unix.socket", "incus.service", "incus.socket"),
        "a bridge of LXD or Incus masquerades unless ipv4.nat and ipv6.nat are false", "see 'lxc network list'",
        "LXD: network_bridge.go", (), BOTH),
    Row("keepalived", ("keepalived.service",),
        "keepalived sets up IPVS services, and ip_vs depends on nf_conntrack",
        "let haproxy balance and keepalived move the address only; or use 'mode: stateless'",
        "modules.dep; ip_vs asks for hooks with net.ipv4.vs.conntrack only", UNLOAD, ("stateless",),
        _SAYS_VIRTUAL_SERVER),
    Row("ipvsadm", ("ipvsadm.service",), "ipvsadm restores IPVS services, and ip_vs depends on nf_conntrack",
        "'systemctl disable --now ipvsadm'; or use 'mode: stateless'",
        "modules.dep", UNLOAD, ("stateless",), _HAS_IPVS_RULES),
    Row("openvswitch", ("openvswitch-switch.service", "openvswitch.service", "ovs-vswitchd.service"),
        "the module openvswitch depends on nf_conntrack",
        "'systemctl disable --now' it; or use 'mode: stateless' on kernel 6.12 or newer",
        "modules.dep of 5.10 to 7.2", UNLOAD),
    Row("NetworkManager", ("NetworkManager.service",),
        "a connection has 'method=shared': NetworkManager masquerades for it",
        f"give it another method (nmcli connection modify), {_OR_NOTRACK}",
        "nm-settings(5)", when=_shares),
    Row("systemd-networkd", ("systemd-networkd.service",), "a network file has IPMasquerade=",
        f"take it out, {_OR_NOTRACK}",
        "systemd.network(5)", when=_masquerades),
    Row("conntrackd", ("conntrackd.service",),
        "conntrackd copies connections to another host, and there are none any more",
        f"'systemctl disable --now conntrackd', {_OR_NOTRACK}",
        "conntrackd(8)"),
    Row("ulogd", ("ulogd2.service", "ulogd.service"), "ulogd logs connections (a stack with NFCT)",
        "take the stack with NFCT out of /etc/ulogd.conf",
        "ulogd.conf", UNLOAD, ("stateless",), _ULOGD),
    Row("fail2ban", ("fail2ban.service",), "a fail2ban action uses firewalld or the conntrack tool",
        "choose banaction = iptables-multiport, or nftables-multiport",
        "fail2ban: action.d", (), BOTH, _FAIL2BAN),
    Row("tuned", ("tuned.service",), "the active tuned profile sets values of conntrack, which will not be there",
        "take them out of a copy of the profile below /etc/tuned",
        "tuned-profiles(7)", (), UNLOAD, _TUNED),
    Row("node_exporter", ("prometheus-node-exporter.service", "node_exporter.service"),
        "node_exporter's conntrack collector has nothing to read", "start it with --no-collector.conntrack",
        "node_exporter: collector/conntrack_linux.go", (), UNLOAD),
    Row("collectd", ("collectd.service",), "collectd's plugin conntrack has nothing to read",
        "take 'LoadPlugin conntrack' out",
        "collectd.conf(5)", (), UNLOAD, _COLLECTD),
)


def plan_needs(draft: Draft) -> None:
    """A blocker, or a finding, for each row of :data:`ROWS` that is true of the host."""
    around = draft.state.surroundings
    for row in ROWS:
        unit = next((name for name in row.units if around.units.starts(name)), "")
        if not (unit or row.place) or not row.when(around):
            continue
        where = row.place or f"{unit} {_how(around, unit)}"
        item = Item(f"needs:{row.name}", where, row.does, row.remedy)
        if draft.desired.mode in _blocking(row, draft.state):
            draft.blockers.append(item)
        elif draft.desired.mode in row.told:
            draft.findings.append(item)


def _how(around: Surroundings, unit: str) -> str:
    return "(runs now)" if unit in around.units.active else "(starts at boot)"


def _blocking(row: Row, state: State) -> tuple[str, ...]:
    """The modes that *row* blocks; openvswitch registers hooks up to kernel 6.1 (measured: not on 6.12)."""
    if row.name == "openvswitch" and state.kernel is not None and release_of(state.kernel) < (6, 12):
        return BOTH
    return row.blocks


def release_of(kernel: Kernel) -> tuple[int, int]:
    """(major, minor) of the running kernel; (0, 0) for a release that starts with no numbers."""
    numbers = list(_numbers(kernel.release))
    return (numbers[0], numbers[1]) if len(numbers) > 1 else (0, 0)


def _numbers(release: str) -> Iterator[int]:
    for word in release.split("-")[0].split("."):
        digits = "".join(c for c in word if c.isdigit())
        if digits != word or not word:
            return
        yield int(word)
