package announce

import (
	"net/netip"
	"testing"
	"time"
)

// TestPacer announces 5,000 addresses on a made-up clock, as after a node's
// death, and one more in the middle of it.
func TestPacer(t *testing.T) {
	const n = 5000
	start := time.Unix(1000, 0)
	now := start
	var p pacer
	addr := netip.MustParseAddr("10.0.0.0")
	for range n {
		addr = addr.Next()
		p.add(0, addr, 1, now)
	}
	late := netip.MustParseAddr("192.0.2.1")
	announced := map[netip.Addr][]time.Duration{}
	var allOnce time.Duration
	for {
		at, ok := p.next()
		if !ok {
			break
		}
		if at.After(now) {
			now = at
		}
		if len(announced) >= n/2 && announced[late] == nil && p.stages[0][len(p.stages[0])-1].addr != late {
			p.add(0, late, 1, now)
		}
		sent := 0
		p.take(now, func(_ int, d due) bool {
			sent++
			if announced[d.addr] = append(announced[d.addr], now.Sub(start)); len(announced) == n+1 && allOnce == 0 {
				allOnce = now.Sub(start)
			}
			return true
		})
		if sent > burst {
			t.Fatalf("%d at once", sent)
		}
		if sent == 0 && !at.After(now) {
			t.Fatal("woken for nothing, for ever")
		}
	}
	if len(announced) != n+1 {
		t.Fatalf("%d addresses announced", len(announced))
	}
	for a, times := range announced {
		if len(times) != 1+len(repeats) {
			t.Fatalf("%s announced %d times", a, len(times))
		}
	}
	if want := n / burst * pause; allOnce > 2*want {
		t.Errorf("all were announced once after %s, want about %s: first announcements go before repeats", allOnce, want)
	}
	t.Logf("%d addresses: once after %s, all repeats after %s", n, allOnce, now.Sub(start))

	// One address keeps its times.
	p, start = pacer{}, now
	p.add(0, late, 1, now)
	var times []time.Duration
	for {
		at, ok := p.next()
		if !ok {
			break
		}
		p.take(at, func(int, due) bool { times = append(times, at.Sub(start)); return true })
	}
	for i, want := range append([]time.Duration{0}, repeats[:]...) {
		if times[i] != want {
			t.Errorf("announcement %d after %s, want %s", i, times[i], want)
		}
	}
	// What is no longer wanted is not repeated.
	p.add(0, late, 1, now)
	p.take(now, func(int, due) bool { return false })
	if _, ok := p.next(); ok {
		t.Error("repeated although it was not sent")
	}
}
