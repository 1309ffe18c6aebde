package nft

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"fairway.dev/fairway/internal/proxy/state"
	"fairway.dev/fairway/internal/testenv"
)

// bareNode is a node without a network around it, and a programmer on it.
func bareNode(t testing.TB) (*lab, *Programmer) {
	t.Helper()
	testenv.RequireRoot(t)
	l := &lab{t: t, node: testenv.NewHost(t, "bare")}
	return l, l.programmer(Config{})
}

// random draws frontends from a small world, so that the same come again.
type random struct{ *rand.Rand }

func (r random) chance(percent int) bool { return r.IntN(100) < percent }

func (r random) key() state.Key {
	addr := []string{"10.96.0.1", "10.96.0.2", "10.96.0.3", "203.0.113.1", "0.0.0.0", "fd00:96::1", "fd00:96::2", "2001:db8:1::1", "::"}[r.IntN(9)]
	return state.Key{Addr: netip.MustParseAddr(addr), Port: uint16(80 + r.IntN(2)), Proto: []state.Protocol{state.TCP, state.UDP, state.SCTP}[r.IntN(3)]}
}

func (r random) backends(k state.Key) (bs []state.Backend) {
	n := []int{0, 1, 2, 3, 5, 8, 13}[r.IntN(7)]
	for _, i := range r.Perm(16)[:n] {
		a := netip.AddrFrom4([4]byte{10, 244, 0, byte(i)})
		if k.Addr.Is6() {
			a = netip.MustParseAddr(fmt.Sprintf("fd00:244::%x", i+1))
		}
		bs = append(bs, state.Backend{Addr: netip.AddrPortFrom(a, uint16(8080+i%2))})
	}
	return bs
}

func (r random) frontend(k state.Key) *state.Frontend {
	f := &state.Frontend{Key: k, Backends: r.backends(k), Masquerade: state.Masquerade(r.IntN(3)), Empty: state.Empty(r.IntN(2))}
	f.ClusterIP = k.Addr.String()[:2] == "10" || k.Addr.String()[:2] == "fd"
	if r.chance(30) {
		f.Inside, f.InsideBackends = true, r.backends(k)
	}
	if r.chance(30) {
		f.Affinity = time.Duration(1+r.IntN(2)) * time.Hour
	}
	if r.chance(30) {
		f.Restricted = true
		for range r.IntN(4) {
			f.Sources = append(f.Sources, r.prefix())
		}
	}
	return f
}

func (r random) prefix() netip.Prefix {
	if r.chance(50) {
		p, _ := netip.AddrFrom4([4]byte{byte(r.IntN(256)), byte(r.IntN(2)), 0, byte(r.IntN(4))}).Prefix(r.IntN(33))
		return p
	}
	p, _ := netip.AddrFrom16([16]byte{byte(r.IntN(256)), byte(r.IntN(2)), 15: byte(r.IntN(4))}).Prefix(r.IntN(129))
	return p
}

func (r random) facts() (n state.NodeFacts) {
	some := func(n int) (ps []netip.Prefix) {
		for range r.IntN(n) {
			ps = append(ps, r.prefix())
		}
		return ps
	}
	n.NodePortAddrs, n.PodNetwork.CIDRs, n.ServiceCIDRs = some(4), some(4), some(3)
	if r.chance(30) {
		n.NodePortAddrs = everywhere
	}
	if r.chance(30) {
		n.PodNetwork.Interfaces = []string{"cali*", "eth0"}
	}
	return n
}

// step is one thing that happens in the model. It returns what to call it.
func (r random) step(t *testing.T, l *lab, p **Programmer, world map[state.Key]*state.Frontend, facts *state.NodeFacts) string {
	ctx := context.Background()
	replace := func() { l.ok((*p).Replace(ctx, maps.Values(world))) }
	switch n := r.IntN(20); {
	case n < 14:
		var diff state.Diff
		touched := map[state.Key]bool{}
		for range 1 + r.IntN(6) {
			k := r.key()
			if touched[k] {
				continue
			}
			touched[k] = true
			if r.chance(25) {
				diff.Remove = append(diff.Remove, k) // it may not be there
				delete(world, k)
				continue
			}
			f := r.frontend(k)
			diff.Set = append(diff.Set, f)
			world[k] = f
		}
		l.ok((*p).Apply(ctx, diff))
		return fmt.Sprintf("apply %d and %d", len(diff.Set), len(diff.Remove))
	case n < 16:
		*facts = r.facts()
		l.ok((*p).Configure(ctx, *facts))
		return "configure"
	case n == 16:
		for range r.IntN(5) {
			k := r.key()
			world[k] = r.frontend(k)
		}
		replace()
		return "replace"
	case n == 17:
		(*p).Close()
		*p = l.programmer(Config{})
		l.ok((*p).Configure(ctx, *facts))
		replace()
		return "restart"
	case n == 18:
		r.vandalise(t, l)
		awaitDrift(t, *p)
		replace()
		return "vandalise and replace"
	default:
		// Whatever is in the way, the growth of the table must keep it.
		(*p).mu.Lock()
		for i := range families {
			for k := range kinds {
				if s := &(*p).gens[i].sets[k]; s.size != 0 {
					s.size = uint32(max(1, (*p).gens[i].count[k]))
				}
			}
		}
		(*p).mu.Unlock()
		k := r.key()
		world[k] = r.frontend(k)
		l.ok((*p).Apply(ctx, state.Diff{Set: []*state.Frontend{world[k]}}))
		return "grow"
	}
}

// vandalise changes the table behind the programmer's back.
func (r random) vandalise(t *testing.T, l *lab) {
	t.Helper()
	v := l.programmer(Config{})
	defer v.Close()
	is, err := v.read()
	l.ok(err)
	b := newBatch(v.table)
	sets, chains := slices.Sorted(maps.Keys(is.sets)), slices.Sorted(maps.Keys(is.chains))
	switch r.IntN(6) {
	case 0:
		b.deleteTable()
	case 1:
		b.flushSet(sets[r.IntN(len(sets))])
		b.newChain(chainSpec{name: "foreign"}) // so that something is changed in any case
	case 2:
		b.flushRules(chains[r.IntN(len(chains))])
		b.newRule(chains[r.IntN(len(chains))], rule{}.drop())
	case 3:
		b.newChain(chainSpec{name: "foreign", kind: "filter", hook: 1, priority: 7})
		b.newRule("foreign", rule{}.gotoChain(chainReject))
	case 4:
		b.newSet(setSpec{name: "foreign", flags: 8, keyType: typeMark, keyLen: 4, dataType: typeVerdict})
		b.elems(false, "foreign", appendGoto(nil, host32(1), p0(chains)), 1)
	case 5:
		// An element with a wrong value in place of ours, or a new one.
		f := families[0]
		g, _ := v.adoptable(f, is, [kinds]int{})
		key := appendKey(nil, state.Key{Addr: netip.MustParseAddr("10.96.0.1"), Port: uint16(80 + r.IntN(2)), Proto: state.TCP})
		var there bool
		l.ok(v.elements(g.sets[services].name, func() {}, func(e element) error {
			there = there || string(e.key) == string(key)
			return nil
		}))
		if there {
			b.elems(true, g.sets[services].name, appendElem(nil, key, nil, 0), 1)
		}
		b.elems(false, g.sets[services].name, appendElem(nil, key, record{class: class{77, flagServed}}.append(nil), 0), 1)
	}
	l.ok(v.c.commit(b))
}

func p0(chains []string) string {
	for _, c := range chains {
		if c == chainDoMasq {
			return c
		}
	}
	return chains[0]
}

func awaitDrift(t testing.TB, p *Programmer) {
	t.Helper()
	select {
	case <-p.Drift():
	case <-time.After(patience):
		t.Fatal("the table was changed by somebody else and no drift is told")
	}
}

// Whatever happened, after each sync the kernel holds what a programmer that
// starts from nothing would make it hold.
func TestModel(t *testing.T) {
	ctx := context.Background()
	// FAIRWAY_MODEL_SEEDS asks for a longer search.
	seeds, _ := strconv.ParseUint(os.Getenv("FAIRWAY_MODEL_SEEDS"), 10, 32)
	for seed := range max(seeds, 6) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			r := random{rand.New(rand.NewPCG(seed, 1))}
			l, p := bareNode(t)
			world := map[state.Key]*state.Frontend{}
			facts := labFacts
			l.ok(p.Configure(ctx, facts))
			l.ok(p.Replace(ctx, maps.Values(world)))
			for i := range 40 {
				what := fmt.Sprintf("step %d, %s", i, r.step(t, l, &p, world, &facts))
				_, scratch := bareNode(t)
				l.ok(scratch.Configure(ctx, facts))
				l.ok(scratch.Replace(ctx, maps.Values(world)))
				sameTable(t, what, p, scratch)
				scratch.Close()
				if t.Failed() {
					return
				}
			}
			select {
			case <-p.Drift():
				t.Error("drift is told although nobody else changed anything")
			case <-time.After(50 * time.Millisecond):
			}
		})
	}
}
