package conntrack

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/proxy/state"
	"fairway.dev/fairway/internal/testenv"
)

func TestBatch(t *testing.T) {
	ap := netip.MustParseAddrPort
	key := state.Key{Addr: netip.MustParseAddr("10.96.0.10"), Port: 53, Proto: state.UDP}
	port := state.Key{Addr: netip.IPv4Unspecified(), Port: 30053, Proto: state.UDP}
	gone := state.Backend{Addr: ap("10.244.0.1:53")}
	stale := []state.Stale{{Key: key, Backend: gone}, {Key: port, Backend: gone}, {Key: port}}
	b := newBatch(state.UDP, false, stale)
	b.local = map[netip.Addr]bool{netip.MustParseAddr("192.0.2.1"): true}
	if !newBatch(state.SCTP, false, stale).empty() || !newBatch(state.UDP, true, stale).empty() {
		t.Error("another protocol or family has something to do")
	}
	for _, tc := range []struct {
		dst, replySrc string
		proto         state.Protocol
		want          bool
	}{
		{"10.96.0.10:53", "10.244.0.1:53", state.UDP, true},
		{"10.96.0.10:53", "10.244.0.2:53", state.UDP, false},
		{"10.96.0.10:53", "10.244.0.1:53", state.SCTP, false},
		{"10.96.0.10:54", "10.244.0.1:53", state.UDP, false},
		{"10.96.0.10:53", "10.96.0.10:53", state.UDP, false},
		{"192.0.2.1:30053", "10.244.0.1:53", state.UDP, true},
		{"192.0.2.7:30053", "10.244.0.1:53", state.UDP, true},
		{"192.0.2.1:30053", "192.0.2.1:30053", state.UDP, true},
		{"192.0.2.7:30053", "192.0.2.7:30053", state.UDP, false}, // passing through
	} {
		e := entry{tuple: tuple{src: ap("10.244.0.9:4000"), dst: ap(tc.dst), proto: tc.proto}, replySrc: ap(tc.replySrc)}
		if got := b.matches(&e); got != tc.want {
			t.Errorf("%v → %v: %t", tc.dst, tc.replySrc, got)
		}
	}
	ended := newBatch(state.UDP, false, []state.Stale{{Key: key, Gone: true}, {Key: port, Gone: true}})
	if !ended.wantsLocal() || ended.empty() {
		t.Error("a batch of frontends that are gone has nothing to do, or does not ask which addresses are the node's")
	}
	ended.local = b.local
	for _, tc := range []struct {
		dst, replySrc string
		want          bool
	}{
		{"10.96.0.10:53", "10.244.0.1:53", true},
		{"10.96.0.10:53", "10.244.0.2:5353", true}, // to whichever backend
		{"10.96.0.10:53", "10.96.0.10:53", false},  // not translated
		{"10.96.0.11:53", "10.244.0.1:53", false},
		{"192.0.2.1:30053", "10.244.0.1:53", true},
		{"192.0.2.7:30053", "10.244.0.1:53", false}, // passing through, translated by somebody else
	} {
		e := entry{tuple: tuple{src: ap("10.244.0.9:4000"), dst: ap(tc.dst), proto: state.UDP}, replySrc: ap(tc.replySrc)}
		if got := ended.matches(&e); got != tc.want {
			t.Errorf("gone: %v → %v: %t", tc.dst, tc.replySrc, got)
		}
	}
	if f := newBatch(state.UDP, false, []state.Stale{{Key: key, Gone: true}, {Key: key, Backend: gone}}).filter; f.dst.String() != "10.96.0.10:53" || f.back.IsValid() {
		t.Errorf("filter %+v", f)
	}
	if b.filter.dst.IsValid() || b.filter.back.IsValid() {
		t.Errorf("filter %+v of a mixed batch would miss entries", b.filter)
	}
	if f := newBatch(state.UDP, false, stale[:1]).filter; f.dst.String() != "10.96.0.10:53" || f.back != gone.Addr {
		t.Errorf("filter %+v", f)
	}
}

// insert puts entries into the kernel's table as if connections had come
// through: from src, to dst, answered by back.
func insert(t testing.TB, conn *netlink.Conn, src, dst, back netip.AddrPort, proto state.Protocol) {
	t.Helper()
	ae := netlink.NewAttributeEncoder()
	ae.Nested(ctaTupleOrig, tuple{src: src, dst: dst, proto: proto}.encode)
	ae.Nested(ctaTupleReply, tuple{src: back, dst: src, proto: proto}.encode)
	const ctaStatus, ctaTimeout, confirmed = 3, 7, 1 << 3
	ae.Bytes(ctaStatus, []byte{0, 0, 0, confirmed})
	ae.Bytes(ctaTimeout, []byte{0, 0, 3, 0})
	b, err := ae.Encode()
	if err != nil {
		t.Fatal(err)
	}
	family := uint8(unix.AF_INET)
	if dst.Addr().Is6() {
		family = unix.AF_INET6
	}
	const msgNew = 0
	_, err = conn.Execute(request(msgNew, netlink.Acknowledge|netlink.Create|netlink.Excl, append(header(family), b...)))
	if err != nil {
		t.Fatalf("insert %v → %v (%v): %v", src, dst, back, err)
	}
}

// entries lists what the kernel remembers, as "dst reply-source".
func entries(t testing.TB, conn *netlink.Conn, family uint8) map[string]int {
	t.Helper()
	msgs, err := conn.Execute(request(msgGet, netlink.Dump, header(family)))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int{}
	for _, m := range msgs {
		e, err := decode(m.Data)
		if err != nil {
			t.Fatal(err)
		}
		out[fmt.Sprint(e.proto, " ", e.dst, " ", e.replySrc)]++
	}
	return out
}

func TestDelete(t *testing.T) {
	testenv.RequireRoot(t)
	h := testenv.NewHost(t, "ct")
	c := New(h.NS)
	conn, err := c.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	a := netip.MustParseAddr
	for _, v6 := range []bool{false, true} {
		client, service, back1, back2, other := a("192.0.2.9"), a("10.96.0.10"), a("10.244.0.1"), a("10.244.0.2"), a("10.96.0.11")
		family := uint8(unix.AF_INET)
		if v6 {
			client, service, back1, back2, other = a("2001:db8::9"), a("fd00:96::10"), a("fd00:244::1"), a("fd00:244::2"), a("fd00:96::11")
			family = unix.AF_INET6
		}
		at := netip.AddrPortFrom
		for i := range uint16(3) {
			insert(t, conn, at(client, 1000+i), at(service, 53), at(back1, 5353), state.UDP)
			insert(t, conn, at(client, 2000+i), at(service, 53), at(back2, 5353), state.UDP)
			insert(t, conn, at(client, 3000+i), at(other, 53), at(back1, 5353), state.UDP)
			insert(t, conn, at(client, 4000+i), at(other, 99), at(other, 99), state.UDP)
		}
		key := state.Key{Addr: service, Port: 53, Proto: state.UDP}
		n, err := c.Delete(context.Background(), []state.Stale{{Key: key, Backend: state.Backend{Addr: at(back1, 5353)}}})
		if err != nil || n != 3 {
			t.Errorf("deleted %d, %v; want 3", n, err)
		}
		got := entries(t, conn, family)
		if got[fmt.Sprint(state.UDP, " ", at(service, 53), " ", at(back1, 5353))] != 0 || len(got) != 3 {
			t.Errorf("left %v", got)
		}
		// Untranslated ones of a frontend that is new, and of two at once.
		n, err = c.Delete(context.Background(), []state.Stale{
			{Key: state.Key{Addr: other, Port: 99, Proto: state.UDP}},
			{Key: key, Backend: state.Backend{Addr: at(back2, 5353)}},
		})
		if err != nil || n != 6 {
			t.Errorf("deleted %d, %v; want 6", n, err)
		}
		if got = entries(t, conn, family); len(got) != 1 {
			t.Errorf("left %v; want those of another Service", got)
		}
	}
}

func TestReconcile(t *testing.T) {
	testenv.RequireRoot(t)
	h := testenv.NewHost(t, "ctr")
	c := New(h.NS)
	conn, err := c.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ap, client := netip.MustParseAddrPort, netip.MustParseAddrPort("192.0.2.9:4000")
	for _, e := range []struct{ dst, back string }{
		{"10.96.0.10:53", "10.244.0.1:53"},     // serves
		{"10.96.0.10:53", "10.244.0.2:53"},     // does not: goes
		{"10.96.0.11:53", "10.244.0.2:53"},     // nobody serves: goes
		{"10.96.0.12:53", "10.244.0.2:53"},     // not ours
		{"192.0.2.1:30053", "10.244.0.2:53"},   // node port: goes
		{"192.0.2.1:30054", "10.244.0.2:53"},   // node port that nobody serves
		{"192.0.2.1:30055", "192.0.2.1:30055"}, // untranslated
		{"192.0.2.7:30053", "10.244.0.1:53"},   // serves
	} {
		client = netip.AddrPortFrom(client.Addr(), client.Port()+1)
		insert(t, conn, client, ap(e.dst), ap(e.back), state.UDP)
	}
	key := func(s string) state.Key { return state.Key{Addr: ap(s).Addr(), Port: ap(s).Port(), Proto: state.UDP} }
	one := []state.Backend{{Addr: ap("10.244.0.1:53")}}
	n, err := c.Reconcile(context.Background(), map[state.Key][]state.Backend{
		key("10.96.0.10:53"): one, key("10.96.0.11:53"): nil, key("0.0.0.0:30053"): one, key("0.0.0.0:30054"): nil, key("0.0.0.0:30055"): one,
	})
	if got := entries(t, conn, unix.AF_INET); err != nil || n != 3 || len(got) != 5 {
		t.Errorf("deleted %d, %v; left %v", n, err, got)
	}
}

// TestLiveFlow: a flow of packets that never pauses is sent to the new endpoint
// once its entry is gone. (Without NAT in the way here: the entry is untranslated.)
func TestLiveFlow(t *testing.T) {
	testenv.RequireRoot(t)
	a, b := testenv.NewHost(t, "cta"), testenv.NewHost(t, "ctb")
	a.Connect(t, "eth0", b, "eth0")
	a.AddAddr(t, "eth0", "192.0.2.1/24")
	b.AddAddr(t, "eth0", "192.0.2.2/24")
	c := New(b.NS)
	conn, err := c.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	in := b.ListenPacket(t, "udp4", "192.0.2.2:30053")
	out, err := a.Dial("udp4", "192.0.2.2:30053", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	// Nothing but a rule with ct turns tracking on; an inserted entry stands for it.
	src := out.LocalAddr().(*net.UDPAddr).AddrPort()
	insert(t, conn, src, netip.MustParseAddrPort("192.0.2.2:30053"), netip.MustParseAddrPort("192.0.2.2:30053"), state.UDP)
	if _, err := out.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	in.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, _, err := in.ReadFrom(make([]byte, 9)); err != nil {
		t.Fatal(err)
	}
	n, err := c.Delete(context.Background(), []state.Stale{{Key: state.Key{Addr: netip.IPv4Unspecified(), Port: 30053, Proto: state.UDP}}})
	if err != nil || n != 1 {
		t.Errorf("deleted %d, %v; want the one to this node's address", n, err)
	}
}

// BenchmarkDelete measures a deletion that finds nothing among many entries:
// what the walk costs.
func BenchmarkDelete(b *testing.B) {
	testenv.RequireRoot(b)
	h := testenv.NewHost(b, "ctb")
	c := New(h.NS)
	conn, err := c.dial()
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	at := netip.AddrPortFrom
	for i := range 50000 {
		client := netip.AddrFrom4([4]byte{192, 0, byte(i >> 14), byte(i >> 6)})
		insert(b, conn, at(client, 1000+uint16(i&63)), at(netip.MustParseAddr("10.96.0.11"), 53), at(netip.MustParseAddr("10.244.0.1"), 5353), state.UDP)
	}
	stale := []state.Stale{{Key: state.Key{Addr: netip.MustParseAddr("10.96.0.10"), Port: 53, Proto: state.UDP}, Backend: state.Backend{Addr: netip.MustParseAddrPort("10.244.0.1:5353")}}}
	for b.Loop() {
		if n, err := c.Delete(context.Background(), stale); err != nil || n != 0 {
			b.Fatal(n, err)
		}
	}
}
