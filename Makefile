# Fairway's two commands for a newcomer are `make demo` and `make test`.
# `make help` lists every target.

GO          ?= go
BIN         := bin
VERSION     ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
COMMIT      ?= $(shell git rev-parse --short HEAD 2>/dev/null)
LDFLAGS     := -s -w -X fairway.dev/fairway/internal/version.Version=$(VERSION) -X fairway.dev/fairway/internal/version.Commit=$(COMMIT)
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2

# Binaries are static. Only the race detector needs a C compiler.
export CGO_ENABLED = 0

.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## build the binaries into bin/
	@mkdir -p $(BIN)
	$(GO) build -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/...

.PHONY: setup
setup: ## install the Debian packages that the tests use (needs root)
	@scripts/setup-debian

.PHONY: demo
demo: build ## build, start three nodes, and see every kind of Service work (needs root)
	@$(GO) run ./test/demo -fairway $(CURDIR)/$(BIN)/fairway -examples $(CURDIR)/examples

.PHONY: demo-down
demo-down: ## stop what `make demo` left running
	@$(BIN)/fairway down --purge --data-dir /var/lib/fairway-demo

.PHONY: test
test: setup build ## run all tests, with the set-up they need (needs root)
	@scripts/test

.PHONY: test-race
test-race: ## only the tests that run under the race detector
	@scripts/test race

FUZZTIME ?= 5m

.PHONY: fuzz
fuzz: ## throw odd requests at the Service registry for FUZZTIME (the first build takes minutes)
	$(GO) test -vet=off -ldflags=-w -run='^$$' -fuzz=FuzzService -fuzztime=$(FUZZTIME) -fuzzminimizetime=1x ./internal/apiserver/service

.PHONY: fuzz-dns
fuzz-dns: ## throw odd packets at the DNS, at each part of the way for FUZZTIME
	$(GO) test -vet=off -run='^$$' -fuzz=FuzzQuery -fuzztime=$(FUZZTIME) ./internal/dns/wire
	$(GO) test -vet=off -run='^$$' -fuzz=FuzzAnswer -fuzztime=$(FUZZTIME) ./internal/dns/zone
	$(GO) test -vet=off -run='^$$' -fuzz=FuzzUpstreamReply -fuzztime=$(FUZZTIME) ./internal/dns/forward
	$(GO) test -vet=off -run='^$$' -fuzz=FuzzPacket -fuzztime=$(FUZZTIME) ./internal/dns/server

.PHONY: lint
lint: ## gofmt, go vet, staticcheck
	@bad=$$(gofmt -l cmd internal api test bench); test -z "$$bad" || { printf 'run gofmt -w on these files:\n%s\n' "$$bad"; exit 1; }
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...

.PHONY: test-kube-proxy
test-kube-proxy: ## beside a real kube-proxy: the same answers, and the way there and back under load (needs root, nft, iptables)
	@FAIRWAY_KUBE_PROXY=$$(scripts/kube-proxy) CGO_ENABLED=0 go test ./test/proxy -run KubeProxy -count=1 -timeout 30m -v

.PHONY: bench-proxy
bench-proxy: ## measure the proxy at five sizes of cluster (needs root)
	@bench/proxy.sh

.PHONY: bench-kube-proxy
bench-kube-proxy: ## the same for kube-proxy beside it, and the ratios (needs root and nft; ten minutes)
	@bench/kube-proxy.sh

.PHONY: bench-dns
bench-dns: ## compare DNS with CoreDNS: questions per second, latency, memory (needs root)
	@bench/dns.sh
	@bench/dns.sh -services 100000 -rounds 3

.PHONY: compare-dns
compare-dns: ## ask CoreDNS and Fairway the same about a cluster full of odd things (needs root)
	@bench/dns.sh -compare

.PHONY: bench-api
bench-api: ## start and size of the API server, and Services created per second
	@bench/apiserver.sh
	@bench/services.sh

.PHONY: bench-endpoints
bench-endpoints: ## from a Pod's readiness to its EndpointSlice, with 5,000 Services
	@bench/endpoints.sh

.PHONY: bench-ready
bench-ready: build ## from a Pod's readiness to every node's kernel, with 5,000 Services (needs root)
	@bench/ready.sh

.PHONY: bench-lb
bench-lb: ## addresses for 10,000 LoadBalancer Services
	@bench/lb.sh

.PHONY: bench-pods
bench-pods: build ## a thousand Pods on ten nodes: time, memory, and that all answer (needs root)
	@bench/pods.sh

.PHONY: bench-up
bench-up: build ## how long `fairway up` takes and how large it is (needs root)
	@bench/up.sh

.PHONY: docs
docs: build ## write docs/commands/ anew from the commands' own help
	@scripts/docs

.PHONY: clean
clean: ## remove what was built
	rm -rf $(BIN) dist
