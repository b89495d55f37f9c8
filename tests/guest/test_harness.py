"""The harness itself, proven with the kernel's and kmod's own tools."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from . import layer
from .full_guest import NewGuest
from .uml import HERE, GuestError, run_quick

MODULES = "cut -d' ' -f1 /proc/modules | sort | tr '\\n' ' '"


def processes_with(word: str) -> list[str]:
    """Command lines on this machine that hold *word*."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it ended while we looked
        if word in line and path.parent.name != str(os.getpid()):
            found.append(line)
    return found


def wait_until_gone(word: str, seconds: float = 10) -> list[str]:
    deadline = time.monotonic() + seconds
    while processes_with(word) and time.monotonic() < deadline:
        time.sleep(0.1)
    return processes_with(word)


# -- quick guests --------------------------------------------------------------------------


def test_quick_guest_gives_status_streams_and_steps() -> None:
    result = run_quick(
        "echo out; echo err >&2; step yes echo a; step no sh -c 'echo b >&2; exit 7'; cat /etc/given; exit 3",
        files={"/etc/given": "from outside\n"},
    )
    assert (result.status, result.stdout, result.stderr) == (3, "out\nfrom outside\n", "err\n")
    assert (result.steps["yes"].status, result.steps["yes"].stdout) == (0, "a\n")
    assert (result.steps["no"].status, result.steps["no"].stderr) == (7, "b\n")


def test_quick_guest_finds_the_package_of_this_checkout() -> None:
    result = run_quick("/usr/bin/python3 -c 'import cloudinit_conntrack as c; print(c.__file__)'")
    assert result.stdout.strip() == str(HERE.parents[1] / "cloudinit_conntrack" / "__init__.py"), result.output


def test_quick_guest_cannot_change_the_real_files() -> None:
    marker = f"/etc/quick-guest-was-here-{os.getpid()}"
    result = run_quick(f"echo x >{marker} && cat {marker} && mount && ls /mnt")
    assert result.ok and result.stdout.startswith("x\n"), result.output
    assert not Path(marker).exists()
    assert "hostfs (rw,relatime,/)" not in result.stdout  # the real root is not mounted anywhere


@pytest.mark.parametrize("command", ["iptables-legacy", "ip6tables-legacy"])
def test_a_state_rule_pins_the_modules_until_it_goes(command: str) -> None:
    result = run_quick(
        f"""
        step load modprobe nf_conntrack
        step loaded ls /proc/net/nf_conntrack
        step rule {command} -A INPUT -m state --state NEW -j ACCEPT
        step holders ls /sys/module/nf_conntrack/holders
        step count cat /sys/module/xt_conntrack/refcnt
        step remove_in_use modprobe -r nf_conntrack
        step rmmod_in_use rmmod nf_conntrack
        step flush {command} -F INPUT
        step remove_rule_module rmmod xt_conntrack
        step remove rmmod nf_conntrack
        step gone ls /proc/net/nf_conntrack
        {MODULES}
        """
    )
    steps = result.steps
    assert all(steps[name].ok for name in ("load", "loaded", "rule", "flush", "remove_rule_module", "remove")), steps
    assert steps["holders"].stdout.split() == ["xt_conntrack"]
    assert steps["count"].stdout.strip() == "1"
    assert steps["remove_in_use"].status == 1 and "in use" in steps["remove_in_use"].stderr
    assert steps["rmmod_in_use"].status == 1 and "in use by: xt_conntrack" in steps["rmmod_in_use"].stderr
    assert not steps["gone"].ok
    assert not [m for m in result.stdout.split() if "conntrack" in m], result.stdout


def test_an_install_line_keeps_every_path_to_the_module_shut() -> None:
    result = run_quick(
        f"""
        step explicit modprobe nf_conntrack
        step rule4 iptables-legacy -A INPUT -m state --state NEW -j ACCEPT
        step rule6 ip6tables-legacy -A INPUT -m conntrack --ctstate NEW -j ACCEPT
        step table iptables-legacy -t nat -L
        step harmless iptables-legacy -A INPUT -p tcp --dport 22 -j ACCEPT
        {MODULES}
        """,
        files={"/etc/modprobe.d/00-block.conf": "install nf_conntrack /bin/false\n"},
    )
    assert not any(result.steps[name].ok for name in ("explicit", "rule4", "rule6", "table")), result.steps
    assert result.steps["harmless"].ok, result.steps["harmless"]
    assert not [m for m in result.stdout.split() if m in ("nf_conntrack", "nf_nat", "xt_conntrack")], result.stdout


def test_a_disk_keeps_files_but_neither_modules_nor_rules(tmp_path: Path) -> None:
    disk = tmp_path / "disk.tar"
    first = run_quick(
        "mkdir /etc/kept && echo 1 >/etc/kept/a && chmod 600 /etc/kept/a && chown 5:6 /etc/kept/a;"
        "touch -d '2001-02-03 04:05:06.123456789' /etc/kept/a; rm /etc/hosts; stat -c '%a %u:%g %y' /etc/kept/a;"
        "iptables-legacy -A INPUT -m state --state NEW -j ACCEPT; touch /run/volatile",
        disk=disk,
    )
    assert first.ok, first.output
    second = run_quick(
        "stat -c '%a %u:%g %y' /etc/kept/a; ls /etc/hosts /run/volatile; iptables-legacy-save;" + MODULES, disk=disk
    )
    assert second.stdout.splitlines()[0] == first.stdout.splitlines()[0]
    assert first.stdout.startswith("600 5:6 2001-02-03 04:05:06.123456789")
    assert "/etc/hosts" in second.stderr and "/run/volatile" in second.stderr
    assert "conntrack" not in second.stdout
    assert Path("/etc/hosts").exists()


def test_a_guest_that_hangs_is_ended_and_its_words_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # a name to find its processes by
    with pytest.raises(GuestError, match=r"not done after 5 s(.|\n)*last words"):
        run_quick("echo last words; sleep 1000", timeout=5)
    assert not wait_until_gone(str(tmp_path))


def test_a_guest_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    code = f"""
import sys; sys.path.insert(0, {str(HERE.parent)!r})
import pathlib, time
from guest import uml
arguments = ["mem=64M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "init=/bin/cat"]
guest = uml.Process(arguments, pathlib.Path({str(tmp_path)!r}))
while "as init process" not in guest.tail() and guest.running():
    time.sleep(0.1)
print("booted" if guest.running() else guest.tail(), flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as starter:
        try:
            assert starter.stdout and starter.stdout.readline() == "booted\n"
            assert len(processes_with(str(tmp_path))) > 2  # this program, the shell, the kernel
        finally:
            os.kill(starter.pid, signal.SIGKILL)
    assert not wait_until_gone(str(tmp_path))


# -- full guests ---------------------------------------------------------------------------


def test_full_guest_has_services_a_network_and_a_disk_that_stays(new_guest: NewGuest) -> None:
    guest = new_guest("#cloud-config\nwrite_files: [{path: /etc/from-user-data, content: here}]\n")
    guest.boot()
    ran = guest.run("echo out; echo err >&2; exit 4")
    assert (ran.status, ran.stdout, ran.stderr) == (4, "out\n", "err\n")
    guest.run("until systemctl --quiet is-active ssh.service; do sleep 0.3; done", 120)
    assert guest.check("cat /etc/from-user-data") == "here"  # cloud-init's network stage
    for version in (4, 6):
        assert guest.banner(22, version).startswith("SSH-2.0-")
        with pytest.raises(ConnectionRefusedError):
            guest.connect(81, version)
    rule = "iptables -A INPUT -m state --state NEW -j ACCEPT"
    assert guest.run(f"{rule} && modprobe -r nf_conntrack").stderr.strip().endswith("is in use.")
    with pytest.raises(GuestError, match="in time"):
        guest.run("sleep 3; echo late", timeout=1)
    assert guest.check("echo next") == "next\n"  # the late answer is not taken for this one

    before = guest.check("cat /proc/sys/kernel/random/boot_id")
    guest.check("echo kept >/etc/kept; echo other >/usr/bin/cloudinit-conntrack")
    guest.power_off()
    with pytest.raises(GuestError, match="not running"):
        guest.run("true")
    guest.boot()
    assert guest.check("cat /proc/sys/kernel/random/boot_id") != before
    assert guest.check("cat /etc/kept /usr/bin/cloudinit-conntrack") == "kept\nother\n"  # the layer came once
    assert "conntrack" not in guest.check(MODULES)
    guest.kill()
    assert not wait_until_gone(str(guest.work))


def test_the_list_entry_comes_last_and_changes_nothing_else() -> None:
    text = "a: 1\n\ncloud_config_modules:\n - snap\n - byobu\n\n# final\ncloud_final_modules:\n - fan\n"
    assert layer.insert_module(text) == text.replace(" - byobu\n", " - byobu\n - [conntrack, always]\n")
