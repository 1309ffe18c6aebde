#!/bin/sh
# How long from a Pod's readiness to its EndpointSlice, with 5,000 Services.
cd "$(dirname "$0")/.." && exec env CGO_ENABLED=0 go run ./bench/endpoints "$@"
