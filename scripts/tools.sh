#!/bin/sh
# Unpacks Debian's prometheus, with promtool, and nginx into a folder, for the tests of monitoring/ and deploy/. They are
# not installed: the packages would start servers on this machine. What cannot be had is named, and its tests are skipped.
#
# Usage: tools.sh FOLDER
set -eu

folder=$1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
chmod 755 "$scratch"
updated=no

download() { (cd "$scratch" && apt-get download "$1" >/dev/null 2>&1); }

update_once() {
  [ "$updated" = no ] && [ "$(id -u)" -eq 0 ] || return 1
  updated=yes
  apt-get update >/dev/null 2>&1
}

# unpack PACKAGE PROGRAM...: unless its programs are there already
unpack() {
  package=$1
  shift
  there=yes
  for program; do
    [ -x "$folder/usr/bin/$program" ] || [ -x "$folder/usr/sbin/$program" ] ||
      PATH="$PATH:/usr/sbin" command -v "$program" >/dev/null 2>&1 || there=no
  done
  [ "$there" = no ] || return 0
  if ! { command -v apt-get && command -v dpkg-deb; } >/dev/null 2>&1; then
    echo "left out: the tests with a real $package, which comes from Debian's package"
  elif download "$package" || { update_once && download "$package"; }; then
    dpkg-deb -x "$scratch/$package"_*.deb "$folder"
  else
    echo "left out: the tests with a real $package, whose package cannot be downloaded"
  fi
}

unpack prometheus prometheus promtool
unpack nginx nginx
