package announce

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/packet"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/flowcontrol"

	"fairway.dev/fairway/api/v1alpha1"
	"fairway.dev/fairway/internal/announce/raw"
)

// sample reads one metric of a node's announcer; labels are name=value.
func (n *lanNode) sample(t *testing.T, name string, labels ...string) float64 {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(n.monitor)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
	next:
		for _, m := range f.GetMetric() {
			for _, want := range labels {
				found := false
				for _, l := range m.GetLabel() {
					found = found || l.GetName()+"="+l.GetValue() == want
				}
				if !found {
					continue next
				}
			}
			return m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return -1
}

func (l *lan) until(what string, ok func() bool) {
	l.t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			l.t.Fatalf("%s: not after 30 s", what)
		}
	}
}

// forget has the client ask for an address anew.
func (l *lan) forget(address string) {
	l.t.Helper()
	neighs, err := l.client.NL.NeighList(0, netlink.FAMILY_ALL)
	if err != nil {
		l.t.Fatal(err)
	}
	for _, n := range neighs {
		if n.IP.String() == address {
			_ = l.client.NL.NeighDel(&n)
		}
	}
}

// TestTrouble has a lone announcer meet what goes wrong on real networks.
func TestTrouble(t *testing.T) {
	l := newLAN(t, 1)
	events := record.NewFakeRecorder(100)
	l.shared.mu.Lock()
	l.shared.events, l.shared.budget = events, flowcontrol.NewFakeAlwaysRateLimiter()
	l.shared.mu.Unlock()
	n := l.nodes[0]
	l.service("web", nil, vip4, vip6)
	l.settled(vip4)
	l.settled(vip6)
	if err := errors.Join(n.monitor.Live(), n.monitor.Ready()); err != nil {
		t.Error(err)
	}
	for range 2 {
		if e := <-events.Events; !strings.Contains(e, "AddressAnnounced") || !strings.Contains(e, "on eth0") {
			t.Errorf("event %q", e)
		}
	}
	for _, vip := range []string{vip4, vip6} {
		ip := "ip=" + vip
		if v := n.sample(t, "metallb_speaker_announced", ip, "service=default/web", "protocol=layer2", "node=node-0"); v != 1 {
			t.Errorf("metallb_speaker_announced of %s: %v", vip, v)
		}
		// Announcements may have told the client before it had to ask.
		l.until("requests are counted, and answers", func() bool {
			l.forget(vip)
			_, _ = l.ask(vip, 250*time.Millisecond)
			return n.sample(t, "metallb_layer2_requests_received", ip) >= 1 && n.sample(t, "metallb_layer2_responses_sent", ip) >= 1
		})
		if v := n.sample(t, "metallb_layer2_gratuitous_sent", ip); v < 1 {
			t.Errorf("%s: announced %v times", vip, v)
		}
	}

	t.Run("duplicate address", func(t *testing.T) {
		br0, err := l.client.NL.LinkByName("br0")
		if err != nil {
			t.Fatal(err)
		}
		var conn *packet.Conn
		err = l.client.NS.Do(func() (err error) {
			conn, err = packet.Listen(&net.Interface{Index: br0.Attrs().Index, Name: "br0", HardwareAddr: br0.Attrs().HardwareAddr}, packet.Raw, unix.ETH_P_ARP, nil)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		all := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
		mine := net.HardwareAddr{2, 0, 0, 0xde, 0xad, 1}
		f := append(append(append([]byte(nil), all...), mine...), 8, 6, 0, 1, 8, 0, 6, 4)
		f = binary.BigEndian.AppendUint16(f, 1)
		f = append(append(append(append(f, mine...), netip.MustParseAddr(vip4).AsSlice()...), 0, 0, 0, 0, 0, 0), netip.MustParseAddr(vip4).AsSlice()...)
		var got []string
		l.until("event about the duplicate address", func() bool {
			if _, err := conn.WriteTo(f, &packet.Addr{HardwareAddr: all}); err != nil {
				t.Fatal(err)
			}
			for {
				select {
				case e := <-events.Events:
					got = append(got, e)
				default:
					return len(got) > 0
				}
			}
		})
		for range 20 {
			_, _ = conn.WriteTo(f, &packet.Addr{HardwareAddr: all})
		}
		l.until("all frames are counted", func() bool { return n.sample(t, "fairway_lb_conflicts_total") >= 21 })
		if len(events.Events) > 0 || len(got) != 1 || !strings.Contains(got[0], "AddressConflict") || !strings.Contains(got[0], mine.String()) {
			t.Errorf("events %q, and %d more", got, len(events.Events))
		}
		l.settled(vip4) // it has defended the address
	})

	t.Run("link renamed", func(t *testing.T) {
		eth0, err := n.NL.LinkByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		rename := func(name string) {
			t.Helper()
			if err := n.NL.LinkSetName(eth0, name); err != nil {
				// Kernels before 6.x want it down for that.
				if err := errors.Join(n.NL.LinkSetDown(eth0), n.NL.LinkSetName(eth0, name), n.NL.LinkSetUp(eth0)); err != nil {
					t.Fatal(err)
				}
			}
		}
		pools := func(pattern string) {
			p := poolFactsOf(&v1alpha1.IPPool{Spec: v1alpha1.IPPoolSpec{
				Addresses: []string{vip4, vip6}, Announce: v1alpha1.AnnounceSpec{Interfaces: []string{pattern}},
			}})
			l.shared.update(func(pl *plan) ([]netip.Addr, bool) { return pl.setPools([]poolFacts{p}), false })
		}
		pools("eth*")
		rename("lan0")
		l.until("no link fits any more", func() bool {
			return n.sample(t, "metallb_speaker_announced", "ip="+vip4) <= 0 && countReplies(t, l.client, netip.MustParseAddr(vip4)) == 0
		})
		pools("lan*")
		l.until("it is announced on the renamed link", func() bool { return n.sample(t, "metallb_speaker_announced", "ip="+vip4) == 1 })
		l.until("and answered for", func() bool { return countReplies(t, l.client, netip.MustParseAddr(vip4)) == 1 })
		rename("eth0")
		pools("eth*")
		l.until("it is announced again", func() bool { return n.sample(t, "metallb_speaker_announced", "ip="+vip4) == 1 })
	})
}

// flaky is a responder that a test breaks.
type flaky struct {
	mine   map[netip.Addr]bool
	closed bool
}

func (f *flaky) Claim(a netip.Addr) error            { f.mine[a] = true; return nil }
func (f *flaky) Release(a netip.Addr)                { delete(f.mine, a) }
func (f *flaky) Announce(netip.Addr) error           { return nil }
func (f *flaky) Counts(func(netip.Addr, raw.Counts)) {}
func (f *flaky) Close() error                        { f.closed = true; return nil }

// TestBrokenSocketIsReplaced breaks a responder, has opening another one fail
// for a while, and looks whether the address is answered for in the end.
func TestBrokenSocketIsReplaced(t *testing.T) {
	s := testSpeaker("n", 1)
	var opened []*flaky
	fail := errors.New("no buffer space")
	tries := 0
	s.open = func(link, bool, raw.Config) (Responder, error) {
		if tries++; fail != nil {
			return nil, fail
		}
		f := &flaky{mine: map[netip.Addr]bool{}}
		opened = append(opened, f)
		return f, nil
	}
	s.electAll()
	for range 3 {
		s.claimAll()
	}
	if tries != 1 || len(s.failures) != 1 {
		t.Errorf("opened %d times in a row, %d failures", tries, len(s.failures))
	}
	fail = nil
	s.tryAgain()
	a := netip.MustParseAddr("10.0.0.1")
	if len(opened) != 1 || !opened[0].mine[a] || len(s.failures) != 0 || len(s.claims[a].names) != 1 {
		t.Fatalf("opened %d, failures %v, claim %+v", len(opened), s.failures, s.claims[a])
	}
	fail = errors.New("no buffer space")
	s.reopen(keyFor(s.links[0].iface.Index, a))
	if !opened[0].closed || len(s.claims[a].names) != 0 || len(s.failures) != 1 {
		t.Errorf("claim %+v, failures %v", s.claims[a], s.failures)
	}
	fail = nil
	s.tryAgain()
	if len(opened) != 2 || !opened[1].mine[a] || len(s.claims[a].names) != 1 {
		t.Error("not answered for after the socket was replaced")
	}
	s.withdraw(a)
	if opened[1].mine[a] {
		t.Error("answered for after it was given up")
	}
	// A failure that nobody minds any more is forgotten.
	s.failures[responderKey{99, true}] = &failure{}
	s.tryAgain()
	if len(s.failures) != 0 {
		t.Error("tried again for ever")
	}
}

// TestNodeThatMayNot has a node that may not open sockets leave announcing to
// others, until it may.
func TestNodeThatMayNot(t *testing.T) {
	s := testSpeaker("n", 1, "peer")
	a := netip.MustParseAddr("10.0.0.1")
	fail := errors.New("operation not permitted")
	s.open = func(link, bool, raw.Config) (Responder, error) {
		if fail != nil {
			return nil, fail
		}
		return &flaky{mine: map[netip.Addr]bool{}}, nil
	}
	delete(s.members.alive, "peer")
	s.electAll()
	if !s.recheck {
		t.Fatal("a failure and no second thought")
	}
	s.checkUsable()
	if s.members.phase != idle || len(s.claims) != 0 {
		t.Errorf("phase %s, %d claims", s.members.phase, len(s.claims))
	}
	for range 3 {
		s.tryAgain()
		if s.members.phase != idle || s.retry.IsZero() {
			t.Fatalf("phase %s although it may not; tried again at %s", s.members.phase, s.retry)
		}
	}
	fail = nil
	s.tryAgain()
	if s.members.phase != joining || len(s.failures) != 0 {
		t.Errorf("phase %s, failures %v", s.members.phase, s.failures)
	}
	s.members.phase = ready
	s.members.alive["n"] = struct{}{}
	s.electAll()
	if c := s.claims[a]; c == nil || len(c.names) != 1 {
		t.Errorf("claim %+v", c)
	}
}
