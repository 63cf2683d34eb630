#!/bin/sh
# Installs what Python packages cannot bring: a C++ compiler, the headers of libjpeg-turbo and of Python, a Java runtime
# and the venv module; and jemalloc, where that is easy. Does nothing where all is there; where it may not install, it
# says what is missing and stops.
#
# Usage: bootstrap.sh PYTHON [without-java]
set -eu

python=${1:-python3}
missing=

need() { missing="$missing $1"; }

has_header() { printf '#include <stdio.h>\n#include <jpeglib.h>\n' | c++ -E -x c++ - >/dev/null 2>&1; }

java_version() {
  "${JAVA_HOME:+$JAVA_HOME/bin/}java" -version 2>&1 | sed -n 's/.*version "\(1\.\)\{0,1\}\([0-9][0-9]*\).*/\2/p' | head -n 1
}

java_package() {
  # Newer Debian releases have a newer Java only, which TorchServe runs on as well.
  for candidate in openjdk-17-jre-headless default-jre-headless; do
    if apt-cache policy "$candidate" 2>/dev/null | grep -q 'Candidate: [^(]'; then
      echo "$candidate"
      return
    fi
  done
  echo openjdk-17-jre-headless
}

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
  echo "bootstrap: $python is not there or too old; set PYTHON to a Python 3.11 or newer" >&2
  exit 1
fi
command -v c++ >/dev/null 2>&1 || need g++
{ command -v c++ >/dev/null 2>&1 && has_header; } || need libjpeg-dev
"$python" -c 'import ensurepip, venv' >/dev/null 2>&1 || need python3-venv
"$python" -c 'import os, sysconfig; os.stat(os.path.join(sysconfig.get_path("include"), "Python.h"))' >/dev/null 2>&1 ||
  need python3-dev
if [ "${2:-}" != without-java ]; then
  version=$(java_version || true)
  [ "${version:-0}" -ge 11 ] || need java
fi

# Without this one, TorchServe's workers are only slower.
wished=
if [ "${2:-}" != without-java ] && ! /sbin/ldconfig -p 2>/dev/null | grep -q libjemalloc.so; then
  wished=libjemalloc2
fi

[ -n "$missing$wished" ] || exit 0

as_root=
[ "$(id -u)" -eq 0 ] || as_root=sudo
if ! command -v apt-get >/dev/null 2>&1 || { [ -n "$as_root" ] && ! sudo -n true >/dev/null 2>&1; }; then
  [ -n "$missing" ] || exit 0
  echo "bootstrap: these are missing and cannot be installed from here:$missing" >&2
  echo "On Debian, as root: apt-get install$(echo "$missing" | sed "s/ java/ $(java_package)/")" >&2
  exit 1
fi

install() {
  # shellcheck disable=SC2086  # a list of package names
  $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $1
}

$as_root apt-get update || [ -z "$missing" ]
packages=$(echo "$missing" | sed "s/ java/ $(java_package)/")
if [ -n "$packages" ]; then
  echo "bootstrap: installing$packages"
  install "$packages"
fi
[ -z "$wished" ] || install "$wished" || echo "bootstrap: going on without $wished"
