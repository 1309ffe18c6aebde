package ipam

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/labels"
)

func ranges(t testing.TB, list ...string) []Range {
	t.Helper()
	var out []Range
	for _, s := range list {
		r, err := ParseRange(s)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, r)
	}
	return out
}

func auto(t testing.TB, name string, list ...string) Pool {
	return Pool{Name: name, AutoAssign: true, Ranges: ranges(t, list...)}
}

func single(key string, edit ...func(*Request)) Request {
	r := Request{Key: key, Families: []Family{V4}, Ports: []Port{{"TCP", 80}}}
	for _, e := range edit {
		e(&r)
	}
	return r
}

func addrs(o Outcome) string {
	var out []string
	for _, x := range o.Addresses {
		out = append(out, x.Addr.String())
	}
	return strings.Join(out, " ")
}

func named(list ...string) func(*Request) {
	return func(r *Request) {
		r.Addresses = nil
		for _, s := range list {
			r.Addresses = append(r.Addresses, netip.MustParseAddr(s))
		}
	}
}
func inPool(names ...string) func(*Request) { return func(r *Request) { r.Pools = names } }
func share(key string) func(*Request)       { return func(r *Request) { r.ShareKey = key } }
func port(n uint16) func(*Request)          { return func(r *Request) { r.Ports = []Port{{"TCP", n}} } }
func families(require bool, f ...Family) func(*Request) {
	return func(r *Request) { r.Families, r.RequireAll = f, require }
}
func backends(b string) func(*Request) { return func(r *Request) { r.Backends = b } }
func label(k, v string) func(*Request) {
	return func(r *Request) { r.Labels = labels.Set{k: v} }
}

func TestParseRange(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.0/30":            "192.0.2.0-192.0.2.3",
		"192.0.2.10-192.0.2.20":   "192.0.2.10-192.0.2.20",
		"192.0.2.7":               "192.0.2.7",
		"fd00::/126":              "fd00::-fd00::3",
		"fd00::c8-fd00::fa":       "fd00::c8-fd00::fa",
		"192.0.2.1/24":            "did you mean 192.0.2.0/24",
		"192.0.2.20-192.0.2.10":   "before the start",
		"192.0.2.1-fd00::1":       "different families",
		"::ffff:192.0.2.1":        "IPv6 form",
		"fe80::1%eth0":            "zone",
		"nonsense":                "not an IP address",
		"192.0.2.1-x":             "end of the range",
		"::ffff:1.2.3.4-::ffff:2": "dotted form",
	} {
		r, err := ParseRange(in)
		got := r.String()
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, want) {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
	if n := ranges(t, "fd00::/64")[0].Size(); n != 1<<63-1 {
		t.Errorf("size of a /64: %d", n)
	}
}

// TestAllocate runs one request against pools where some are held already.
func TestAllocate(t *testing.T) {
	v4 := auto(t, "v4", "192.0.2.10-192.0.2.12")
	v6 := auto(t, "v6", "fd00::1-fd00::2")
	manual := Pool{Name: "manual", Ranges: ranges(t, "198.51.100.0/30")}
	tests := []struct {
		name   string
		pools  []Pool
		held   []Request
		req    Request
		want   string
		reason string
	}{
		{name: "first free", pools: []Pool{v4}, req: single("a"), want: "192.0.2.10"},
		{name: "next free", pools: []Pool{v4}, held: []Request{single("x")}, req: single("a"), want: "192.0.2.11"},
		{name: "no pool at all", req: single("a"), reason: ReasonNoPool},
		{name: "no pool of the family", pools: []Pool{v6}, req: single("a"), reason: ReasonNoPool},
		{name: "not automatic", pools: []Pool{manual}, req: single("a"), reason: ReasonNoPool},
		{name: "by pool", pools: []Pool{v4, manual}, req: single("a", inPool("manual")), want: "198.51.100.0"},
		{name: "by pool, missing", pools: []Pool{v4}, req: single("a", inPool("nope")), reason: ReasonNoSuchPool},
		{name: "by pool, second of two", pools: []Pool{v4, manual}, req: single("a", inPool("nope", "v4")), want: "192.0.2.10"},
		{name: "exhausted", pools: []Pool{auto(t, "p", "192.0.2.1")}, held: []Request{single("x")}, req: single("a"), reason: ReasonExhausted},
		{name: "by address", pools: []Pool{v4}, req: single("a", named("192.0.2.12")), want: "192.0.2.12"},
		{name: "by address, not automatic", pools: []Pool{manual}, req: single("a", named("198.51.100.3")), want: "198.51.100.3"},
		{name: "by address, several", pools: []Pool{v4}, req: single("a", named("192.0.2.12", "192.0.2.10")), want: "192.0.2.12 192.0.2.10"},
		{name: "by address, in use", pools: []Pool{v4}, held: []Request{single("x")}, req: single("a", named("192.0.2.10")), reason: ReasonInUse},
		{name: "by address, one of two in use: none", pools: []Pool{v4}, held: []Request{single("x")}, req: single("a", named("192.0.2.11", "192.0.2.10")), reason: ReasonInUse},
		{name: "by address, in no pool", pools: []Pool{v4}, req: single("a", named("203.0.113.1")), reason: ReasonNotInPool},
		{name: "by address, not in the named pool", pools: []Pool{v4, manual}, req: single("a", named("192.0.2.10"), inPool("manual")), reason: ReasonNotInPool},
		{name: "by address, wrong family", pools: []Pool{v4, v6}, req: single("a", named("fd00::1")), reason: ReasonWrongFamily},
		{name: "dual", pools: []Pool{v4, v6}, req: single("a", families(true, V6, V4)), want: "fd00::1 192.0.2.10"},
		{name: "dual, one named", pools: []Pool{v4, v6}, req: single("a", families(true, V4, V6), named("fd00::2")), want: "192.0.2.10 fd00::2"},
		{name: "dual required, one lacking", pools: []Pool{v4}, req: single("a", families(true, V4, V6)), reason: ReasonNoPool},
		{name: "dual preferred, one lacking", pools: []Pool{v4}, req: single("a", families(false, V4, V6)), want: "192.0.2.10", reason: ReasonNoPool},
		{name: "priority", pools: []Pool{v4, {Name: "z", Priority: 1, AutoAssign: true, Ranges: ranges(t, "203.0.113.9")}}, req: single("a"), want: "203.0.113.9"},
		{name: "priority, full", pools: []Pool{v4, {Name: "z", Priority: 1, AutoAssign: true, Ranges: ranges(t, "203.0.113.9")}}, held: []Request{single("x")}, req: single("a"), want: "192.0.2.10"},
		{name: "selector", pools: []Pool{{Name: "p", AutoAssign: true, Ranges: ranges(t, "192.0.2.1"), Services: labels.SelectorFromSet(labels.Set{"a": "b"})}}, req: single("a", label("a", "b")), want: "192.0.2.1"},
		{name: "selector, not matched", pools: []Pool{{Name: "p", AutoAssign: true, Ranges: ranges(t, "192.0.2.1"), Services: labels.SelectorFromSet(labels.Set{"a": "b"})}}, req: single("a"), reason: ReasonNoPool},
		{name: "selector, not matched, by name", pools: []Pool{{Name: "p", Ranges: ranges(t, "192.0.2.1"), Namespaces: labels.SelectorFromSet(labels.Set{"a": "b"})}}, req: single("a", inPool("p")), reason: ReasonNotAllowed},
		{name: "buggy avoided", pools: []Pool{{Name: "p", AutoAssign: true, AvoidBuggy: true, Ranges: ranges(t, "192.0.2.255-192.0.3.1")}}, req: single("a"), want: "192.0.3.1"},
		{name: "buggy asked for", pools: []Pool{{Name: "p", AutoAssign: true, AvoidBuggy: true, Ranges: ranges(t, "192.0.2.255-192.0.3.1")}}, req: single("a", named("192.0.3.0")), want: "192.0.3.0"},
		{name: "share", pools: []Pool{v4}, held: []Request{single("x", share("k"))}, req: single("a", share("k"), port(81)), want: "192.0.2.10"},
		{name: "share, port clash, another", pools: []Pool{v4}, held: []Request{single("x", share("k"))}, req: single("a", share("k")), want: "192.0.2.11"},
		{name: "share by address, port clash", pools: []Pool{v4}, held: []Request{single("x", share("k"))}, req: single("a", share("k"), named("192.0.2.10")), reason: ReasonPortClash},
		{name: "share by address, other key", pools: []Pool{v4}, held: []Request{single("x", share("k"))}, req: single("a", share("l"), port(81), named("192.0.2.10")), reason: ReasonInUse},
		{name: "share by address, policy differs", pools: []Pool{v4}, held: []Request{single("x", share("k"))}, req: single("a", share("k"), port(81), backends("app=x"), named("192.0.2.10")), reason: ReasonPolicyDiffer},
		{name: "share, Local with the same backends", pools: []Pool{v4}, held: []Request{single("x", share("k"), backends("s"))}, req: single("a", share("k"), port(81), backends("s")), want: "192.0.2.10"},
		{name: "closed", pools: []Pool{{Name: "p", AutoAssign: true, Closed: true, Ranges: ranges(t, "192.0.2.1")}}, req: single("a"), reason: ReasonNoPool},
		{name: "common", pools: []Pool{{Name: "n", AutoAssign: true, Common: true, Ranges: ranges(t, "192.0.2.1")}}, held: []Request{single("x")}, req: single("a", port(81)), want: "192.0.2.1"},
		{name: "common, port clash, other node", pools: []Pool{{Name: "n", AutoAssign: true, Common: true, Ranges: ranges(t, "192.0.2.1", "192.0.2.9")}}, held: []Request{single("x")}, req: single("a"), want: "192.0.2.9"},
		{name: "common, port taken on the node", pools: []Pool{{Name: "n", AutoAssign: true, Common: true, Ranges: ranges(t, "192.0.2.1")}}, req: single("a", port(22)), reason: ReasonPortClash},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := New(func(_ netip.Addr, p Port) bool { return p.Number == 22 })
			a.SetPools(tt.pools)
			for _, r := range tt.held {
				if o := a.Set(r); o.Pending != nil {
					t.Fatal(o.Pending)
				}
			}
			o := a.Set(tt.req)
			reason := ""
			if o.Pending != nil {
				reason = o.Pending.Reason
				t.Log(o.Pending.Message)
			}
			if addrs(o) != tt.want || reason != tt.reason {
				t.Errorf("got %q %q, want %q %q", addrs(o), reason, tt.want, tt.reason)
			}
		})
	}
}

func expect(t *testing.T, a *Allocator, key, want, reason string) {
	t.Helper()
	o := a.Get(key)
	got := ""
	if o.Pending != nil {
		got = o.Pending.Reason
	}
	if addrs(o) != want || got != reason {
		t.Errorf("%s has %q %q, want %q %q", key, addrs(o), got, want, reason)
	}
}

func TestServedAsSoonAsPossible(t *testing.T) {
	a := New(nil)
	a.Set(single("a"))
	a.Set(single("b"))
	a.Set(single("c", named("192.0.2.5")))
	expect(t, a, "a", "", ReasonNoPool)
	a.SetPools([]Pool{auto(t, "p", "192.0.2.1")})
	expect(t, a, "a", "192.0.2.1", "")
	expect(t, a, "b", "", ReasonExhausted)
	a.TakeChanged()
	a.Remove("a")
	expect(t, a, "b", "192.0.2.1", "")
	if got := a.TakeChanged(); !slices.Equal(got, []string{"b"}) {
		t.Errorf("changed: %v", got)
	}
	a.SetPools([]Pool{auto(t, "p", "192.0.2.1"), auto(t, "q", "192.0.2.5")})
	expect(t, a, "c", "192.0.2.5", "")
	a.Set(single("d", named("192.0.2.5"), share("k"), port(81)))
	expect(t, a, "d", "", ReasonInUse)
	a.Set(single("c", named("192.0.2.5"), share("k")))
	expect(t, a, "d", "192.0.2.5", "")
}

func TestPoolEditsKeepAddresses(t *testing.T) {
	a := New(nil)
	a.SetPools([]Pool{auto(t, "p", "192.0.2.1-192.0.2.3")})
	a.Set(single("a"))
	a.Set(single("b"))
	a.SetPools([]Pool{auto(t, "p", "192.0.2.2-192.0.2.3")})
	expect(t, a, "a", "192.0.2.1", "")
	if o := a.Get("a"); !o.Addresses[0].Kept || o.Addresses[0].Pool != "p" {
		t.Errorf("not marked as kept: %+v", o)
	}
	if u := a.Usage("p"); u != (Usage{Total4: 2, Used4: 1, Services: 2, Kept: 1}) {
		t.Errorf("usage %+v", u)
	}
	a.SetPools(nil)
	expect(t, a, "b", "192.0.2.2", "")
	a.SetPools([]Pool{auto(t, "q", "192.0.2.0/24")})
	if o := a.Get("a"); o.Addresses[0].Kept || o.Addresses[0].Pool != "q" {
		t.Errorf("not taken over by the new pool: %+v", o)
	}
	a.Remove("a")
	a.Set(single("c"))
	expect(t, a, "c", "192.0.2.0", "")
	a.Set(single("d"))
	expect(t, a, "d", "192.0.2.1", "")
	a.Set(single("e"))
	expect(t, a, "e", "192.0.2.3", "")
}

func TestChangedRequests(t *testing.T) {
	a := New(nil)
	a.SetPools([]Pool{auto(t, "p", "192.0.2.1-192.0.2.9"), auto(t, "v6", "fd00::1")})
	a.Set(single("a"))
	a.Set(single("b"))
	a.Set(single("a", named("192.0.2.2")))
	expect(t, a, "a", "192.0.2.1", ReasonInUse) // keeps what it has until it gets what it wants
	a.Remove("b")
	expect(t, a, "a", "192.0.2.2", "")
	a.Set(single("b", named("192.0.2.1")))
	expect(t, a, "b", "", ReasonInUse) // nobody has been told yet
	a.Confirm("a")
	expect(t, a, "b", "192.0.2.1", "")
	a.Remove("b")
	a.Set(single("a"))
	expect(t, a, "a", "192.0.2.2", "") // no longer asks, no reason to move
	a.Set(single("a", families(false, V4, V6)))
	expect(t, a, "a", "192.0.2.2 fd00::1", "")
	a.Set(single("a", families(false, V6)))
	expect(t, a, "a", "fd00::1", "")
	a.Confirm("a")
	if u := a.Usage("p"); u.Used4 != 0 {
		t.Errorf("leaked: %+v", u)
	}
	a.Set(single("c", share("k")))
	a.Set(single("d", share("k"), port(81)))
	expect(t, a, "d", "192.0.2.1", "")
	a.Set(single("d", share("k"), port(80))) // clashes now: it is the changed one that moves
	expect(t, a, "d", "192.0.2.2", "")
	expect(t, a, "c", "192.0.2.1", "")
}

func TestOverlapAndCommon(t *testing.T) {
	a := New(nil)
	rejected := a.SetPools([]Pool{auto(t, "old", "192.0.2.0/24"), auto(t, "new", "192.0.2.200-192.0.3.10")})
	if rejected["new"] == nil || rejected["old"] != nil {
		t.Errorf("rejected: %v", rejected)
	}
	t.Log(rejected["new"])
	node := Pool{Name: "n", AutoAssign: true, Common: true, Ranges: ranges(t, "198.51.100.1", "198.51.100.2")}
	a = New(nil)
	a.SetPools([]Pool{node})
	a.Set(single("a"))
	expect(t, a, "a", "198.51.100.1", "")
	node.Ranges = ranges(t, "198.51.100.2")
	a.SetPools([]Pool{node}) // the node has gone
	expect(t, a, "a", "198.51.100.2", "")
}

func TestAdopt(t *testing.T) {
	a := New(nil)
	a.SetPools([]Pool{auto(t, "p", "192.0.2.1-192.0.2.9")})
	at := func(s string) []Assigned { return []Assigned{{Addr: netip.MustParseAddr(s), Origin: "gone"}} }
	a.Adopt(single("a"), at("192.0.2.5"))
	a.Adopt(single("b"), at("192.0.2.5")) // somebody wrote it by hand
	a.Adopt(single("c"), at("203.0.113.1"))
	for _, k := range []string{"b", "c", "a", "new"} {
		a.Set(single(k))
	}
	expect(t, a, "a", "192.0.2.5", "")
	expect(t, a, "b", "192.0.2.1", "")
	expect(t, a, "c", "203.0.113.1", "")
	expect(t, a, "new", "192.0.2.2", "")
}

// TestTake has Services come with addresses of another load balancer, before and
// after there is a pool for them.
func TestTake(t *testing.T) {
	claim := func(r Request, list ...string) Claim {
		c := Claim{Request: r}
		for _, s := range list {
			c.Addrs = append(c.Addrs, netip.MustParseAddr(s))
		}
		return c
	}
	a := New(nil)
	old := claim(single("old"), "192.0.2.1")
	a.Take(old) // in no pool
	a.Set(single("first"))
	a.Set(old.Request)
	expect(t, a, "old", "", ReasonNoPool)
	// Of all the addresses that become free it keeps its own, although another
	// has waited longer; so does one that was never asked about before.
	a.SetPools([]Pool{auto(t, "p", "192.0.2.1-192.0.2.9")}, old, claim(single("unseen"), "192.0.2.2", "203.0.113.1"), claim(single("late"), "192.0.2.2"))
	expect(t, a, "old", "192.0.2.1", "")
	expect(t, a, "unseen", "192.0.2.2", "")
	expect(t, a, "first", "192.0.2.3", "")
	if _, ok := a.services["late"]; ok {
		t.Error("a claim to what another has was taken")
	}
	if o := a.Get("old").Addresses[0]; o.Pool != "p" || o.Origin != "p" {
		t.Errorf("%+v", o)
	}
	// Whoever holds something claims nothing any more.
	a.Take(claim(single("first"), "192.0.2.9"))
	expect(t, a, "first", "192.0.2.3", "")
	// A Service may share what it comes with, or want more.
	a.Set(single("x", share("k"), named("192.0.2.5")))
	a.Take(claim(single("y", share("k"), port(81)), "192.0.2.5"))
	a.Set(single("y", share("k"), port(81)))
	expect(t, a, "y", "192.0.2.5", "")
	a.SetPools([]Pool{auto(t, "p", "192.0.2.1-192.0.2.9", "fd00::/126")}, claim(single("dual", families(false, V4, V6)), "192.0.2.7"))
	expect(t, a, "dual", "192.0.2.7 fd00::", "")
}

func TestTenThousand(t *testing.T) {
	const n = 10000
	a := New(nil)
	a.SetPools([]Pool{{Name: "p", AutoAssign: true, AvoidBuggy: true, Ranges: ranges(t, "10.0.0.0/8", "fd00::/64")}})
	start := time.Now()
	for i := range n {
		if o := a.Set(single(fmt.Sprint("s", i), families(true, V4, V6))); o.Pending != nil {
			t.Fatal(o.Pending)
		}
	}
	took := time.Since(start)
	t.Logf("%d dual-stack Services allocated in %s (%s each) from a /8 and a /64", n, took, took/n)

	// A full pool with as many waiting, drained one by one.
	a = New(nil)
	a.SetPools([]Pool{auto(t, "p", "10.0.0.0-10.0.39.15")})
	for i := range 2 * n {
		a.Set(single(fmt.Sprint("s", i)))
	}
	full := a.Usage("p").Used4
	start = time.Now()
	for i := range n {
		a.Remove(fmt.Sprint("s", i))
	}
	t.Logf("%d released and handed to those who waited in %s", n, time.Since(start))
	if u := a.Usage("p"); u.Used4 != full || int64(a.Waiting()) != n-full {
		t.Errorf("usage %+v, waiting %d", u, a.Waiting())
	}
}
