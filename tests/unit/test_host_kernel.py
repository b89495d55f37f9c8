"""What the kernel says, on fake ``/proc`` and ``/sys`` trees of several kinds of kernel."""

from __future__ import annotations

import gzip

import pytest
from fakehost import RELEASE, FakeHost, fake_host

from cloudinit_conntrack.host import kernel
from cloudinit_conntrack.host.kernel import observe_kernel

__all__ = ["fake_host"]

LOADED = """\
xt_conntrack 16384 1 - Live 0x0
nf_conntrack 172032 1 xt_conntrack, Live 0x0
nf_defrag_ipv4 16384 1 nf_conntrack, Live 0x0
tun 61440 2 - Live 0x0
"""


def test_a_loaded_conntrack_with_all_that_revert_needs(fake_host: FakeHost) -> None:
    fake_host.boot(LOADED)
    for name, value in (("hashsize", "65536\n"), ("acct", "N\n"), ("none", "(null)\n"), ("ports", "\n")):
        fake_host.write(f"/sys/module/nf_conntrack/parameters/{name}", value)
    fake_host.write("/sys/module/tun/parameters/x", "1\n")
    fake_host.write("/proc/sys/net/netfilter/nf_conntrack_count", "17\n")
    fake_host.write("/proc/sys/net/netfilter/nf_conntrack_frag6_timeout", "60\n")
    dep = "kernel/nf_conntrack.ko: kernel/nf_defrag_ipv4.ko\nkernel/xt_conntrack.ko: kernel/nf_conntrack.ko\n"
    fake_host.write(f"/lib/modules/{RELEASE}/modules.dep", dep)
    found = observe_kernel(fake_host.root)
    assert (found.release, found.modular, found.locked, found.conntrack, found.proc_file) == (
        RELEASE, True, False, "loaded", True)
    assert (found.entries, found.dependants, found.local_ports) == (17, ("xt_conntrack",), (32768, 60999))
    assert found.sysctls == (("net.netfilter.nf_conntrack_max", "65536"),)
    module = found.module("nf_conntrack")
    assert module is not None
    assert module.parameters == (("acct", "N"), ("hashsize", "65536"))
    tun = found.module("tun")
    assert tun is not None
    assert tun.parameters == ()


def test_parameters_of_extra_modules_are_kept_too(fake_host: FakeHost) -> None:
    fake_host.boot(LOADED)
    fake_host.write("/sys/module/tun/parameters/x", "1\n")
    module = observe_kernel(fake_host.root, ("tun",)).module("tun")
    assert module is not None
    assert module.parameters == (("x", "1"),)


def test_a_kernel_without_modules(fake_host: FakeHost) -> None:
    fake_host.boot(None, conntrack_builtin=True)
    found = observe_kernel(fake_host.root)
    assert (found.modular, found.conntrack, found.proc_file, found.modules) == (False, "builtin", True, ())


def test_built_in_by_the_list_that_the_kernel_ships(fake_host: FakeHost) -> None:
    fake_host.boot("")
    fake_host.write(f"/lib/modules/{RELEASE}/modules.builtin", "kernel/net/netfilter/nf_conntrack.ko\n")
    assert observe_kernel(fake_host.root).conntrack == "builtin"


def test_absent_but_possible(fake_host: FakeHost) -> None:
    fake_host.boot("tun 61440 2 - Live 0x0\n")
    found = observe_kernel(fake_host.root)
    assert (found.conntrack, found.proc_file, found.entries, found.sysctls) == ("absent", False, None, ())


def test_a_locked_kernel(fake_host: FakeHost) -> None:
    fake_host.boot(LOADED, locked=True)
    assert observe_kernel(fake_host.root).locked


def test_an_old_kernel_with_ip_conntrack(fake_host: FakeHost) -> None:
    fake_host.boot("ip_conntrack 53281 1 xt_state, Live 0x0\n")
    fake_host.write("/proc/net/ip_conntrack", "")
    found = observe_kernel(fake_host.root)
    assert (found.conntrack, found.proc_file) == ("loaded", True)


@pytest.mark.parametrize(("path", "content", "answer"), [
    (f"/boot/config-{RELEASE}", b"CONFIG_MODULE_UNLOAD=y\nCONFIG_MODULE_FORCE_UNLOAD=y\n", True),
    (f"/lib/modules/{RELEASE}/config", b"# CONFIG_MODULE_FORCE_UNLOAD is not set\n", False),
    ("/proc/config.gz", gzip.compress(b"CONFIG_MODULE_FORCE_UNLOAD=y", mtime=0), True),
    ("/proc/config.gz", b"no gzip at all", None),
    ("/elsewhere", b"CONFIG_MODULE_FORCE_UNLOAD=y\n", None),
], ids=["boot", "modules", "compressed", "not gzip", "nowhere"])  # not the content: it differs from process to process
def test_forced_unloading_is_read_from_the_build_configuration(
    fake_host: FakeHost, path: str, content: bytes, answer: bool | None
) -> None:
    fake_host.boot(LOADED)
    fake_host.write(path, content)
    assert observe_kernel(fake_host.root).forced_unload is answer


def test_what_is_available_without_loading(fake_host: FakeHost) -> None:
    fake_host.boot("nf_tables 323584 0 - Live 0x0\n")
    fake_host.write(f"/boot/config-{RELEASE}", "CONFIG_NF_CT_NETLINK=y\nCONFIG_IP_SET=m\n")
    assert kernel.available(fake_host.root, "nf_tables")
    assert kernel.available(fake_host.root, "nf_conntrack_netlink")
    assert not kernel.available(fake_host.root, "ip_set")
    fake_host.boot("", locked=True)
    assert kernel.available(fake_host.root, "ip_set")  # nothing can be loaded any more
