package lb

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"
)

// TestChaos kills and stalls announcers and controllers as processes, under load.
func TestChaos(t *testing.T) {
	l := newLAN(t, 3)
	l.apply()
	controllers := []*process{l.controller(0), l.controller(1)}
	l.ready(controllers...)
	announcers := []*process{l.announcer(0), l.announcer(1), l.announcer(2)}
	l.ready(announcers...)
	l.pool("lan", "192.0.2.200-192.0.2.250")
	l.service("web")
	l.until("web has an address", func() bool { return l.addresses()["web"] != "" })
	vip := l.addresses()["web"]
	owner := func() int {
		t.Helper()
		// All hear each other, and one says that it announces the address.
		which := -1
		l.until("one node announces "+vip, func() bool {
			n := 0
			for i, a := range announcers {
				if !a.shows("fairway_lb_peers_alive 2\n") {
					return false
				}
				if a.shows(fmt.Sprintf(`metallb_speaker_announced{ip="%s",node="%s",protocol="layer2",service="default/web"} 1`, vip, nodeName(i))) {
					which, n = i, n+1
				}
			}
			return n == 1
		})
		l.answered(vip, func(n string) bool { return n == nodeName(which) })
		return which
	}
	first := owner()

	// Load: connections all the time, from several clients at once.
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				_, _ = l.ask(vip, 100*time.Millisecond)
				time.Sleep(10 * time.Millisecond)
			}
		})
	}

	step := func(name string, f func()) {
		t.Log(name)
		f()
	}
	step("announcer killed", func() {
		start := time.Now()
		announcers[first].kill()
		second := l.answered(vip, func(n string) bool { return n != nodeName(first) })
		took := time.Since(start)
		t.Logf("announcer of %s killed, %s answers %s later", nodeName(first), second, took)
		if took > 3*time.Second {
			t.Errorf("recovery took %s, more than 3 s", took)
		}
		announcers[first] = l.announcer(first)
		l.ready(announcers[first])
		if again := owner(); again != first {
			t.Errorf("%s announces after %s is back", nodeName(again), nodeName(first))
		}
	})

	step("announcer stalled", func() {
		p := l.probe(t, vip)
		stalled := announcers[first]
		if err := stalled.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		second := l.answered(vip, func(n string) bool { return n != nodeName(first) })
		l.until("another one answers requests", func() bool { macs := p.round(); return len(macs) == 1 && !macs[l.mac(first)] })
		t.Logf("announcer of %s stands still, %s answers %s later", nodeName(first), second, time.Since(start))
		for time.Since(start) < 5*time.Second {
			if n := len(p.round()); n > 1 {
				t.Errorf("%d nodes answer while one stands still", n)
			}
		}
		if err := stalled.cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		// A single request that is answered twice may come while the address moves.
		resumed := time.Now()
		last, good := resumed, 0
		l.until("one answers again", func() bool {
			switch macs := p.round(); {
			case len(macs) > 1:
				last, good = time.Now(), 0
			case macs[l.mac(first)]:
				good++
			default:
				good = 0
			}
			return good >= 20
		})
		t.Logf("two nodes answered for %s after it went on", last.Sub(resumed))
		if both := last.Sub(resumed); both > 2*time.Second {
			t.Errorf("two nodes answered for %s", both)
		}
		owner()
	})

	step("leader killed", func() {
		leader := -1
		l.until("one controller leads", func() bool {
			for i, c := range controllers {
				if c.shows("fairway_lb_leader 1\n") {
					leader = i
				}
			}
			return leader >= 0
		})
		const n = 40
		for i := range n {
			l.service(fmt.Sprint("s-", i))
			if i == n/2 {
				controllers[leader].kill()
			}
		}
		start := time.Now()
		l.until("all Services have addresses", func() bool { return len(l.addresses()) == n+1 })
		t.Logf("leader killed among %d new Services: all have addresses %s later", n, time.Since(start))
		other := controllers[1-leader]
		l.until("the other one leads and says so", func() bool { return other.shows("fairway_lb_leader 1\n") })
		l.until("and counts what it has taken over", func() bool {
			return other.shows(fmt.Sprintf("metallb_allocator_addresses_in_use_total{pool=\"lan\"} %d\n", n+1))
		})
		if l.addresses()["web"] != vip {
			t.Error("an address moved with the lead")
		}
	})
}

// mac is the Ethernet address of a node.
func (l *lan) mac(i int) string {
	l.t.Helper()
	eth0, err := l.nodes[i].NL.LinkByName("eth0")
	if err != nil {
		l.t.Fatal(err)
	}
	return eth0.Attrs().HardwareAddr.String()
}

// probe asks by ARP for an address, from the client's link.
type probe struct {
	t       *testing.T
	conn    *packet.Conn
	request []byte
	target  netip.Addr
}

func (l *lan) probe(t *testing.T, vip string) *probe {
	t.Helper()
	br0, err := l.client.NL.LinkByName("br0")
	if err != nil {
		t.Fatal(err)
	}
	a := br0.Attrs()
	p := &probe{t: t, target: netip.MustParseAddr(vip), request: make([]byte, 28)}
	err = l.client.NS.Do(func() (err error) {
		p.conn, err = packet.Listen(&net.Interface{Index: a.Index, Name: a.Name, HardwareAddr: a.HardwareAddr}, packet.Datagram, unix.ETH_P_ARP, nil)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.conn.Close() })
	// RFC 826: Ethernet, IPv4, their lengths, a request; from whom, and for whom.
	binary.BigEndian.PutUint16(p.request[0:], 1)
	binary.BigEndian.PutUint16(p.request[2:], 0x0800)
	p.request[4], p.request[5] = 6, 4
	binary.BigEndian.PutUint16(p.request[6:], 1)
	copy(p.request[8:], a.HardwareAddr)
	copy(p.request[14:], netip.MustParseAddr("192.0.2.1").AsSlice())
	copy(p.request[24:], p.target.AsSlice())
	return p
}

// round asks once and returns who answers within 50 ms.
func (p *probe) round() map[string]bool {
	p.t.Helper()
	all := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	if _, err := p.conn.WriteTo(p.request, &packet.Addr{HardwareAddr: all}); err != nil {
		p.t.Fatal(err)
	}
	if err := p.conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		p.t.Fatal(err)
	}
	macs := map[string]bool{}
	buf := make([]byte, 64)
	for {
		n, _, err := p.conn.ReadFrom(buf)
		if err != nil {
			return macs
		}
		// A reply for the address that is meant for us, not an announcement.
		if n >= 28 && binary.BigEndian.Uint16(buf[6:]) == 2 && netip.AddrFrom4([4]byte(buf[14:18])) == p.target && netip.AddrFrom4([4]byte(buf[24:28])) != p.target {
			macs[net.HardwareAddr(buf[8:14]).String()] = true
		}
	}
}
