package lb

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fairway.dev/fairway/internal/lb/ipam"
)

// Monitor watches a controller: its health and, as a prometheus.Collector, its
// metrics. Those that MetalLB has too go by MetalLB's names and labels. It is
// safe for concurrent use; what there is of pools and waiting Services is worked
// out when it is asked for, and shown by the leader alone.
type Monitor struct {
	terms, events prometheus.Counter
	errs          prometheus.Counter
	written       prometheus.Histogram

	term     atomic.Pointer[controller] // the term of leadership, if this controller leads
	adopted  atomic.Bool                // that term has taken over what there is
	elected  atomic.Int64               // when the election last got through to the API server, in Unix nanoseconds
	tried    atomic.Int64               // when it last tried, or was begun
	renewed  atomic.Int64               // when it last got or renewed the Lease, in nanoseconds since epoch
	turned   atomic.Int64               // when the leader's loop last turned
	patience atomic.Int64               // the Lease's duration
}

// NewMonitor makes a monitor for one controller.
func NewMonitor() *Monitor {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	return &Monitor{
		terms:  counter("fairway_lb_terms_total", "Times this controller was elected leader"),
		events: counter("fairway_lb_statuses_written_total", "Statuses of Services written"),
		errs:   counter("fairway_lb_write_errors_total", "Writes to Services that failed and were tried again"),
		written: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "fairway_lb_service_write_seconds",
			Help:    "Time from when it was known that a Service may need another status until that was written",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 17),
		}),
	}
}

// stuckAfter is how long a loop that turns every few seconds may take.
const stuckAfter = 2 * time.Minute

// Live says what is wrong if the controller does not turn any more. An API
// server that is away is no reason.
func (m *Monitor) Live() error {
	stuck := func(at *atomic.Int64) bool { t := at.Load(); return t != 0 && time.Since(time.Unix(0, t)) > stuckAfter }
	if stuck(&m.tried) {
		return errors.New("the controller's election has stood still for two minutes")
	}
	if m.term.Load() != nil && stuck(&m.turned) {
		return errors.New("the controller has stood still for two minutes")
	}
	return nil
}

// Ready says why the controller neither gives addresses out nor stands by to: it
// has not taken over yet what Services have, or its election does not get
// through to the API server.
func (m *Monitor) Ready() error {
	limit := 2 * time.Duration(m.patience.Load())
	switch t := m.elected.Load(); {
	case t == 0:
		return errors.New("the controller has not taken part in an election yet")
	case time.Since(time.Unix(0, t)) > limit:
		return fmt.Errorf("the controller's election has not got through to the API server for more than %s", limit)
	case m.term.Load() != nil && !m.adopted.Load():
		return errors.New("the controller leads, and takes over what Services have")
	}
	return nil
}

// epoch is what the monotonic clock counts from here.
var epoch = time.Now()

// holds says whether the Lease is this controller's for certain: it has renewed
// it a short while ago. A process that stood still may not know yet that another
// one leads.
func (m *Monitor) holds() bool {
	return time.Since(epoch)-time.Duration(m.renewed.Load()) < time.Duration(m.patience.Load())*5/6
}

// begin and end frame one term of leadership.
func (m *Monitor) begin(c *controller) {
	m.terms.Inc()
	m.turned.Store(time.Now().UnixNano())
	m.adopted.Store(false)
	m.term.Store(c)
}

func (m *Monitor) end() { m.term.Store(nil) }

// Describe describes nothing: what there is depends on the pools.
func (m *Monitor) Describe(chan<- *prometheus.Desc) {}

var (
	descTotal   = prometheus.NewDesc("metallb_allocator_addresses_total", "Number of usable IP addresses, per pool", []string{"pool"}, nil)
	descInUse   = prometheus.NewDesc("metallb_allocator_addresses_in_use_total", "Number of IP addresses in use, per pool", []string{"pool"}, nil)
	descFamily  = prometheus.NewDesc("fairway_lb_pool_addresses", "Addresses of a pool", []string{"pool", "ip_family"}, nil)
	descUsed    = prometheus.NewDesc("fairway_lb_pool_addresses_used", "Addresses of a pool in use", []string{"pool", "ip_family"}, nil)
	descKept    = prometheus.NewDesc("fairway_lb_pool_addresses_kept", "Addresses in use that the pool no longer lists", []string{"pool"}, nil)
	descHolders = prometheus.NewDesc("fairway_lb_pool_services", "Services with an address of a pool", []string{"pool"}, nil)
	descWaiting = prometheus.NewDesc("fairway_lb_services_waiting", "Services that lack an address, by the reason that their condition gives", []string{"reason"}, nil)
	descQueue   = prometheus.NewDesc("fairway_lb_queue_length", "Services that are to be looked at", nil, nil)
	descLeader  = prometheus.NewDesc("fairway_lb_leader", "1 if this controller leads", nil, nil)
)

// Collect implements prometheus.Collector.
func (m *Monitor) Collect(ch chan<- prometheus.Metric) {
	for _, c := range []prometheus.Metric{m.terms, m.events, m.errs, m.written} {
		ch <- c
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	c := m.term.Load()
	if c == nil {
		gauge(descLeader, 0)
		return
	}
	gauge(descLeader, 1)
	gauge(descQueue, float64(c.queue.Len()))
	c.mu.Lock()
	usage, waiting := c.alloc.Usages(), c.alloc.Reasons()
	if n := len(c.invalid); n > 0 {
		waiting[reasonInvalid] = n
	}
	c.mu.Unlock()
	for pool, u := range usage {
		gauge(descTotal, float64(u.Total4)+float64(u.Total6), pool)
		gauge(descInUse, float64(u.Used4+u.Used6), pool)
		gauge(descFamily, float64(u.Total4), pool, "IPv4")
		gauge(descFamily, float64(u.Total6), pool, "IPv6")
		gauge(descUsed, float64(u.Used4), pool, "IPv4")
		gauge(descUsed, float64(u.Used6), pool, "IPv6")
		gauge(descKept, float64(u.Kept), pool)
		gauge(descHolders, float64(u.Services), pool)
	}
	// All reasons at any time, so that alerts need not tell 0 from nothing.
	for _, reason := range append(ipam.Reasons, reasonInvalid) {
		gauge(descWaiting, float64(waiting[reason]), reason)
	}
}

// stopwatch notes since when Services have waited to be looked at.
type stopwatch struct {
	mu    sync.Mutex
	since map[string]time.Time
}

// start notes that a Service is to be looked at, unless it waits already.
func (s *stopwatch) start(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.since == nil {
		s.since = map[string]time.Time{}
	}
	if _, ok := s.since[key]; !ok {
		s.since[key] = time.Now()
	}
}

// stop returns since when a Service has waited, which it no longer does.
func (s *stopwatch) stop(key string) (since time.Time, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	since, ok = s.since[key]
	delete(s.since, key)
	return since, ok
}

// resume has a Service go on waiting since then: it could not be written.
func (s *stopwatch) resume(key string, since time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.since[key] = since
}
