#!/usr/bin/env bash
# apiserver.sh: how long Fairway's API server takes to be ready with an empty
# data directory, and what it holds in memory when idle. Prints a line of JSON per run
# and checks the aims: ready within 2000 ms, under 200 MB.
#   bench/apiserver.sh [RUNS]      default 5; the first run warms the caches and is not counted
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:-5}
bin=$(mktemp -t fairway-bench-XXXXXX)
trap 'rm -f "$bin"' EXIT
CGO_ENABLED=0 go build -ldflags="-s -w" -o "$bin" ./bench/apiserver
"$bin" -idle 0s >/dev/null
worst_ready=0 worst_rss=0
for _ in $(seq "$runs"); do
	line=$("$bin" -idle 30s)
	echo "$line"
	ready=$(sed 's/.*"ready_ms":\([0-9]*\).*/\1/' <<<"$line")
	rss=$(sed 's/.*"rss_mb":\([0-9]*\).*/\1/' <<<"$line")
	((ready > worst_ready)) && worst_ready=$ready
	((rss > worst_rss)) && worst_rss=$rss
done
echo "worst of $runs: ready after $worst_ready ms (aim 2000), $worst_rss MB (aim 200)"
((worst_ready <= 2000 && worst_rss < 200))
