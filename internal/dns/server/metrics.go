package server

import (
	"math"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// Metrics have CoreDNS's names, labels and buckets, so that dashboards and
// alerts made for it go on working. Each socket counts for itself, in plain
// arrays; scraping adds them up.

// Where an answer came from: the plugin label.
const (
	fromNobody = iota
	fromCluster
	fromCache
	fromUpstream
	sources
)

var sourceNames = [sources]string{"", "kubernetes", "cache", "forward"}

// Which names it was about: the zone label.
const (
	zoneCluster = iota
	zoneOther
	zones
)

const (
	protoUDP = iota
	protoTCP
	protos
)

var protoNames = [protos]string{"udp", "tcp"}

const rcodes = 24

var (
	sizeBuckets = []float64{0, 100, 200, 300, 400, 511, 1023, 2047, 4095, 8291, 16e3, 32e3, 48e3, 64e3}
	timeBuckets = prometheus.ExponentialBuckets(0.00025, 2, 16)
	typeNames   = []string{"other"}
	typeIndex   = func() (t [256]uint8) {
		for _, typ := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypePTR, dns.TypeCNAME, dns.TypeTXT, dns.TypeMX, dns.TypeNS,
			dns.TypeSOA, dns.TypeHTTPS, dns.TypeSVCB, dns.TypeDS, dns.TypeDNSKEY, dns.TypeRRSIG, dns.TypeNSEC, dns.TypeNSEC3,
			dns.TypeIXFR, dns.TypeAXFR, dns.TypeANY} {
			t[typ] = uint8(len(typeNames))
			typeNames = append(typeNames, dns.Type(typ).String())
		}
		return t
	}()
)

const maxTypes = 20

// histogram counts observations by bucket. Its buckets are given again when it is read.
type histogram struct {
	counts [17]atomic.Uint64
	sum    atomic.Uint64 // of whole units: bytes, or nanoseconds
}

func (h *histogram) observe(bucket int, value, times uint64) {
	h.counts[bucket].Add(times)
	h.sum.Add(value * times)
}

func sizeBucket(n int) int {
	for i, b := range sizeBuckets {
		if float64(n) <= b {
			return i
		}
	}
	return len(sizeBuckets)
}

func timeBucket(d time.Duration) int {
	const first = 250 * time.Microsecond
	b := 0
	for limit := first; d > limit && b < 16; limit *= 2 {
		b++
	}
	return b
}

// stats is what one socket has counted.
type stats struct {
	requests  [zones][protos][2][maxTypes]atomic.Uint64
	responses [zones][sources][rcodes]atomic.Uint64
	do        [zones]atomic.Uint64
	asked     [zones][protos]histogram
	told      [zones][protos]histogram
	took      [zones]histogram
	limited   atomic.Uint64
	_         [64]byte
}

// seen is one request, for count.
type seen struct {
	zone, proto, family, source, rcode int
	typ                                uint16
	do                                 bool
	queryLen, replyLen                 int
}

func (s *stats) count(r *seen) {
	t := uint8(0)
	if r.typ < 256 {
		t = typeIndex[r.typ]
	}
	s.requests[r.zone][r.proto][r.family][t].Add(1)
	s.responses[r.zone][r.source][min(r.rcode, rcodes-1)].Add(1)
	if r.do {
		s.do[r.zone].Add(1)
	}
	s.asked[r.zone][r.proto].observe(sizeBucket(r.queryLen), uint64(r.queryLen), 1)
	s.told[r.zone][r.proto].observe(sizeBucket(r.replyLen), uint64(r.replyLen), 1)
}

func (s *stats) time(zone int, d time.Duration, times int) {
	if times > 0 {
		s.took[zone].observe(timeBucket(d), uint64(d), uint64(times))
	}
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("coredns_dns_"+name, help, append([]string{"server", "zone", "view"}, labels...), nil)
}

var (
	requestsDesc  = desc("requests_total", "Counter of DNS requests made per zone, protocol and family.", "proto", "family", "type")
	responsesDesc = desc("responses_total", "Counter of response status codes.", "rcode", "plugin")
	doDesc        = desc("do_requests_total", "Counter of DNS requests with DO bit set per zone.")
	durationDesc  = desc("request_duration_seconds", "Histogram of the time (in seconds) each request took per zone.")
	askedDesc     = desc("request_size_bytes", "Size of the request in bytes per zone and protocol.", "proto")
	toldDesc      = desc("response_size_bytes", "Size of the returned response in bytes.", "proto")
	limitedDesc   = prometheus.NewDesc("fairway_dns_client_limited_total",
		"Questions and connections refused because their asker had too many under way.", []string{"server"}, nil)
	panicsDesc = prometheus.NewDesc("coredns_panics_total", "A metrics that counts the number of panics.", []string{"server"}, nil)
)

// Describe is prometheus.Collector's.
func (s *Server) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{requestsDesc, responsesDesc, doDesc, durationDesc, askedDesc, toldDesc, limitedDesc, panicsDesc} {
		ch <- d
	}
}

// Collect is prometheus.Collector's.
func (s *Server) Collect(ch chan<- prometheus.Metric) {
	server := s.label
	zoneNames := [zones]string{s.opts.Store.Domain() + ".", "."}
	counter := func(d *prometheus.Desc, get func(*stats) *atomic.Uint64, labels ...string) {
		sum := uint64(0)
		for _, st := range s.stats {
			sum += get(st).Load()
		}
		if sum > 0 {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(sum), labels...)
		}
	}
	hist := func(d *prometheus.Desc, bounds []float64, unit float64, get func(*stats) *histogram, labels ...string) {
		counts, total, sum := map[float64]uint64{}, uint64(0), 0.0
		for i := range len(bounds) + 1 {
			for _, st := range s.stats {
				total += get(st).counts[i].Load()
			}
			if i < len(bounds) {
				counts[bounds[i]] = total
			}
		}
		for _, st := range s.stats {
			sum += float64(get(st).sum.Load()) * unit
		}
		if total > 0 {
			ch <- prometheus.MustNewConstHistogram(d, total, sum, counts, labels...)
		}
	}
	for z, zone := range zoneNames {
		for p, proto := range protoNames {
			for f := range 2 {
				for t, typ := range typeNames {
					counter(requestsDesc, func(st *stats) *atomic.Uint64 { return &st.requests[z][p][f][t] },
						server, zone, "", proto, strconv.Itoa(f+1), typ)
				}
			}
			hist(askedDesc, sizeBuckets, 1, func(st *stats) *histogram { return &st.asked[z][p] }, server, zone, "", proto)
			hist(toldDesc, sizeBuckets, 1, func(st *stats) *histogram { return &st.told[z][p] }, server, zone, "", proto)
		}
		for src, plugin := range sourceNames {
			for rc := range rcodes {
				name, ok := dns.RcodeToString[rc]
				if rc == dns.RcodeBadVers {
					name = "BADVERS"
				}
				if !ok {
					name = strconv.Itoa(rc)
				}
				counter(responsesDesc, func(st *stats) *atomic.Uint64 { return &st.responses[z][src][rc] }, server, zone, "", name, plugin)
			}
		}
		counter(doDesc, func(st *stats) *atomic.Uint64 { return &st.do[z] }, server, zone, "")
		hist(durationDesc, timeBuckets, math.Pow10(-9), func(st *stats) *histogram { return &st.took[z] }, server, zone, "")
	}
	ch <- prometheus.MustNewConstMetric(panicsDesc, prometheus.CounterValue, float64(s.panics.Load()), server)
	counter(limitedDesc, func(st *stats) *atomic.Uint64 { return &st.limited }, server)
}
