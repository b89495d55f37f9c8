#!/bin/sh
# Installs what is missing of $PACKAGES, the distribution's, and then $PACKAGE, ours.
set -eu
export DEBIAN_FRONTEND=noninteractive

# The first boot's own work first: it may hold apt's lock.
if command -v cloud-init >/dev/null; then
    cloud-init status --wait >/dev/null || true # its exit status says how that went, and is no reason to stop here
fi

missing=
if command -v apt-get >/dev/null; then
    for name in $PACKAGES; do
        dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null | grep -qx installed || missing="$missing $name"
    done
    install() { apt-get -qy --no-install-recommends install "$@"; }
    [ -z "$missing" ] || apt-get -q update
else
    for name in $PACKAGES; do
        rpm -q "$name" >/dev/null || missing="$missing $name"
    done
    install() { dnf -qy install "$@"; }
fi
# shellcheck disable=SC2086 # names, with spaces between
[ -z "$missing" ] || install $missing

case $PACKAGE in
*.deb | *.rpm) install "$PACKAGE" ;;
*.whl)
    # PyYAML is there: cloud-init needs it.  RHEL's cloud-init does not look into /usr/local.
    prefix=
    [ -e /etc/debian_version ] || prefix="--prefix=/usr"
    # shellcheck disable=SC2086 # nothing, or one word
    PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip -q install --no-index --no-deps $prefix "$PACKAGE"
    ;;
*)
    echo "install.sh: $PACKAGE: a .deb, an .rpm or a .whl is needed" >&2
    exit 2
    ;;
esac
