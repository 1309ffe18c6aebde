#!/usr/bin/env bash
# dns.sh: Fairway's DNS beside CoreDNS, answering the same records, in turns in
# one run: questions per second, latencies, memory, start-up, and the ratios.
#   bench/dns.sh [FLAG...]      flags of bench/dns, such as -services 100000
#   bench/dns.sh -compare       no figures, but every kind of question: where do the two differ?
# CoreDNS is built once from its Go module, at this version, into a cache outside
# this module. Needs root: it makes a network namespace of its own.
set -euo pipefail
cd "$(dirname "$0")/.."
version=v1.15.0
cache=${XDG_CACHE_HOME:-$HOME/.cache}/fairway/bench/coredns-$version
if [ ! -x "$cache/coredns" ]; then
	echo "building CoreDNS $version into $cache" >&2
	(cd / && GOBIN=$cache CGO_ENABLED=0 go install -ldflags=-s "github.com/coredns/coredns@$version")
fi
bin=$(mktemp -d -t fairway-bench-XXXXXX)
trap 'rm -rf "$bin"' EXIT
CGO_ENABLED=0 go build -ldflags="-s -w" -o "$bin/" ./bench/dns ./cmd/fairway-node
"$bin/dns" -fairway-node "$bin/fairway-node" -coredns "$cache/coredns" "$@"
