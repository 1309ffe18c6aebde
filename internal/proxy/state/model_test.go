package state

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestModel drives a table through random changes of Services, slices and the
// node. After every Sync the diffs so far add up to what a table built from
// scratch from the same objects holds, slots aside; a frontend that is not in
// the diff has not changed; and backends that stay keep their slots unless the
// list got shorter.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := model{
			services: map[Name]*Service{}, slices: map[string]*Slice{},
			kernel: map[Key]Frontend{}, health: map[Name]HealthCheck{},
			view: View{NodeName: here, Zone: "a"},
		}
		m.table = NewTable(m.view)
		t.Repeat(map[string]func(*rapid.T){
			"service": m.changeService,
			"slice":   m.changeSlice,
			"view":    m.changeView,
			"":        func(t *rapid.T) { m.check(t) },
		})
	})
}

type model struct {
	table    *Table
	services map[Name]*Service
	slices   map[string]*Slice
	view     View
	kernel   map[Key]Frontend // what a programmer that applied every diff holds
	health   map[Name]HealthCheck
}

var modelNames = []string{"a", "b", "c"}

func (m *model) changeService(t *rapid.T) {
	n := Name{"ns", rapid.SampledFrom(modelNames).Draw(t, "service")}
	if rapid.IntRange(0, 4).Draw(t, "delete") == 0 {
		delete(m.services, n)
		m.table.DeleteService(n)
		return
	}
	s := &Service{Name: n}
	last := byte(slices.Index(modelNames, n.Name) + 1)
	switch rapid.IntRange(0, 2).Draw(t, "families") {
	case 0:
		s.ClusterIPs = []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 0, last})}
	case 1:
		s.ClusterIPs = []netip.Addr{v6(0x96, last)}
	default:
		s.ClusterIPs = []netip.Addr{v6(0x96, last), netip.AddrFrom4([4]byte{10, 96, 0, last})}
	}
	for _, p := range []ServicePort{{"web", 80, 0, TCP}, {"dns", 53, 0, UDP}, {"dns", 53, 0, TCP}} {
		if rapid.Bool().Draw(t, "port") {
			if rapid.Bool().Draw(t, "nodePort") {
				p.NodePort = 30000 + p.Port + uint16(last)*100
			}
			s.Ports = append(s.Ports, p)
		}
	}
	// Addresses that Services contend for, and even another one's ClusterIP.
	contested := []netip.Addr{addr("192.0.2.1"), addr("2001:db8::1"), addr("10.96.0.1")}
	s.ExternalIPs = rapid.SliceOfNDistinct(rapid.SampledFrom(contested), 0, 2, rapid.ID).Draw(t, "externalIPs")
	s.LoadBalancerIPs = rapid.SliceOfNDistinct(rapid.SampledFrom(contested), 0, 2, rapid.ID).Draw(t, "lbIPs")
	if rapid.Bool().Draw(t, "ranges") {
		s.SourceRanges = []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}
	}
	if rapid.Bool().Draw(t, "affinity") {
		s.Affinity = time.Hour
	}
	s.ExternalLocal = rapid.Bool().Draw(t, "etpLocal")
	s.InternalLocal = rapid.Bool().Draw(t, "itpLocal")
	if s.ExternalLocal && len(s.LoadBalancerIPs) > 0 {
		s.HealthCheckNodePort = 31000 + uint16(last)
	}
	m.services[n] = s
	m.table.SetService(s)
}

func v6(third, last byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfd, 3: third, 15: last})
}

func (m *model) changeSlice(t *rapid.T) {
	name := rapid.SampledFrom([]string{"s1", "s2", "s3", "s4"}).Draw(t, "slice")
	old := m.slices[name]
	if rapid.IntRange(0, 4).Draw(t, "delete") == 0 {
		if old != nil {
			delete(m.slices, name)
			m.table.DeleteSlice(old)
		}
		return
	}
	s := &Slice{Namespace: "ns", Name: name, Service: rapid.SampledFrom(modelNames).Draw(t, "owner"), V6: rapid.Bool().Draw(t, "v6")}
	for _, p := range []SlicePort{{"web", 8080, TCP}, {"dns", 5353, UDP}, {"dns", 5353, TCP}} {
		if rapid.IntRange(0, 3).Draw(t, "port") > 0 {
			s.Ports = append(s.Ports, p)
		}
	}
	hints := []*Hints{nil, nil, {Zones: []string{"a"}}, {Zones: []string{"b"}}, {Zones: []string{"a"}, Nodes: []string{here}}, {Nodes: []string{there}}}
	for range rapid.IntRange(0, 5).Draw(t, "n") {
		last := byte(rapid.IntRange(1, 6).Draw(t, "addr"))
		ep := Endpoint{Addr: netip.AddrFrom4([4]byte{10, 244, 0, last})}
		if s.V6 {
			ep.Addr = v6(0x44, last)
		}
		ep.Node = rapid.SampledFrom([]string{"", here, there}).Draw(t, "node")
		ep.Conditions = Conditions(rapid.IntRange(0, 7).Draw(t, "conditions"))
		ep.Hints = rapid.SampledFrom(hints).Draw(t, "hints")
		s.Endpoints = append(s.Endpoints, ep)
	}
	m.slices[name] = s
	m.table.SetSlice(old, s)
}

func (m *model) changeView(t *rapid.T) {
	m.view.Zone = rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "zone")
	m.view.NodeName = rapid.SampledFrom([]string{here, there}).Draw(t, "name")
	m.view.NodeIPs = rapid.SampledFrom([][]netip.Addr{nil, {addr("203.0.113.5")}}).Draw(t, "ips")
	m.view.MasqueradeAll = rapid.Bool().Draw(t, "masqueradeAll")
	m.table.SetView(m.view)
}

func (m *model) check(t *rapid.T) {
	if rapid.IntRange(0, 2).Draw(t, "let it pile up") == 0 {
		return
	}
	res := m.table.Sync()
	seen := map[Key]bool{}
	for _, k := range res.Diff.Remove {
		if _, ok := m.kernel[k]; !ok || seen[k] {
			t.Fatalf("diff removes %v, which is not there or comes twice", k)
		}
		seen[k] = true
		delete(m.kernel, k)
	}
	for _, f := range res.Diff.Set {
		if seen[f.Key] {
			t.Fatalf("diff has %v twice", f.Key)
		}
		seen[f.Key] = true
		old, had := m.kernel[f.Key]
		if had && old.equal(f) {
			t.Fatalf("diff sets %v to what it was", f.Key)
		}
		checkSlots(t, nil, f.Backends)
		checkSlots(t, nil, f.InsideBackends)
		c := *f
		c.Backends, c.InsideBackends = slices.Clone(f.Backends), slices.Clone(f.InsideBackends)
		m.kernel[f.Key] = c
	}
	for _, h := range res.Health {
		if m.health[h.Service] = h; h.Port == 0 {
			delete(m.health, h.Service)
		}
	}

	fresh := NewTable(m.view)
	for _, n := range rapid.Permutation(slices.Collect(maps.Keys(m.slices))).Draw(t, "order") {
		fresh.SetSlice(nil, m.slices[n])
	}
	for _, s := range m.services {
		fresh.SetService(s)
	}
	freshRes := fresh.Sync()
	want, got := map[Key]string{}, map[Key]string{}
	for f := range fresh.All() {
		want[f.Key] = text(f)
	}
	for k, f := range m.kernel {
		got[k] = text(&f)
	}
	if !maps.Equal(got, want) {
		t.Fatalf("diffs add up to\n%v\nfrom scratch it is\n%v", got, want)
	}
	for f := range m.table.All() {
		if k := m.kernel[f.Key]; !k.equal(f) {
			t.Fatalf("table and diffs disagree on %v", f.Key)
		}
	}
	wantHealth := map[Name]HealthCheck{}
	for _, h := range freshRes.Health {
		wantHealth[h.Service] = h
	}
	if !maps.Equal(m.health, wantHealth) {
		t.Fatalf("health %v, from scratch %v", m.health, wantHealth)
	}
	if a, b := m.table.Stats(), fresh.Stats(); a != b {
		t.Fatalf("stats %+v, from scratch %+v", a, b)
	}
}

func checkSlots(t *rapid.T, before, after []Backend) {
	seen := map[Backend]bool{}
	for i, b := range after {
		if seen[b] {
			t.Fatalf("%v has %v twice", after, b)
		}
		seen[b] = true
		if at := slices.Index(before, b); at >= 0 && at != i && at < len(after) {
			t.Fatalf("%v moved from slot %d to %d: %v → %v", b, at, i, before, after)
		}
	}
}

// TestSettleModel: whoever stays keeps its slot unless the list has become too
// short for it, and the outcome has exactly the backends wanted.
func TestSettleModel(t *testing.T) {
	list := rapid.SliceOfNDistinct(rapid.IntRange(1, 12), 0, 10, rapid.ID[int])
	backends := func(ints []int) (out []Backend) {
		for _, i := range ints {
			out = append(out, Backend{netip.AddrPortFrom(v6(1, byte(i)), 1)})
		}
		return out
	}
	rapid.Check(t, func(t *rapid.T) {
		have, want := backends(list.Draw(t, "have")), backends(list.Draw(t, "want"))
		got := settle(have, want, new(map[Backend]bool))
		checkSlots(t, have, got)
		if len(got) != len(want) {
			t.Fatalf("settle(%v, %v) = %v", have, want, got)
		}
		for _, b := range want {
			if !slices.Contains(got, b) {
				t.Fatalf("settle(%v, %v) = %v", have, want, got)
			}
		}
	})
}

// text shows a frontend without the order of its backends.
func text(f *Frontend) string {
	c := *f
	list := func(l []Backend) string {
		var s []string
		for _, b := range l {
			s = append(s, b.Addr.String())
		}
		slices.Sort(s)
		return strings.Join(s, " ")
	}
	b, in := list(c.Backends), list(c.InsideBackends)
	c.Backends, c.InsideBackends = nil, nil
	return fmt.Sprintf("%+v [%s] [%s]", c, b, in)
}
