#!/usr/bin/env bash
# Builds the local base image: a Debian 12 root file system with what autograders find in Gradescope's own base image.
# For machines that cannot pull that one, and for the tests.
#
#   deploy/base-image.sh [TAG]          (as root; default tag greengrader/base:debian-12)
#
# Returns at once when the image exists. Mirrors, package index and certificate authorities are read off this machine, so
# that `apt-get` and `pip` inside a container reach what they reach here. Addresses with a password in them are left out:
# student code can read whatever stands in the image.
#
# Exit status: 0 the image exists, 1 it could not be built (the log's last lines are shown).
set -euo pipefail

TAG=${1:-greengrader/base:debian-12}
SUITE=bookworm
PACKAGES=(
    adduser bash bzip2 ca-certificates curl dos2unix file gcc hostname jq libc6-dev make passwd procps
    python3 python3-pip python3-venv unzip util-linux wget xz-utils zip
)

main() {
    if image_exists; then
        return 0
    fi
    [ "$(id -u)" = 0 ] || fail "must run as root: debootstrap makes device nodes and enters the new root"
    command -v debootstrap > /dev/null || fail "debootstrap is missing: run deploy/install.sh first"
    exec 9> /run/greengrader-base-image.lock
    flock 9 # two stacks that start at once build one image
    if image_exists; then
        return 0
    fi
    # /tmp is often mounted nodev or as memory; debootstrap can use neither.
    stage=$(mktemp -d /var/tmp/greengrader-base.XXXXXX)
    trap 'rm -rf --one-file-system "$stage"' EXIT
    local root=$stage/root
    say "building $TAG: a Debian $SUITE root file system, two minutes or so"
    run_debootstrap "$root"
    say "configuring it like a Gradescope container"
    configure_apt "$root"
    configure_certificates "$root"
    configure_python "$root"
    slim "$root"
    say "importing it into Docker"
    tar --directory "$root" --numeric-owner --create . | docker import \
        --change 'ENV LANG=C.UTF-8' \
        --change 'ENV DEBIAN_FRONTEND=noninteractive' \
        --change 'CMD ["/bin/bash"]' \
        --message 'greengrader deploy/base-image.sh' - "$TAG" > /dev/null
    say "done: $TAG in $SECONDS s"
}

say() { echo "base image: $*"; }
fail() { echo "base image: $*" >&2; exit 1; }

image_exists() { docker image inspect "$TAG" > /dev/null 2>&1; }

run_debootstrap() {
    local root=$1 log=$stage/debootstrap.log mirror
    mirror=$(mirror_of "$SUITE")
    # Without a mirror of this machine's own (an Ubuntu host), debootstrap knows Debian's. shellcheck disable=SC2086
    if ! debootstrap --variant=minbase --include="$(IFS=,; echo "${PACKAGES[*]}")" \
        "$SUITE" "$root" ${mirror:+"$mirror"} 2>&1 | tee "$log" | show_progress; then
        tail -n 15 "$log" "$root/debootstrap/debootstrap.log" >&2 2> /dev/null || true
        fail "debootstrap failed"
    fi
}

# Prints every few seconds the line that is current, out of hundreds.
show_progress() {
    local line shown=$SECONDS
    while IFS= read -r line; do
        if ((SECONDS - shown >= 4)); then
            say "  ${line#I: }"
            shown=$SECONDS
        fi
    done
}

# mirror_of SUITE: prints the address this machine's own apt uses for that suite of Debian, or nothing.
mirror_of() {
    local address
    # apt itself reads its sources, in either of their two formats.
    # shellcheck disable=SC2016
    address=$(apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' 2> /dev/null |
        awk -v suite="$1" '$1 == suite && !found { print $2; found = 1 }')
    case $address in
        # Debian's cloud images name a file that lists the mirrors.
        mirror+file:*) address=$(awk '!/^#/ && NF { print $1; exit }' "${address#mirror+file:}" 2> /dev/null) || address= ;;
    esac
    without_password "$address"
}

without_password() {
    case $1 in
        *://*@*) say "left out of the image, as it holds a password: ${1##*@}" >&2 ;;
        *) echo "$1" ;;
    esac
}

configure_apt() {
    local root=$1 suite mirror
    for suite in "$SUITE" "$SUITE-updates" "$SUITE-security"; do
        mirror=$(mirror_of "$suite")
        if [ -n "$mirror" ]; then
            echo "deb $mirror $suite main"
        fi
    done > "$stage/sources.list"
    if [ -s "$stage/sources.list" ]; then
        cp "$stage/sources.list" "$root/etc/apt/sources.list"
    fi
    { apt-config dump 2> /dev/null || true; } |
        grep -iE '^Acquire::(https?::Proxy|Check-Valid-Until|Check-Date)' |
        grep -v '://[^"]*@' > "$root/etc/apt/apt.conf.d/90greengrader-host" || true
    cat > "$root/etc/apt/apt.conf.d/91greengrader" << 'CONF'
Acquire::Languages "none";
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb || true"; };
CONF
    # A container is thrown away: nothing in it needs to survive a power cut, and dpkg is five times as fast.
    echo force-unsafe-io > "$root/etc/dpkg/dpkg.cfg.d/greengrader"
    # As in Docker's own images: installing a package must not start its daemon.
    printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d"
    chmod 755 "$root/usr/sbin/policy-rc.d"
}

configure_certificates() {
    local root=$1 bundle=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt} file
    for file in /usr/local/share/ca-certificates/*.crt; do
        if [ -f "$file" ]; then
            install -m 644 "$file" "$root/usr/local/share/ca-certificates/"
        fi
    done
    chroot "$root" update-ca-certificates > /dev/null 2>&1
    if [ -s "$bundle" ]; then
        install -m 644 "$bundle" "$root/etc/ssl/certs/ca-certificates.crt"
    fi
}

configure_python() {
    local root=$1
    # Gradescope's base lets root `pip install` into the system; setup.sh scripts rely on it.
    rm -f "$root"/usr/lib/python3*/EXTERNALLY-MANAGED
    {
        echo '[global]'
        echo 'cert = /etc/ssl/certs/ca-certificates.crt'
        echo 'disable-pip-version-check = true'
        echo 'root-user-action = ignore'
        { python3 -m pip config list 2> /dev/null || true; } |
            sed -nE "s/^(global|install|:env:)\.(index-url|extra-index-url|trusted-host|proxy)='(.*)'\$/\2 = \3/p" |
            grep -vE '://[^ ]*@|file:' || true
    } > "$root/etc/pip.conf"
}

slim() {
    local root=$1
    chroot "$root" apt-get clean
    rm -rf "$root"/var/lib/apt/lists/* "$root"/var/log/*.log "$root"/var/log/apt "$root"/var/cache/debconf/*-old
    rm -rf "$root"/usr/share/doc/* "$root"/usr/share/man/* "$root"/usr/share/locale/*
    rm -f "$root/etc/resolv.conf" "$root/etc/hostname" # Docker mounts its own over these
    : > "$root/etc/machine-id"
}

main
