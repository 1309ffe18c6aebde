package lb_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairway.dev/fairway/internal/announce"
	"fairway.dev/fairway/internal/apiserver"
	"fairway.dev/fairway/internal/lb"
	"fairway.dev/fairway/internal/lb/status"
	"fairway.dev/fairway/internal/proxy"
	"fairway.dev/fairway/internal/proxy/nft"
	"fairway.dev/fairway/internal/proxy/source"
	"fairway.dev/fairway/internal/testenv"
	"fairway.dev/fairway/internal/testenv/apitest"
)

// lan is a client and three nodes on one Ethernet segment. Each node has the
// data plane, an announcer and one Pod; all of them one API server.
type lan struct {
	*world
	client *testenv.Host
	nodes  []*lanNode
}

type lanNode struct {
	*testenv.Host
	name       string
	pod4, pod6 string
}

func newLAN(t *testing.T, w *world) *lan {
	testenv.RequireRoot(t)
	l := &lan{world: w, client: testenv.NewHost(t, "client")}
	l.client.AddBridge(t, "br0")
	l.client.AddAddr(t, "br0", "192.0.2.1/24")
	l.client.AddAddr(t, "br0", "192.0.2.2/24")
	l.client.AddAddr(t, "br0", "fd00:2::1/64")
	for i := range 3 {
		l.addNode(t, i)
	}
	// Pods of other nodes are reached by way of their node.
	for i, n := range l.nodes {
		for j, o := range l.nodes {
			if i != j {
				n.AddRoute(t, fmt.Sprintf("10.244.%d.0/24", j), fmt.Sprintf("192.0.2.%d", 10+j))
				n.AddRoute(t, fmt.Sprintf("fd00:244:a%d::/64", j), fmt.Sprintf("fd00:2::%d", 10+j))
			}
			_ = o
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	part := func(name string, run func(context.Context) error) {
		wg.Go(func() {
			if err := run(ctx); err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	src, err := source.New(source.Config{REST: apitest.Config(t, w.server, apiserver.Proxy()), Logger: w.logger})
	if err != nil {
		t.Fatal(err)
	}
	part("source", src.Run)
	shared, err := announce.NewShared(w.as("fairway-announcer"), w.logger)
	if err != nil {
		t.Fatal(err)
	}
	part("shared", shared.Run)
	for _, n := range l.nodes {
		programmer, err := nft.New(nft.Config{NetNS: n.NS, Logger: w.logger})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { programmer.Close() })
		p, err := proxy.New(proxy.Config{NodeName: n.name, Source: src, Programmer: programmer, NetNS: n.NS, Logger: w.logger})
		if err != nil {
			t.Fatal(err)
		}
		part("proxy of "+n.name, p.Run)
		part("announcer of "+n.name, func(ctx context.Context) error {
			return announce.Run(ctx, announce.Options{NodeName: n.name, NetNS: n.NS, Shared: shared, Logger: w.logger})
		})
	}
	return l
}

func (l *lan) addNode(t *testing.T, i int) {
	n := &lanNode{Host: testenv.NewHost(t, fmt.Sprint("node", i)), name: fmt.Sprint("node-", i)}
	n.Sysctl(t, "net/ipv6/conf/default/keep_addr_on_down", "1")
	n.Sysctl(t, "net/ipv6/conf/all/keep_addr_on_down", "1")
	port := fmt.Sprint("port", i)
	n.Connect(t, "eth0", l.client, port)
	l.client.AddPort(t, "br0", port)
	ip4, ip6 := fmt.Sprintf("192.0.2.%d", 10+i), fmt.Sprintf("fd00:2::%d", 10+i)
	n.AddAddr(t, "eth0", ip4+"/24")
	n.AddAddr(t, "eth0", ip6+"/64")
	// One Pod.
	pod := testenv.NewHost(t, fmt.Sprint("pod", i))
	n.Connect(t, "pods", pod, "eth0")
	n.AddAddr(t, "pods", fmt.Sprintf("10.244.%d.1/24", i))
	n.AddAddr(t, "pods", fmt.Sprintf("fd00:244:a%d::1/64", i))
	n.pod4, n.pod6 = fmt.Sprintf("10.244.%d.2", i), fmt.Sprintf("fd00:244:a%d::2", i)
	pod.AddAddr(t, "eth0", n.pod4+"/24")
	pod.AddAddr(t, "eth0", n.pod6+"/64")
	pod.AddRoute(t, "default4", fmt.Sprintf("10.244.%d.1", i))
	pod.AddRoute(t, "default6", fmt.Sprintf("fd00:244:a%d::1", i))
	for _, network := range []string{"tcp4", "tcp6"} {
		ln := pod.Listen(t, network, ":8080")
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
				fmt.Fprintf(c, "%s %s", n.name, host)
				c.Close()
			}
		}()
	}
	node, err := l.world.client.CoreV1().Nodes().Create(t.Context(), &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: n.name},
		Spec:       corev1.NodeSpec{PodCIDR: fmt.Sprintf("10.244.%d.0/24", i), PodCIDRs: []string{fmt.Sprintf("10.244.%d.0/24", i), fmt.Sprintf("fd00:244:a%d::/64", i)}},
	}, metav1.CreateOptions{})
	if err == nil {
		node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: ip4}, {Type: corev1.NodeInternalIP, Address: ip6}}
		node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
		_, err = l.world.client.CoreV1().Nodes().UpdateStatus(t.Context(), node, metav1.UpdateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = l.world.client.CoreV1().Nodes().Delete(context.Background(), n.name, metav1.DeleteOptions{})
	})
	l.nodes = append(l.nodes, n)
}

// endpoints gives a Service the Pods of these nodes.
func (l *lan) endpoints(service string, nodes ...*lanNode) {
	l.t.Helper()
	for _, family := range []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6} {
		name, protocol, port := "http", corev1.ProtocolTCP, int32(8080)
		s := &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Name: service + "-" + strings.ToLower(string(family)), Namespace: "default", Labels: map[string]string{discoveryv1.LabelServiceName: service}},
			AddressType: family, Ports: []discoveryv1.EndpointPort{{Name: &name, Protocol: &protocol, Port: &port}},
			Endpoints: []discoveryv1.Endpoint{},
		}
		for _, n := range nodes {
			ip := n.pod4
			if family == discoveryv1.AddressTypeIPv6 {
				ip = n.pod6
			}
			ready := true
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{ip}, NodeName: &n.name, Conditions: discoveryv1.EndpointConditions{Ready: &ready}})
		}
		slices := l.world.client.DiscoveryV1().EndpointSlices("default")
		_, err := slices.Update(l.t.Context(), s, metav1.UpdateOptions{})
		if err != nil {
			_, err = slices.Create(l.t.Context(), s, metav1.CreateOptions{})
		}
		if err != nil {
			l.t.Fatal(err)
		}
		l.t.Cleanup(func() { _ = slices.Delete(context.Background(), s.Name, metav1.DeleteOptions{}) })
	}
}

// ask connects from the client, from one of its addresses if given, and
// returns which node's Pod answers and whom it sees.
func (l *lan) ask(address, from string, timeout time.Duration) (node, seen string, err error) {
	var b []byte
	err = l.client.NS.Do(func() error {
		d := net.Dialer{Timeout: timeout, FallbackDelay: -1}
		if from != "" {
			d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
		}
		c, err := d.Dial("tcp", net.JoinHostPort(address, "80"))
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(timeout))
		b, err = io.ReadAll(c)
		if err == nil && len(b) == 0 {
			err = errors.New("no answer")
		}
		return err
	})
	node, seen, _ = strings.Cut(string(b), " ")
	return node, seen, err
}

// announcers are the nodes that announce an address, by their own word.
func (l *lan) announcers(address string) (nodes []string) {
	l.t.Helper()
	r, err := status.Collect(l.t.Context(), l.world.client, l.fairway, time.Now())
	if err != nil {
		l.t.Fatal(err)
	}
	for _, a := range r.Addresses {
		if a.Address == address && a.Node != "" {
			nodes = append(append(nodes, a.Node), a.Also...)
		}
	}
	return nodes
}

func dualStack(s *corev1.Service) {
	policy := corev1.IPFamilyPolicyPreferDualStack
	s.Spec.IPFamilyPolicy = &policy
}

func local(s *corev1.Service) {
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
}

// testEndToEnd has a client on the LAN use Services by the addresses they get.
func testEndToEnd(t *testing.T, w *world) {
	w.manifest()
	l := newLAN(t, w)
	w.controller(func(o *lb.Options) { o.Config, o.InstallCRDs = w.as("fairway-lb"), true })
	w.pool("lan", ranges("192.0.2.200-192.0.2.220", "fd00:2::c8-fd00:2::ff"))

	// Any node, both families, no node ports, no route on the client.
	w.service("web", dualStack)
	l.endpoints("web", l.nodes...)
	addresses := func(name string) (out []string) {
		w.eventually("Service "+name+" has addresses", func() bool { return len(w.get(name).Status.LoadBalancer.Ingress) > 0 })
		for _, in := range w.get(name).Status.LoadBalancer.Ingress {
			out = append(out, in.IP)
		}
		return out
	}
	web := addresses("web")
	t.Logf("web has %v and node port %d", web, w.get("web").Spec.Ports[0].NodePort)
	if w.get("web").Spec.Ports[0].NodePort != 0 {
		t.Error("a node port although allocateLoadBalancerNodePorts is false")
	}
	if len(web) != len(w.get("web").Spec.IPFamilies) {
		t.Errorf("%d addresses for families %v", len(web), w.get("web").Spec.IPFamilies)
	}
	for _, vip := range web {
		start := time.Now()
		w.eventually("answer from "+vip, func() bool { _, _, err := l.ask(vip, "", time.Second); return err == nil })
		t.Logf("%s answers %s after it was asked first", vip, time.Since(start))
	}
	who := map[string]bool{}
	w.eventually("every Pod answers", func() bool {
		node, _, err := l.ask(web[0], "", time.Second)
		if err == nil {
			who[node] = true
		}
		return len(who) == 3
	})

	// Policy Local: only nodes with an endpoint, and the client's own address.
	w.service("local", local)
	l.endpoints("local", l.nodes[1])
	vip := addresses("local")[0]
	for _, n := range []*lanNode{l.nodes[1], l.nodes[2], l.nodes[0]} {
		l.endpoints("local", n)
		w.eventually("Pod on "+n.name+" answers", func() bool {
			node, seen, err := l.ask(vip, "", time.Second)
			if err == nil && seen != "192.0.2.1" {
				t.Errorf("the Pod sees %s instead of the client", seen)
			}
			return err == nil && node == n.name
		})
		w.eventually(n.name+" announces", func() bool {
			a := l.announcers(vip)
			return len(a) == 1 && a[0] == n.name
		})
		for range 20 {
			if node, _, err := l.ask(vip, "", time.Second); err == nil && node != n.name {
				t.Errorf("%s answers, and only %s has an endpoint", node, n.name)
			}
		}
	}

	// Source ranges.
	w.service("restricted", func(s *corev1.Service) { s.Spec.LoadBalancerSourceRanges = []string{"192.0.2.1/32"} })
	l.endpoints("restricted", l.nodes...)
	vip = addresses("restricted")[0]
	w.eventually("the client that may", func() bool { _, _, err := l.ask(vip, "192.0.2.1", time.Second); return err == nil })
	if node, _, err := l.ask(vip, "192.0.2.2", 2*time.Second); err == nil {
		t.Errorf("%s answers a client outside the source ranges", node)
	}

	l.failover(web[0])
	if !t.Failed() {
		var b strings.Builder
		if err := status.Print(t.Context(), apitest.Config(t, w.server, apiserver.Admin()), &b, ""); err != nil {
			t.Fatal(err)
		}
		t.Log("\n" + b.String())
	}
}

// failover takes the cable from the node that announces an address, under load,
// and prints how long no connection came through.
func (l *lan) failover(vip string) {
	t := l.t
	var owner *lanNode
	l.eventually("one node announces "+vip, func() bool {
		a := l.announcers(vip)
		for _, n := range l.nodes {
			if len(a) == 1 && n.name == a[0] {
				owner = n
			}
		}
		return owner != nil
	})
	// The Pods of the node die with it; the others serve on.
	var rest []*lanNode
	for _, n := range l.nodes {
		if n != owner {
			rest = append(rest, n)
		}
	}
	l.endpoints("web", rest...)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				_, _, _ = l.ask(vip, "", 200*time.Millisecond)
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		_, _, _ = l.ask(vip, "", 200*time.Millisecond)
	}
	eth0, err := owner.NL.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.NL.LinkSetDown(eth0); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	for {
		if _, _, err := l.ask(vip, "", 200*time.Millisecond); err == nil {
			break
		}
		if time.Since(start) > 30*time.Second {
			t.Fatalf("%s: no answer 30 s after %s died", vip, owner.name)
		}
	}
	took := time.Since(start)
	t.Logf("%s: answered again %s after %s died", vip, took, owner.name)
	if took > 3*time.Second {
		t.Errorf("recovery took %s, more than 3 s", took)
	}
	l.eventually("another node announces "+vip, func() bool {
		a := l.announcers(vip)
		return len(a) == 1 && a[0] != owner.name
	})
}
