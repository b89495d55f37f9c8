"""Programs that write rules of their own, known by the names of their chains and tables, and the units behind them."""

from __future__ import annotations

from dataclasses import dataclass

from ..planning.frontends import FRONT_ENDS
from ..planning.needs import ROWS, Row
from ..said import Node
from ..state import State, Units


@dataclass(frozen=True)
class Writer:
    """A program: what its chains or nft tables begin with, and the units that start it."""

    name: str
    prefixes: tuple[str, ...]
    units: tuple[str, ...]


def _units_of(*names: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(unit for row in ROWS if row.name in names for unit in row.units))


WRITERS = (
    Writer("docker", ("DOCKER", "docker-bridges"), _units_of("docker")),  # moby: libnetwork/iptables, nftabler
    Writer("Kubernetes", ("KUBE-", "kube-proxy", "cali-", "CILIUM_", "FLANNEL-"),
           _units_of("kubernetes")),  # kube-proxy, and the network plugins that a kubelet starts
    Writer("podman", ("NETAVARK", "netavark", "CNI-"), _units_of("podman")),  # netavark, cni plugins
    Writer("libvirt", ("LIBVIRT_", "libvirt_network"), _units_of("libvirt")),  # src/network
    Writer("LXD or Incus", ("lxd", "incus"), _units_of("lxd")),  # their nft tables
    Writer("lxc", ("lxc",), _units_of("lxc")),  # lxc-net's nft table
    Writer("neutron", ("neutron-",), ("neutron-openvswitch-agent.service", "neutron-linuxbridge-agent.service",
                                      "neutron-l3-agent.service")),
    Writer("ufw", ("ufw-", "ufw6-"), ("ufw.service",)),
    Writer("firewalld", ("firewalld", "FWDI_", "FWDO_", "INPUT_ZONES", "FORWARD_ZONES", "INPUT_direct"),
           ("firewalld.service",)),
    *(Writer(p.name, (p.name,), p.units) for p in FRONT_ENDS if p.name not in ("firewalld", "csf")),
)


def writer_of(names: tuple[str, ...]) -> Writer | None:
    """The program to which a rule belongs, by the names of its chain, target and table."""
    return next((w for w in WRITERS if any(name.startswith(w.prefixes) for name in names if name)), None)


def writer_node(writer: Writer, under: str, state: State, children: tuple[Node, ...]) -> Node:
    """The program above its rules."""
    units = state.surroundings.units
    starting = tuple(unit for unit in writer.units if units.starts(unit))
    name = f"writer:{under}:{writer.name}"
    if not starting:
        return Node(name, "writer", f"written by {writer.name}, which no unit starts now", "", "", children)
    remedy = "ufw disable" if writer.name == "ufw" else disabling(starting)
    return Node(name, "writer", f"written by {writer.name}: {_how(units, starting)}", ", ".join(starting), remedy,
                children)


def disabling(units: tuple[str, ...]) -> str:
    """The command that stops *units* now and at every boot."""
    return f"systemctl disable --now {' '.join(units)}"


def unit_nodes(state: State, told: set[str]) -> tuple[Node, ...]:
    """A node for each program that starts or runs, cannot live without conntrack, and was not *told* by its rules."""
    around, found = state.surroundings, []
    for row in ROWS:
        starting = tuple(unit for unit in row.units if around.units.starts(unit))
        if starting and row.blocks and row.when(around) and not told.intersection(starting):
            found.append(Node(f"unit:{row.name}:{starting[0]}", "unit", f"{_how(around.units, starting)}: {row.does}",
                              ", ".join(starting), _remedy(row, starting)))
    return tuple(found)


def _remedy(row: Row, starting: tuple[str, ...]) -> str:
    """Stopping the unit where that is what the table advises, else the table's own words."""
    return disabling(starting) if "systemctl disable" in row.remedy else row.remedy


def _how(units: Units, names: tuple[str, ...]) -> str:
    how = "runs now" if any(name in units.active for name in names) else "starts at boot"
    return f"{', '.join(names)} ({how})"
