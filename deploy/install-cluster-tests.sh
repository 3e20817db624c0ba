#!/bin/sh
# Installs what the tests of the Kubernetes pipeline need beside a cluster: rclone and kubectl (Debian packages, as root or
# through sudo), and in a cache folder, without starting or enabling anything, Debian's docker-registry and moto's S3 server.
# Does nothing where KUBECONFIG names no cluster that answers, and returns in a fraction of a second when all is there.
#
# Exit status: 0 all is there or nothing is needed, 1 something cannot be installed (the reason is the last line).
set -eu

CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/greengrader/cluster-tests
PYTHON=${PYTHON:-python3}

main() {
    # Without a cluster these tests are skipped.
    if [ -z "${KUBECONFIG-}" ] || [ ! -e "${KUBECONFIG%%:*}" ]; then
        return 0
    fi
    has kubectl || install_packages kubernetes-client
    if ! kubectl get --raw=/readyz --request-timeout=5s > /dev/null 2>&1; then
        return 0
    fi
    has rclone || install_packages rclone
    mkdir -p "$CACHE"
    exec 9> "$CACHE/lock"
    flock 9 # two of us may start at once
    has docker-registry || [ -x "$CACHE/registry/usr/bin/docker-registry" ] || unpack_registry
    [ -x "$CACHE/moto/bin/moto_server" ] || install_moto
}

say() { echo "install-cluster-tests: $*"; }
fail() { echo "install-cluster-tests: $*" >&2; exit 1; }
has() { command -v "$1" > /dev/null 2>&1; }

install_packages() {
    has apt-get || fail "needs, and cannot install without apt-get: $1"
    SUDO=
    if [ "$(id -u)" != 0 ]; then
        has sudo || fail "run as root, or install sudo; missing: $1"
        SUDO=sudo
    fi
    say "installing with apt-get: $1"
    quietly $SUDO apt-get update
    quietly $SUDO env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "$1"
}

# The package would start a registry on port 5000, now and at every boot; its one program is all we want.
unpack_registry() {
    has apt-get && has dpkg-deb || fail "needs Debian's docker-registry, or any in PATH"
    say "fetching docker-registry"
    rm -rf "$CACHE/registry.new"
    mkdir "$CACHE/registry.new"
    (cd "$CACHE/registry.new" && quietly apt-get download docker-registry && dpkg-deb --extract docker-registry_*.deb .)
    rm -rf "$CACHE/registry"
    mv "$CACHE/registry.new" "$CACHE/registry"
}

install_moto() {
    say "making $CACHE/moto, a virtual environment with moto's S3 server"
    rm -rf "$CACHE/moto"
    quietly "$PYTHON" -m venv "$CACHE/moto"
    # Its server comes last into its place: a half installed one is made anew.
    quietly "$CACHE/moto/bin/python" -m pip install --disable-pip-version-check 'moto[s3,server]>=5'
    say "done"
}

# Runs a command; all that it printed if it fails.
quietly() {
    log=$(mktemp)
    if ! "$@" > "$log" 2>&1; then
        cat "$log" >&2
        rm -f "$log"
        fail "failed: $*"
    fi
    rm -f "$log"
}

main
