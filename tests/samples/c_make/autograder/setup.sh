#!/usr/bin/env bash
set -e
apt-get install -y gcc libc6-dev make diffutils jq
make -C /autograder/source/reference
