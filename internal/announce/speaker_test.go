package announce

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"fairway.dev/fairway/api/v1alpha1"
	"fairway.dev/fairway/internal/announce/raw"
)

// testSpeaker is a speaker of a cluster of its own with one link and n
// addresses, 10.0.0.1 and on. Nothing is elected yet.
func testSpeaker(name string, n int, peers ...string) *speaker {
	shared := &Shared{plan: newPlan(), signs: map[string]sign{}, subs: map[*subscription]struct{}{}}
	s := newSpeaker(Options{NodeName: name, Shared: shared, Monitor: NewMonitor(), Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}, time.Now())
	s.links = []link{{iface: net.Interface{Index: 2, Name: "eth0"}, prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}}
	all := set(append(peers, name)...)
	addr := netip.MustParseAddr("10.0.0.0")
	for range n {
		addr = addr.Next()
		s.entries[addr] = &Entry{Addr: addr, Mode: v1alpha1.AnnounceL2, Nodes: all, Services: []string{"default/" + addr.String()}}
	}
	s.members.alive[name] = struct{}{}
	s.members.phase = ready
	nodes := map[string][]netip.Addr{}
	for _, p := range peers {
		nodes[p] = []netip.Addr{netip.MustParseAddr("192.0.2.1")}
		s.members.alive[p] = struct{}{}
	}
	s.members.setPeers(nodes)
	return s
}

// BenchmarkSpeaker measures what an announcer's loop does at once when nodes
// die, join, or are heard anew: 5,000 addresses, 20 nodes.
func BenchmarkSpeaker(b *testing.B) {
	var peers []string
	for i := range 19 {
		peers = append(peers, fmt.Sprint("peer-", i))
	}
	fresh := func() *speaker {
		s := testSpeaker("n", 5000, peers...)
		s.open = func(link, bool, raw.Config) (Responder, error) { return &flaky{mine: map[netip.Addr]bool{}}, nil }
		s.electAll()
		return s
	}
	b.Run("lost", func(b *testing.B) {
		s := fresh()
		for b.Loop() {
			delete(s.members.alive, "peer-0")
			s.lost([]string{"peer-0"})
			s.members.alive["peer-0"] = struct{}{}
			s.joined("peer-0")
		}
	})
	b.Run("joined", func(b *testing.B) {
		s := fresh()
		s.members.peers["peer-0"].clean = true
		for b.Loop() {
			s.joined("peer-0")
		}
	})
	b.Run("announceAgain", func(b *testing.B) {
		s := testSpeaker("n", 5000) // it has them all
		s.open = func(link, bool, raw.Config) (Responder, error) { return &flaky{mine: map[netip.Addr]bool{}}, nil }
		s.electAll()
		for b.Loop() {
			s.pacer = pacer{}
			s.announceAgain()
			s.announceDue()
		}
	})
	b.Run("electAll", func(b *testing.B) {
		s := fresh()
		for b.Loop() {
			s.electAll()
		}
	})
	b.Run("report", func(b *testing.B) {
		s := testSpeaker("n", 5000)
		s.open = func(link, bool, raw.Config) (Responder, error) { return &flaky{mine: map[netip.Addr]bool{}}, nil }
		s.electAll()
		for b.Loop() {
			s.report()
		}
	})
}
