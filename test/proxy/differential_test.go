package proxy_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"fairway.dev/fairway/bench/proxy/fakeapi"
	"fairway.dev/fairway/internal/testenv"
)

// TestLikeKubeProxy gives a real kube-proxy and ours the same Services and
// endpoints, drawn at random and changed again and again, and asks every
// frontend from outside, from the node and from Pods: who answers, whose
// address the server sees, what is refused and what is dropped.
//
// It runs where FAIRWAY_KUBE_PROXY names a kube-proxy: `make test-kube-proxy`.
// FAIRWAY_SEED repeats a run, FAIRWAY_WORLDS says how many changes it makes.
func TestLikeKubeProxy(t *testing.T) {
	upstream := requireKubeProxy(t)
	seed, worlds := uint64(time.Now().UnixNano()), 25
	if s := os.Getenv("FAIRWAY_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("FAIRWAY_SEED: %v", err)
		}
		seed = n
	}
	if s := os.Getenv("FAIRWAY_WORLDS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("FAIRWAY_WORLDS: %v", err)
		}
		worlds = n
	}
	t.Logf("FAIRWAY_SEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 0))

	theirs, ours := newSide(t, "kube-proxy"), newSide(t, "fairway")
	theirs.kubeProxy(t, upstream, "nftables")
	ours.start(t, testenv.NodeProgram(t, "one"), "--proxy-mode", "nftables")
	var w world
	asked, seen, flows := 0, map[string]int{}, map[string]int{}
	for round := range worlds {
		theirFlows, ourFlows := theirs.open(w), ours.open(w)
		w = w.next(random, round)
		theirs.show(w)
		ours.show(w)
		theirs.await(t, w)
		ours.await(t, w)
		// Both cut flows some time after they have programmed the change.
		if len(ourFlows) > 0 {
			time.Sleep(3 * time.Second)
		}
		compareFlows(t, w, theirs.again(theirFlows), ours.again(ourFlows), flows)
		// A port that was asked from in an earlier world would be taken for that
		// flow going on, and where its endpoint still serves, rightly so.
		theirs.forget(t)
		ours.forget(t)
		probes := w.probes()
		var a, b map[probe]outcome
		var wg sync.WaitGroup
		wg.Go(func() { a = theirs.ask(probes, w) })
		wg.Go(func() { b = ours.ask(probes, w) })
		wg.Wait()
		asked += len(probes)
		for _, p := range probes {
			if a[p].text() != b[p].text() {
				// Chance may have left an endpoint out; a longer look does not.
				a[p], b[p] = a[p].and(theirs.look(p, w, 150)), b[p].and(ours.look(p, w, 150))
			}
			seen[a[p].kind()]++
			if a[p].text() != b[p].text() {
				t.Errorf("world %d: %s to %s %s:\n  kube-proxy: %s\n  fairway:    %s\n%s", round, p.from, p.service, p.to, a[p].text(), b[p].text(), w.yaml(p.service))
			}
		}
		if t.Failed() {
			return
		}
	}
	t.Logf("%d worlds, %d questions to each side: %v; UDP flows over a change: %v", worlds, asked, seen, flows)
	if seen["answered"] == 0 || seen["refused"] == 0 || seen["dropped"] == 0 {
		t.Errorf("not every kind of outcome was seen, which shows little: %v", seen)
	}
}

// side is one of two equal worlds: a node with two Pods, a remote node's Pods
// behind it, a client outside.
type side struct {
	*cluster
	name string
	from map[string]*testenv.Host
	sent map[string]fakeapi.Object // as the API has it, by path, namespace and name
}

// place is where an endpoint is.
type place struct {
	host, node, zone string
	v4, v6           string
}

var places = []place{
	{"pod-1", "node-1", "a", "10.244.1.2", "fd00:244:1::2"},
	{"pod-2", "node-1", "a", "10.244.1.6", "fd00:244:1:4::2"},
	{"remote", "node-2", "a", "10.244.2.2", "fd00:244:2::2"},
	{"remote", "node-2", "a", "10.244.2.3", "fd00:244:2::3"},
	{"remote", "node-3", "b", "10.244.2.4", "fd00:244:2::4"},
	{"node", "node-1", "a", "192.0.2.1", "fd00:2::1"},
}

func (p place) ip(v6 bool) string {
	if v6 {
		return p.v6
	}
	return p.v4
}

// vantages are whom questions come from.
var vantages = []string{"client", "node", "pod-1"}

func newSide(t *testing.T, name string) *side {
	s := &side{name: name, from: map[string]*testenv.Host{}, sent: map[string]fakeapi.Object{}}
	for _, h := range []string{"client", "node", "pod-1", "pod-2", "remote"} {
		s.from[h] = testenv.NewHost(t, h)
	}
	node := s.from["node"]
	for i, l := range []struct{ host, node4, peer4, node6, peer6 string }{
		{"client", "192.0.2.1/24", "192.0.2.2/24", "fd00:2::1/64", "fd00:2::2/64"},
		{"pod-1", "10.244.1.1/30", "10.244.1.2/30", "fd00:244:1::1/64", "fd00:244:1::2/64"},
		{"pod-2", "10.244.1.5/30", "10.244.1.6/30", "fd00:244:1:4::1/64", "fd00:244:1:4::2/64"},
		{"remote", "10.244.2.1/24", "10.244.2.2/24", "fd00:244:2::1/64", "fd00:244:2::2/64"},
	} {
		h, link := s.from[l.host], fmt.Sprint("eth", i)
		node.Connect(t, link, h, "eth0")
		node.AddAddr(t, link, l.node4)
		node.AddAddr(t, link, l.node6)
		h.AddAddr(t, "eth0", l.peer4)
		h.AddAddr(t, "eth0", l.peer6)
		h.AddRoute(t, "default4", netip.MustParsePrefix(l.node4).Addr().String())
		h.AddRoute(t, "default6", netip.MustParsePrefix(l.node6).Addr().String())
	}
	for _, p := range places[3:5] {
		s.from["remote"].AddAddr(t, "eth0", p.v4+"/24")
		s.from["remote"].AddAddr(t, "eth0", p.v6+"/64")
	}
	// kube-proxy refuses by ICMP, which the kernel sends sparingly.
	node.Sysctl(t, "net/ipv4/icmp_ratelimit", "0")
	node.Sysctl(t, "net/ipv6/icmp/ratelimit", "0")
	node.AddRoute(t, "default4", "192.0.2.2") // routing comes before translation
	node.AddRoute(t, "default6", "fd00:2::2")
	for _, p := range places {
		for _, ip := range []string{p.v4, p.v6} {
			s.serve(t, p.host, ip)
		}
	}
	s.cluster = &cluster{client: s.from["client"], node: node, servers: s.from["remote"], api: fakeapi.New(), podCIDRs: "10.244.0.0/16,fd00:244::/32"}
	s.cluster.connectAPI(t)
	s.api.Set(fakeapi.Nodes, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1", Labels: map[string]string{"topology.kubernetes.io/zone": "a"}},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}, {Type: corev1.NodeInternalIP, Address: "fd00:2::1"}}}})
	s.api.Set(fakeapi.ServiceCIDRs, &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.96.0.0/16", "fd00:10:96::/112"}}})
	return s
}

// serve answers on an endpoint's address, over TCP and UDP, with the address
// and whom it sees.
func (s *side) serve(t *testing.T, host, ip string) {
	at := net.JoinHostPort(ip, "8080")
	reply := func(from net.Addr) []byte {
		who, _, _ := net.SplitHostPort(from.String())
		return []byte(ip + " " + who)
	}
	l := s.from[host].Listen(t, "tcp", at)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Write(reply(c.RemoteAddr()))
			c.Close()
		}
	}()
	p := s.from[host].ListenPacket(t, "udp", at)
	go func() {
		buf := make([]byte, 64)
		for {
			_, from, err := p.ReadFrom(buf)
			if err != nil {
				return
			}
			p.WriteTo(reply(from), from)
		}
	}()
}

// show gives the API the world: what is new or changed, and what is gone.
func (s *side) show(w world) {
	now := map[string]fakeapi.Object{}
	// The slices first: the marker's Service, the last object, says that all is told.
	for _, path := range []string{fakeapi.EndpointSlices, fakeapi.Services} {
		var list []fakeapi.Object
		for _, svc := range w.services {
			if path == fakeapi.Services {
				list = append(list, svc.object.DeepCopy())
			} else {
				for _, sl := range svc.slices {
					list = append(list, sl.DeepCopy())
				}
			}
		}
		for _, o := range list {
			now[path+" "+o.GetNamespace()+"/"+o.GetName()] = o
		}
		for key, o := range s.sent {
			if at, _, _ := strings.Cut(key, " "); at == path && now[key] == nil {
				s.api.Delete(path, o)
			}
		}
		for _, o := range list {
			key := path + " " + o.GetNamespace() + "/" + o.GetName()
			if old := s.sent[key]; old != nil && same(old, o) {
				now[key] = old
				continue
			}
			s.api.Set(path, o)
		}
	}
	s.sent = now
}

// same compares two objects but for their version.
func same(a, b fakeapi.Object) bool {
	version := a.GetResourceVersion()
	a.SetResourceVersion(b.GetResourceVersion())
	defer a.SetResourceVersion(version)
	x, err1 := a.Marshal()
	y, err2 := b.Marshal()
	return err1 == nil && err2 == nil && slices.Equal(x, y)
}

// await waits until the marker Service, told last, has its new endpoint, in
// both families, for all else is programmed then.
func (s *side) await(t *testing.T, w world) {
	t.Helper()
	for _, to := range w.marker.to {
		p := probe{"client", "marker", to}
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			got := s.once(p)
			if strings.HasPrefix(got, w.marker.answers[to]+" ") {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: world %d does not arrive: %s answers %q, want %s", s.name, w.round, to, got, w.marker.answers[to])
			}
		}
	}
}

// forget empties the node's connection tracking.
func (s *side) forget(t *testing.T) {
	t.Helper()
	if err := s.node.NL.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
		t.Fatal(err)
	}
}

// target is a protocol and an address.
type target struct {
	network string // "tcp" or "udp"
	address string
}

func (t target) String() string { return t.network + " " + t.address }

// probe is a question from one place to one frontend of a Service.
type probe struct {
	from, service string
	to            target
}

// outcome is what became of asking several times.
type outcome map[string]bool

func (o outcome) and(p outcome) outcome {
	maps.Copy(o, p)
	return o
}

func (o outcome) text() string { return strings.Join(slices.Sorted(maps.Keys(o)), ", ") }

func (o outcome) kind() string {
	for k := range o {
		if k == "refused" || k == "dropped" {
			return k
		}
	}
	return "answered"
}

// ask asks every probe often enough to see every endpoint.
func (s *side) ask(probes []probe, w world) map[probe]outcome {
	out := map[probe]outcome{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	at := make(chan probe)
	for range 16 {
		wg.Go(func() {
			for p := range at {
				o := s.look(p, w, 30)
				mu.Lock()
				out[p] = o
				mu.Unlock()
			}
		})
	}
	for _, p := range probes {
		at <- p
	}
	close(at)
	wg.Wait()
	return out
}

// look asks a probe n times, and less often where nobody answers.
func (s *side) look(p probe, w world, n int) outcome {
	o := outcome{}
	affine := w.service(p.service).Spec.SessionAffinity == corev1.ServiceAffinityClientIP
	for i := range n {
		got := s.once(p)
		switch {
		case got == "refused" || got == "dropped":
			o[got] = true
			if i >= 1 {
				return o
			}
			continue
		case strings.HasPrefix(got, "error"):
			o[got] = true
			return o
		}
		endpoint, seen, _ := strings.Cut(got, " ")
		as := "as itself"
		if !s.has(p.from, seen) {
			as = "as " + seen
		}
		if affine {
			// Which one is chance, and each side has its own.
			o["one endpoint"] = true
			continue
		}
		o[endpoint+" sees it "+as] = true
	}
	return o
}

// has reports whether an address is a host's own.
func (s *side) has(host, ip string) bool {
	a := netip.MustParseAddr(ip).Unmap().String()
	if host == "node" {
		return !strings.HasPrefix(a, "10.244.2.") && (strings.HasSuffix(a, ".1") || strings.HasSuffix(a, "::1") || a == "10.244.1.5")
	}
	if host == "client" {
		return a == "192.0.2.2" || a == "fd00:2::2"
	}
	return slices.ContainsFunc(places, func(p place) bool { return p.host == host && (p.v4 == a || p.v6 == a) })
}

// once asks once.
func (s *side) once(p probe) string {
	// More than a second: kube-proxy refuses TCP by ICMP, too, which a socket
	// that is just connecting may miss; it hears of the next SYN, a second later.
	const patience = 1600 * time.Millisecond
	c, err := s.from[p.from].Dial(p.to.network, p.to.address, patience)
	if err == nil {
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		buf := make([]byte, 128)
		if p.to.network == "udp" {
			_, err = c.Write([]byte("?"))
		}
		var n int
		if err == nil {
			n, err = c.Read(buf)
		}
		if err == nil {
			return string(buf[:n])
		}
	}
	e, ok := err.(net.Error)
	switch {
	case ok && e.Timeout():
		return "dropped"
	case isErrno(err, syscall.ECONNREFUSED), isErrno(err, syscall.EPERM):
		// A UDP socket on the node that is refused by its own packet filter has
		// EPERM instead, with either.
		return "refused"
	case isErrno(err, syscall.EHOSTUNREACH), isErrno(err, syscall.ENETUNREACH):
		return "dropped" // nobody has the address: it is not the proxy's
	}
	return "error " + err.Error()
}

func isErrno(err error, want syscall.Errno) bool {
	for err != nil {
		if err == want {
			return true
		}
		u, ok := err.(interface{ Unwrap() error })
		if !ok {
			return false
		}
		err = u.Unwrap()
	}
	return false
}

// yaml shows a Service and its slices.
func (w world) yaml(name string) string {
	var out []byte
	for _, s := range w.services {
		if s.object.Name != name {
			continue
		}
		b, _ := yaml.Marshal(s.object.Spec)
		c, _ := yaml.Marshal(s.object.Status)
		out = append(append(out, b...), c...)
		for _, sl := range s.slices {
			b, _ := yaml.Marshal(sl.Endpoints)
			out = append(append(out, b...), '\n')
		}
	}
	return string(out)
}
