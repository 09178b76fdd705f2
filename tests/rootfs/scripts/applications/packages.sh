#!/bin/bash
# apt-get update without a network: its usual errors, and a status that says so.
mkdir -p /etc/apt/apt.conf.d /var/lib/apt/lists/partial /var/cache/apt/archives/partial /var/lib/dpkg
touch /var/lib/dpkg/status
echo 'deb [trusted=yes] http://127.0.0.1:9/debian bookworm main' >/etc/apt/sources.list
apt-get -o APT::Sandbox::User=root -o Acquire::Retries=0 update
echo "status $?"
apt-cache policy | head -n 3
apt-get -o APT::Sandbox::User=root install -y nothing-of-that-name
echo "status $?"
