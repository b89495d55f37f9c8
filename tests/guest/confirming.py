"""apply --confirm-within over real ssh connections, in a guest with systemd."""

from __future__ import annotations

from .full_guest import FullGuest

UNIT = "cloudinit-conntrack-unconfirmed.service"
SSH = "ssh -n -i /root/key -o BatchMode=yes -o StrictHostKeyChecking=accept-new root@127.0.0.1"
PREPARE = """\
[ -e /root/key ] || ssh-keygen -q -t ed25519 -N '' -f /root/key
mkdir -p -m 700 /root/.ssh && cat /root/key.pub >>/root/.ssh/authorized_keys
printf 'conntrack:\\n  mode: unload\\n' >/root/unload.yaml
"""
STATE = "/var/lib/cloudinit-conntrack/unconfirmed.json"
SEEN = "iptables-save | grep -v '^[#:]'; ip6tables-save | grep -v '^[#:]'; " \
       "cut -d' ' -f1 /proc/modules | sort | grep nf_; ls /etc/modprobe.d"  # fmt: skip
# The client dies as soon as the change waits: its connection, its shell and the sleep with it.
CUT_OFF = f"""\
{SSH} 'cloudinit-conntrack apply -c /root/unload.yaml --confirm-within 45s; sleep 300' >/root/said 2>&1 &
client=$!
for n in $(seq 900); do grep -q '"until": [0-9]' {STATE} 2>/dev/null && break; sleep 0.2; done
kill -9 $client; pkill -9 -f 'sleep 300'
systemctl is-active {UNIT}; cut -d' ' -f1 /proc/modules | grep -c conntrack; cat /root/said"""
GONE = f"for n in $(seq 900); do systemctl is-active -q {UNIT} || break; sleep 0.2; done; systemctl is-active {UNIT}"
UNDONE = f"{GONE}; journalctl --boot -o cat -u {UNIT}"
SAME = f"{SSH} 'cloudinit-conntrack apply -c /root/unload.yaml --confirm-within 5m; " \
       "cloudinit-conntrack confirm; echo status $?'"  # fmt: skip
NEW = f"{SSH} 'cloudinit-conntrack confirm; echo status $?'"


def story(guest: FullGuest) -> dict[str, str]:
    """What was said and seen, by name; the host is as it was before at the end."""
    guest.check(PREPARE)
    told = {"before": guest.check(SEEN)}
    told["cut off"] = guest.run(CUT_OFF, 400).output
    told["undone"] = guest.run(UNDONE, 400).output
    told["after"] = guest.check(SEEN)
    told["same"] = guest.run(SAME, 300).output
    told["new"] = guest.run(NEW, 120).output
    told["kept"] = guest.run(f"{GONE}; cut -d' ' -f1 /proc/modules", 300).output
    told["verify"] = guest.run("cloudinit-conntrack verify", 120).output
    told["back"] = guest.run("cloudinit-conntrack revert", 300).output
    return told
