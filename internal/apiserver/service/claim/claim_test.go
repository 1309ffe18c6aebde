package claim

import (
	"fmt"
	"net/netip"
	"testing"
)

func TestHosts(t *testing.T) {
	for _, tt := range []struct {
		prefix      string
		first, last string
		n, lower    uint64
	}{
		{"10.0.0.0/8", "10.0.0.1", "10.255.255.254", 1<<24 - 2, 256},
		{"10.96.0.0/16", "10.96.0.1", "10.96.255.254", 65534, 256},
		{"10.96.0.0/20", "10.96.0.1", "10.96.15.254", 4094, 256},
		{"10.96.0.0/24", "10.96.0.1", "10.96.0.254", 254, 16},
		{"10.96.0.77/24", "10.96.0.1", "10.96.0.254", 254, 16},
		{"10.96.0.0/27", "10.96.0.1", "10.96.0.30", 30, 16},
		{"10.96.0.0/28", "10.96.0.1", "10.96.0.14", 14, 0},
		{"10.96.0.0/30", "10.96.0.1", "10.96.0.2", 2, 0},
		{"10.96.0.0/31", "", "", 0, 0},
		{"10.96.0.0/32", "", "", 0, 0},
		{"fd00::/112", "fd00::1", "fd00::ffff", 65535, 256},
		{"fd00::/64", "fd00::1", "fd00::ff:ffff:ffff:ffff:ffff", 1 << 56, 256},
		{"fd00::/126", "fd00::1", "fd00::3", 3, 0},
		{"fd00::/127", "fd00::1", "fd00::1", 1, 0},
		{"fd00::/128", "", "", 0, 0},
	} {
		t.Run(tt.prefix, func(t *testing.T) {
			r := hosts(netip.MustParsePrefix(tt.prefix))
			if r.n != tt.n || r.lower != tt.lower {
				t.Fatalf("n %d, lower %d, want %d, %d", r.n, r.lower, tt.n, tt.lower)
			}
			if tt.n == 0 {
				return
			}
			if r.first.String() != tt.first {
				t.Errorf("first %s, want %s", r.first, tt.first)
			}
			if last := add(r.first, r.n-1); tt.n != 1<<56 && last.String() != tt.last {
				t.Errorf("last %s, want %s", last, tt.last)
			}
		})
	}
}

func TestOffers(t *testing.T) {
	for _, tt := range []struct {
		prefix, addr string
		want         bool
	}{
		{"10.96.0.0/24", "10.96.0.0", false},
		{"10.96.0.0/24", "10.96.0.1", true},
		{"10.96.0.0/24", "10.96.0.254", true},
		{"10.96.0.0/24", "10.96.0.255", false},
		{"10.96.0.0/24", "10.96.1.1", false},
		{"255.255.255.0/24", "255.255.255.254", true},
		{"255.255.255.0/24", "255.255.255.255", false},
		{"fd00::/112", "fd00::", false},
		{"fd00::/112", "fd00::ffff", true},
		{"fd00::/112", "fd00::1:0", false},
		{"fd00::/32", "fd00:0:ffff::1", true},
		{"fd00::/112", "10.96.0.1", false},
		{"10.96.0.0/32", "10.96.0.0", false},
	} {
		if got := offers(netip.MustParsePrefix(tt.prefix), netip.MustParseAddr(tt.addr)); got != tt.want {
			t.Errorf("offers(%s, %s) is %v", tt.prefix, tt.addr, got)
		}
	}
}

func TestAdd(t *testing.T) {
	for _, tt := range []struct {
		addr string
		n    uint64
		want string
	}{
		{"10.0.0.1", 0, "10.0.0.1"},
		{"10.0.0.255", 1, "10.0.1.0"},
		{"fd00::1", 0xffff, "fd00::1:0"},
		{"fd00::ffff:ffff:ffff:ffff", 1, "fd00:0:0:1::"},
		{"fd00::ffff:ffff:ffff:fff0", 0x20, "fd00:0:0:1::10"},
	} {
		if got := add(netip.MustParseAddr(tt.addr), tt.n); got.String() != tt.want {
			t.Errorf("%s + %d is %s, want %s", tt.addr, tt.n, got, tt.want)
		}
	}
}

func TestLowerBand(t *testing.T) {
	for _, tt := range []struct{ size, addrs, ports uint64 }{ // as KEP-3070 and KEP-3668 tabulate
		{8, 0, 0}, {16, 0, 0}, {32, 16, 16}, {64, 16, 16}, {256, 16, 16}, {512, 32, 16}, {1024, 64, 32}, {2768, 173, 86}, {4096, 256, 128}, {65536, 256, 128},
	} {
		if got := lowerBand(tt.size, 16, 256); got != tt.addrs {
			t.Errorf("of %d addresses %d, want %d", tt.size, got, tt.addrs)
		}
		if got := lowerBand(tt.size, 32, 128); got != tt.ports {
			t.Errorf("of %d ports %d, want %d", tt.size, got, tt.ports)
		}
	}
}

// TestPick: every free thing is found, none that is taken, and each is as likely as the others.
func TestPick(t *testing.T) {
	id := func(base uint64) func(uint64) string {
		return func(i uint64) string { return fmt.Sprint(base + i) }
	}
	tier := []band{{n: 10, id: id(0)}, {n: 0, id: nil}, {n: 90, id: id(1000)}}
	b := &Book{seen: map[string]struct{}{"elsewhere": {}}}
	count := map[string]int{}
	for range 100_000 {
		s, ok := b.pick(tier)
		if !ok {
			t.Fatal("nothing free among 100")
		}
		count[s]++
	}
	if len(count) != 100 {
		t.Errorf("%d different picks of 100", len(count))
	}
	for s, n := range count { // expected 1000, deviation 31
		if n < 750 || n > 1250 {
			t.Errorf("%s picked %d times of 100,000, want about 1,000", s, n)
		}
	}
	for i := range 100 {
		s, ok := b.pick(tier)
		if !ok || b.taken(s) {
			t.Fatalf("pick %d is %q, %v", i, s, ok)
		}
		b.note(s)
	}
	if s, ok := b.pick(tier); ok {
		t.Errorf("picked %q of nothing", s)
	}
	if s, ok := b.pick(nil); ok {
		t.Errorf("picked %q of no band", s)
	}
}

func TestOwner(t *testing.T) {
	a := Owner{Namespace: "n", Name: "a", UID: "1"}
	for o, want := range map[Owner]bool{
		a:                                     true,
		{Namespace: "n", Name: "a"}:           true,
		{Namespace: "n", Name: "a", UID: "2"}: false,
		{Namespace: "n", Name: "b", UID: "1"}: false,
		{Namespace: "m", Name: "a", UID: "1"}: false,
	} {
		if a.Same(o) != want || o.Same(a) != want {
			t.Errorf("%v and %v: want %v", a, o, want)
		}
	}
}
