#!/bin/sh
# The image's section, our module in its cloud-init, and all of it applied and verified in the running guest.
set -eu
section=/etc/cloud/cloud.cfg.d/95_conntrack.cfg
# shellcheck disable=SC2153 # given by build.pkr.hcl
install -m 644 -o root -g root "$SECTION" "$section"
cloudinit-conntrack enable
cloudinit-conntrack apply -c "$section"
cloudinit-conntrack verify
