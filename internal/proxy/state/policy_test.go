package state

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

const here, there = "node-1", "node-2"

// conditions an endpoint can be in, as EndpointSlices say it.
var conditions = map[string]Conditions{
	"ready":       Ready | Serving,
	"terminating": Serving | Terminating, // still serves
	"ended":       Terminating,           // serves no more
	"unready":     0,
}

// TestPolicies goes through every combination of a local and a remote
// endpoint's condition, and for each through every combination of traffic
// policies and every kind of frontend.
func TestPolicies(t *testing.T) {
	const none = "none"
	// What policies Cluster and Local pick: "L" the local endpoint, "R" the
	// remote one; and whether there is any usable endpoint at all.
	for _, tc := range []struct {
		local, remote         string
		wantCluster, wantLoca string
		any                   bool
	}{
		{none, none, "", "", false},
		{none, "ready", "R", "", true},
		{none, "terminating", "R", "", true},
		{none, "ended", "", "", false},
		{none, "unready", "", "", false},
		{"ready", none, "L", "L", true},
		{"ready", "ready", "LR", "L", true},
		{"ready", "terminating", "L", "L", true},
		{"ready", "ended", "L", "L", true},
		{"ready", "unready", "L", "L", true},
		{"terminating", none, "L", "L", true},
		{"terminating", "ready", "R", "L", true},
		{"terminating", "terminating", "LR", "L", true},
		{"terminating", "ended", "L", "L", true},
		{"terminating", "unready", "L", "L", true},
		{"ended", none, "", "", false},
		{"ended", "ready", "R", "", true},
		{"ended", "terminating", "R", "", true},
		{"ended", "ended", "", "", false},
		{"ended", "unready", "", "", false},
		{"unready", none, "", "", false},
		{"unready", "ready", "R", "", true},
		{"unready", "terminating", "R", "", true},
		{"unready", "ended", "", "", false},
		{"unready", "unready", "", "", false},
	} {
		for _, v6 := range []bool{false, true} {
			for _, internalLocal := range []bool{false, true} {
				for _, externalLocal := range []bool{false, true} {
					name := fmt.Sprintf("local=%s remote=%s v6=%t itpLocal=%t etpLocal=%t", tc.local, tc.remote, v6, internalLocal, externalLocal)
					t.Run(name, func(t *testing.T) {
						f := fixture{v6: v6}
						svc := f.service()
						svc.InternalLocal, svc.ExternalLocal = internalLocal, externalLocal
						var eps []Endpoint
						if tc.local != none {
							eps = append(eps, Endpoint{Addr: f.local(), Node: here, Conditions: conditions[tc.local]})
						}
						if tc.remote != none {
							eps = append(eps, Endpoint{Addr: f.remote(), Node: there, Conditions: conditions[tc.remote]})
						}
						got := f.frontends(svc, f.slice("a", eps...))

						letters := func(list []Backend) string {
							s := ""
							for _, b := range list {
								if b.Addr.Addr() == f.local() {
									s += "L"
								} else {
									s += "R"
								}
							}
							return s
						}
						check := func(what string, k Key, local, external bool) {
							fr := got[k]
							if fr == nil {
								t.Fatalf("%s %v: no such frontend", what, k)
							}
							want, empty, inside := tc.wantCluster, Reject, ""
							masq := MasqueradeOffCluster
							if external {
								masq = MasqueradeAlways
							}
							if local {
								want = tc.wantLoca
								if tc.any {
									empty = Drop
								}
								if external {
									masq, inside = MasqueradeNever, tc.wantCluster
								}
							}
							if s := letters(fr.Backends); s != want {
								t.Errorf("%s: backends %q, want %q", what, s, want)
							}
							if s := letters(fr.InsideBackends); s != inside {
								t.Errorf("%s: inside backends %q, want %q", what, s, inside)
							}
							if fr.Inside != (external && local) {
								t.Errorf("%s: Inside = %t", what, fr.Inside)
							}
							if len(fr.Backends) == 0 && fr.Empty != empty {
								t.Errorf("%s: Empty = %d, want %d", what, fr.Empty, empty)
							}
							if fr.Masquerade != masq {
								t.Errorf("%s: Masquerade = %d, want %d", what, fr.Masquerade, masq)
							}
							if fr.ClusterIP == external {
								t.Errorf("%s: ClusterIP = %t", what, fr.ClusterIP)
							}
						}
						check("cluster IP", Key{f.clusterIP(), 80, TCP}, internalLocal, false)
						check("node port", Key{anyAddr[family(v6)], 30080, TCP}, externalLocal, true)
						check("load balancer", Key{f.lbIP(), 80, TCP}, externalLocal, true)
						check("external IP", Key{f.externalIP(), 80, TCP}, externalLocal, true)
						if len(got) != 4 {
							t.Errorf("%d frontends, want 4", len(got))
						}
					})
				}
			}
		}
	}
}

// fixture makes Services of one family.
type fixture struct{ v6 bool }

func (f fixture) pick(v4, v6 string) netip.Addr {
	if f.v6 {
		return addr(v6)
	}
	return addr(v4)
}
func (f fixture) clusterIP() netip.Addr  { return f.pick("10.96.0.1", "fd00:96::1") }
func (f fixture) lbIP() netip.Addr       { return f.pick("192.0.2.1", "2001:db8::1") }
func (f fixture) externalIP() netip.Addr { return f.pick("198.51.100.1", "2001:db8:1::1") }
func (f fixture) local() netip.Addr      { return f.pick("10.244.1.1", "fd00:244:1::1") }
func (f fixture) remote() netip.Addr     { return f.pick("10.244.2.1", "fd00:244:2::1") }

func (f fixture) service() *Service {
	return &Service{
		Name:            Name{"ns", "svc"},
		Ports:           []ServicePort{{Name: "web", Port: 80, NodePort: 30080, Proto: TCP}},
		ClusterIPs:      []netip.Addr{f.clusterIP()},
		LoadBalancerIPs: []netip.Addr{f.lbIP()},
		ExternalIPs:     []netip.Addr{f.externalIP()},
	}
}

func (f fixture) slice(name string, eps ...Endpoint) *Slice {
	return &Slice{Namespace: "ns", Name: name, Service: "svc", V6: f.v6,
		Ports: []SlicePort{{"web", 8080, TCP}}, Endpoints: eps}
}

func (f fixture) frontends(svc *Service, list ...*Slice) map[Key]*Frontend {
	t := NewTable(View{NodeName: here, Zone: "a"})
	for _, s := range list {
		t.SetSlice(nil, s)
	}
	if svc != nil {
		t.SetService(svc)
	}
	t.Sync()
	return contents(t)
}

func contents(t *Table) map[Key]*Frontend {
	m := map[Key]*Frontend{}
	for f := range t.All() {
		m[f.Key] = f
	}
	return m
}

func TestTopology(t *testing.T) {
	zone := func(z ...string) *Hints { return &Hints{Zones: z} }
	node := func(n ...string) *Hints { return &Hints{Nodes: n} }
	both := func(z, n string) *Hints { return &Hints{Zones: []string{z}, Nodes: []string{n}} }
	ready := Ready | Serving
	for _, tc := range []struct {
		name string
		zone string
		eps  []Endpoint
		want string // last parts of the addresses chosen
	}{
		{"no hints", "a", []Endpoint{{Conditions: ready}, {Conditions: ready}}, "12"},
		{"my zone only", "a", []Endpoint{{Conditions: ready, Hints: zone("a")}, {Conditions: ready, Hints: zone("b")}}, "1"},
		{"two zones in one hint", "a", []Endpoint{{Conditions: ready, Hints: zone("b", "a")}, {Conditions: ready, Hints: zone("b")}}, "1"},
		{"one without hint: ignored", "a", []Endpoint{{Conditions: ready, Hints: zone("a")}, {Conditions: ready}}, "12"},
		{"unready one without hint does not count", "a", []Endpoint{{Conditions: ready, Hints: zone("a")}, {}}, "1"},
		{"none for my zone: ignored", "c", []Endpoint{{Conditions: ready, Hints: zone("a")}, {Conditions: ready, Hints: zone("b")}}, "12"},
		{"node without a zone: ignored", "", []Endpoint{{Conditions: ready, Hints: zone("a")}, {Conditions: ready, Hints: zone("b")}}, "12"},
		{"hint for an unready endpoint does not attract", "a", []Endpoint{{Hints: zone("a")}, {Conditions: ready, Hints: zone("b")}}, "2"},
		{"same node", "a", []Endpoint{{Conditions: ready, Hints: node(here)}, {Conditions: ready, Hints: node(there)}}, "1"},
		{"same node before same zone", "a", []Endpoint{{Conditions: ready, Hints: both("b", here)}, {Conditions: ready, Hints: both("a", there)}}, "1"},
		{"no node hint for me: zone", "a", []Endpoint{{Conditions: ready, Hints: both("b", there)}, {Conditions: ready, Hints: both("a", there)}}, "2"},
		{"one lacks a node hint: zone", "a", []Endpoint{{Conditions: ready, Hints: zone("b")}, {Conditions: ready, Hints: both("a", here)}}, "2"},
		{"none ready: those that terminate, hints or not", "a", []Endpoint{{Conditions: Serving | Terminating, Hints: zone("a")}, {Conditions: Serving | Terminating, Hints: zone("b")}}, "12"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := fixture{}
			for i := range tc.eps {
				tc.eps[i].Addr = addr(fmt.Sprintf("10.244.9.%d", i+1))
			}
			tab := NewTable(View{NodeName: here, Zone: tc.zone})
			tab.SetService(f.service())
			tab.SetSlice(nil, f.slice("a", tc.eps...))
			tab.Sync()
			got := ""
			for _, b := range contents(tab)[Key{f.clusterIP(), 80, TCP}].Backends {
				s := b.Addr.Addr().String()
				got += s[len(s)-1:]
			}
			if got != tc.want {
				t.Errorf("chose %q, want %q", got, tc.want)
			}
		})
	}
}

func TestSlices(t *testing.T) {
	f := fixture{}
	ep := func(last byte, c Conditions) Endpoint {
		return Endpoint{Addr: netip.AddrFrom4([4]byte{10, 244, 1, last}), Conditions: c}
	}
	ready := Ready | Serving
	key := Key{f.clusterIP(), 80, TCP}
	show := func(m map[Key]*Frontend) string {
		fr := m[key]
		if fr == nil {
			return "no frontend"
		}
		var s []string
		for _, b := range fr.Backends {
			s = append(s, b.Addr.String())
		}
		return strings.Join(s, " ")
	}
	other := f.slice("b", ep(9, ready))
	other.Service = "other"
	otherPort := f.slice("b", ep(9, ready))
	otherPort.Ports = []SlicePort{{"metrics", 9090, TCP}, {"web", 8080, UDP}, {"web", 0, TCP}}
	twoNumbers := f.slice("b", ep(1, ready), ep(2, ready))
	twoNumbers.Ports = []SlicePort{{"web", 9090, TCP}}
	six := f.slice("b", Endpoint{Addr: addr("fd00::1"), Conditions: ready})
	six.V6 = true
	for _, tc := range []struct {
		name string
		list []*Slice
		want string
	}{
		{"none", nil, ""},
		{"several", []*Slice{f.slice("a", ep(1, ready)), f.slice("b", ep(2, ready))}, "10.244.1.1:8080 10.244.1.2:8080"},
		{"order is by slice name", []*Slice{f.slice("b", ep(2, ready)), f.slice("a", ep(1, ready))}, "10.244.1.1:8080 10.244.1.2:8080"},
		{"duplicate across slices", []*Slice{f.slice("a", ep(1, ready)), f.slice("b", ep(1, ready), ep(2, ready))}, "10.244.1.1:8080 10.244.1.2:8080"},
		{"address reused from a terminating Pod", []*Slice{f.slice("a", ep(1, Terminating)), f.slice("b", ep(1, ready))}, "10.244.1.1:8080"},
		{"the other way round", []*Slice{f.slice("a", ep(1, ready)), f.slice("b", ep(1, Terminating))}, "10.244.1.1:8080"},
		{"another Service's", []*Slice{f.slice("a", ep(1, ready)), other}, "10.244.1.1:8080"},
		{"another port, another protocol, no number", []*Slice{f.slice("a", ep(1, ready)), otherPort}, "10.244.1.1:8080"},
		{"named port with two numbers", []*Slice{f.slice("a", ep(1, ready)), twoNumbers}, "10.244.1.1:8080 10.244.1.1:9090 10.244.1.2:9090"},
		{"another family", []*Slice{f.slice("a", ep(1, ready)), six}, "10.244.1.1:8080"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if got := show(f.frontends(f.service(), tc.list...)); got != tc.want {
				t.Errorf("backends %q, want %q", got, tc.want)
			}
		})
	}
	t.Run("slice without Service", func(t *testing.T) {
		if got := f.frontends(nil, f.slice("a", ep(1, ready))); len(got) != 0 {
			t.Errorf("frontends %v, want none", got)
		}
	})
}

func TestSourceRanges(t *testing.T) {
	pfx := func(list ...string) (out []netip.Prefix) {
		for _, s := range list {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	for _, tc := range []struct {
		name       string
		ranges     []netip.Prefix
		want4      []netip.Prefix
		want6      []netip.Prefix
		free4, ok6 bool
	}{
		{name: "none", free4: true, ok6: true},
		{name: "v4 only: v6 stays open", ranges: pfx("203.0.113.0/24"), want4: pfx("203.0.113.0/24"), ok6: true},
		{name: "both", ranges: pfx("203.0.113.0/24", "2001:db8:9::/48"), want4: pfx("203.0.113.0/24"), want6: pfx("2001:db8:9::/48")},
		{name: "length zero opens its family", ranges: pfx("203.0.113.0/24", "0.0.0.0/0", "2001:db8:9::/48"), free4: true, want6: pfx("2001:db8:9::/48")},
		{name: "has this node: its own connections come from the address itself", ranges: pfx("172.30.0.0/24"), want4: pfx("172.30.0.0/24", "192.0.2.1/32"), ok6: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			svc := fixture{}.service()
			svc.ClusterIPs = append(svc.ClusterIPs, addr("fd00:96::1"))
			svc.LoadBalancerIPs = append(svc.LoadBalancerIPs, addr("2001:db8::1"))
			svc.SourceRanges = tc.ranges
			tab := NewTable(View{NodeName: here, NodeIPs: []netip.Addr{addr("172.30.0.11"), addr("fd00:172::11")}})
			tab.SetService(svc)
			tab.Sync()
			got := contents(tab)
			four, six := got[Key{addr("192.0.2.1"), 80, TCP}], got[Key{addr("2001:db8::1"), 80, TCP}]
			if four.Restricted == tc.free4 || !slices.Equal(four.Sources, tc.want4) {
				t.Errorf("IPv4: restricted %t to %v", four.Restricted, four.Sources)
			}
			if six.Restricted == tc.ok6 || !slices.Equal(six.Sources, tc.want6) {
				t.Errorf("IPv6: restricted %t to %v", six.Restricted, six.Sources)
			}
			for k, f := range got {
				if f.Restricted && k.Addr != four.Key.Addr && k.Addr != six.Key.Addr {
					t.Errorf("%v is restricted; only load-balancer addresses are", k)
				}
			}
		})
	}
}

// TestContest: two Services claim one address and port.
func TestContest(t *testing.T) {
	ip := addr("10.96.0.1")
	a := &Service{Name: Name{"ns", "a"}, ClusterIPs: []netip.Addr{addr("10.96.0.9")}, ExternalIPs: []netip.Addr{ip}, Ports: []ServicePort{{Port: 80, Proto: TCP}}}
	b := &Service{Name: Name{"ns", "b"}, ClusterIPs: []netip.Addr{ip}, Affinity: time.Hour, Ports: []ServicePort{{Port: 80, Proto: TCP}}}
	key := Key{ip, 80, TCP}
	for _, order := range [][]*Service{{a, b}, {b, a}} {
		tab := NewTable(View{NodeName: here})
		for _, s := range order {
			tab.SetService(s)
			tab.Sync()
		}
		if f := contents(tab)[key]; f.Affinity == 0 {
			t.Fatal("an external IP took a ClusterIP over")
		}
		tab.DeleteService(b.Name)
		res := tab.Sync()
		if f := contents(tab)[key]; f == nil || f.ClusterIP {
			t.Fatalf("after the winner left: %+v", f)
		}
		if len(res.Diff.Set) != 1 || len(res.Diff.Remove) != 0 {
			t.Fatalf("diff %+v, want the one frontend handed over", res.Diff)
		}
		tab.DeleteService(a.Name)
		if res = tab.Sync(); len(res.Diff.Remove) != 2 || len(contents(tab)) != 0 || len(tab.entries) != 0 {
			t.Fatalf("after both left: %+v, %d entries", res.Diff, len(tab.entries))
		}
	}
}

func TestSettle(t *testing.T) {
	parse := func(s string) (out []Backend) {
		for _, c := range s {
			out = append(out, Backend{netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(c)}), 1)})
		}
		return out
	}
	show := func(list []Backend) (s string) {
		for _, b := range list {
			s += string(rune(b.Addr.Addr().As4()[3]))
		}
		return s
	}
	for _, tc := range []struct{ have, want, out string }{
		{"", "", ""},
		{"", "abc", "abc"},
		{"abc", "", ""},
		{"abc", "abc", "abc"},
		{"abc", "cba", "abc"},
		{"abc", "abcd", "abcd"},
		{"abc", "xac", "axc"},
		{"abc", "ab", "ab"},
		{"abc", "bc", "cb"},
		{"abcd", "cd", "dc"},
		{"abcd", "d", "d"},
		{"abcd", "xy", "xy"},
		{"abcd", "xb", "xb"},
		{"ab", "xyzb", "xbyz"},
		{"abcde", "be", "eb"},
	} {
		have := parse(tc.have)
		kept := slices.Clone(have)
		if got := show(settle(have, parse(tc.want), new(map[Backend]bool))); got != tc.out {
			t.Errorf("settle(%q, %q) = %q, want %q", tc.have, tc.want, got, tc.out)
		}
		if diff := cmp.Diff(show(kept), show(have)); diff != "" {
			t.Errorf("settle(%q, %q) modified what was there: %s", tc.have, tc.want, diff)
		}
	}
}

func TestStale(t *testing.T) {
	f := fixture{}
	svc := f.service()
	svc.Ports = []ServicePort{{Name: "dns", Port: 53, NodePort: 30053, Proto: UDP}, {Name: "web", Port: 80, Proto: TCP}}
	svc.LoadBalancerIPs, svc.ExternalIPs = nil, nil
	slice := func(eps ...Endpoint) *Slice {
		s := f.slice("a", eps...)
		s.Ports = []SlicePort{{"dns", 5353, UDP}, {"web", 8080, TCP}}
		return s
	}
	one := Endpoint{Addr: f.local(), Conditions: Ready | Serving}
	two := Endpoint{Addr: f.remote(), Conditions: Ready | Serving}
	cluster, port := Key{f.clusterIP(), 53, UDP}, Key{anyAddr[0], 30053, UDP}
	b1 := Backend{netip.AddrPortFrom(f.local(), 5353)}
	b2 := Backend{netip.AddrPortFrom(f.remote(), 5353)}

	tab := NewTable(View{NodeName: here})
	step := func(what string, want ...Stale) {
		t.Helper()
		got := tab.Sync().Stale
		order := func(a, b Stale) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) }
		slices.SortFunc(got, order)
		slices.SortFunc(want, order)
		if !slices.Equal(got, want) {
			t.Errorf("%s: stale %v, want %v", what, got, want)
		}
	}
	var cur *Slice
	set := func(s *Slice) { tab.SetSlice(cur, s); cur = s }

	tab.SetService(svc)
	step("Service without endpoints")
	set(slice(one))
	step("first endpoint", Stale{Key: cluster}, Stale{Key: port})
	set(slice(one, two))
	step("second endpoint")
	ending := one
	ending.Conditions = Serving | Terminating
	set(slice(ending, two))
	step("terminating, still serving: flows go on")
	set(slice(two))
	step("endpoint gone", Stale{Key: cluster, Backend: b1}, Stale{Key: port, Backend: b1})
	set(nil)
	step("last endpoint gone", Stale{Key: cluster, Backend: b2}, Stale{Key: port, Backend: b2})
	set(slice(two))
	step("back", Stale{Key: cluster}, Stale{Key: port})
	tab.DeleteService(svc.Name)
	step("Service gone", Stale{Key: cluster, Gone: true}, Stale{Key: port, Gone: true})
}

func TestHealth(t *testing.T) {
	f := fixture{}
	svc := f.service()
	svc.ExternalLocal, svc.HealthCheckNodePort = true, 30999
	svc.Ports = append(svc.Ports, ServicePort{Name: "tls", Port: 443, Proto: TCP})
	tab := NewTable(View{NodeName: here})
	tab.SetService(svc)
	want := HealthCheck{Service: svc.Name, Port: 30999, Serves: [2]bool{true, false}}
	step := func(what string, list ...HealthCheck) {
		t.Helper()
		if got := tab.Sync().Health; !slices.Equal(got, list) {
			t.Errorf("%s: %+v, want %+v", what, got, list)
		}
	}
	step("no endpoint", want)
	s := f.slice("a", Endpoint{Addr: f.local(), Node: here, Conditions: Ready | Serving}, Endpoint{Addr: f.remote(), Node: there, Conditions: Ready | Serving})
	s.Ports = append(s.Ports, SlicePort{"tls", 8443, TCP})
	tab.SetSlice(nil, s)
	want.LocalReady[0] = 1
	step("an address with two ports counts once", want)
	gone := f.slice("a", Endpoint{Addr: f.local(), Node: here, Conditions: Serving | Terminating})
	tab.SetSlice(s, gone)
	want.LocalReady[0] = 0
	step("terminating does not count", want)
	tab.DeleteService(svc.Name)
	step("gone", HealthCheck{Service: svc.Name})
}
