#!/usr/bin/env bash
# kube-proxy.sh: what bench/proxy.sh measures, with kube-proxy in nftables mode
# beside it: the same load from the same API, in turns in one run, and the ratios.
#   bench/kube-proxy.sh [FLAG...]      flags of bench/proxy, such as -sizes 10000x2
# kube-proxy is built once (scripts/kube-proxy). Needs root, and the program nft,
# which kube-proxy runs.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v nft >/dev/null || { echo "bench/kube-proxy.sh: kube-proxy runs the program nft, which is not here: apt-get install nftables" >&2; exit 1; }
kube_proxy=$(scripts/kube-proxy)
echo "kube-proxy $(go list -m -f '{{.Version}}' k8s.io/kubernetes), nftables mode, beside fairway-node proxy"
exec bench/proxy.sh -kube-proxy "$kube_proxy" -sizes 1000x2,10000x2,5000x50 -starts 1 "$@"
