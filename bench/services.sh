#!/usr/bin/env bash
# services.sh: how many Services per second Fairway's API server creates, each
# with its address (and node port) claimed and everything fsynced. One line of JSON per kind:
# one client alone, eight at once, with node ports, with both families.
#   bench/services.sh [N]      Services per run, default 2000
set -euo pipefail
cd "$(dirname "$0")/.."
n=${1:-2000}
bin=$(mktemp -t fairway-bench-XXXXXX)
trap 'rm -f "$bin"' EXIT
CGO_ENABLED=0 go build -ldflags="-s -w" -o "$bin" ./bench/services
"$bin" -n "$n" -workers 1
"$bin" -n "$n" -workers 8
"$bin" -n "$n" -workers 8 -type NodePort
"$bin" -n "$n" -workers 8 -type LoadBalancer -dual
