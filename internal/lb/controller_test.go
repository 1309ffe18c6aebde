package lb_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"fairway.dev/fairway/api/v1alpha1"
	"fairway.dev/fairway/internal/apiserver"
	"fairway.dev/fairway/internal/lb"
	"fairway.dev/fairway/internal/lb/daemon"
	"fairway.dev/fairway/internal/lb/ipam"
	"fairway.dev/fairway/internal/testenv/apitest"
)

// limit is how long any one thing may take on a busy machine.
const limit = time.Minute

// world is an API server with the custom resources in it.
type world struct {
	t       *testing.T
	server  *apiserver.Server
	client  kubernetes.Interface
	fairway *v1alpha1.Client
	logger  *slog.Logger
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, server: apitest.Start(t), logger: apitest.Logger(t)}
	config := apitest.Config(t, w.server, apiserver.Admin())
	config.QPS = -1
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if err := v1alpha1.Install(ctx, config); err != nil {
		t.Fatal(err)
	}
	var err error
	if w.client, err = kubernetes.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	if w.fairway, err = v1alpha1.NewClient(config); err != nil {
		t.Fatal(err)
	}
	return w
}

// controller starts a controller and returns what stops it.
func (w *world) controller(edits ...func(*lb.Options)) (stop func()) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	o := lb.Options{
		Config: apitest.Config(w.t, w.server, apiserver.LB()), Classless: true,
		LeaseDuration: 3 * time.Second, Logger: w.logger,
	}
	for _, e := range edits {
		e(&o)
	}
	wg.Go(func() {
		if err := lb.RunController(ctx, o); err != nil {
			w.t.Errorf("controller: %v", err)
		}
	})
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	w.t.Cleanup(stop)
	return stop
}

func (w *world) pool(name string, spec v1alpha1.IPPoolSpec) {
	w.t.Helper()
	_, err := w.fairway.IPPools().Create(w.t.Context(), &v1alpha1.IPPool{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}, metav1.CreateOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) patchPool(name, patch string) {
	w.t.Helper()
	if _, err := w.fairway.IPPools().Patch(w.t.Context(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) service(name string, edits ...func(*corev1.Service)) {
	w.t.Helper()
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", Annotations: map[string]string{}},
		Spec: corev1.ServiceSpec{
			Type:                          corev1.ServiceTypeLoadBalancer,
			Ports:                         []corev1.ServicePort{{Name: "http", Port: 80}},
			AllocateLoadBalancerNodePorts: new(bool),
		},
	}
	for _, e := range edits {
		e(svc)
	}
	if _, err := w.client.CoreV1().Services("default").Create(w.t.Context(), svc, metav1.CreateOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) patch(name, patch string) {
	w.t.Helper()
	if _, err := w.client.CoreV1().Services("default").Patch(w.t.Context(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) get(name string) *corev1.Service {
	w.t.Helper()
	svc, err := w.client.CoreV1().Services("default").Get(w.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	return svc
}

func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("%s: not after %s", what, limit)
		}
	}
}

// has waits until a Service has these addresses and its condition this reason.
func (w *world) has(name, addresses, reason string) {
	w.t.Helper()
	var got string
	defer func() {
		if w.t.Failed() {
			w.t.Logf("%s has %s", name, got)
		}
	}()
	w.eventually(fmt.Sprintf("Service %s has [%s] %s", name, addresses, reason), func() bool {
		svc := w.get(name)
		var ips []string
		for _, in := range svc.Status.LoadBalancer.Ingress {
			if in.IPMode == nil || *in.IPMode != corev1.LoadBalancerIPModeVIP {
				w.t.Errorf("%s: ipMode %v", name, in.IPMode)
			}
			ips = append(ips, in.IP)
		}
		r := ""
		for _, c := range svc.Status.Conditions {
			if c.Type == v1alpha1.ConditionAddress {
				r = c.Reason
			}
		}
		got = strings.Join(ips, " ") + " " + r
		return strings.Join(ips, " ") == addresses && r == reason
	})
}

// shows waits until a monitor has these lines among its metrics.
func (w *world) shows(m *lb.Monitor, want ...string) {
	w.t.Helper()
	for _, line := range want {
		var got string
		for end := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
			answer := httptest.NewRecorder()
			daemon.Handler(false, m).ServeHTTP(answer, httptest.NewRequest("GET", "/metrics", nil))
			if got = answer.Body.String(); strings.Contains("\n"+got, "\n"+line+"\n") {
				break
			}
			if time.Now().After(end) {
				w.t.Fatalf("no metric %s:\n%s", line, got)
			}
		}
	}
}

func ranges(list ...string) v1alpha1.IPPoolSpec { return v1alpha1.IPPoolSpec{Addresses: list} }

func annotate(key, value string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Annotations[key] = value }
}

// TestAgainstAPI runs the controller against a real API server, one for all.
func TestAgainstAPI(t *testing.T) {
	w := newWorld(t)
	for _, tt := range []struct {
		name string
		run  func(*testing.T, *world)
	}{
		{"lives", testLives},
		{"definition refuses nonsense", testDefinition},
		{"node addresses", testNodeAddresses},
		{"in the place of MetalLB", testMetalLB},
		{"churn", testChurn},
		{"end to end", testEndToEnd},
		{"many", testMany},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sub := *w
			sub.t = t
			sub.clean()
			tt.run(t, &sub)
		})
	}
}

// clean deletes what an earlier test made.
func (w *world) clean() {
	w.t.Helper()
	stop := w.controller(func(o *lb.Options) { o.Classes = []string{"metallb.io/metallb"} })
	defer stop()
	ctx := w.t.Context()
	list, err := w.client.CoreV1().Services("default").List(ctx, metav1.ListOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, s := range list.Items {
		if s.Spec.Type == corev1.ServiceTypeLoadBalancer {
			if err := w.client.CoreV1().Services("default").Delete(ctx, s.Name, metav1.DeleteOptions{}); err != nil {
				w.t.Fatal(err)
			}
		}
	}
	pools, err := w.fairway.IPPools().List(ctx, metav1.ListOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, p := range pools.Items {
		if err := w.fairway.IPPools().Delete(ctx, p.Name, metav1.DeleteOptions{}); err != nil {
			w.t.Fatal(err)
		}
	}
	w.eventually("all is clean", func() bool {
		pools, err := w.fairway.IPPools().List(ctx, metav1.ListOptions{})
		return err == nil && len(pools.Items) == 0
	})
}

// testLives walks Services through their lives.
func testLives(t *testing.T, w *world) {
	monitor := lb.NewMonitor()
	if monitor.Ready() == nil || monitor.Live() != nil {
		t.Error("ready, or dead, before it has begun")
	}
	stop := w.controller(func(o *lb.Options) { o.Monitor = monitor })
	w.eventually("the controller is ready", func() bool { return monitor.Ready() == nil })

	// Nothing to give, then something.
	w.service("a")
	w.has("a", "", ipam.ReasonNoPool)
	w.shows(monitor, `fairway_lb_leader 1`, `fairway_lb_services_waiting{reason="NoPool"} 1`, `fairway_lb_services_waiting{reason="PoolExhausted"} 0`,
		`fairway_lb_statuses_written_total 1`, `fairway_lb_service_write_seconds_count 1`)
	w.eventually("event that says why", func() bool {
		list, err := w.client.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{})
		return err == nil && slices.ContainsFunc(list.Items, func(e corev1.Event) bool {
			return e.InvolvedObject.Name == "a" && e.Reason == ipam.ReasonNoPool && e.Type == corev1.EventTypeWarning
		})
	})
	w.pool("p", ranges("192.0.2.10-192.0.2.11"))
	w.has("a", "192.0.2.10", "Allocated")
	if f := w.get("a").Finalizers; !slices.Contains(f, v1alpha1.Finalizer) {
		t.Errorf("finalizers: %v", f)
	}

	// By address, by pool, by class.
	w.service("b", annotate(v1alpha1.AnnotationAddresses, "192.0.2.11"))
	w.has("b", "192.0.2.11", "Allocated")
	w.service("bad", annotate(v1alpha1.AnnotationAddresses, "192.0.2.11;192.0.2.12"))
	w.has("bad", "", "InvalidRequest")
	w.service("other", func(s *corev1.Service) {
		s.Spec.LoadBalancerClass = new(string)
		*s.Spec.LoadBalancerClass = "example.com/lb"
	})
	w.service("c")
	w.has("c", "", ipam.ReasonExhausted)
	w.service("d", annotate(v1alpha1.AnnotationPool, "q"))
	w.has("d", "", ipam.ReasonNoSuchPool)
	w.shows(monitor, `metallb_allocator_addresses_total{pool="p"} 2`, `metallb_allocator_addresses_in_use_total{pool="p"} 2`,
		`fairway_lb_services_waiting{reason="InvalidRequest"} 1`, `fairway_lb_services_waiting{reason="PoolExhausted"} 1`, `fairway_lb_services_waiting{reason="NoPool"} 0`)
	w.pool("q", ranges("198.51.100.0/30"))
	w.has("c", "198.51.100.0", "Allocated") // it has waited longer
	w.has("d", "198.51.100.1", "Allocated")

	// A restart changes nothing.
	stop()
	w.shows(monitor, `fairway_lb_leader 0`, `fairway_lb_terms_total 1`)
	stop = w.controller()
	w.service("e", func(s *corev1.Service) { s.Spec.LoadBalancerIP = "198.51.100.3" })
	w.has("e", "198.51.100.3", "Allocated")
	w.has("a", "192.0.2.10", "Allocated")
	w.has("c", "198.51.100.0", "Allocated")

	// Released when it stops being a LoadBalancer, and when it goes.
	w.service("f", annotate(v1alpha1.AnnotationAddresses, "192.0.2.10"))
	w.has("f", "", ipam.ReasonInUse)
	w.patch("a", `{"spec":{"type":"ClusterIP","allocateLoadBalancerNodePorts":null}}`)
	w.has("f", "192.0.2.10", "Allocated")
	w.has("a", "", "")
	if a := w.get("a"); len(a.Finalizers) != 0 || a.Annotations[v1alpha1.AnnotationAllocatedFrom] != "" {
		t.Errorf("left behind: %v %v", a.Finalizers, a.Annotations)
	}
	if err := w.client.CoreV1().Services("default").Delete(t.Context(), "f", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.eventually("Service f is gone", func() bool {
		_, err := w.client.CoreV1().Services("default").Get(t.Context(), "f", metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
	w.patch("a", `{"spec":{"type":"LoadBalancer"}}`)
	w.has("a", "192.0.2.10", "Allocated")

	// Edited pools: what is in use is kept and reported; a pool in use stays.
	w.patchPool("p", `{"spec":{"addresses":["192.0.2.11"]}}`)
	w.has("a", "192.0.2.10", "Kept")
	w.eventually("pool p reports it", func() bool {
		p, err := w.fairway.IPPools().Get(t.Context(), "p", metav1.GetOptions{})
		return err == nil && p.Status.Kept == 1 && p.Status.IPv4 == v1alpha1.Usage{Total: 1, Used: 1} && p.Status.Services == 2
	})
	if err := w.fairway.IPPools().Delete(t.Context(), "p", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.eventually("pool p is Terminating", func() bool {
		p, err := w.fairway.IPPools().Get(t.Context(), "p", metav1.GetOptions{})
		return err == nil && len(p.Status.Conditions) == 1 && p.Status.Conditions[0].Reason == "Terminating"
	})
	for _, name := range []string{"a", "b"} {
		if err := w.client.CoreV1().Services("default").Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	w.eventually("pool p is gone", func() bool {
		_, err := w.fairway.IPPools().Get(t.Context(), "p", metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
	if in := w.get("other").Status.LoadBalancer.Ingress; len(in) != 0 {
		t.Errorf("another class was served: %v", in)
	}

	// Namespace labels, once they fit.
	w.pool("ns", v1alpha1.IPPoolSpec{Addresses: []string{"203.0.113.7"}, NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"team": "x"}}})
	w.service("g", annotate(v1alpha1.AnnotationPool, "ns"))
	w.has("g", "", ipam.ReasonNotAllowed)
	if _, err := w.client.CoreV1().Namespaces().Patch(t.Context(), "default", types.MergePatchType, []byte(`{"metadata":{"labels":{"team":"x"}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	w.has("g", "203.0.113.7", "Allocated")

	// A second controller takes over where the first stops, and is ready before.
	standby := lb.NewMonitor()
	w.controller(func(o *lb.Options) { o.Monitor = standby })
	w.eventually("the second stands by", func() bool { return standby.Ready() == nil })
	w.shows(standby, `fairway_lb_leader 0`)
	stop()
	w.service("h")
	w.has("h", "198.51.100.2", "Allocated")
}

func testDefinition(t *testing.T, w *world) {
	for _, tt := range []struct {
		spec v1alpha1.IPPoolSpec
		ok   bool
	}{
		{ranges("192.0.2.0/24", "fd00::1-fd00::9", "203.0.113.1"), true},
		{v1alpha1.IPPoolSpec{Provider: v1alpha1.ProviderNodeAddress}, true},
		{v1alpha1.IPPoolSpec{Addresses: []string{"203.0.113.2"}, Announce: v1alpha1.AnnounceSpec{From: []v1alpha1.AnnounceFrom{
			{NodeSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"rack": "a"}}, Interfaces: []string{"eth0"}}, {},
		}}}, true},
		{ranges(), false},
		{ranges("192.0.2.0/33"), false},
		{ranges("192.0.2.1-fd00::1"), false},
		{ranges("hello"), false},
		{v1alpha1.IPPoolSpec{Provider: "Magic", Addresses: []string{"192.0.2.1"}}, false},
		{v1alpha1.IPPoolSpec{Provider: v1alpha1.ProviderNodeAddress, Addresses: []string{"192.0.2.1"}}, false},
		{v1alpha1.IPPoolSpec{Addresses: []string{"192.0.2.1"}, Announce: v1alpha1.AnnounceSpec{Mode: "BGP"}}, false},
	} {
		_, err := w.fairway.IPPools().Create(t.Context(), &v1alpha1.IPPool{ObjectMeta: metav1.ObjectMeta{GenerateName: "p-"}, Spec: tt.spec}, metav1.CreateOptions{})
		if (err == nil) != tt.ok {
			t.Errorf("%+v: %v", tt.spec, err)
		}
	}
}

// testNodeAddresses gives Services the address of a node where their ports are free.
func testNodeAddresses(t *testing.T, w *world) {
	node, err := w.client.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}, {Type: corev1.NodeHostName, Address: "n"}}
	if _, err := w.client.CoreV1().Nodes().UpdateStatus(t.Context(), node, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	taken := map[uint16]bool{22: true}
	w.controller(func(o *lb.Options) {
		o.PortBusy = func(a netip.Addr, p ipam.Port) bool {
			mu.Lock()
			defer mu.Unlock()
			return taken[p.Number]
		}
	})
	if err := lb.EnsureNodeAddressPool(t.Context(), w.fairway); err != nil {
		t.Fatal(err)
	}
	port := func(n int32) func(*corev1.Service) {
		return func(s *corev1.Service) { s.Spec.Ports[0].Port = n }
	}
	w.service("web", port(80))
	w.has("web", "192.0.2.1", "Allocated") // before another asks for its port
	w.service("tls", port(443))
	w.service("clash", port(80))
	w.service("ssh", port(22))
	w.has("tls", "192.0.2.1", "Allocated")
	w.has("clash", "", ipam.ReasonPortClash)
	w.has("ssh", "", ipam.ReasonPortClash)
	mu.Lock()
	delete(taken, 22)
	mu.Unlock()
	w.has("ssh", "192.0.2.1", "Allocated")
}

// testMany prints how long it takes until many Services have their address in
// their status: 500, or as many as FAIRWAY_LB_SERVICES says (bench/lb.sh).
func testMany(t *testing.T, w *world) {
	n := 500
	if v := os.Getenv("FAIRWAY_LB_SERVICES"); v != "" {
		var err error
		if n, err = strconv.Atoi(v); err != nil {
			t.Fatalf("FAIRWAY_LB_SERVICES: %v", err)
		}
	}
	start := time.Now()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := i; j < n; j += 8 {
				w.service(fmt.Sprintf("s-%d", j))
			}
		})
	}
	wg.Wait()
	t.Logf("%d Services created in %s", n, time.Since(start))
	w.pool("p", ranges("10.99.0.0/16"))
	start = time.Now()
	w.controller()
	var last int64
	for end := start.Add(2*time.Minute + time.Duration(n)*50*time.Millisecond); last < int64(n); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("only %d after %s", last, time.Since(start))
		}
		p, err := w.fairway.IPPools().Get(t.Context(), "p", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		last = p.Status.IPv4.Used
	}
	allocated := time.Since(start)
	seen := map[string]string{}
	w.eventually("all statuses are written", func() bool {
		clear(seen)
		list, err := w.client.CoreV1().Services("default").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, svc := range list.Items {
			for _, in := range svc.Status.LoadBalancer.Ingress {
				if seen[in.IP] != "" {
					t.Fatalf("%s used by %s and %s", in.IP, seen[in.IP], svc.Name)
				}
				seen[in.IP] = svc.Name
			}
		}
		return len(seen) == n
	})
	t.Logf("%d Services: pool shows all in use after %s, every status written after %s", n, allocated, time.Since(start))
}
