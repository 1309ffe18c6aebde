package announce

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"fairway.dev/fairway/internal/announce/raw"
)

// Monitor watches one node's announcer: its health and, as a
// prometheus.Collector, its metrics. Those that MetalLB has too go by MetalLB's
// names and labels. It is safe for concurrent use; whatever grows with the
// number of addresses is worked out when it is asked for.
type Monitor struct {
	sent, received, elections, takeovers, handovers, conflicts, reopened prometheus.Counter
	refused                                                              *prometheus.CounterVec

	asks     chan chan snapshot
	phase    atomic.Uint32 // 0: the watches are not complete
	deadline atomic.Int64  // when the loop must have turned again, in Unix nanoseconds; 0: it does not run
}

// snapshot is an announcer at one moment.
type snapshot struct {
	node               string
	peers, alive, mute int
	claims             []announced
	counts             map[netip.Addr]raw.Counts
}

type announced struct {
	addr     netip.Addr
	services []string
	links    int
}

// NewMonitor makes a monitor for one announcer.
func NewMonitor() *Monitor {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &Monitor{
		sent:      counter("fairway_lb_heartbeats_sent_total", "Heartbeats sent to other nodes' announcers"),
		received:  counter("fairway_lb_heartbeats_received_total", "Heartbeats received from other nodes' announcers"),
		elections: counter("fairway_lb_elections_total", "Times this node worked out who announces an address"),
		takeovers: counter("fairway_lb_takeovers_total", "Addresses that this node began to announce"),
		handovers: counter("fairway_lb_handovers_total", "Addresses that this node ceased to announce"),
		conflicts: counter("fairway_lb_conflicts_total", "Frames in which another host claims an address that this node announces"),
		reopened:  counter("fairway_lb_sockets_reopened_total", "Raw sockets that broke down and were replaced"),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "fairway_lb_heartbeats_refused_total", Help: "Heartbeats not taken: malformed (or signed with another key), from an unknown_node, or from a wrong_source",
		}, []string{"reason"}),
		asks: make(chan chan snapshot),
	}
	for _, reason := range []string{"malformed", "unknown_node", "wrong_source"} {
		m.refused.WithLabelValues(reason)
	}
	return m
}

// turn notes that the announcer's loop turns, at some pace.
func (m *Monitor) turn(p phase, pace time.Duration) {
	m.phase.Store(uint32(p))
	m.deadline.Store(time.Now().Add(max(3*pace, 10*time.Second)).UnixNano())
}

func (m *Monitor) stopped() {
	m.phase.Store(uint32(leaving))
	m.deadline.Store(0)
}

// Live says what is wrong if the announcer does not turn any more.
func (m *Monitor) Live() error {
	if d := m.deadline.Load(); d != 0 && time.Now().UnixNano() > d {
		return fmt.Errorf("the announcer has stood still since %s", time.Unix(0, d).UTC().Format(time.RFC3339))
	}
	return nil
}

// Ready says why the announcer does not announce yet: its watches are not
// complete, or it listens who else is there.
func (m *Monitor) Ready() error {
	switch p := phase(m.phase.Load()); p {
	case 0:
		return errors.New("the announcer's watches are not complete")
	case joining:
		return errors.New("the announcer listens for the other nodes")
	case leaving:
		return errors.New("the announcer has stopped")
	}
	return nil
}

// Describe describes nothing: what there is depends on the addresses.
func (m *Monitor) Describe(chan<- *prometheus.Desc) {}

var (
	descAnnounced = prometheus.NewDesc("metallb_speaker_announced", "Services announced from this node (1), and those it is elected for without a link to announce them on (0)", []string{"service", "protocol", "node", "ip"}, nil)
	descRequests  = prometheus.NewDesc("metallb_layer2_requests_received", "Layer 2 requests received for addresses announced by this node, since it took them over", []string{"ip"}, nil)
	descResponses = prometheus.NewDesc("metallb_layer2_responses_sent", "Layer 2 responses sent for addresses announced by this node, since it took them over", []string{"ip"}, nil)
	descUnasked   = prometheus.NewDesc("metallb_layer2_gratuitous_sent", "Gratuitous layer 2 packets sent for addresses announced by this node, since it took them over", []string{"ip"}, nil)
	descAddresses = prometheus.NewDesc("fairway_lb_announced_addresses", "Addresses that this node announces", nil, nil)
	descPeers     = prometheus.NewDesc("fairway_lb_peers", "Other nodes", nil, nil)
	descAlive     = prometheus.NewDesc("fairway_lb_peers_alive", "Other nodes whose announcers are alive and ready, as this node sees them", nil, nil)
	descMute      = prometheus.NewDesc("fairway_lb_peers_mute", "Other nodes that are alive by the API server's account and are not heard", nil, nil)
	descPhase     = prometheus.NewDesc("fairway_lb_announcer_phase", "1 for the phase that this node's announcer is in", []string{"phase"}, nil)
)

// Collect implements prometheus.Collector.
func (m *Monitor) Collect(ch chan<- prometheus.Metric) {
	for _, c := range []prometheus.Counter{m.sent, m.received, m.elections, m.takeovers, m.handovers, m.conflicts, m.reopened} {
		ch <- c
	}
	m.refused.Collect(ch)
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for _, p := range []phase{joining, ready, leaving, idle} {
		v := 0.0
		if phase(m.phase.Load()) == p {
			v = 1
		}
		gauge(descPhase, v, p.String())
	}
	ask := make(chan snapshot, 1)
	select {
	case m.asks <- ask:
	case <-time.After(time.Second):
		return // it does not run, or stands still
	}
	s := <-ask
	gauge(descPeers, float64(s.peers))
	gauge(descAlive, float64(s.alive))
	gauge(descMute, float64(s.mute))
	gauge(descAddresses, float64(len(s.claims)))
	for _, a := range s.claims {
		for _, svc := range a.services {
			gauge(descAnnounced, float64(min(a.links, 1)), svc, "layer2", s.node, a.addr.String())
		}
	}
	for a, c := range s.counts {
		for _, x := range []struct {
			d *prometheus.Desc
			v uint64
		}{{descRequests, c.Requests}, {descResponses, c.Responses}, {descUnasked, c.Announcements}} {
			ch <- prometheus.MustNewConstMetric(x.d, prometheus.CounterValue, float64(x.v), a.String())
		}
	}
}

// snapshot is what Collect asks for.
func (s *speaker) snapshot() snapshot {
	x := snapshot{node: s.NodeName, peers: len(s.members.peers), mute: len(s.members.mutes()), counts: map[netip.Addr]raw.Counts{}}
	for n := range s.members.alive {
		if n != s.NodeName {
			x.alive++
		}
	}
	for a, c := range s.claims {
		x.claims = append(x.claims, announced{a, slices.Clone(s.entries[a].Services), len(c.links)})
	}
	for _, r := range s.responders {
		r.Counts(func(a netip.Addr, c raw.Counts) { x.counts[a] = x.counts[a].Add(c) })
	}
	return x
}
