#!/usr/bin/env bash
set -e
apt-get install -y adduser python3 util-linux
adduser --disabled-password --gecos "" --no-create-home student
