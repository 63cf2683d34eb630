#!/bin/sh
# Lets nginx send the token that a TorchServe of `afd-serve serve` made at its start, as deploy/nginx.conf includes it.
# Reload nginx afterwards.
#
# Usage: pass-token.sh STATE_DIR FILE
set -eu
umask 077

header='Authorization "\1";'
sed -n "s/^Authorization: \([A-Za-z0-9 ._~+/=-]*\)$/proxy_set_header $header grpc_set_header $header/p" \
    "$1/inference.header" >"$2.partial" || { rm "$2.partial"; exit 1; }
[ -s "$2.partial" ] || { rm "$2.partial"; echo "$1/inference.header holds no token" >&2; exit 1; }
mv "$2.partial" "$2"
