#!/usr/bin/env bash
# proxy.sh: what `fairway-node proxy` costs at several sizes of cluster: cold
# start, one change, memory, CPU, restart, new connections.
#   bench/proxy.sh [FLAG...]    flags of bench/proxy, such as -sizes 5000x50
# Needs root: it makes network namespaces of its own.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$(mktemp -d -t fairway-bench-XXXXXX)
trap 'rm -rf "$bin"' EXIT
CGO_ENABLED=0 go build -ldflags="-s -w" -o "$bin/" ./bench/proxy ./cmd/fairway-node
"$bin/proxy" -binary "$bin/fairway-node" "$@"
