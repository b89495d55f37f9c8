"""The ports of sshd, from configuration files and sockets on a fake host."""

from __future__ import annotations

import pytest
from fakehost import FakeHost, fake_host

from cloudinit_conntrack.host.sshd import sshd_ports

__all__ = ["fake_host"]

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def socket_line(port: int, inode: int, state: str = "0A") -> str:
    return f"   0: 00000000:{port:04X} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 0 0 {inode} 1\n"


def process(host: FakeHost, pid: int, comm: str, *inodes: int) -> None:
    host.write(f"/proc/{pid}/comm", comm + "\n")
    descriptors = host.tree / f"proc/{pid}/fd"
    descriptors.mkdir()
    for number, inode in enumerate(inodes, 3):
        (descriptors / str(number)).symlink_to(f"socket:[{inode}]")


@pytest.mark.parametrize(("text", "ports"), [
    ("", (22,)),
    ("#Port 23\n", (22,)),
    ("Port 2222\n", (2222,)),
    ("port=2222 # here\nPORT \"2022\"\n", (2022, 2222)),
    ("Port 2222\nMatch User x\nPort 99\n", (2222,)),
    ("ListenAddress 10.0.0.1\n", (22,)),
    ("ListenAddress 10.0.0.1:2200\n", (2200,)),
    ("ListenAddress [::1]:2200\nListenAddress ::\nPort 24\n", (24, 2200)),
    ("ListenAddress host.example:2201 rdomain blue\n", (2201,)),
    ("Port 0\nPort 70000\nPort x\n", (22,)),
])
def test_configured_ports(fake_host: FakeHost, text: str, ports: tuple[int, ...]) -> None:
    fake_host.write("/etc/ssh/sshd_config", text)
    assert sshd_ports(fake_host.root, live=False) == ports


def test_includes_are_read_and_cannot_loop(fake_host: FakeHost) -> None:
    fake_host.write("/etc/ssh/sshd_config", "Include /etc/ssh/sshd_config.d/*.conf own.conf\nPort 1\n")
    fake_host.write("/etc/ssh/sshd_config.d/a.conf", "Port 2\nMatch all\nPort 9\n")
    fake_host.write("/etc/ssh/sshd_config.d/a.txt", "Port 8\n")
    fake_host.write("/etc/ssh/own.conf", "Port 3\nInclude own.conf\n")
    assert sshd_ports(fake_host.root, live=False) == (1, 2, 3)


def test_a_host_without_sshd_keeps_22(fake_host: FakeHost) -> None:
    assert sshd_ports(fake_host.root) == (22,)


def test_what_sshd_listens_on_counts_beside_what_is_configured(fake_host: FakeHost) -> None:
    fake_host.write("/etc/ssh/sshd_config", "Port 2222\n")
    fake_host.write("/proc/net/tcp", HEAD + socket_line(22, 100) + socket_line(80, 101) + socket_line(5000, 102, "01"))
    fake_host.write("/proc/net/tcp6", HEAD + socket_line(2022, 103))
    process(fake_host, 700, "sshd", 100, 102, 103)
    process(fake_host, 800, "haproxy", 101)
    assert sshd_ports(fake_host.root) == (22, 2022, 2222)
    assert sshd_ports(fake_host.root, live=False) == (2222,)


@pytest.mark.parametrize(("four", "six", "ports"), [
    ("TCP: inuse 1 orphan 0", "TCP6: inuse 0", (22, 2022)), ("TCP: inuse 0 orphan 0", "TCP6: inuse 1", (22, 2022)),
    ("TCP: inuse 0 orphan 0", "TCP6: inuse 0", (22,)), ("UDP: inuse 0", "", (22, 2022)),
])
def test_where_no_tcp_socket_is_the_tables_are_not_read(
    fake_host: FakeHost, four: str, six: str, ports: tuple[int, ...]
) -> None:
    process(fake_host, 7, "sshd", 103)
    fake_host.write("/proc/net/tcp6", HEAD + socket_line(2022, 103))
    fake_host.write("/proc/net/sockstat", f"sockets: used 9\n{four}\nUDP: inuse 0 mem 0\n")
    fake_host.write("/proc/net/sockstat6", f"{six}\nUDP6: inuse 0\n")
    assert sshd_ports(fake_host.root) == ports


def test_a_socket_that_systemd_holds(fake_host: FakeHost) -> None:
    fake_host.write("/etc/ssh/sshd_config", "Port 22\n")
    fake_host.write("/usr/lib/systemd/system/ssh.socket", "[Socket]\nListenStream=22\n")
    fake_host.write("/etc/systemd/system/ssh.socket.d/port.conf", "[Socket]\nListenStream=\nListenStream=[::]:2244\n")
    fake_host.write("/proc/net/tcp", HEAD + socket_line(9999, 101))
    fake_host.write("/proc/net/tcp6", HEAD + socket_line(2244, 100))
    process(fake_host, 1, "systemd", 100, 101)
    assert sshd_ports(fake_host.root) == (22, 2244)


def test_an_enabled_socket_unit_of_an_image(fake_host: FakeHost) -> None:
    fake_host.write("/usr/lib/systemd/system/ssh.socket", "[Socket]\nListenStream=0.0.0.0:2244\n")
    assert sshd_ports(fake_host.root, live=False) == (22,)
    fake_host.write("/etc/systemd/system/sockets.target.wants/ssh.socket")
    assert sshd_ports(fake_host.root, live=False) == (22, 2244)
