#!/usr/bin/env bash
# How long from a Pod's readiness until every node's kernel sends connections
# to it, with 5,000 Services present: on an instance of three nodes on a machine
# in a network namespace of its own.
#
#   bench/ready.sh [SERVICES [ROUNDS]]     needs root and bin/ (make build)
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${FAIRWAY_BIN:-$PWD/bin}
ns=fw-bench-rdy-$$
dir=$(mktemp -d /tmp/fairway-bench-ready.XXXXXX)
export FAIRWAY_DATA_DIR=$dir/data KUBECONFIG=$dir/data/kubeconfig
in_ns() { nsenter --net=/run/netns/"$ns" "$@"; }
finish() {
  in_ns "$bin/fairway" down --purge >/dev/null 2>&1 || true
  ip netns del "$ns" 2>/dev/null || true
  rm -rf "$dir"
}
trap finish EXIT
ip netns add "$ns"
in_ns ip link set lo up
CGO_ENABLED=0 go build -o "$dir/ready" ./bench/ready
echo "machine: $(nproc) cores, kernel $(uname -r), load average $(cut -d' ' -f1-3 /proc/loadavg)"
in_ns "$bin/fairway" up --nodes 3 --detach >/dev/null
in_ns "$bin/fairway" kubectl apply -f examples/web-host.yaml >/dev/null
in_ns "$bin/fairway" kubectl rollout status deployment/web --timeout=2m >/dev/null
target=$(in_ns "$bin/fairway" kubectl get pods -l app=web -o 'jsonpath={.items[0].status.podIP}')
prefix=fw-$(printf %s "$FAIRWAY_DATA_DIR" | sha256sum | cut -c1-6)
in_ns "$dir/ready" -target "$target" -nodes "$prefix-node-1,$prefix-node-2,$prefix-node-3" -services "${1:-5000}" -rounds "${2:-200}"
