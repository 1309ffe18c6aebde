#!/usr/bin/env bash
# How long it takes to give Services of type LoadBalancer their addresses:
# worked out by the allocator alone, and written into the statuses of as many
# Services (10,000 by default) by the controller, through our API server.
set -euo pipefail
cd "$(dirname "$0")/.."
export CGO_ENABLED=0
go test -ldflags=-w ./internal/lb/ipam -run TestTenThousand -count=1 -v | grep -E 'allocated|released|FAIL'
FAIRWAY_LB_SERVICES=${1:-10000} go test -ldflags=-w ./internal/lb -run 'TestAgainstAPI/many' -count=1 -timeout 30m -v 2>/dev/null | grep -E 'Services|FAIL'
