package nft

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fairway.dev/fairway/internal/proxy/state"
	"fairway.dev/fairway/internal/testenv"
)

// traffic connects all the time, from two clients and with both families, until
// stop is called, which returns how many connections there were. Any that
// fails, fails the test.
func (l *lab) traffic(t *testing.T, proto state.Protocol, address ...string) (stop func() int64) {
	var (
		n    atomic.Int64
		done = make(chan struct{})
		wg   sync.WaitGroup
	)
	for _, h := range []int{0, 1} {
		from := l.client
		if h == 1 {
			from = l.pods[0]
		}
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				default:
				}
				if _, _, err := l.ask(from, proto, address[i%len(address)]); err != nil {
					t.Errorf("connection %d to %s: %v", i, address[i%len(address)], err)
					return
				}
				n.Add(1)
			}
		})
	}
	return func() int64 {
		// Some connections at least after the last change.
		for seen, deadline := n.Load(), time.Now().Add(patience); n.Load() < seen+20 && !t.Failed() && time.Now().Before(deadline); {
			time.Sleep(5 * time.Millisecond)
		}
		close(done)
		wg.Wait()
		return n.Load()
	}
}

// talk is an open connection to a server of the lab.
type talk struct {
	l *lab
	c net.Conn
	r *bufio.Reader
}

func (l *lab) talk(from *testenv.Host, address string) *talk {
	l.t.Helper()
	c, err := from.Dial("tcp", address, patience)
	l.ok(err)
	l.t.Cleanup(func() { c.Close() })
	k := &talk{l, c, bufio.NewReader(c)}
	c.SetDeadline(time.Now().Add(patience))
	_, err = k.r.ReadString('\n') // who it is
	l.ok(err)
	return k
}

// say sends a line and expects it back.
func (k *talk) say(line string) {
	k.l.t.Helper()
	k.c.SetDeadline(time.Now().Add(patience))
	_, err := fmt.Fprintln(k.c, line)
	k.l.ok(err)
	got, err := k.r.ReadString('\n')
	k.l.ok(err)
	if got != line+"\n" {
		k.l.t.Errorf("on an open connection: got %q, want %q", got, line)
	}
}

// trafficServices are the Services that traffic is on, with a number of others around.
func trafficServices(others int) []*state.Frontend {
	fs := []*state.Frontend{clusterIP(state.TCP, "10.96.0.10:80", 1, 2, 3), clusterIP(state.TCP, "[fd00:96::10]:80", 1, 2, 3)}
	for i := range others {
		fs = append(fs, oneOfMany(i+1000, 3, 0))
	}
	return fs
}

var trafficAddresses = []string{"10.96.0.10:80", "[fd00:96::10]:80"}

// A new process adopts the table of its predecessor; a newer build, whose
// tables look different, replaces them; an older one the same. Not one
// connection is refused.
func TestRestartAndUpgradeUnderLoad(t *testing.T) {
	l := newLab(t)
	ctx := context.Background()
	fs := trafficServices(2000)
	facts := labFacts
	facts.NodePortAddrs = prefixes("192.0.2.0/24", "2001:db8::/64") // a node elsewhere has no other address to put into rules
	l.ok(l.p.Configure(ctx, facts))
	l.replace(fs...)
	stop := l.traffic(t, state.TCP, trafficAddresses...)
	open := []*talk{
		l.talk(l.client, "10.96.0.10:80"), l.talk(l.pods[0], "[fd00:96::10]:80"),
	}
	for i := range 20 {
		l.p.Close()
		l.p = l.programmer(Config{})
		if i%4 >= 2 {
			l.p.layout = "next"
		}
		l.ok(l.p.Configure(ctx, facts))
		// While nobody ran, something changed.
		fs = slices.Concat(fs[:2], fs[3:], []*state.Frontend{oneOfMany(5000+i, 2+i%3, 0)})
		l.replace(fs...)
		is, err := l.p.read()
		l.ok(err)
		for _, layout := range []string{"", "next"} {
			if _, there := is.sets["services"+layout+"4"]; there != (layout == l.p.layout) {
				t.Errorf("restart %d with layout %q: of layout %q there is a set: %v", i, l.p.layout, layout, there)
			}
		}
		for _, c := range open {
			c.say(fmt.Sprintf("restart %d", i))
		}
	}
	t.Logf("%d connections", stop())
	_, scratch := bareNode(t)
	scratch.layout = l.p.layout
	l.ok(scratch.Configure(ctx, facts))
	l.ok(scratch.Replace(ctx, slices.Values(fs)))
	sameTable(t, "after the last restart", l.p, scratch)
}

// The sets grow while there is traffic through them.
func TestGrowthUnderLoad(t *testing.T) {
	l := newLab(t)
	l.replace(trafficServices(0)...)
	stop := l.traffic(t, state.TCP, trafficAddresses...)
	grown := map[string]bool{}
	for i := range 60 {
		var set []*state.Frontend
		for j := range 100 {
			set = append(set, oneOfMany(1000+100*i+j, 2, 0))
		}
		l.apply(set)
		grown[l.p.gens[0].sets[services].name] = true
	}
	t.Logf("%d connections, %d generations", stop(), len(grown))
	if len(grown) < 3 {
		t.Errorf("6,000 frontends, and only these generations: %v", slices.Collect(maps.Keys(grown)))
	}
	is, err := l.p.read()
	l.ok(err)
	n := 0
	for name := range is.sets {
		if plainName(name) == "services4" {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d generations of services4 are left, want 1", n)
	}
}

// Somebody deletes or edits the table: it is told, and Replace puts it right.
func TestForeignChange(t *testing.T) {
	each(t, func(t *testing.T, l *lab, a addresses) {
		fs := []*state.Frontend{clusterIP(state.TCP, a.service+":80", 2)}
		l.replace(fs...)
		l.answers(l.pods[0], state.TCP, a.service+":80", "pod2", "")
		l.ok(Cleanup(context.Background(), l.node.NS, ""))
		awaitDrift(t, l.p)
		l.replace(fs...)
		l.answers(l.pods[0], state.TCP, a.service+":80", "pod2", "")

		// One backend is sent elsewhere.
		f := families[familyOf(fs[0].Key.Addr)]
		v := l.programmer(Config{})
		b := newBatch(v.table)
		k := appendSlot(appendKey(nil, fs[0].Key), 0)
		b.elems(true, "backends"+f.suffix, appendElem(nil, k, nil, 0), 1)
		b.elems(false, "backends"+f.suffix, appendElem(nil, k, appendBackend(nil, podBackends(fs[0].Key, 3)[0], false), 0), 1)
		l.ok(v.c.commit(b))
		l.answers(l.pods[0], state.TCP, a.service+":80", "pod3", "")
		awaitDrift(t, l.p)
		l.replace(fs...)
		l.answers(l.pods[0], state.TCP, a.service+":80", "pod2", "")

		// What happens in another table is no concern of ours, nor what we do ourselves.
		other := newBatch("somebody-elses")
		other.newTable()
		other.newChain(chainSpec{name: "x"})
		l.ok(v.c.commit(other))
		l.apply(fs)
		select {
		case <-l.p.Drift():
			t.Error("drift is told for another's table")
		case <-time.After(100 * time.Millisecond):
		}
		// Neither does Cleanup touch it.
		l.ok(Cleanup(context.Background(), l.node.NS, ""))
		l.ok(Cleanup(context.Background(), l.node.NS, ""))
		other = newBatch("somebody-elses")
		other.deleteTable()
		l.ok(v.c.commit(other))
	})
}

// A transaction fails: nothing of it is in force, and Replace recovers.
func TestFailedTransaction(t *testing.T) {
	each(t, func(t *testing.T, l *lab, a addresses) {
		first := clusterIP(state.TCP, a.service+":80", 2)
		second := clusterIP(state.TCP, a.service+":81", 3)
		l.replace(first)
		v := l.programmer(Config{})
		b := newBatch(v.table)
		f := families[familyOf(first.Key.Addr)]
		b.elems(false, "services"+f.suffix, appendElem(nil, appendKey(nil, second.Key), record{class: class{9, flagServed}}.append(nil), 0), 1)
		l.ok(v.c.commit(b))
		err := l.p.Apply(context.Background(), state.Diff{Set: []*state.Frontend{second, clusterIP(state.TCP, a.service+":80", 3)}})
		if !errors.Is(err, unix.EEXIST) {
			t.Fatalf("got %v, want EEXIST", err)
		}
		t.Log(err)
		l.answers(l.pods[0], state.TCP, a.service+":80", "pod2", "")
		if err := l.p.Apply(context.Background(), state.Diff{}); err == nil {
			t.Error("Apply after an error succeeded, want it to ask for Replace")
		}
		l.replace(first, second)
		l.answers(l.pods[0], state.TCP, a.service+":80", "pod2", "")
		l.answers(l.pods[0], state.TCP, a.service+":81", "pod3", "")
	})
}

// Open connections live on whatever becomes of their frontend, those by
// localhost too.
func TestOpenConnections(t *testing.T) {
	each(t, func(t *testing.T, l *lab, a addresses) {
		service, port := a.service+":80", nodePort(state.TCP, a, 2)
		l.replace(clusterIP(state.TCP, service, 2), port)
		open := []*talk{
			l.talk(l.client, service), l.talk(l.pods[0], service), l.talk(l.pods[1], service), l.talk(l.node, service),
			l.talk(l.client, a.node+":30080"), l.talk(l.node, a.node+":30080"),
		}
		local := l.talk(l.node, a.localhost+":30080")
		still := func(what string) {
			t.Helper()
			for _, c := range open {
				c.say(what)
			}
		}
		still("nothing changed")
		local.say("nothing changed")
		l.apply([]*state.Frontend{clusterIP(state.TCP, service, 1, 3), nodePort(state.TCP, a, 1, 3)})
		still("other endpoints")
		local.say("other endpoints")
		l.apply([]*state.Frontend{clusterIP(state.TCP, service)}, port.Key)
		still("no endpoints")
		l.replace()
		still("no frontends")
		l.ok(l.p.Configure(context.Background(), state.NodeFacts{}))
		still("no facts")
	})
}

// The node reaches Services whose endpoints share its address.
func TestHostNetworkBackend(t *testing.T) {
	each(t, func(t *testing.T, l *lab, a addresses) {
		f := clusterIP(state.TCP, a.service+":443")
		f.Backends = backendsOf(a.node + ":9090")
		l.replace(f)
		l.answers(l.node, state.TCP, a.service+":443", "node", "")
		l.answers(l.pods[0], state.TCP, a.service+":443", "node", a.pod[1])
		l.answers(l.client, state.TCP, a.service+":443", "node", "")
	})
}

// A frontend with more backends than one message takes.
func TestManyBackends(t *testing.T) {
	l, p := bareNode(t)
	l.ok(p.Configure(context.Background(), labFacts))
	const n = 5000
	f := oneOfMany(0, n, 0)
	f.Affinity = time.Hour
	l.ok(p.Replace(context.Background(), slices.Values([]*state.Frontend{f})))
	count := func() (slots, known int) {
		l.ok(p.elements(p.gens[0].sets[sticky].name, func() { slots = 0 }, func(element) error { slots++; return nil }))
		l.ok(p.elements(p.gens[0].sets[members].name, func() { known = 0 }, func(element) error { known++; return nil }))
		return slots, known
	}
	if slots, known := count(); slots != n || known != n {
		t.Errorf("%d slots and %d members are in the kernel, want %d", slots, known, n)
	}
	l.ok(p.Apply(context.Background(), state.Diff{Set: []*state.Frontend{oneOfMany(0, 3, 0)}}))
	if slots, known := count(); slots != 0 || known != 0 {
		t.Errorf("%d slots and %d members are left in the kernel", slots, known)
	}
}

// Endpoints come and go by the thousand. A connection that reads the number
// of backends before a change and looks for one of them after it must find
// another.
func TestChurnUnderLoad(t *testing.T) {
	l := newLab(t)
	four := func(pods ...int) *state.Frontend { return clusterIP(state.TCP, "10.96.0.10:80", pods...) }
	six := func(pods ...int) *state.Frontend {
		f := clusterIP(state.TCP, "[fd00:96::10]:80", pods...)
		f.Affinity = time.Hour
		return f
	}
	l.replace(four(1, 2, 3), six(1, 2, 3))
	stop := l.traffic(t, state.TCP, trafficAddresses...)
	for i := range 3000 {
		switch i % 4 {
		case 0:
			l.apply([]*state.Frontend{four(1), six(1)})
		case 1:
			l.apply([]*state.Frontend{four(1, 2), six(1, 3)})
		case 2:
			l.apply([]*state.Frontend{four(2), six(3)})
		case 3:
			l.apply([]*state.Frontend{four(1, 2, 3), six(1, 2, 3)})
		}
	}
	t.Logf("%d connections", stop())
}

// lives is a context that ends after its Err has been asked a number of times.
type lives struct {
	context.Context
	left *int
}

func (c lives) Err() error {
	if *c.left--; *c.left < 0 {
		return context.Canceled
	}
	return nil
}

// A predecessor died while it filled a generation: the next adopts what is in
// use, if there is any, and leaves nothing of the other.
func TestDiedWhileFilling(t *testing.T) {
	ctx := context.Background()
	fs := trafficServices(8000)
	for _, complete := range []bool{true, false} {
		t.Run(fmt.Sprintf("complete before: %v", complete), func(t *testing.T) {
			l, p := bareNode(t)
			l.ok(p.Configure(ctx, labFacts))
			if complete {
				l.ok(p.Replace(ctx, slices.Values(fs)))
				p.fresh = true
			}
			left := 3 // Replace's own, and two transactions
			if err := p.Replace(lives{ctx, &left}, slices.Values(fs)); !errors.Is(err, context.Canceled) {
				t.Fatalf("got %v, want it to be canceled", err)
			}
			p.Close()

			next := l.programmer(Config{})
			l.ok(next.Configure(ctx, labFacts))
			l.ok(next.Replace(ctx, slices.Values(fs)))
			_, scratch := bareNode(t)
			l.ok(scratch.Configure(ctx, labFacts))
			l.ok(scratch.Replace(ctx, slices.Values(fs)))
			sameTable(t, "after the next start", next, scratch)
			if name := next.gens[0].sets[services].name; complete && name != "services4" {
				t.Errorf("generation %s is in use, want services4 as before", name)
			}
		})
	}
}

// Elements that others took away while nobody ran are missed by their number,
// where the kernel tells it.
func TestTamperedWhileAway(t *testing.T) {
	ctx := context.Background()
	for _, k := range []kind{services, backends, sticky, members, clusterIPs, stamp} {
		t.Run(kindNames[k], func(t *testing.T) {
			l, p := bareNode(t)
			l.ok(p.Configure(ctx, labFacts))
			f := oneOfMany(1, 3, 0)
			f.Affinity = time.Hour
			fs := append(trafficServices(20), f)
			l.ok(p.Replace(ctx, slices.Values(fs)))
			is, err := p.read()
			l.ok(err)
			set := is.sets[p.gens[0].sets[k].name]
			if set.count < 0 {
				t.Skip("this kernel does not tell how many elements a set has")
			}
			var some []byte
			l.ok(p.elements(set.name, func() {}, func(e element) error { some = appendElem(nil, e.key, nil, 0); return nil }))
			p.Close()
			v := l.programmer(Config{})
			b := newBatch(v.table)
			b.elems(true, set.name, some, 1)
			l.ok(v.c.commit(b))
			v.Close()

			next := l.programmer(Config{})
			l.ok(next.Configure(ctx, labFacts))
			l.ok(next.Replace(ctx, slices.Values(fs)))
			_, scratch := bareNode(t)
			l.ok(scratch.Configure(ctx, labFacts))
			l.ok(scratch.Replace(ctx, slices.Values(fs)))
			sameTable(t, "after the next start", next, scratch)
		})
	}
}

// Who is let in stays let in while the list of the others changes.
func TestSourcesChurnUnderLoad(t *testing.T) {
	// Over UDP nobody sends a dropped packet again.
	l := newLab(t)
	f := func(address string, more ...string) *state.Frontend {
		f := clusterIP(state.UDP, address, 1, 2)
		f.Restricted = true
		f.Sources = append(prefixes("192.0.2.1/32", "10.244.0.0/16", "2001:db8::/64", "fd00:244::/32"), prefixes(more...)...)
		return f
	}
	l.replace(f(trafficAddresses[0]), f(trafficAddresses[1]))
	stop := l.traffic(t, state.UDP, trafficAddresses...)
	for i := range 2000 {
		more := [][]string{nil, {"192.0.2.0/24", "10.0.0.0/8", "2001:db8::/32"}, {"198.51.100.0/24", "::/0"}, {"0.0.0.0/0"}}[i%4]
		l.apply([]*state.Frontend{f(trafficAddresses[0], more...), f(trafficAddresses[1], more...)})
	}
	t.Logf("%d connections", stop())
}
