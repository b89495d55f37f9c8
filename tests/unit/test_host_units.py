"""Units by the files that systemd reads: enabled, aliased, masked, of init scripts, active."""

from __future__ import annotations

import os

from fakehost import FakeHost, fake_host

from cloudinit_conntrack.host.units import find_units

__all__ = ["fake_host"]

LIB = "/usr/lib/systemd/system"
ETC = "/etc/systemd/system"


def link(host: FakeHost, path: str, target: str) -> None:
    place = host.tree / path.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    os.symlink(target, place)


def test_an_empty_tree_has_none(fake_host: FakeHost) -> None:
    found = find_units(fake_host.root)
    assert (found.installed, found.enabled, found.masked, found.active) == ((frozenset(),) * 4)


def test_a_wants_link_enables(fake_host: FakeHost) -> None:
    fake_host.write(f"{LIB}/docker.service")
    fake_host.write(f"{LIB}/ufw.service")
    link(fake_host, f"{ETC}/multi-user.target.wants/docker.service", f"{LIB}/docker.service")
    found = find_units(fake_host.root)
    assert found.installed == {"docker.service", "ufw.service"}
    assert found.enabled == {"docker.service"}
    assert found.starts("docker.socket", "docker.service") and not found.starts("ufw.service")


def test_requires_and_what_a_package_links(fake_host: FakeHost) -> None:
    fake_host.write(f"{LIB}/a.service")
    fake_host.write(f"{LIB}/b.socket")
    link(fake_host, f"{ETC}/x.service.requires/a.service", f"{LIB}/a.service")
    link(fake_host, f"{LIB}/sockets.target.wants/b.socket", "../b.socket")
    assert find_units(fake_host.root).enabled == {"a.service", "b.socket"}


def test_the_link_of_a_removed_package_enables_nothing(fake_host: FakeHost) -> None:
    link(fake_host, f"{ETC}/multi-user.target.wants/gone.service", f"{LIB}/gone.service")
    assert find_units(fake_host.root).enabled == set()


def test_a_unit_is_found_by_its_name_not_by_the_link(fake_host: FakeHost) -> None:
    """systemd.unit(5): the link's target may be stale, its name counts."""
    fake_host.write(f"{ETC}/a.service")
    link(fake_host, f"{ETC}/multi-user.target.wants/a.service", "/lib/systemd/system/a.service")
    assert find_units(fake_host.root).enabled == {"a.service"}


def test_masked_is_never_enabled(fake_host: FakeHost) -> None:
    fake_host.write(f"{LIB}/firewalld.service")
    link(fake_host, f"{ETC}/firewalld.service", "/dev/null")
    link(fake_host, f"{ETC}/multi-user.target.wants/firewalld.service", f"{LIB}/firewalld.service")
    found = find_units(fake_host.root)
    assert found.masked == {"firewalld.service"} and found.enabled == set()
    assert not found.starts("firewalld.service")


def test_an_alias_counts_under_both_names(fake_host: FakeHost) -> None:
    fake_host.write(f"{LIB}/networking.service")
    link(fake_host, f"{ETC}/network-manager.service", f"{LIB}/networking.service")
    link(fake_host, f"{ETC}/multi-user.target.wants/network-manager.service", f"{LIB}/networking.service")
    assert find_units(fake_host.root).enabled == {"network-manager.service", "networking.service"}


def test_an_alias_for_dbus_enables_what_it_stands_for(fake_host: FakeHost) -> None:
    fake_host.write(f"{LIB}/firewalld.service")
    link(fake_host, f"{ETC}/dbus-org.fedoraproject.FirewallD1.service", f"{LIB}/firewalld.service")
    assert "firewalld.service" in find_units(fake_host.root).enabled


def test_an_instance_is_enabled_where_its_template_is(fake_host: FakeHost) -> None:
    fake_host.write(f"{LIB}/getty@.service")
    link(fake_host, f"{ETC}/getty.target.wants/getty@tty1.service", f"{LIB}/getty@.service")
    link(fake_host, f"{ETC}/getty.target.wants/no@tty1.service", f"{LIB}/no@.service")
    assert find_units(fake_host.root).enabled == {"getty@tty1.service"}


def test_a_link_leading_out_stays_inside(fake_host: FakeHost) -> None:
    """An absolute link of an image tree is read in the tree."""
    fake_host.write(f"{LIB}/a.service")
    link(fake_host, "/lib", "/usr/lib")
    assert find_units(fake_host.root).installed == {"a.service"}


def test_init_scripts_by_runlevel(fake_host: FakeHost) -> None:
    fake_host.write("/etc/rc.d/init.d/iptables", "#!/bin/sh\n", 0o755)
    fake_host.write("/etc/rc.d/init.d/ip6tables", "#!/bin/sh\n", 0o755)
    link(fake_host, "/etc/rc.d/rc3.d/S08iptables", "../init.d/iptables")
    link(fake_host, "/etc/rc.d/rc3.d/K92ip6tables", "../init.d/ip6tables")
    found = find_units(fake_host.root)
    assert found.installed == {"iptables.service", "ip6tables.service"}
    assert found.enabled == {"iptables.service"}


def test_a_unit_takes_the_place_of_its_init_script(fake_host: FakeHost) -> None:
    """systemd-sysv-generator makes nothing where a unit of that name is."""
    fake_host.write(f"{LIB}/docker.service")
    fake_host.write("/etc/init.d/docker", "#!/bin/sh\n", 0o755)
    link(fake_host, "/etc/rc2.d/S01docker", "../init.d/docker")
    assert find_units(fake_host.root).enabled == set()


def test_active_units_of_a_running_host_only(fake_host: FakeHost) -> None:
    link(fake_host, "/run/systemd/units/invocation:ufw.service", "0123456789abcdef0123456789abcdef")
    fake_host.write("/sys/fs/cgroup/system.slice/docker.service/cgroup.procs", "812\n")
    assert find_units(fake_host.root).active == set()
    assert find_units(fake_host.root, live=True).active == {"ufw.service", "docker.service"}
