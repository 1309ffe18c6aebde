// Package dns_test tests the DNS against a real API server. It is apart from the
// other tests because it links all of that server.
package dns_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	miekg "github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"fairway.dev/fairway/internal/apiserver"
	"fairway.dev/fairway/internal/dns"
	"fairway.dev/fairway/internal/dns/zone"
	"fairway.dev/fairway/internal/testenv"
	"fairway.dev/fairway/internal/testenv/apitest"
)

const patience = time.Minute

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("did not come true: %s", what)
}

// run runs a DNS until the test ends or the returned function is called.
func run(t *testing.T, o dns.Options) (*dns.DNS, func()) {
	t.Helper()
	d, err := dns.New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	var once sync.Once
	stop := func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("run DNS: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	eventually(t, "the DNS is ready", func() bool { return d.Ready() == nil })
	return d, stop
}

// lookup asks for addresses and returns them sorted, or the response code.
func lookup(t *testing.T, c *miekg.Client, server, name string, typ uint16) []string {
	t.Helper()
	m := new(miekg.Msg)
	m.SetQuestion(name, typ)
	r, _, err := c.Exchange(m, server)
	if err != nil {
		return []string{err.Error()}
	}
	if r.Rcode != miekg.RcodeSuccess {
		return []string{miekg.RcodeToString[r.Rcode]}
	}
	var out []string
	for _, rr := range r.Answer {
		fields := strings.Fields(rr.String())
		out = append(out, fields[len(fields)-1])
	}
	slices.Sort(out)
	return out
}

func TestFollowsTheAPI(t *testing.T) {
	s := apitest.Start(t)
	admin := apitest.Client(t, s, apiserver.Admin())
	ctx := context.Background()
	d, _ := run(t, dns.Options{Client: apitest.Client(t, s, apiserver.DNS()), Pods: zone.PodsVerified, NoForward: true,
		Addrs: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}, Logger: apitest.Logger(t)})
	server, c := d.Addr().String(), &miekg.Client{Timeout: 10 * time.Second}

	web := httptest.NewServer(d.Handler())
	defer web.Close()
	for path, want := range map[string]int{"/health": 200, "/ready": 200, "/metrics": 200, "/other": 404} {
		r, err := http.Get(web.URL + path)
		if err != nil || r.StatusCode != want {
			t.Errorf("%s: %v, %v; want %d", path, r.StatusCode, err, want)
		}
		r.Body.Close()
	}

	// A Service of the API's own making.
	svc, err := admin.CoreV1().Services("default").Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80}}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new Service has its name", func() bool {
		return slices.Equal(lookup(t, c, server, "web.default.svc.cluster.local.", miekg.TypeA), []string{svc.Spec.ClusterIP})
	})
	if err := admin.CoreV1().Services("default").Delete(ctx, "web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the name is gone with its Service", func() bool {
		return slices.Equal(lookup(t, c, server, "web.default.svc.cluster.local.", miekg.TypeA), []string{"NXDOMAIN"})
	})

	// Endpoints that come are in the answers within 50 ms of their watch event.
	if _, err := admin.CoreV1().Services("default").Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "db"},
		Spec: corev1.ServiceSpec{ClusterIP: "None", Ports: []corev1.ServicePort{{Name: "db", Port: 5432}}}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	es, err := admin.DiscoveryV1().EndpointSlices("default").Create(ctx, &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4,
		ObjectMeta: metav1.ObjectMeta{Name: "db-a", Labels: map[string]string{discoveryv1.LabelServiceName: "db"}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w, err := admin.DiscoveryV1().EndpointSlices("default").Watch(ctx, metav1.ListOptions{ResourceVersion: es.ResourceVersion})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	var delays []time.Duration
	for i := range 20 {
		addr := fmt.Sprintf("10.244.0.%d", i+1)
		es.Endpoints = []discoveryv1.Endpoint{{Addresses: []string{addr}}}
		if es, err = admin.DiscoveryV1().EndpointSlices("default").Update(ctx, es, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		select {
		case <-w.ResultChan():
		case <-time.After(patience):
			t.Fatal("no watch event")
		}
		event := time.Now()
		eventually(t, addr+" is told", func() bool {
			return slices.Equal(lookup(t, c, server, "db.default.svc.cluster.local.", miekg.TypeA), []string{addr})
		})
		delays = append(delays, time.Since(event))
	}
	slices.Sort(delays)
	t.Logf("from watch event to answer: median %v, worst %v", delays[len(delays)/2], delays[len(delays)-1])
	if m := delays[len(delays)/2]; m > 50*time.Millisecond {
		t.Errorf("median from watch event to answer %v, want at most 50ms", m)
	}

	// A Pod's own name.
	if _, err := admin.CoreV1().ServiceAccounts("default").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{}); err != nil {
		t.Log(err) // a controller may have made it
	}
	pod, err := admin.CoreV1().Pods("default").Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "host"}}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pod.Status = corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.244.1.7", PodIPs: []corev1.PodIP{{IP: "10.244.1.7"}}}
	if _, err := admin.CoreV1().Pods("default").UpdateStatus(ctx, pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the Pod has its name", func() bool {
		return slices.Equal(lookup(t, c, server, "10-244-1-7.default.pod.cluster.local.", miekg.TypeA), []string{"10.244.1.7"})
	})
}

// The API may go away; the names stay.
func TestOutlivesTheAPI(t *testing.T) {
	s := apitest.Start(t)
	svc, err := apitest.Client(t, s, apiserver.Admin()).CoreV1().Services("default").Create(context.Background(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var conns []net.Conn
	cut := false
	config := apitest.Config(t, s, apiserver.DNS())
	config.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		if cut {
			return nil, errors.New("the API is away")
		}
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		if err == nil {
			conns = append(conns, c)
		}
		return c, err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	d, _ := run(t, dns.Options{Client: client, NoForward: true, Addrs: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}})
	mu.Lock()
	cut = true
	for _, c := range conns {
		c.Close()
	}
	mu.Unlock()
	for range 20 {
		got := lookup(t, &miekg.Client{Timeout: 10 * time.Second}, d.Addr().String(), "web.default.svc.cluster.local.", miekg.TypeA)
		if !slices.Equal(got, []string{svc.Spec.ClusterIP}) {
			t.Fatalf("without the API: %v", got)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err := d.Ready(); err != nil {
		t.Errorf("not ready without the API: %v", err)
	}
}

// Each node's server is an endpoint of the Service while it runs.
func TestNodes(t *testing.T) {
	testenv.RequireRoot(t)
	s := apitest.Start(t)
	ctx := context.Background()
	admin := apitest.Client(t, s, apiserver.Admin())
	ips := dns.ServiceIPs([]netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")})
	for range 2 { // the second time finds it there
		if err := dns.EnsureService(ctx, admin, ips); err != nil {
			t.Fatal(err)
		}
	}
	svc, err := admin.CoreV1().Services("kube-system").Get(ctx, "kube-dns", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if svc.Spec.ClusterIP != "10.96.0.10" || len(svc.Spec.Selector) > 0 || len(svc.Spec.Ports) != 2 {
		t.Errorf("Service %+v", svc.Spec)
	}
	d, _ := run(t, dns.Options{Client: apitest.Client(t, s, apiserver.DNS()), Publisher: apitest.Client(t, s, apiserver.Endpoints()),
		NoForward: true, ServiceIPs: ips, Logger: apitest.Logger(t)})
	// A node where another program has port 53 has its server elsewhere.
	busy := testenv.NewHost(t, "busy")
	busy.AddAddr(t, "lo", "172.30.0.12/32")
	busy.ListenPacket(t, "udp", "172.30.0.12:53")
	busyCtx, busyOff := context.WithCancel(ctx)
	busyDone := make(chan error, 1)
	go func() {
		busyDone <- d.RunNode(busyCtx, dns.Node{Name: "busy", NetNS: busy.NS, Addrs: []netip.Addr{netip.MustParseAddr("172.30.0.12")}})
	}()
	eventually(t, "the busy node's endpoint is published", func() bool {
		l := slicesOf(t, admin)
		return len(l) == 1 && *l[0].Ports[0].Port == 10053
	})
	busyOff()
	if err := <-busyDone; err != nil {
		t.Error(err)
	}

	host := testenv.NewHost(t, "node")
	host.AddAddr(t, "lo", "172.30.0.11/32")
	host.AddAddr(t, "lo", "fd00:172:30::11/128")
	nodeCtx, off := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		done <- d.RunNode(nodeCtx, dns.Node{Name: "node-1", Zone: "a", NetNS: host.NS,
			Addrs: []netip.Addr{netip.MustParseAddr("172.30.0.11"), netip.MustParseAddr("fd00:172:30::11")}})
	}()
	defer func() { off(); <-done }()
	list := func() []discoveryv1.EndpointSlice { return slicesOf(t, admin) }
	eventually(t, "the node's endpoints are published", func() bool { return len(list()) == 2 })
	for _, es := range list() {
		e := es.Endpoints[0]
		if len(es.Endpoints) != 1 || *e.NodeName != "node-1" || *e.Zone != "a" || !*e.Conditions.Ready || len(es.Ports) != 2 || *es.Ports[0].Port != 53 ||
			e.Hints == nil || len(e.Hints.ForNodes) != 1 || e.Hints.ForNodes[0].Name != "node-1" || len(es.OwnerReferences) != 1 {
			t.Errorf("slice %s: %+v", es.Name, es)
		}
	}
	conn, err := host.Dial("udp", "172.30.0.11:53", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	dc := &miekg.Conn{Conn: conn}
	m := new(miekg.Msg)
	m.SetQuestion("kube-dns.kube-system.svc.cluster.local.", miekg.TypeA)
	r, _, err := (&miekg.Client{Timeout: 10 * time.Second}).ExchangeWithConn(m, dc)
	if err != nil || len(r.Answer) != 1 {
		t.Errorf("on the node: %v, %v", r, err)
	}
	off()
	if err := <-done; err != nil {
		t.Error(err)
	}
	done <- nil
	if n := len(list()); n != 0 {
		t.Errorf("after the node is off: %d slices, want none", n)
	}
}

func slicesOf(t *testing.T, client kubernetes.Interface) []discoveryv1.EndpointSlice {
	t.Helper()
	l, err := client.DiscoveryV1().EndpointSlices("kube-system").List(context.Background(),
		metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=kube-dns"})
	if err != nil {
		t.Fatal(err)
	}
	return l.Items
}
