#!/bin/sh
# Grades one submission in a Kubernetes pod and records its result: ./pod.sh <assignment id> <submission id>
#
# Works from the calling folder: gradescope_data/ and pod.yaml found there are used; otherwise the submission comes from
# Postgres and the podspec from this project. Exit codes: `./pod.sh --help`.
set -eu

project=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
usage() {
    echo "usage: pod.sh <assignment id> <submission id>     both are Gradescope's, digits only" >&2
    exit 2
}

if [ "${1-}" != --help ]; then
    [ $# -eq 2 ] || usage
    case $1$2 in
        *[!0-9]*) usage ;;
    esac
    { [ -n "$1" ] && [ -n "$2" ]; } || usage
fi

PYTHONPATH=$project${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH
exec python3 -m greengrader.kube "$@"
