"""Programs and front ends beside the rules: one case for each row, in each mode, and what fallback makes of it."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from fakehost import FakeHost, fake_host
from surrounded import ABSENT, LOADED, SECTIONS, Surrounded, ids
from test_host_native import listed

from cloudinit_conntrack import report
from cloudinit_conntrack.config import desired_from_text
from cloudinit_conntrack.plan import make_plan
from cloudinit_conntrack.planning.frontends import FRONT_ENDS, found_front_ends
from cloudinit_conntrack.planning.needs import ROWS
from cloudinit_conntrack.state import Kernel, NativeRules
from cloudinit_conntrack.status import make_status

__all__ = ["fake_host"]

MODES = ("notrack", "stateless", "unload")
# row: the files that make it true, the same that do not, modes blocked, modes told
CASES: dict[str, tuple[dict[str, str], dict[str, str], tuple[str, ...], tuple[str, ...]]] = {
    "docker": ({}, {}, ("stateless", "unload"), ()),
    "podman": ({}, {}, ("stateless", "unload"), ()),
    "quadlet": ({"/etc/containers/systemd/web.container": "[Container]\nImage=web\nPublishPort=80:80\n"},
                {"/etc/containers/systemd/web.container": "[Container]\nImage=web\nNetwork=host\n"},
                ("stateless", "unload"), ()),
    "containerd": ({"/etc/cni/net.d/10.conflist": '{"plugins": [{"type": "bridge", "ipMasq": true}]}'},
                   {"/etc/cni/net.d/10.conflist": '{"plugins": [{"type": "macvlan"}]}'}, ("stateless", "unload"), ()),
    "kubernetes": ({}, {}, ("stateless", "unload"), ()),
    "lxc": ({}, {}, ("stateless", "unload"), ()),
    "lxd": ({}, {}, (), ("stateless", "unload")),
    "keepalived": ({"/etc/keepalived/keepalived.conf": "virtual_server 192.0.2.1 80 {\n}\n"},
                   {"/etc/keepalived/keepalived.conf": "# virtual_server\nvrrp_instance A {\n}\n"},
                   ("unload",), ("stateless",)),
    "ipvsadm": ({"/etc/ipvsadm.rules": "-A -t 192.0.2.1:80 -s rr\n"}, {"/etc/ipvsadm.rules": "# none\n"},
                ("unload",), ("stateless",)),
    "openvswitch": ({}, {}, ("stateless", "unload"), ()),
    "NetworkManager": ({"/etc/NetworkManager/system-connections/a.nmconnection": "[ipv4]\nmethod=shared\n"},
                       {"/etc/NetworkManager/system-connections/a.nmconnection": "[ipv4]\nmethod=auto\n"},
                       ("stateless", "unload"), ()),
    "systemd-networkd": ({"/etc/systemd/network/a.network": "[Network]\nIPMasquerade=both\n"},
                         {"/etc/systemd/network/a.network": "[Network]\nIPMasquerade=no\n"},
                         ("stateless", "unload"), ()),
    "conntrackd": ({}, {}, ("stateless", "unload"), ()),
    "ulogd": ({"/etc/ulogd.conf": "stack=ct1:NFCT,ip2str1:IP2STR\n"}, {"/etc/ulogd.conf": "#stack=ct1:NFCT\n"},
              ("unload",), ("stateless",)),
    "fail2ban": ({"/etc/fail2ban/jail.local": "banaction = firewallcmd-multiport\n"},
                 {"/etc/fail2ban/jail.local": "banaction = iptables-multiport\n"}, (), ("stateless", "unload")),
    "tuned": ({"/etc/tuned/active_profile": "lb\n",
               "/etc/tuned/lb/tuned.conf": "[sysctl]\nnet.netfilter.nf_conntrack_max=1\n"},
              {"/etc/tuned/active_profile": "lb\n",
               "/etc/tuned/other/tuned.conf": "[sysctl]\nnet.netfilter.nf_conntrack_max=1\n"}, (), ("unload",)),
    "node_exporter": ({}, {}, (), ("unload",)),
    "collectd": ({"/etc/collectd/collectd.conf": "LoadPlugin conntrack\n"},
                 {"/etc/collectd/collectd.conf": "#LoadPlugin conntrack\n"}, (), ("unload",)),
}  # fmt: skip
NEEDING_FILES = sorted(name for name, (files, *_) in CASES.items() if files)


def unit_of(name: str) -> tuple[str, ...]:
    return next(row.units[:1] for row in ROWS if row.name == name)


def test_every_row_has_a_case() -> None:
    assert {row.name for row in ROWS} == {*CASES, "libvirt"}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CASES)
def test_a_program_that_is_enabled(fake_host: FakeHost, name: str, mode: str) -> None:
    files, _, blocked, told = CASES[name]
    here = Surrounded(fake_host)
    here.enable(*unit_of(name))
    for path, text in files.items():
        fake_host.write(path, text)
    plan = here.plan(mode)
    assert (f"needs:{name}" in ids(plan.blockers)) == (mode in blocked)
    assert (f"needs:{name}" in ids(plan.findings)) == (mode in told)
    assert all(item.remedy for item in plan.blockers)


@pytest.mark.parametrize("name", NEEDING_FILES)
def test_a_program_whose_files_say_otherwise(fake_host: FakeHost, name: str) -> None:
    here = Surrounded(fake_host)
    here.enable(*unit_of(name))
    for path, text in CASES[name][1].items():
        fake_host.write(path, text)
    plan = here.plan("unload")
    assert f"needs:{name}" not in ids(plan.blockers + plan.findings)


@pytest.mark.parametrize("row", [row for row in ROWS if row.units], ids=lambda row: row.name)
def test_a_program_that_is_only_installed(fake_host: FakeHost, row: object) -> None:
    here = Surrounded(fake_host)
    for unit in next(r.units for r in ROWS if r is row):
        fake_host.write(f"/usr/lib/systemd/system/{unit}")
    for files, *_ in CASES.values():
        for path, text in files.items():
            if not path.startswith("/etc/containers"):
                fake_host.write(path, text)
    plan = here.plan("unload")
    assert plan.blockers == () and not [x for x in plan.findings if x.id.startswith("needs:")]


def test_libvirt_autostarts_a_nat_network(fake_host: FakeHost) -> None:
    """The autostart entry is a link to the definition, as 'virsh net-autostart' makes it."""
    here = Surrounded(fake_host)
    here.enable("libvirtd.service")
    fake_host.write("/etc/libvirt/qemu/networks/default.xml", "<network><forward mode='nat'/></network>")
    assert here.plan("stateless").blockers == ()
    (fake_host.tree / "etc/libvirt/qemu/networks/autostart").mkdir()
    os.symlink("/etc/libvirt/qemu/networks/default.xml",
               fake_host.tree / "etc/libvirt/qemu/networks/autostart/default.xml")
    assert ids(here.plan("stateless").blockers) == {"needs:libvirt"}


def test_docker_without_rules_of_its_own_is_only_told(fake_host: FakeHost) -> None:
    here = Surrounded(fake_host)
    here.enable("docker.socket", target="sockets.target")
    fake_host.write("/etc/docker/daemon.json", '{"iptables": false, "ip6tables": false}')
    plan = here.plan("unload")
    assert plan.blockers == () and "needs:docker" in ids(plan.findings)
    fake_host.write("/etc/docker/daemon.json", '{"iptables": false, "ip6tables": true}')
    assert "needs:docker" in ids(here.plan("unload").blockers)
    fake_host.write("/etc/docker/daemon.json", "no json")
    assert "needs:docker" in ids(here.plan("unload").blockers)


def test_openvswitch_registers_no_hooks_from_6_12_on(fake_host: FakeHost) -> None:
    here = Surrounded(fake_host)
    here.enable("openvswitch-switch.service")
    newer = Kernel("6.12.0-fake", True, False, "absent", False)
    assert here.plan("stateless", newer).blockers == ()
    assert ids(here.plan("unload", newer).blockers) == {"needs:openvswitch"}


def test_a_program_that_runs_though_it_is_not_enabled(fake_host: FakeHost) -> None:
    here = Surrounded(fake_host)
    fake_host.write("/usr/lib/systemd/system/docker.service")
    fake_host.write("/sys/fs/cgroup/system.slice/docker.service/cgroup.procs")
    (blocker,) = here.plan("unload").blockers
    assert blocker.where == "docker.service (runs now)"
    assert here.plan("unload", None).blockers == ()  # an image: what runs here is another host's


# --- front ends ------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("program", FRONT_ENDS, ids=lambda program: program.name)
def test_a_front_end_blocks_every_mode(fake_host: FakeHost, program: object, mode: str) -> None:
    here = Surrounded(fake_host)
    found = next(p for p in FRONT_ENDS if p is program)
    here.enable(found.units[0])
    (blocker,) = here.plan(mode).blockers
    assert blocker.id == f"frontend:{found.name}" and blocker.where == found.units[0]
    wanted = found.bypass_remedy if mode == "notrack" else f"systemctl disable --now {found.units[0]}"
    assert wanted in blocker.remedy


OF_FIREWALLD = """\
table inet firewalld {
	chain filter_INPUT {
		type filter hook input priority 10; policy accept;
		ct state established,related accept
	}
	chain nat_POST {
		type nat hook postrouting priority 110; policy accept;
		oifname "eth0" masquerade
	}
}
"""


@pytest.mark.parametrize("mode", MODES)
def test_firewalld_blocks_once_and_not_for_each_of_its_rules(fake_host: FakeHost, mode: str) -> None:
    here = Surrounded(fake_host)
    state = replace(here.state(LOADED), native=NativeRules(listed(OF_FIREWALLD), OF_FIREWALLD))
    desired = desired_from_text(SECTIONS[mode].encode(), "test")
    alone = make_plan(desired, state).blockers  # it was left behind: nobody writes it anew, and it says what is in it
    assert mode == "notrack" or any("table inet firewalld" in blocker.where for blocker in alone), alone
    here.enable("firewalld.service")
    state = replace(state, surroundings=here.state().surroundings)
    assert ids(make_plan(desired, state).blockers) == {"frontend:firewalld"}
    foreign = replace(state, native=NativeRules(listed(OF_FIREWALLD.replace("firewalld", "theirs")), ""))
    assert mode == "notrack" or len(make_plan(desired, foreign).blockers) > 1


def test_a_masked_front_end_does_not(fake_host: FakeHost) -> None:
    here = Surrounded(fake_host)
    here.enable("firewalld.service")
    os.symlink("/dev/null", fake_host.tree / "etc/systemd/system/firewalld.service")
    assert here.plan("stateless").blockers == ()


@pytest.mark.parametrize(
    "unit, mode, said",
    [
        ("firewalld.service", "", "no mode can hold"),
        ("firewalld.service", "stateless", "mode stateless cannot hold"),
        ("netfilter-persistent.service", "unload", "every mode can hold"),
        ("nftables.service", "", "every mode can hold"),
        ("ip6tables.service", "notrack", "every mode can hold"),
        ("ufw.service", "", "stateless and unload can hold"),
        ("ufw.service", "unload", "stateless and unload can hold"),
        ("ufw.service", "notrack", "mode notrack cannot hold, stateless and unload can"),
    ],
)
def test_status_says_which_modes_a_front_end_lets_hold(fake_host: FakeHost, unit: str, mode: str, said: str) -> None:
    around = Surrounded(fake_host)
    fake_host.write("/etc/ufw/ufw.conf", "ENABLED=yes\n")
    fake_host.write("/etc/default/ufw", 'DEFAULT_INPUT_POLICY="DROP"\n')
    assert not [name for name, _ in make_status(around.state(), mode).facts if name.startswith("front end")]
    around.enable(unit)
    status = make_status(around.state(), mode)
    facts = {name: value for name, value in report.to_json(status)["facts"].items() if name.startswith("front end")}
    assert list(facts.values()) == [f"{unit}: {said}"]
    assert f"{unit}: {said}" in report.text(status)


def test_what_status_says_of_a_front_end_is_what_the_plan_does(fake_host: FakeHost) -> None:
    around = Surrounded(fake_host)
    around.enable(*(program.units[0] for program in FRONT_ENDS), "nftables.service", "netfilter-persistent.service")
    found = found_front_ends(around.state())
    for mode in MODES:
        refused = {blocker.id for blocker in around.plan(mode).blockers}
        assert {f"frontend:{one.name}" for one in found if mode not in one.modes} == refused


def test_a_host_without_any_of_it_is_told_nothing(fake_host: FakeHost) -> None:
    for mode in ("stateless", "notrack"):
        plan = Surrounded(fake_host).plan(mode)
        assert (plan.blockers, plan.findings) == ((), ())


# --- fallback --------------------------------------------------------------------------

FALLBACK = "conntrack: {mode: unload, fallback: %s, flows: {frontends: [80]}}"


def test_docker_settles_for_notrack(fake_host: FakeHost) -> None:
    here = Surrounded(fake_host)
    here.enable("docker.service")
    plan = here.plan(FALLBACK % "notrack", LOADED)
    assert plan.mode == "notrack" and plan.blockers == ()
    (told,) = [item for item in plan.findings if item.id == "needs:docker"]
    assert told.reason.endswith("settled for notrack, as 'fallback' says")


def test_docker_never_settles_for_stateless(fake_host: FakeHost) -> None:
    """That mode cannot hold with docker either."""
    here = Surrounded(fake_host)
    here.enable("docker.service")
    plan = here.plan(FALLBACK % "stateless", LOADED)
    assert plan.actions == () and ids(plan.blockers) == {"needs:docker"} and plan.mode == "unload"


def test_keepalived_settles_for_stateless(fake_host: FakeHost) -> None:
    here = Surrounded(fake_host)
    here.enable("keepalived.service")
    fake_host.write("/etc/keepalived/keepalived.conf", "virtual_server 192.0.2.1 80 {\n}\n")
    plan = here.plan(FALLBACK % "stateless")
    assert plan.mode == "stateless" and plan.blockers == ()


def test_an_old_kernel_never_settles_for_stateless(fake_host: FakeHost) -> None:
    kernel = Kernel("3.10.0-1160.el7.x86_64", True, True, "loaded", True, LOADED.modules)
    plan = Surrounded(fake_host).plan(FALLBACK % "stateless", kernel)
    assert ids(plan.blockers) == {"module:locked", "hooks:kernel"} and plan.actions == ()


def test_firewalld_is_nothing_that_fallback_settles(fake_host: FakeHost) -> None:
    here = Surrounded(fake_host)
    here.enable("firewalld.service", "docker.service")
    assert ids(here.plan(FALLBACK % "notrack").blockers) == {"frontend:firewalld", "needs:docker"}


# --- kernels ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "eager"),
    [("2.6.32-754.el6.x86_64", True), ("3.10.0-1160.el7.x86_64", True), ("4.9.0-19-amd64", True), ("4.13.16", True),
     ("4.14.0", False), ("4.18.0-240.el8.x86_64", False), ("5.14.0-503.el9", False), ("6.18.44-fc-v782", False),
     ("6.1", False), ("odd", False)],
)  # fmt: skip
def test_stateless_on_kernels_that_track_without_being_asked(fake_host: FakeHost, release: str, eager: bool) -> None:
    here = Surrounded(fake_host)
    loaded = Kernel(release, True, False, "loaded", True, LOADED.modules)
    assert ("hooks:kernel" in ids(here.plan("stateless", loaded).blockers)) == eager
    absent = here.plan("stateless", Kernel(release, True, False, "absent", False))
    assert absent.blockers == () and ("hooks:kernel" in ids(absent.findings)) == eager
    assert "hooks:kernel" not in ids(here.plan("unload", loaded).blockers + here.plan("unload", loaded).findings)


@pytest.mark.parametrize(
    "word", ["nf_conntrack.enable_hooks=1", "nf-conntrack.enable_hooks=Y", "nf_conntrack.enable_hooks"]
)
def test_enable_hooks_on_the_command_line(fake_host: FakeHost, word: str) -> None:
    here = Surrounded(fake_host)
    (blocker,) = here.plan("stateless", ABSENT, f"root=/dev/sda1 {word} quiet\n").blockers
    assert blocker.where == "/proc/cmdline" and word in blocker.reason
    assert here.plan("unload", ABSENT, f"{word}\n").blockers == ()


def test_enable_hooks_switched_off_is_fine(fake_host: FakeHost) -> None:
    assert Surrounded(fake_host).plan("stateless", ABSENT, "nf_conntrack.enable_hooks=0").blockers == ()


def test_enable_hooks_in_grubs_defaults(fake_host: FakeHost) -> None:
    """An image has no command line yet: what makes the next one is looked at."""
    fake_host.write("/etc/default/grub", '#GRUB_CMDLINE_LINUX="nf_conntrack.enable_hooks=1"\n')
    assert Surrounded(fake_host).plan("stateless", None).blockers == ()
    fake_host.write("/etc/default/grub", 'GRUB_CMDLINE_LINUX="quiet nf_conntrack.enable_hooks=1"\n')
    (blocker,) = Surrounded(fake_host).plan("stateless", None).blockers
    assert blocker.where == "/etc/default/grub"


def test_a_module_that_the_command_line_loads_is_told(fake_host: FakeHost) -> None:
    plan = Surrounded(fake_host).plan("unload", ABSENT, "modules-load=bonding,nf_conntrack")
    assert "boot:/proc/cmdline:modules-load=bonding,nf_conntrack" in ids(plan.findings)


def test_enable_hooks_as_loaded(fake_host: FakeHost) -> None:
    fake_host.write("/etc/modprobe.d/ct.conf", "options nf_conntrack enable_hooks=1\n")
    here = Surrounded(fake_host)
    assert ids(here.plan("stateless", LOADED).blockers) == {"hooks:option"}
    assert here.plan("stateless", ABSENT).blockers == ()
