"""Hooks and containers: what the kernel and control groups tell, and what they do not."""

from __future__ import annotations

import pytest
from fakehost import FakeHost, fake_host

from cloudinit_conntrack.containers import owner_of
from cloudinit_conntrack.host.hooks import conntrack_hooks
from cloudinit_conntrack.tracking import hooks_of

__all__ = ["fake_host"]

# The form that nft 1.0.6 prints (src/mnl.c), with the functions of a 6.12 kernel.
HOOKED = (
    "family ip {\n\thook prerouting {\n\t\t-0000000400 ipv4_conntrack_defrag [nf_defrag_ipv4]\n"
    "\t\t-0000000200 ipv4_conntrack_in [nf_conntrack]\n\t}\n\thook input {\n"
    "\t\t 0000000000 chain ip filter INPUT [nf_tables]\n\t\t+2147483647 nf_confirm [nf_conntrack]\n\t}\n}\n"
)
FREE = (
    "family ip {\n\thook prerouting {\n\t\t-0000000400 ipv4_conntrack_defrag [nf_defrag_ipv4]\n\t}\n"
    "\thook input {\n\t\t 0000000000 chain ip conntrack INPUT [nf_tables]\n\t}\n}\n"
)


def test_conntracks_hooks() -> None:
    assert hooks_of(HOOKED) == ("ipv4_conntrack_in", "nf_confirm")


def test_a_built_in_conntrack_has_no_module_behind_its_name() -> None:
    assert hooks_of("\t\t-0000000200 ipv6_conntrack_in\n") == ("ipv6_conntrack_in",)


def test_defragmentation_and_chains_of_that_name_are_none() -> None:
    assert hooks_of(FREE) == ()


def test_nothing_is_asked_where_asking_would_load_a_module(fake_host: FakeHost) -> None:
    fake_host.boot("nf_tables 1 0 - Live 0x0\n")
    assert conntrack_hooks(fake_host.root) is None  # nft is not stubbed: a call would fail the test


def test_an_empty_answer_tells_nothing(fake_host: FakeHost) -> None:
    """A kernel without CONFIG_NETFILTER_NETLINK_HOOK: nft prints nothing, and succeeds."""
    fake_host.boot("nfnetlink_hook 1 0 - Live 0x0\n")
    fake_host.stub("nft")
    assert conntrack_hooks(fake_host.root) is None


def test_what_the_kernel_tells(fake_host: FakeHost) -> None:
    fake_host.boot("nfnetlink_hook 1 0 - Live 0x0\n")
    fake_host.stub("nft", FREE)
    assert conntrack_hooks(fake_host.root) == ()
    fake_host.stub("nft", HOOKED)
    assert conntrack_hooks(fake_host.root) == ("ipv4_conntrack_in", "nf_confirm")
    assert fake_host.calls("nft")[-1] == ("nft", "list", "hooks")


ID = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("cgroup", "owner"),
    [
        (f"0::/system.slice/docker-{ID}.scope\n", "docker container 0123456789ab"),
        (f"12:pids:/docker/{ID}\n11:cpu:/docker/{ID}\n", "docker container 0123456789ab"),
        (f"0::/machine.slice/libpod-{ID}.scope/container\n", "podman container 0123456789ab"),
        (f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-pod1.slice/crio-{ID}.scope\n",
         "CRI-O container 0123456789ab"),
        (f"0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope\n", "containerd container 0123456789ab"),
        (f"4:memory:/kubepods/burstable/pod1234/{ID}\n", "Kubernetes container 0123456789ab"),
        ("0::/lxc.payload.web-1/init.scope\n", "lxc container web-1"),
        ("0::/machine.slice/systemd-nspawn@web.service/payload\n", "systemd-nspawn machine web"),
        ("0::/machine.slice/machine-qemu\\x2d1\\x2dweb.scope\n", "machine qemu-1-web"),
        ("0::/system.slice/haproxy.service\n", "unit haproxy.service"),
        ("1:name=systemd:/system.slice/system-getty.slice/getty@tty1.service\n", "unit getty@tty1.service"),
        ("0::/user.slice/user-0.slice/session-1.scope\n", ""),
        ("0::/\n", ""),
        ("", ""),
    ],
)
def test_owners_by_their_control_group(cgroup: str, owner: str) -> None:
    assert owner_of(cgroup) == owner
