package announce

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairway.dev/fairway/api/v1alpha1"
)

func set(names ...string) map[string]struct{} {
	m := map[string]struct{}{}
	for _, n := range names {
		m[n] = struct{}{}
	}
	return m
}

// TestElectionSpreadsEvenly elects for 10,000 addresses among 10 nodes, takes
// one node away and puts it back.
func TestElectionSpreadsEvenly(t *testing.T) {
	const n = 10000
	nodes := set()
	for i := range 10 {
		nodes[fmt.Sprintf("node-%d", i)] = struct{}{}
	}
	addr := netip.MustParseAddr("10.0.0.0")
	count := map[string]int{}
	for range n {
		addr = addr.Next()
		before := elect(addr, nodes, nodes)
		count[before]++
		fewer := maps.Clone(nodes)
		delete(fewer, "node-3")
		after := elect(addr, nodes, fewer)
		if before != "node-3" && after != before {
			t.Fatalf("%s moved from %s to %s although its node lives", addr, before, after)
		}
		if beats("node-3", after, addr) != (before == "node-3") {
			t.Fatalf("%s: a node that returns does not get back just what it had", addr)
		}
	}
	for node, c := range count {
		if c < n/10*85/100 || c > n/10*115/100 {
			t.Errorf("%s has %d of %d addresses", node, c, n)
		}
	}
	t.Log(count)
	if got := elect(addr, nodes, set("elsewhere")); got != "" {
		t.Errorf("elected %q, which is not eligible", got)
	}
}

func TestHeartbeatWire(t *testing.T) {
	b := beat{Node: "node-1", Phase: ready, Incarnation: 7, Seq: 9}
	for _, key := range [][]byte{nil, []byte("secret")} {
		data := b.encode(key)
		got, err := decode(data, key)
		if err != nil || got != b {
			t.Errorf("key %q: %+v, %v", key, got, err)
		}
		for i := range data {
			if _, err := decode(data[:i], []byte("secret")); err == nil {
				t.Errorf("cut to %d bytes: accepted", i)
			}
		}
	}
	if _, err := decode(b.encode([]byte("other")), []byte("secret")); err == nil {
		t.Error("signed with another key, accepted")
	}
	if _, err := decode(b.encode(nil), []byte("secret")); err == nil {
		t.Error("not signed, accepted")
	}
}

// TestMembers plays the life of a small cluster on a made-up clock.
func TestMembers(t *testing.T) {
	now := time.Unix(1000, 0)
	m := newMembers("a", now)
	one := []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	m.setPeers(map[string][]netip.Addr{"b": one, "c": one})
	var seq uint64
	hear := func(node string, p phase, incarnation uint64) (joined, left, greet bool) {
		seq++
		return m.heard(beat{node, p, incarnation, seq}, now)
	}
	// run lets time pass in the steps of the speaker, with b and c beating or not.
	run := func(d time.Duration, beating ...string) (dead []string, became bool) {
		for end := now.Add(d); now.Before(end); {
			now = now.Add(m.timing().interval / 2)
			for _, n := range beating {
				hear(n, ready, 1)
			}
			dd, _, b := m.tick(now)
			dead, became = append(dead, dd...), became || b
		}
		return dead, became
	}
	if _, became := run(500*time.Millisecond, "b"); became {
		t.Fatal("ready before the other has had its time to be heard")
	}
	if _, became := run(time.Second, "b"); !became {
		t.Fatal("not ready although c had its time")
	}
	if got := m.names(); !slices.Equal(got, []string{"a", "b"}) {
		t.Fatalf("alive: %v", got)
	}
	if joined, _, greet := hear("c", joining, 1); joined || !greet {
		t.Error("a node that is joining: alive, or not greeted")
	}
	if joined, _, _ := hear("c", ready, 1); !joined {
		t.Error("c is ready and not alive")
	}
	if !m.peers["c"].clean || m.peers["b"].clean {
		t.Error("c has listened before it was ready; b was not heard to")
	}
	if dead, _ := run(1000*time.Millisecond, "b"); len(dead) != 0 {
		t.Errorf("%v dead too early", dead)
	}
	if dead, _ := run(500*time.Millisecond, "b"); !slices.Equal(dead, []string{"c"}) {
		t.Errorf("dead: %v, want c", dead)
	}
	// This process stands still for ten seconds: nobody dies of that.
	now = now.Add(10 * time.Second)
	if dead, _, _ := m.tick(now); len(dead) != 0 {
		t.Errorf("%v died of our own standing still", dead)
	}
	if dead, _ := run(5*time.Second, "b"); len(dead) != 0 {
		t.Errorf("%v dead", dead)
	}
	// c is not heard, and the API server has news of it again and again: its
	// heartbeats must be held up somewhere.
	m.vouch("c", true, now)
	if _, mute, _ := m.tick(now); !slices.Equal(mute, []string{"c"}) || !slices.Equal(m.mutes(), mute) {
		t.Errorf("mute: %v, want c", mute)
	}
	if dead, _ := run(80*time.Second, "b"); !slices.Equal(dead, []string{"c"}) {
		t.Errorf("dead: %v, want c, of which there is no news any more", dead)
	}
	// No link, and one again.
	if !m.setUsable(false, now) || m.phase != idle || slices.Contains(m.names(), "a") {
		t.Error("alive without a link")
	}
	m.setUsable(true, now)
	if _, became := run(2*time.Second, "b"); !became {
		t.Error("not ready again")
	}
	// What a node wrote before it died does not count.
	hear("c", ready, 1)
	now = now.Add(m.timing().interval)
	m.vouch("c", true, now)
	if dead, _ := run(3*time.Second, "b"); !slices.Equal(dead, []string{"c"}) {
		t.Errorf("dead: %v, want c", dead)
	}
	// It leaves; a beat from before arrives late.
	if _, left, _ := m.heard(beat{"b", leaving, 1, seq + 10}, now); !left {
		t.Error("b left and is alive")
	}
	if joined, _, _ := m.heard(beat{"b", ready, 1, seq + 9}, now); joined {
		t.Error("an old beat brought b back")
	}
	if joined, _, _ := m.heard(beat{"b", ready, 2, 1}, now); !joined {
		t.Error("b came back and is not alive")
	}
	if joined, _, _ := m.heard(beat{"x", ready, 1, 1}, now); joined {
		t.Error("a node that does not exist is alive")
	}
	if gone := m.setPeers(map[string][]netip.Addr{"c": one}); !slices.Equal(gone, []string{"b"}) {
		t.Errorf("gone: %v", gone)
	}
}

func TestPlan(t *testing.T) {
	p := newPlan()
	node := func(name string, labels map[string]string, ip string) {
		p.setNode(name, &nodeFacts{labels: labels, addrs: []netip.Addr{netip.MustParseAddr(ip)}})
	}
	node("a", map[string]string{"edge": "yes"}, "192.0.2.1")
	node("b", nil, "192.0.2.2")
	excluded := nodeFactsOf(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "x", Labels: map[string]string{corev1.LabelNodeExcludeBalancers: ""}}})
	p.setNode("x", &excluded)
	pool := func(name string, spec v1alpha1.IPPoolSpec) poolFacts {
		return poolFactsOf(&v1alpha1.IPPool{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec})
	}
	edge := pool("edge", v1alpha1.IPPoolSpec{Addresses: []string{"198.51.100.0/24"}, Announce: v1alpha1.AnnounceSpec{
		Interfaces: []string{"eth*"}, NodeSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"edge": "yes"}}}})
	p.setPools([]poolFacts{pool("all", v1alpha1.IPPoolSpec{Addresses: []string{"192.0.2.0/24"}}), edge})

	service := func(name string, edit func(*corev1.Service), ips ...string) []netip.Addr {
		svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "d", Finalizers: []string{v1alpha1.Finalizer}, Annotations: map[string]string{}},
			Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer}}
		for _, ip := range ips {
			svc.Status.LoadBalancer.Ingress = append(svc.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: ip})
		}
		if edit != nil {
			edit(svc)
		}
		return p.setService("d/"+name, factsOf(svc), func() map[string]struct{} { return set("b") })
	}
	check := func(ip string, mode v1alpha1.AnnounceMode, nodes ...string) {
		t.Helper()
		e := p.entries[netip.MustParseAddr(ip)]
		if mode == "" {
			if e != nil {
				t.Errorf("%s: %+v, want nothing", ip, e)
			}
			return
		}
		if e == nil || e.Mode != mode || !maps.Equal(e.Nodes, set(nodes...)) {
			t.Errorf("%s: %+v, want %s by %v", ip, e, mode, nodes)
		}
	}
	service("plain", nil, "192.0.2.50")
	check("192.0.2.50", "L2", "a", "b")
	if again := service("plain", nil, "192.0.2.50"); len(again) != 0 {
		t.Errorf("nothing changed, and %v is said to", again)
	}
	service("edge", nil, "198.51.100.1")
	check("198.51.100.1", "L2", "a")
	local := func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal }
	service("local", local, "192.0.2.51")
	check("192.0.2.51", "L2", "b")
	service("local-edge", local, "198.51.100.2")
	check("198.51.100.2", "L2") // b has the endpoint, a the label
	p.setEndpoints("d/local-edge", func() map[string]struct{} { return set("a", "b") })
	check("198.51.100.2", "L2", "a")
	service("none", func(s *corev1.Service) { s.Annotations[v1alpha1.AnnotationAnnounce] = "none" }, "192.0.2.52")
	check("192.0.2.52", "None", "a", "b")
	service("own", nil, "192.0.2.2")
	check("192.0.2.2", "None", "a", "b")
	service("foreign", func(s *corev1.Service) { s.Finalizers = nil }, "192.0.2.53")
	check("192.0.2.53", "")
	proxy := corev1.LoadBalancerIPModeProxy
	service("proxy", func(s *corev1.Service) { s.Status.LoadBalancer.Ingress[0].IPMode = &proxy }, "192.0.2.54")
	check("192.0.2.54", "")
	service("kept", func(s *corev1.Service) { s.Annotations[v1alpha1.AnnotationAllocatedFrom] = "edge" }, "203.0.113.1")
	check("203.0.113.1", "L2", "a")
	p.setNode("a", nil)
	check("203.0.113.1", "L2")
	p.setService("d/plain", nil, nil)
	check("192.0.2.50", "")
	if len(p.holders) != len(p.entries) {
		t.Errorf("%d addresses have holders, %d an entry", len(p.holders), len(p.entries))
	}
}

func TestEndpointNodes(t *testing.T) {
	endpoint := func(node string, ready, serving, terminating bool) discoveryv1.Endpoint {
		return discoveryv1.Endpoint{NodeName: &node, Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating}}
	}
	slice := func(e ...discoveryv1.Endpoint) []*discoveryv1.EndpointSlice {
		return []*discoveryv1.EndpointSlice{{Endpoints: e}}
	}
	for _, tt := range []struct {
		name string
		in   []*discoveryv1.EndpointSlice
		want map[string]struct{}
	}{
		{"none", nil, set()},
		{"ready only", slice(endpoint("a", true, true, false), endpoint("b", false, false, false), endpoint("c", false, true, true)), set("a")},
		{"terminating where nothing is ready", slice(endpoint("b", false, false, false), endpoint("c", false, true, true)), set("c")},
	} {
		if got := endpointNodes(tt.in); !maps.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}
