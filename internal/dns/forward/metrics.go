package forward

import "github.com/prometheus/client_golang/prometheus"

// metrics have CoreDNS's names and labels, so that dashboards made for it go on working.
type metrics struct {
	requests, misses, prefetches, stale, drops prometheus.Counter
	hits, evictions                            *prometheus.CounterVec
	hitSuccess, hitDenial                      prometheus.Counter
	broken, rejects                            prometheus.Counter
	exchange                                   *prometheus.HistogramVec
	unhealthy                                  *prometheus.CounterVec
}

func newMetrics() *metrics {
	of := prometheus.Labels{"server": "dns://", "zones": ".", "view": ""}
	cacheCounter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "coredns", Subsystem: "cache", Name: name, Help: help, ConstLabels: of})
	}
	m := &metrics{
		requests:   cacheCounter("requests_total", "The count of cache requests."),
		misses:     cacheCounter("misses_total", "The count of cache misses."),
		prefetches: cacheCounter("prefetch_total", "The number of times the cache has prefetched a cached item."),
		stale:      cacheCounter("served_stale_total", "The number of requests served from stale cache entries."),
		drops:      cacheCounter("drops_total", "The number of responses that are not cached, because the reply is malformed."),
		hits: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "coredns", Subsystem: "cache", Name: "hits_total",
			Help: "The count of cache hits.", ConstLabels: of}, []string{"type"}),
		evictions: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "coredns", Subsystem: "cache", Name: "evictions_total",
			Help: "The count of cache evictions.", ConstLabels: of}, []string{"type"}),
		broken: prometheus.NewCounter(prometheus.CounterOpts{Namespace: "coredns", Subsystem: "forward", Name: "healthcheck_broken_total",
			Help: "Counter of the number of complete failures of the healthchecks."}),
		rejects: prometheus.NewCounter(prometheus.CounterOpts{Namespace: "coredns", Subsystem: "forward", Name: "max_concurrent_rejects_total",
			Help: "Counter of the number of queries rejected because the concurrent queries were at maximum."}),
		exchange: prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "coredns", Subsystem: "proxy", Name: "request_duration_seconds",
			Help: "Histogram of the time each request took.", Buckets: prometheus.ExponentialBuckets(0.00025, 2, 16)},
			[]string{"proxy_name", "to", "rcode"}),
		unhealthy: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "coredns", Subsystem: "proxy", Name: "healthcheck_failures_total",
			Help: "Counter of the number of failed healthchecks."}, []string{"proxy_name", "to"}),
	}
	m.hitSuccess, m.hitDenial = m.hits.WithLabelValues("success"), m.hits.WithLabelValues("denial")
	return m
}

// evicted counts an answer that had to make room.
func (m *metrics) evicted(denial bool) {
	m.evictions.WithLabelValues(map[bool]string{false: "success", true: "denial"}[denial]).Inc()
}

func (m *metrics) request() { m.requests.Inc() }

func (m *metrics) hit(a *Answer) {
	if a.denies {
		m.hitDenial.Inc()
	} else {
		m.hitSuccess.Inc()
	}
}

// Describe and Collect make a Resolver a prometheus.Collector of its metrics.
func (r *Resolver) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range r.collectors() {
		c.Describe(ch)
	}
	ch <- entriesDesc
}

// Collect is prometheus.Collector's.
func (r *Resolver) Collect(ch chan<- prometheus.Metric) {
	for _, c := range r.collectors() {
		c.Collect(ch)
	}
	success, denial := r.cache.count()
	ch <- prometheus.MustNewConstMetric(entriesDesc, prometheus.GaugeValue, float64(success), "dns://", "success", ".", "")
	ch <- prometheus.MustNewConstMetric(entriesDesc, prometheus.GaugeValue, float64(denial), "dns://", "denial", ".", "")
}

var entriesDesc = prometheus.NewDesc("coredns_cache_entries", "The number of elements in the cache.", []string{"server", "type", "zones", "view"}, nil)

func (r *Resolver) collectors() []prometheus.Collector {
	m := r.m
	return []prometheus.Collector{m.requests, m.misses, m.prefetches, m.stale, m.evictions, m.drops, m.hits, m.broken, m.rejects, m.exchange, m.unhealthy}
}
