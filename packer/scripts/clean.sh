#!/bin/sh
# The last of a bake: what is this one host's own must not be in its clones.
set -eu

# Instance, logs, seed; from 22.3 on cloud-init also runs what is in clean.d, ours too.
if cloud-init clean --help | grep -q -- --machine-id; then
    cloud-init clean --logs --seed --machine-id
else
    cloud-init clean --logs --seed
    for script in /etc/cloud/clean.d/*; do
        [ ! -x "$script" ] || "$script"
    done
fi
# Azure's agent keeps an identity of its own, and the account that Packer came by.
if command -v waagent >/dev/null; then
    waagent -force -deprovision+user
fi

# Empty, and not "uninitialized": with that, systemd enables at the first boot all units that were disabled.
: >/etc/machine-id
[ -L /var/lib/dbus/machine-id ] || rm -f /var/lib/dbus/machine-id
rm -f /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub
rm -f /root/.ssh/authorized_keys /home/*/.ssh/authorized_keys
rm -f /root/.*history /home/*/.*history

for log in wtmp btmp lastlog; do
    [ ! -e "/var/log/$log" ] || : >"/var/log/$log"
done

# Addresses: leases, and what cloud-init wrote for this one network card.
rm -f /var/lib/dhcp/*.leases /var/lib/dhclient/*.lease* /var/lib/NetworkManager/*.lease
rm -f /var/lib/NetworkManager/secret_key /var/lib/NetworkManager/timestamps
rm -f /etc/netplan/50-cloud-init.yaml /etc/network/interfaces.d/50-cloud-init
rm -f /etc/systemd/network/10-cloud-init-*.network /etc/systemd/network/10-cloud-init-*.link
rm -f /etc/udev/rules.d/70-persistent-net.rules

# A seed for random numbers is written once more when its service stops.
systemctl stop systemd-random-seed.service || true
rm -f /var/lib/systemd/random-seed
rm -rf /var/log/journal/* /tmp/95_conntrack.cfg "$PACKAGE"
sync
