#!/usr/bin/env bash
apt-get install -y python3 redis-server
