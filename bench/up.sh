#!/usr/bin/env bash
# How long does an instance take, and how large is it? Prints, for a machine in
# a network namespace of its own: the time of `fairway up --detach` on an empty
# data directory, the resident memory when idle, and the time from `fairway up
# --nodes 3` to the first reply through the ClusterIP of a three-replica Deployment.
#
#   bench/up.sh [RUNS]     needs root and bin/ (make build)
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:-5}
bin=$PWD/bin
export PATH=$bin:$PATH
ns=fw-bench-up-$$
dir=$(mktemp -d /tmp/fairway-bench-up.XXXXXX)
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
seconds() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2f", (b - a) / 1e9 }'; }

echo "machine: $(nproc) cores, kernel $(uname -r), load average $(cut -d' ' -f1-3 /proc/loadavg)"
for i in $(seq "$runs"); do
  t0=$(now)
  in_ns fairway up --detach >/dev/null
  t1=$(now)
  sleep 25 # idle: by then an instance has given back what starting took
  pid=$(cat "$FAIRWAY_DATA_DIR/lock")
  rss=$(awk '/^VmRSS/ { printf "%d", $2/1024 }' /proc/"$pid"/status)
  anon=$(awk '/^RssAnon/ { printf "%d", $2/1024 }' /proc/"$pid"/status)
  in_ns fairway down --purge >/dev/null

  t2=$(now)
  in_ns fairway up --nodes 3 --detach >/dev/null
  t3=$(now)
  in_ns fairway kubectl apply -f examples/web-host.yaml >/dev/null
  ip=$(in_ns fairway kubectl get service web -o 'jsonpath={.spec.clusterIP}')
  # The asker stands on a node, whose own connections are translated like a Pod's.
  # All that an instance makes is named after a hash of its data directory.
  node=fw-$(printf %s "$FAIRWAY_DATA_DIR" | sha256sum | cut -c1-6)-node-1
  until nsenter --net=/run/netns/"$node" fairway-echo get -timeout 1s "http://$ip/" >/dev/null 2>&1; do sleep 0.02; done
  t4=$(now)
  in_ns fairway down --purge >/dev/null
  echo "run $i: up --detach $(seconds "$t0" "$t1") s; idle RSS $rss MiB (anonymous $anon MiB); up --nodes 3 $(seconds "$t2" "$t3") s, first reply through a ClusterIP after $(seconds "$t2" "$t4") s"
done
