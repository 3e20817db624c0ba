#!/bin/sh
# Installs what this machine lacks: Debian packages, as root or through sudo, then the virtual environment .venv of this
# checkout. Does nothing, in a fraction of a second, when all is there. Starts and enables no service, and disturbs none.
#
#   deploy/install.sh          PYTHON=python3.12 deploy/install.sh for another interpreter than python3
#
# Exit status: 0 all is there, 1 something cannot be installed (the reason is the last line).
set -eu

PROJECT=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
VENV=$PROJECT/.venv
PYTHON=${PYTHON:-python3}
LOG=/dev/null

main() {
    PATH=$PATH:/usr/sbin:/sbin # daemons lie there, and an ordinary user's PATH may lack it
    packages=$(missing_packages)
    if [ -n "$packages" ]; then
        install_packages "$packages"
    fi
    check_python
    if ! venv_is_current; then
        exec 9< "$PROJECT/pyproject.toml"
        flock 9 # `make run` and `make test` may start at once
        venv_is_current || make_venv
    fi
}

say() { echo "install: $*"; }
fail() { echo "install: $*" >&2; exit 1; }
has() { command -v "$1" > /dev/null 2>&1; }

missing_packages() {
    has "$PYTHON" || echo python3
    # Debian takes ensurepip out of its python3; another interpreter brings its own.
    if ! has "$PYTHON" || ! "$PYTHON" -c 'import ensurepip, venv' 2> /dev/null; then
        echo python3-venv
    fi
    has mosquitto && has mosquitto_passwd || echo mosquitto
    has mosquitto_pub || echo mosquitto-clients
    has zip || echo zip
    has ip || echo iproute2
    has debootstrap || echo debootstrap
    has useradd || echo passwd
    has flock || echo util-linux
    [ -e /etc/ssl/certs/ca-certificates.crt ] || echo ca-certificates
    if ! has docker || ! { docker version > /dev/null 2>&1 || has dockerd; }; then
        echo docker.io
        # The engine asks the kernel for AppArmor, and the package for its tools only by a recommendation.
        if [ -e /sys/module/apparmor ] && ! has apparmor_parser; then
            echo apparmor
        fi
    fi
}

install_packages() {
    has apt-get || fail "needs, and cannot install without apt-get:" $1
    SUDO=
    if [ "$(id -u)" != 0 ]; then
        has sudo || fail "run as root, or install sudo; missing:" $1
        SUDO=sudo
    fi
    say "installing with apt-get:" $1
    LOG=$(mktemp)
    forbid_services
    trap 'allow_services; rm -f "$LOG"' EXIT
    trap 'exit 130' INT TERM
    shown $SUDO apt-get update
    # Nothing of Debian's recommendations; what we need of them is named above. shellcheck disable=SC2086
    shown $SUDO env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $(available $1)
    for package in $1; do
        case $package in
            mosquitto) not_at_boot mosquitto ;;
            docker.io) not_at_boot docker ;;
        esac
    done
    allow_services
    trap - EXIT INT TERM
    rm -f "$LOG"
}

# Those of the packages that go together with others on this distribution.
available() {
    echo "$@"
    case " $* " in
        *" docker.io "*)
            # Newer Debians have the command line in a package of its own.
            if apt-cache show docker-cli 2> /dev/null | grep -q '^Package: docker-cli$'; then
                echo docker-cli
            fi
            ;;
    esac
    case " $* " in
        *" debootstrap "*) [ ! -e /etc/lsb-release ] || echo debian-archive-keyring ;;
    esac
}

# The packages would start their daemons: a broker on port 1883, an engine without our options. This file is how Debian
# is told not to; one that is there already stays as it is.
forbid_services() {
    if [ ! -e /usr/sbin/policy-rc.d ]; then
        printf '#!/bin/sh\n# greengrader deploy/install.sh\nexit 101\n' | $SUDO tee /usr/sbin/policy-rc.d > /dev/null
        $SUDO chmod 755 /usr/sbin/policy-rc.d
    fi
}

allow_services() {
    if grep -qs 'greengrader deploy/install.sh' /usr/sbin/policy-rc.d; then
        $SUDO rm -f /usr/sbin/policy-rc.d
    fi
}

# Only for what was just installed here: `make up` starts it, not the next boot.
not_at_boot() {
    if has systemctl; then
        $SUDO systemctl disable "$1.service" > /dev/null 2>&1 || true
        [ "$1" != docker ] || $SUDO systemctl disable docker.socket containerd.service > /dev/null 2>&1 || true
    elif has update-rc.d; then
        $SUDO update-rc.d "$1" disable > /dev/null 2>&1 || true
    fi
}

check_python() {
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$(command -v "$PYTHON") is $("$PYTHON" -V); GreenGrader needs Python 3.11 or newer:" \
            "install one with its venv module, then: make PYTHON=python3.12 …"
}

# What the environment was made from: this place, and these requirements.
recipe() { echo "$PROJECT"; sed '/^\[tool\./,$d' "$PROJECT/pyproject.toml"; }

venv_is_current() { [ -x "$VENV/bin/python" ] && recipe | cmp -s - "$VENV/recipe"; }

make_venv() {
    say "making $VENV with $("$PYTHON" -V)"
    LOG=$(mktemp)
    trap 'rm -f "$LOG"' EXIT
    # A checkout that was copied or moved has an environment that points to the old place.
    clear=--clear
    [ "$(head -n 1 "$VENV/recipe" 2> /dev/null)" != "$PROJECT" ] || clear=
    "$PYTHON" -m venv $clear "$VENV"
    (cd "$PROJECT" && shown "$VENV/bin/python" -m pip install --disable-pip-version-check --progress-bar off -e '.[embedded,test]')
    recipe > "$VENV/recipe"
    say "done"
}

# Runs a command and shows every few seconds where it is; all that it printed if it fails.
shown() {
    status=$(mktemp)
    { "$@" 2>&1 || echo $? > "$status"; } | tee "$LOG" | {
        last=0
        while IFS= read -r line; do
            now=$(date +%s)
            if [ $((now - last)) -ge 3 ]; then
                last=$now
                printf 'install:   %.100s\n' "$line"
            fi
        done
    }
    if [ -s "$status" ]; then
        rm -f "$status"
        cat "$LOG" >&2
        fail "failed: $*"
    fi
    rm -f "$status"
}

main
