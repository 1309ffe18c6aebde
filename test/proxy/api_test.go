package proxy_test

import (
	"context"
	"errors"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"fairway.dev/fairway/internal/apiserver"
	"fairway.dev/fairway/internal/proxy"
	"fairway.dev/fairway/internal/proxy/nft"
	"fairway.dev/fairway/internal/proxy/source"
	"fairway.dev/fairway/internal/testenv"
	"fairway.dev/fairway/internal/testenv/apitest"
)

// TestRealAPI: against a real API server, with no more than kube-proxy's own
// identity and permissions, a Service works as soon as its objects are there.
func TestRealAPI(t *testing.T) {
	testenv.RequireRoot(t)
	api := apitest.Start(t)
	admin := apitest.Client(t, api, apiserver.Admin())
	host, servers := testenv.NewHost(t, "no"), testenv.NewHost(t, "se")
	host.Connect(t, "eth0", servers, "eth0")
	host.AddAddr(t, "eth0", "10.244.1.1/24")
	servers.AddAddr(t, "eth0", "10.244.1.2/24")
	host.AddRoute(t, "default4", "10.244.1.2") // routing comes before translation
	go echo(servers.Listen(t, "tcp4", "10.244.1.2:8080"))

	log := apitest.Logger(t)
	src, err := source.New(source.Config{REST: apitest.Config(t, api, apiserver.Proxy()), NodeName: "node-1", Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	programmer, err := nft.New(nft.Config{NetNS: host.NS, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	defer programmer.Close()
	p, err := proxy.New(proxy.Config{NodeName: "node-1", Source: src, Programmer: programmer, NetNS: host.NS, Logger: log,
		HealthzAddress: "0.0.0.0:10256", MetricsAddress: "127.0.0.1:10249", BindHardFail: true})
	if err != nil {
		t.Fatal(err)
	}
	watch := src.Subscribe("node-1")
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { src.Run(ctx) })
	wg.Go(func() {
		if err := p.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	defer wg.Wait()
	defer cancel()
	select {
	case <-p.Synced():
	case <-time.After(time.Minute):
		t.Fatal("not synced in a minute")
	}
	<-watch.Changed()
	if c := watch.Take(); len(c.ServiceCIDRs) == 0 {
		t.Error("the API has ServiceCIDRs, but the proxy may not or cannot read them")
	}

	svc := create(t, ctx, admin)
	address := svc.Spec.ClusterIP + ":80"
	until(t, "the Service answers", func() bool {
		conn, err := host.Dial("tcp4", address, time.Second)
		if err != nil {
			return false
		}
		defer conn.Close()
		return exchange(conn) == nil
	})
	// Another proxy is named for it.
	svc.Labels = map[string]string{"service.kubernetes.io/service-proxy-name": "other"}
	if _, err := admin.CoreV1().Services("default").Update(ctx, svc, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	until(t, "the Service is no longer ours", func() bool { return !answers(host, address) })
	// And back.
	svc, err = admin.CoreV1().Services("default").Get(ctx, "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	svc.Labels = nil
	if _, err := admin.CoreV1().Services("default").Update(ctx, svc, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	until(t, "the Service is ours again", func() bool { return answers(host, address) })
	// Without endpoints it refuses.
	if err := admin.DiscoveryV1().EndpointSlices("default").Delete(ctx, "web-x", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	until(t, "refused without endpoints", func() bool {
		_, err := host.Dial("tcp4", address, time.Second)
		return errors.Is(err, syscall.ECONNREFUSED)
	})
}

func answers(h *testenv.Host, address string) bool {
	conn, err := h.Dial("tcp4", address, 500*time.Millisecond)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

func create(t *testing.T, ctx context.Context, admin kubernetes.Interface) *corev1.Service {
	t.Helper()
	svc, err := admin.CoreV1().Services("default").Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	port, name := int32(8080), ""
	_, err = admin.DiscoveryV1().EndpointSlices("default").Create(ctx, &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "web-x", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
		Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.244.1.2"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return svc
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}
