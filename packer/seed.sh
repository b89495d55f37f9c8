#!/bin/sh
# seed.sh DIRECTORY: what the qemu builder gives to its guest.  Makes a key pair for one bake, and a NoCloud seed that
# lets it in.  Packer forwards the guest's port 22 on all addresses of this machine, so no password would do.
set -eu
place=${1:?"seed.sh DIRECTORY"}
mkdir -p "$place/http"
rm -f "$place/key" "$place/key.pub"
ssh-keygen -q -t ed25519 -N '' -C bake -f "$place/key"
cat >"$place/http/user-data" <<END
#cloud-config
ssh_authorized_keys:
  - $(cat "$place/key.pub")
END
echo "instance-id: bake" >"$place/http/meta-data"
echo "#cloud-config" >"$place/http/vendor-data"
