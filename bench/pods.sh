#!/usr/bin/env bash
# A thousand Pods of image "host" on ten nodes: how long until all are ready,
# how large Fairway is then, and that every one of them answers through one
# Service. On a machine in a network namespace of its own.
#
#   bench/pods.sh [PODS] [NODES]     needs root and bin/ (make build)
set -euo pipefail
cd "$(dirname "$0")/.."
pods=${1:-1000} nodes=${2:-10}
bin=$PWD/bin
export PATH=$bin:$PATH
ns=fw-bench-pods-$$
dir=$(mktemp -d /tmp/fairway-bench-pods.XXXXXX)
in_ns() { nsenter --net=/run/netns/"$ns" "$@"; }
finish() {
  FAIRWAY_DATA_DIR=$dir/data in_ns fairway down --purge >/dev/null 2>&1 || true
  ip netns del "$ns" 2>/dev/null || true
  rm -rf "$dir"
}
trap finish EXIT
ip netns add "$ns"
in_ns ip link set lo up
export FAIRWAY_DATA_DIR=$dir/data KUBECONFIG=$dir/data/kubeconfig
now() { date +%s%N; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.1f", (b - a) / 1e9 }'; }
# memory PID: resident and anonymous, in MiB
memory() { awk '/^VmRSS/ { r = $2 } /^RssAnon/ { a = $2 } END { printf "%d MiB (anonymous %d MiB)", r/1024, a/1024 }' /proc/"$1"/status; }

echo "machine: $(nproc) cores, kernel $(uname -r), load average $(cut -d' ' -f1-3 /proc/loadavg)"
t=$(now)
in_ns fairway up --nodes "$nodes" --detach >/dev/null
echo "up --nodes $nodes: $(since "$t") s"
pid=$(cat "$FAIRWAY_DATA_DIR/lock")
sleep 3
echo "RSS with no Pods: $(memory "$pid")"
t=$(now)
in_ns fairway kubectl create deployment many --image=host --replicas="$pods" -- fairway echo >/dev/null
in_ns fairway kubectl expose deployment many --port=80 --target-port=8080 >/dev/null
ready=0
while [ "$ready" != "$pods" ]; do
  sleep 0.5
  ready=$(in_ns fairway kubectl get deployment many -o 'jsonpath={.status.readyReplicas}')
  [ "$(since "$t" | cut -d. -f1)" -lt 600 ] || { echo "only ${ready:-0} of $pods Pods are ready after 600 s"; exit 1; }
done
echo "$pods Pods ready: $(since "$t") s"
echo "RSS with $pods Pods: $(memory "$pid")"
ip=$(in_ns fairway kubectl get service many -o 'jsonpath={.spec.clusterIP}')
node=fw-$(printf %s "$FAIRWAY_DATA_DIR" | sha256sum | cut -c1-6)-node-1
# With a random choice, n·(ln n + 5) questions leave one Pod unasked in 1 of 150 runs.
asks=$(awk -v n="$pods" 'BEGIN { printf "%d", n * (log(n) + 5) }')
t=$(now)
nsenter --net=/run/netns/"$node" fairway-echo get -n "$asks" -c 8 -tally "http://$ip/" | tail -1 > "$dir/tally"
answered=$(grep -o '"many-[^"]*"' "$dir/tally" | sort -u | wc -l)
echo "$answered of $pods Pods answered $asks requests through one ClusterIP in $(since "$t") s"
t=$(now)
in_ns fairway kubectl delete deployment many --cascade=foreground --timeout=600s >/dev/null
echo "all deleted: $(since "$t") s"
[ "$answered" = "$pods" ]
