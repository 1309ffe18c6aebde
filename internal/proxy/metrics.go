package proxy

import (
	"net/http"
	"net/http/pprof"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"fairway.dev/fairway/internal/proxy/health"
	"fairway.dev/fairway/internal/proxy/state"
)

// metrics are kube-proxy's, by its names and labels, so that dashboards made
// for it go on working; below them are our own. A sync programs both families
// in one transaction; it is observed for each family that it touched.
type metrics struct {
	registry *prometheus.Registry

	sync, syncFull, syncPartial   *prometheus.HistogramVec
	lastSync, lastQueued          *prometheus.GaugeVec
	programming                   *prometheus.HistogramVec
	slicesPending, svcPending     prometheus.Gauge
	slicesTotal, svcTotal         prometheus.Counter
	failures                      *prometheus.CounterVec
	noLocal                       *prometheus.GaugeVec
	healthz, livez                *prometheus.CounterVec
	conntrackSync                 *prometheus.HistogramVec
	conntrackDeleted              *prometheus.CounterVec
	firstSync                     prometheus.Gauge
	drift                         prometheus.Counter
	frontends, svcCount, slCount  prometheus.Gauge
	setFrontends, removeFrontends prometheus.Counter
}

var families = []string{"IPv4", "IPv6"}

func newMetrics() *metrics {
	m := &metrics{registry: prometheus.NewRegistry()}
	family := []string{"ip_family"}
	hist := func(name, help string, buckets []float64) *prometheus.HistogramVec {
		h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, family)
		m.registry.MustRegister(h)
		return h
	}
	gauges := func(name, help string, labels ...string) *prometheus.GaugeVec {
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
		m.registry.MustRegister(g)
		return g
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
		m.registry.MustRegister(c)
		return c
	}
	gauge := func(name, help string) prometheus.Gauge { return gauges(name, help).WithLabelValues() }
	counter := func(name, help string) prometheus.Counter { return counters(name, help).WithLabelValues() }

	// kube-proxy's buckets start at 1 ms; most of ours would fall below, so
	// there are finer ones before them.
	durations := append([]float64{0.00005, 0.0001, 0.00025, 0.0005}, prometheus.ExponentialBuckets(0.001, 2, 15)...)
	m.sync = hist("kubeproxy_sync_proxy_rules_duration_seconds", "SyncProxyRules latency in seconds", durations)
	m.syncFull = hist("kubeproxy_sync_full_proxy_rules_duration_seconds", "SyncProxyRules latency in seconds for full resyncs", durations)
	m.syncPartial = hist("kubeproxy_sync_partial_proxy_rules_duration_seconds", "SyncProxyRules latency in seconds for partial resyncs", durations)
	m.lastSync = gauges("kubeproxy_sync_proxy_rules_last_timestamp_seconds", "The last time proxy rules were successfully synced", family...)
	m.lastQueued = gauges("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", "The last time a sync of proxy rules was queued", family...)
	m.programming = hist("kubeproxy_network_programming_duration_seconds", "In Cluster Network Programming Latency in seconds", programmingBuckets())
	m.slicesPending = gauge("kubeproxy_sync_proxy_rules_endpoint_changes_pending", "Pending proxy rules Endpoint changes")
	m.slicesTotal = counter("kubeproxy_sync_proxy_rules_endpoint_changes_total", "Cumulative proxy rules Endpoint changes")
	m.svcPending = gauge("kubeproxy_sync_proxy_rules_service_changes_pending", "Pending proxy rules Service changes")
	m.svcTotal = counter("kubeproxy_sync_proxy_rules_service_changes_total", "Cumulative proxy rules Service changes")
	m.failures = counters("kubeproxy_sync_proxy_rules_nftables_sync_failures_total", "Cumulative proxy nftables sync failures", family...)
	m.noLocal = gauges("kubeproxy_sync_proxy_rules_no_local_endpoints_total", "Number of services with a Local traffic policy and no endpoints", "traffic_policy", "ip_family")
	m.healthz = counters("kubeproxy_proxy_healthz_total", "Cumulative proxy healthz HTTP status", "code")
	m.livez = counters("kubeproxy_proxy_livez_total", "Cumulative proxy livez HTTP status", "code")
	m.conntrackSync = hist("kubeproxy_conntrack_reconciler_sync_duration_seconds", "ReconcileConntrackFlowsLatency latency in seconds", prometheus.ExponentialBuckets(0.001, 2, 15))
	m.conntrackDeleted = counters("kubeproxy_conntrack_reconciler_deleted_entries_total", "Cumulative conntrack flows deleted by conntrack reconciler", family...)

	m.firstSync = gauge("fairway_proxy_first_sync_seconds", "Time from the start of the proxy to its first complete sync")
	m.drift = counter("fairway_proxy_drift_total", "Times somebody else changed what the proxy had programmed")
	m.svcCount = gauge("fairway_proxy_services", "Services the proxy knows")
	m.slCount = gauge("fairway_proxy_endpoint_slices", "EndpointSlices the proxy knows")
	m.frontends = gauge("fairway_proxy_frontends", "Frontends programmed: an address, protocol and port each")
	m.setFrontends = counter("fairway_proxy_frontends_set_total", "Frontends programmed anew by partial syncs")
	m.removeFrontends = counter("fairway_proxy_frontends_removed_total", "Frontends removed by partial syncs")
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, f := range families {
		m.failures.WithLabelValues(f)
		m.conntrackDeleted.WithLabelValues(f)
	}
	return m
}

// programmingBuckets are kube-proxy's, by the SLO they serve: 0.25 s to 5 min.
func programmingBuckets() []float64 {
	out := []float64{0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5}
	out = append(out, prometheus.LinearBuckets(1, 1, 59)...)
	out = append(out, prometheus.LinearBuckets(60, 5, 12)...)
	return append(out, prometheus.LinearBuckets(120, 30, 7)...)
}

func (m *metrics) countHealth(path string, code int) {
	c := m.livez
	if path == "/healthz" {
		c = m.healthz
	}
	c.WithLabelValues(strconv.Itoa(code)).Inc()
}

func (m *metrics) queued(now time.Time) {
	for _, f := range families {
		m.lastQueued.WithLabelValues(f).Set(seconds(now))
	}
}

// synced notes a sync that took d, of the families it touched.
func (m *metrics) synced(now time.Time, d time.Duration, full bool, touched [2]bool) {
	kind := m.syncPartial
	if full {
		kind = m.syncFull
	}
	for i, f := range families {
		m.lastSync.WithLabelValues(f).Set(seconds(now))
		if touched[i] {
			m.sync.WithLabelValues(f).Observe(d.Seconds())
			kind.WithLabelValues(f).Observe(d.Seconds())
		}
	}
}

func (m *metrics) table(s state.Stats) {
	m.svcCount.Set(float64(s.Services))
	m.slCount.Set(float64(s.Slices))
	m.frontends.Set(float64(s.Frontends))
	for i, policy := range []string{"internal", "external"} {
		for j, f := range families {
			m.noLocal.WithLabelValues(policy, f).Set(float64(s.NoLocal[i][j]))
		}
	}
}

func seconds(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }

// handler serves /metrics, and what kube-proxy serves beside it.
func (m *metrics) handler(hp *health.Proxy, cfg *Config) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}))
	mux.Handle("/healthz", hp.Handler(nil))
	mux.HandleFunc("/proxyMode", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Write([]byte("nftables"))
	})
	if len(cfg.ConfigText) > 0 {
		mux.HandleFunc("/configz", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.Write(cfg.ConfigText)
		})
	}
	if cfg.Profiling {
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
	return mux
}
