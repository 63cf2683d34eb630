#!/bin/sh
# Unpacks Debian's prometheus, with promtool, into a folder, for the tests of monitoring/. It is not installed: the
# package would start a server on this machine. Where it cannot be had, this says so, and those tests are skipped.
#
# Usage: prometheus.sh FOLDER
set -eu

folder=$1

leave() {
  echo "left out: the tests with a real Prometheus, $1"
  exit 0
}

if [ -x "$folder/usr/bin/promtool" ] || { command -v prometheus && command -v promtool; } >/dev/null 2>&1; then
  exit 0
fi
{ command -v apt-get && command -v dpkg-deb; } >/dev/null 2>&1 || leave "which come from Debian's package"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
chmod 755 "$scratch"
download() { (cd "$scratch" && apt-get download prometheus >/dev/null 2>&1); }
download || { [ "$(id -u)" -eq 0 ] && apt-get update >/dev/null 2>&1 && download; } ||
  leave "whose package cannot be downloaded"
dpkg-deb -x "$scratch"/prometheus_*.deb "$folder"
