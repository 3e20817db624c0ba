#!/bin/sh
# Grades one submission in a Kubernetes pod: ./pod.sh <assignment id> <submission id>
# The Kubernetes pipeline is not part of this version yet; the run stays as it is.
echo "pod.sh: the kubernetes backend is not there in this version; give assignment $1 the docker backend:" >&2
echo "    python3 -m greengrader assignment set $1 --backend docker" >&2
exit 3
