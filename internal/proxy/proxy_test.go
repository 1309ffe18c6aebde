package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"fairway.dev/fairway/bench/proxy/fakeapi"
	"fairway.dev/fairway/internal/proxy/source"
	"fairway.dev/fairway/internal/proxy/state"
)

// fakeKernel is a Programmer that keeps what it is told, and fails on demand.
type fakeKernel struct {
	mu       sync.Mutex
	facts    state.NodeFacts
	table    map[state.Key]*state.Frontend
	calls    []string
	fail     int           // so many calls fail
	hold     chan struct{} // Apply waits for it
	drift    chan struct{}
	replaced bool
}

func newFakeKernel() *fakeKernel {
	return &fakeKernel{table: map[state.Key]*state.Frontend{}, drift: make(chan struct{}, 1)}
}

func (k *fakeKernel) call(name string) error {
	k.calls = append(k.calls, name)
	if k.fail > 0 {
		k.fail--
		return errors.New("the test says no")
	}
	return nil
}

func (k *fakeKernel) Configure(_ context.Context, f state.NodeFacts) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.facts = f
	return k.call("configure")
}

func (k *fakeKernel) Replace(_ context.Context, all iter.Seq[*state.Frontend]) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.call("replace"); err != nil {
		return err
	}
	clear(k.table)
	for f := range all {
		k.table[f.Key] = f
	}
	k.replaced = true
	return nil
}

func (k *fakeKernel) Apply(_ context.Context, d state.Diff) error {
	k.mu.Lock()
	hold := k.hold
	k.mu.Unlock()
	if hold != nil {
		<-hold
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.replaced {
		return errors.New("Apply without a Replace before")
	}
	if err := k.call(fmt.Sprintf("apply +%d -%d", len(d.Set), len(d.Remove))); err != nil {
		k.replaced = false
		return err
	}
	for _, f := range d.Set {
		k.table[f.Key] = f
	}
	for _, key := range d.Remove {
		delete(k.table, key)
	}
	return nil
}

func (k *fakeKernel) Drift() <-chan struct{} { return k.drift }
func (k *fakeKernel) Close() error           { return nil }

func (k *fakeKernel) has(key state.Key, backends int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	f := k.table[key]
	return f != nil && len(f.Backends) == backends
}

func (k *fakeKernel) takeCalls() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := strings.Join(k.calls, ", ")
	k.calls = nil
	return s
}

// bed is a proxy on a fake API and a fake kernel.
type bed struct {
	t       *testing.T
	api     *fakeapi.Server
	kernel  *fakeKernel
	proxy   *Proxy
	healthz string
	metrics string
	stop    func()
}

// freePort finds a port below those that the kernel gives out by itself, so that
// nobody takes it by chance before it is used.
func freePort(t *testing.T) string {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(10000)))
		if err == nil {
			defer l.Close()
			return l.Addr().String()
		}
	}
	t.Fatal("no free port")
	return ""
}

func newBed(t *testing.T, change func(*Config, *fakeKernel, *fakeapi.Server)) *bed {
	t.Helper()
	b := &bed{t: t, api: fakeapi.New(), kernel: newFakeKernel(), healthz: freePort(t), metrics: freePort(t)}
	b.api.Set(fakeapi.Nodes, &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "node-1", Labels: map[string]string{"topology.kubernetes.io/zone": "a"}},
		Spec:       corev1.NodeSpec{PodCIDRs: []string{"10.244.1.0/24"}},
		Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}}},
	})
	b.service(1, nil)
	b.endpoints(1, 1)
	srv := httptest.NewServer(b.api)
	cfg := Config{NodeName: "node-1", Programmer: b.kernel, Logger: slog.New(slog.DiscardHandler),
		DetectLocal: DetectLocal{Mode: DetectNodeCIDR}, NodePortAddresses: []string{"primary"},
		HealthzAddress: b.healthz, MetricsAddress: b.metrics, BindHardFail: true}
	if change != nil {
		change(&cfg, b.kernel, b.api)
	}
	var err error
	if cfg.Source, err = source.New(source.Config{REST: &rest.Config{Host: srv.URL}, NodeName: "node-1"}); err != nil {
		t.Fatal(err)
	}
	if b.proxy, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { cfg.Source.Run(ctx) })
	wg.Go(func() {
		if err := b.proxy.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	b.stop = func() {
		cancel()
		wg.Wait()
	}
	t.Cleanup(func() {
		b.stop()
		srv.CloseClientConnections()
		srv.Close()
	})
	return b
}

func key(i int) state.Key {
	return state.Key{Addr: netip.AddrFrom4([4]byte{10, 96, 0, byte(i)}), Port: 80, Proto: state.TCP}
}

func (b *bed) service(i int, change func(*corev1.Service)) {
	ip := key(i).Addr.String()
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprintf("s%d", i)},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip}, Ports: []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}}}}
	if change != nil {
		change(s)
	}
	b.api.Set(fakeapi.Services, s)
}

func (b *bed) endpoints(i, n int) {
	port, name, tcp, node := int32(8080), "", corev1.ProtocolTCP, "node-1"
	sl := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprintf("s%d-x", i), Labels: map[string]string{discoveryv1.LabelServiceName: fmt.Sprintf("s%d", i)},
			Annotations: map[string]string{corev1.EndpointsLastChangeTriggerTime: time.Now().Format(time.RFC3339Nano)}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &port, Protocol: &tcp}},
	}
	for e := range n {
		sl.Endpoints = append(sl.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.244.%d.%d", i, e+1)}, NodeName: &node})
	}
	b.api.Set(fakeapi.EndpointSlices, sl)
}

func (b *bed) until(what string, ok func() bool) {
	b.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.t.Fatalf("never: %s; calls since: %s", what, b.kernel.takeCalls())
		}
	}
}

func (b *bed) get(address, path string) (int, string) {
	b.t.Helper()
	resp, err := http.Get("http://" + address + path)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestFirstSync(t *testing.T) {
	b := newBed(t, nil)
	<-b.proxy.Synced()
	if got := b.kernel.takeCalls(); got != "configure, replace" {
		t.Errorf("the first calls are %s; want configure, replace", got)
	}
	if !b.kernel.has(key(1), 1) {
		t.Error("the first table lacks the Service")
	}
	f := b.kernel.facts
	if len(f.PodNetwork.CIDRs) != 1 || f.PodNetwork.CIDRs[0].String() != "10.244.1.0/24" ||
		len(f.NodePortAddrs) != 1 || f.NodePortAddrs[0].String() != "192.0.2.1/32" {
		t.Errorf("facts %+v", f)
	}
	// A Node that gets another address is told anew.
	b.api.Set(fakeapi.Nodes, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1"},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.2"}}}})
	b.until("new facts", func() bool {
		b.kernel.mu.Lock()
		defer b.kernel.mu.Unlock()
		return len(b.kernel.facts.NodePortAddrs) == 1 && b.kernel.facts.NodePortAddrs[0].String() == "192.0.2.2/32"
	})
}

func TestChangesRideTogether(t *testing.T) {
	b := newBed(t, nil)
	<-b.proxy.Synced()
	b.kernel.takeCalls()
	hold := make(chan struct{})
	b.kernel.mu.Lock()
	b.kernel.hold = hold
	b.kernel.mu.Unlock()
	b.endpoints(1, 2) // is held up
	time.Sleep(20 * time.Millisecond)
	for i := 2; i < 50; i++ {
		b.service(i, nil)
		b.endpoints(i, 3)
	}
	// All of them have arrived at the source before the first one is let go.
	b.until("the source has them", func() bool { s, _ := b.proxy.cfg.Source.Counts(); return s == 49 })
	_, slices := b.proxy.cfg.Source.Counts()
	for ; slices < 49; _, slices = b.proxy.cfg.Source.Counts() {
		time.Sleep(time.Millisecond)
	}
	close(hold)
	b.until("all programmed", func() bool { return b.kernel.has(key(49), 3) && b.kernel.has(key(1), 2) })
	if n := strings.Count(b.kernel.takeCalls(), "apply"); n > 3 {
		t.Errorf("%d transactions; what arrives during one should ride in the next", n)
	}
}

func TestFailedSync(t *testing.T) {
	b := newBed(t, func(_ *Config, k *fakeKernel, _ *fakeapi.Server) { k.fail = 3 })
	<-b.proxy.Synced() // in spite of the failures
	b.kernel.mu.Lock()
	b.kernel.fail = 2 // Apply, and the first Replace after it
	b.kernel.calls = nil
	b.kernel.mu.Unlock()
	b.endpoints(1, 5)
	b.until("programmed all the same", func() bool { return b.kernel.has(key(1), 5) })
	if got := b.kernel.takeCalls(); got != "apply +1 -0, replace, replace" {
		t.Errorf("calls %s; want a Replace until it succeeds", got)
	}
	b.endpoints(1, 6)
	b.until("one more", func() bool { return b.kernel.has(key(1), 6) })
	if got := b.kernel.takeCalls(); got != "apply +1 -0" {
		t.Errorf("calls %s; want to be back to single changes", got)
	}
	if _, body := b.get(b.metrics, "/metrics"); !strings.Contains(body, `kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family="IPv4"} 5`) {
		t.Error("failures are not counted")
	}
}

func TestDrift(t *testing.T) {
	b := newBed(t, nil)
	<-b.proxy.Synced()
	b.kernel.takeCalls()
	for range 2 { // the second one comes too soon after, and has to wait its turn
		b.kernel.mu.Lock()
		clear(b.kernel.table)
		b.kernel.mu.Unlock()
		b.kernel.drift <- struct{}{}
		b.until("put back", func() bool { return b.kernel.has(key(1), 1) })
	}
	if got := b.kernel.takeCalls(); got != "replace, replace" {
		t.Errorf("calls %s", got)
	}
}

func TestHealthAndMetrics(t *testing.T) {
	check := freePort(t)
	_, port, _ := net.SplitHostPort(check)
	var checkPort int32
	fmt.Sscan(port, &checkPort)
	b := newBed(t, func(c *Config, _ *fakeKernel, _ *fakeapi.Server) { c.NodePortAddresses = []string{"localhost"} })
	<-b.proxy.Synced()
	code, body := b.get(b.healthz, "/healthz")
	if code != 200 || !strings.Contains(body, `"nodeEligible":true`) {
		t.Errorf("healthz %d %s", code, body)
	}
	if code, _ := b.get(b.healthz, "/livez"); code != 200 {
		t.Errorf("livez %d", code)
	}
	local := corev1.ServiceExternalTrafficPolicyLocal
	b.service(2, func(s *corev1.Service) {
		s.Spec.Type, s.Spec.ExternalTrafficPolicy, s.Spec.HealthCheckNodePort = corev1.ServiceTypeLoadBalancer, local, checkPort
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "198.51.100.1"}}
	})
	b.until("health check node port answers", func() bool {
		c, err := net.Dial("tcp4", check)
		if err != nil {
			return false
		}
		c.Close()
		return true
	})
	if code, body := b.get(check, "/"); code != 503 || !strings.Contains(body, `"localEndpoints": 0`) {
		t.Errorf("health check without endpoints: %d %s", code, body)
	}
	b.endpoints(2, 3)
	b.until("endpoints counted", func() bool { code, _ := b.get(check, "/"); return code == 200 })

	_, text := b.get(b.metrics, "/metrics")
	for _, want := range []string{
		`kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv4"}`,
		`kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family="IPv6"} 1`,
		`kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family="IPv4"}`,
		`kubeproxy_network_programming_duration_seconds_count{ip_family="IPv4"} 1`,
		`kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv4"}`,
		`kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family="IPv4"}`,
		`kubeproxy_sync_proxy_rules_endpoint_changes_total`,
		`kubeproxy_sync_proxy_rules_service_changes_pending 0`,
		`kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family="IPv4",traffic_policy="external"} 0`,
		`kubeproxy_proxy_healthz_total{code="200"}`,
		`kubeproxy_proxy_livez_total{code="200"}`,
		`fairway_proxy_services 2`,
		`fairway_proxy_first_sync_seconds`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("/metrics lacks %s", want)
		}
	}
	if code, body := b.get(b.metrics, "/proxyMode"); code != 200 || body != "nftables" {
		t.Errorf("/proxyMode %d %s", code, body)
	}
	// The autoscaler is about to take the node.
	b.api.Set(fakeapi.Nodes, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node-1"}, Spec: corev1.NodeSpec{Taints: []corev1.Taint{{Key: "ToBeDeletedByClusterAutoscaler"}}}})
	b.until("healthz fails", func() bool { code, _ := b.get(b.healthz, "/healthz"); return code == 503 })
	if code, _ := b.get(b.healthz, "/livez"); code != 200 {
		t.Errorf("livez of a node that leaves: %d", code)
	}
}

// TestLock: the second proxy programs nothing before the first one has ended.
func TestLock(t *testing.T) {
	name := fmt.Sprintf("test-%d", rand.Int64())
	first := newBed(t, func(c *Config, _ *fakeKernel, _ *fakeapi.Server) { c.Lock = name })
	<-first.proxy.Synced()
	second := newBed(t, func(c *Config, _ *fakeKernel, _ *fakeapi.Server) { c.Lock = name })
	select {
	case <-second.proxy.Synced():
		t.Fatal("both program at once")
	case <-time.After(200 * time.Millisecond):
	}
	if calls := second.kernel.takeCalls(); calls != "" {
		t.Errorf("calls of the one that waits: %s", calls)
	}
	first.stop()
	select {
	case <-second.proxy.Synced():
	case <-time.After(30 * time.Second):
		t.Fatal("the first has ended, and the second still waits")
	}
	third := newBed(t, func(c *Config, _ *fakeKernel, _ *fakeapi.Server) { c.Lock = name })
	third.stop() // ends while it waits
}

func TestUnhealthyWhileItFails(t *testing.T) {
	b := newBed(t, func(c *Config, k *fakeKernel, _ *fakeapi.Server) { c.HealthTimeout = 50 * time.Millisecond })
	<-b.proxy.Synced()
	b.kernel.mu.Lock()
	b.kernel.fail = 1 << 30
	b.kernel.mu.Unlock()
	b.endpoints(1, 2)
	b.until("livez fails", func() bool { code, _ := b.get(b.healthz, "/livez"); return code == 503 })
	b.kernel.mu.Lock()
	b.kernel.fail = 0
	b.kernel.mu.Unlock()
	b.until("livez is back", func() bool { code, _ := b.get(b.healthz, "/livez"); return code == 200 })
	if !b.kernel.has(key(1), 2) {
		t.Error("healthy, but the change is not programmed")
	}
}

func TestNodePortPrefixes(t *testing.T) {
	ips := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	for _, tc := range []struct {
		list string
		ips  []netip.Addr
		want string
	}{
		{"", ips, "0.0.0.0/0 ::/0"},
		{"all", ips, "0.0.0.0/0 ::/0"},
		{"primary", ips, "192.0.2.1/32 2001:db8::1/128"},
		{"primary", ips[:1], "192.0.2.1/32"},
		{"primary", nil, ""},
		{"localhost", ips, "127.0.0.0/8 ::1/128"},
		{"primary,localhost", ips, "192.0.2.1/32 2001:db8::1/128 127.0.0.0/8 ::1/128"},
		{"192.0.2.9/24", ips, "192.0.2.0/24 ::/0"},
		{"192.0.2.9/24,2001:db8::/32,192.0.2.0/24", ips, "192.0.2.0/24 2001:db8::/32"},
	} {
		var list []string
		if tc.list != "" {
			list = strings.Split(tc.list, ",")
		}
		got := strings.Trim(fmt.Sprint(nodePortPrefixes(list, tc.ips)), "[]")
		if got != tc.want {
			t.Errorf("%q: %s, want %s", tc.list, got, tc.want)
		}
	}
}

func TestNodeIPs(t *testing.T) {
	a := netip.MustParseAddr
	n := &source.Node{IPs: []netip.Addr{a("192.0.2.1"), a("2001:db8::1")}}
	for _, tc := range []struct {
		override []netip.Addr
		node     *source.Node
		want     string
	}{
		{nil, nil, "[]"},
		{nil, n, "[192.0.2.1 2001:db8::1]"},
		{[]netip.Addr{a("192.0.2.9")}, n, "[192.0.2.9 2001:db8::1]"},
		{[]netip.Addr{a("2001:db8::9")}, n, "[2001:db8::9 192.0.2.1]"},
		{[]netip.Addr{a("192.0.2.9")}, nil, "[192.0.2.9]"},
	} {
		c := Config{NodeIPs: tc.override}
		if got := fmt.Sprint(c.nodeIPs(tc.node)); got != tc.want {
			t.Errorf("%v over %v: %s, want %s", tc.override, tc.node, got, tc.want)
		}
	}
}

func TestConfigCheck(t *testing.T) {
	ok := Config{NodeName: "n", Source: &source.Source{}, Programmer: newFakeKernel()}
	for name, change := range map[string]func(*Config){
		"no name":         func(c *Config) { c.NodeName = "" },
		"no source":       func(c *Config) { c.Source = nil },
		"no programmer":   func(c *Config) { c.Programmer = nil },
		"unknown mode":    func(c *Config) { c.DetectLocal.Mode = "Guess" },
		"mode without if": func(c *Config) { c.DetectLocal.Mode = DetectBridgeInterface },
		"bad address":     func(c *Config) { c.NodePortAddresses = []string{"eth0"} },
	} {
		c := ok
		change(&c)
		if _, err := New(c); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if _, err := New(ok); err != nil {
		t.Error(err)
	}
}
