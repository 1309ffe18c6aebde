package ipam

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// check holds the allocator against what must always be true of it.
func check(t *rapid.T, a *Allocator) {
	held := map[netip.Addr][]*service{}
	for _, s := range a.services {
		for i, x := range s.held {
			if slices.Contains(s.held[:i], x) {
				t.Fatalf("%s holds %s twice", s.req.Key, x)
			}
			held[x] = append(held[x], s)
		}
	}
	for x, owners := range held {
		if a.addresses[x] == nil || len(a.addresses[x].owners) != len(owners) {
			t.Fatalf("%s: books disagree", x)
		}
		for _, s := range owners {
			if c := a.conflict(s, x); c != nil {
				t.Fatalf("%s used twice: %v", x, c)
			}
		}
	}
	for _, x := range a.addresses {
		if len(x.owners)+len(x.leaving) == 0 {
			t.Fatalf("leaked: %s is in the books and nobody has it", x.addr)
		}
	}
	for _, p := range a.order {
		used := map[Family]int64{}
		var kept int64
		holders := map[*service]bool{}
		for _, x := range a.addresses {
			if x.pool != p.Name {
				continue
			}
			if x.kept {
				kept++
			} else {
				used[FamilyOf(x.addr)]++
			}
			for s := range x.owners {
				holders[s] = true
			}
		}
		u := a.Usage(p.Name)
		if u.Used4 != used[V4] || u.Used6 != used[V6] || u.Kept != kept || u.Services != int64(len(holders)) {
			t.Fatalf("pool %s: usage %+v, counted %v kept %d services %d", p.Name, u, used, kept, len(holders))
		}
		for _, f := range []Family{V4, V6} {
			var free int64
			p.free(f).t.Ascend(func(r Range) bool { free += r.Size(); return true })
			if !p.AvoidBuggy && free+used[f] != p.total(f) {
				t.Fatalf("pool %s %s: %d free and %d used of %d", p.Name, f, free, used[f], p.total(f))
			}
		}
	}
	for _, s := range a.services {
		if s.pending == nil {
			if len(s.held) == 0 && len(s.req.Families) > 0 {
				t.Fatalf("%s has nothing and does not wait", s.req.Key)
			}
			continue
		}
		// Nobody waits for what is there.
		if _, _, p := a.choose(s); p == nil {
			t.Fatalf("%s waits for nothing: %v", s.req.Key, s.pending)
		}
	}
	if len(a.wake) != 0 {
		t.Fatal("not drained")
	}
	queued := 0
	for _, s := range a.services {
		if s.seq != 0 {
			queued++
		}
	}
	if a.pending.Len() != queued {
		t.Fatalf("%d in the queue, %d waiting", a.pending.Len(), queued)
	}
}

func drawPools(t *rapid.T) []Pool {
	var pools []Pool
	for i := range rapid.IntRange(0, 3).Draw(t, "pools") {
		p := Pool{
			Name:       fmt.Sprint("p", rapid.IntRange(0, 3).Draw(t, "name")),
			AutoAssign: rapid.IntRange(0, 3).Draw(t, "auto") > 0,
			AvoidBuggy: rapid.Bool().Draw(t, "avoid"),
			Priority:   int32(rapid.IntRange(0, 2).Draw(t, "priority")),
			Closed:     rapid.IntRange(0, 9).Draw(t, "closed") == 0,
		}
		if slices.ContainsFunc(pools, func(o Pool) bool { return o.Name == p.Name }) {
			continue
		}
		lo := rapid.IntRange(0, 12).Draw(t, "lo") + 250
		hi := lo + rapid.IntRange(0, 6).Draw(t, "size")
		base := netip.MustParseAddr("10.0.0.0").As4()
		at := func(n int) netip.Addr { b := base; b[2], b[3] = byte(n>>8), byte(n); return netip.AddrFrom4(b) }
		p.Ranges = []Range{{at(lo), at(hi)}}
		if rapid.Bool().Draw(t, "v6") {
			p.Ranges = append(p.Ranges, Range{netip.MustParseAddr(fmt.Sprintf("fd00::%d0", i)), netip.MustParseAddr(fmt.Sprintf("fd00::%d1", i))})
		}
		pools = append(pools, p)
	}
	return pools
}

func drawRequest(t *rapid.T, key string) Request {
	r := Request{Key: key}
	r.Families = rapid.SampledFrom([][]Family{{V4}, {V6}, {V4, V6}, {V6, V4}}).Draw(t, "families")
	r.RequireAll = rapid.Bool().Draw(t, "require")
	r.Ports = []Port{{"TCP", uint16(rapid.IntRange(80, 82).Draw(t, "port"))}}
	r.ShareKey = rapid.SampledFrom([]string{"", "", "k", "l"}).Draw(t, "share")
	r.Backends = rapid.SampledFrom([]string{"", "", "x"}).Draw(t, "backends")
	switch rapid.IntRange(0, 5).Draw(t, "ask") {
	case 0:
		r.Addresses = []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(rapid.IntRange(250, 255).Draw(t, "addr"))})}
	case 1:
		r.Pools = []string{fmt.Sprint("p", rapid.IntRange(0, 3).Draw(t, "pool"))}
	}
	return r
}

// TestProperties throws Services, pool edits and restarts at the allocator in
// any order.
func TestProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := New(nil)
		var pools []Pool
		// What the world knows: written some time after it is decided.
		type status struct {
			req  Request
			held []Assigned
		}
		world := map[string]status{}
		write := func(t *rapid.T, k string) {
			st := status{a.services[k].req, a.Get(k).Addresses}
			for _, h := range st.held {
				if slices.ContainsFunc(world[k].held, func(w Assigned) bool { return w.Addr == h.Addr }) {
					continue
				}
				for other, o := range world {
					// What a Service asks for the world knows at once; only what it has is written later.
					if now := a.services[other]; now != nil {
						o.req = now.req
					}
					if other != k && slices.ContainsFunc(o.held, func(w Assigned) bool { return w.Addr == h.Addr }) &&
						(st.req.ShareKey == "" || st.req.ShareKey != o.req.ShareKey || st.req.Ports[0] == o.req.Ports[0]) {
						t.Fatalf("%s is given to %s while the world sees it with %s", h.Addr, k, other)
					}
				}
			}
			world[k] = st
			a.Confirm(k)
		}
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) { check(t, a) },
			"write": func(t *rapid.T) {
				for _, k := range slices.Sorted(maps.Keys(a.services)) {
					if rapid.Bool().Draw(t, "written") {
						write(t, k)
					}
				}
			},
			"crash": func(t *rapid.T) {
				b := New(nil)
				b.SetPools(pools)
				keys := slices.Sorted(maps.Keys(a.services))
				for _, k := range keys {
					b.Adopt(a.services[k].req, world[k].held)
				}
				for _, k := range rapid.Permutation(keys).Draw(t, "order") {
					b.Set(a.services[k].req)
				}
				a = b
			},
			"set": func(t *rapid.T) {
				r := drawRequest(t, fmt.Sprint("s", rapid.IntRange(0, 9).Draw(t, "service")))
				first := a.Set(r)
				if again := a.Set(r); addrs(again) != addrs(first) {
					t.Fatalf("not stable: %s, then %s", addrs(first), addrs(again))
				}
			},
			"remove": func(t *rapid.T) {
				k := fmt.Sprint("s", rapid.IntRange(0, 9).Draw(t, "service"))
				delete(world, k)
				a.Remove(k)
			},
			"pools": func(t *rapid.T) {
				before := map[string][]netip.Addr{}
				for k, s := range a.services {
					if s.pending == nil {
						before[k] = slices.Clone(s.held)
					}
				}
				pools = drawPools(t)
				var claims []Claim
				for range rapid.IntRange(0, 2).Draw(t, "claims") {
					c := Claim{Request: drawRequest(t, fmt.Sprint("s", rapid.IntRange(0, 9).Draw(t, "service")))}
					for range rapid.IntRange(1, 2).Draw(t, "claimed") {
						c.Addrs = append(c.Addrs, netip.AddrFrom4([4]byte{10, 0, 0, byte(rapid.IntRange(250, 255).Draw(t, "addr"))}))
					}
					// Somebody else's Services are not ours yet.
					if a.services[c.Request.Key] == nil {
						claims = append(claims, c)
					}
				}
				a.SetPools(pools, claims...)
				for k, held := range before {
					if !slices.Equal(a.services[k].held, held) {
						t.Fatalf("%s had %v, and has %v after a pool edit", k, held, a.services[k].held)
					}
				}
			},
			"restart": func(t *rapid.T) {
				b := New(nil)
				b.SetPools(pools)
				keys := slices.Sorted(maps.Keys(a.services))
				for range 2 { // what one has given up another may have now
					for _, k := range keys {
						write(t, k)
					}
				}
				for _, k := range keys {
					b.Adopt(a.services[k].req, world[k].held)
				}
				for _, k := range rapid.Permutation(keys).Draw(t, "order") {
					b.Set(a.services[k].req)
				}
				for _, k := range keys {
					if s := a.services[k]; s.pending == nil && addrs(a.Get(k)) != addrs(b.Get(k)) {
						t.Fatalf("%s had %s, and %s after a restart", k, addrs(a.Get(k)), addrs(b.Get(k)))
					}
				}
				a = b
			},
		})
	})
}
