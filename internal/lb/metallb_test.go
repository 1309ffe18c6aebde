package lb_test

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairway.dev/fairway/api/v1alpha1"
	"fairway.dev/fairway/internal/apiserver"
	"fairway.dev/fairway/internal/lb"
	"fairway.dev/fairway/internal/lb/ipam"
	"fairway.dev/fairway/internal/testenv/apitest"
)

// came makes a Service as MetalLB left it: its annotations, and an address in
// the status.
func (w *world) came(name, address string, edits ...func(*corev1.Service)) {
	w.t.Helper()
	w.service(name, append([]func(*corev1.Service){annotate("metallb.io/ip-allocated-from-pool", "production")}, edits...)...)
	svc := w.get(name)
	svc.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: address}}
	if _, err := w.client.CoreV1().Services("default").UpdateStatus(w.t.Context(), svc, metav1.UpdateOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

func onPort(n int32) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.Ports[0].Port = n }
}

// testMetalLB takes MetalLB's place under running Services: their addresses
// stay in their statuses all the time, whether pools are there before the
// controller or after it.
func testMetalLB(t *testing.T, w *world) {
	class := "metallb.io/metallb"
	was := map[string]string{
		"plain": "192.0.2.15", "fixed": "192.0.2.20", "old": "192.0.2.21", "pool": "198.51.100.9",
		"shared-a": "192.0.2.30", "shared-b": "192.0.2.30", "class": "192.0.2.12",
	}
	w.came("plain", was["plain"])
	w.came("fixed", was["fixed"], annotate("metallb.io/loadBalancerIPs", "192.0.2.20"))
	w.came("old", was["old"], annotate("metallb.universe.tf/loadBalancerIPs", "192.0.2.21"))
	w.came("pool", was["pool"], annotate("metallb.universe.tf/address-pool", "production"))
	w.came("shared-a", was["shared-a"], annotate("metallb.io/allow-shared-ip", "k"))
	w.came("shared-b", was["shared-b"], annotate("metallb.universe.tf/allow-shared-ip", "k"), onPort(81))
	w.came("class", was["class"], func(s *corev1.Service) { s.Spec.LoadBalancerClass = &class })
	stay := func() {
		t.Helper()
		for name, address := range was {
			if in := w.get(name).Status.LoadBalancer.Ingress; len(in) != 1 || in[0].IP != address {
				t.Fatalf("%s had %s, and has %v", name, address, in)
			}
		}
	}
	stop := w.controller(func(o *lb.Options) { o.Classes = []string{class} })
	// No pool: they wait, and keep what works.
	w.service("new")
	w.has("new", "", ipam.ReasonNoPool)
	message := func(name string) string {
		if c := meta.FindStatusCondition(w.get(name).Status.Conditions, v1alpha1.ConditionAddress); c != nil {
			return c.Message
		}
		return ""
	}
	for name := range was {
		w.eventually(name+" has been looked at", func() bool { return message(name) != "" })
	}
	stay()
	if m := message("pool"); !strings.Contains(m, "metallb.universe.tf/address-pool") || !strings.Contains(m, "another load balancer's") {
		t.Errorf("message %q", m)
	}
	// The pools come, one by one, and one who has waited gets what nobody has.
	w.pool("lan", ranges("192.0.2.12", "192.0.2.15-192.0.2.30"))
	for _, name := range []string{"plain", "fixed", "old", "shared-a", "shared-b", "class"} {
		w.has(name, was[name], "Allocated")
	}
	w.has("new", "192.0.2.16", "Allocated")
	w.pool("production", v1alpha1.IPPoolSpec{Addresses: []string{"198.51.100.0/28"}, AutoAssign: new(bool)})
	w.has("pool", was["pool"], "Allocated")
	stay()
	stop()
	// A controller that starts with the pool there does the same.
	w.pool("more", v1alpha1.IPPoolSpec{Addresses: []string{"203.0.113.0/29"}, Priority: 1})
	was["later"] = "203.0.113.5"
	w.service("newer")
	w.came("later", was["later"])
	stop = w.controller(func(o *lb.Options) { o.Classes = []string{class} })
	w.has("later", was["later"], "Allocated")
	w.has("newer", "203.0.113.0", "Allocated")
	stay()

	// Annotations ask as ours do; ours go before them.
	w.service("ask", annotate("metallb.io/loadBalancerIPs", "192.0.2.17"))
	w.has("ask", "192.0.2.17", "Allocated")
	w.service("both", annotate("metallb.io/loadBalancerIPs", "192.0.2.18"), annotate(v1alpha1.AnnotationAddresses, "192.0.2.19"))
	w.has("both", "192.0.2.19", "Allocated")
	w.service("share", annotate("metallb.io/allow-shared-ip", "k"), onPort(82))
	w.has("share", was["shared-a"], "Allocated")
	w.service("clash", annotate("metallb.io/allow-shared-ip", "k"), annotate("metallb.io/loadBalancerIPs", was["shared-a"]), onPort(82))
	w.has("clash", "", ipam.ReasonPortClash)
	if m := message("clash"); !strings.Contains(m, "metallb.io/loadBalancerIPs, metallb.io/allow-shared-ip") {
		t.Errorf("message %q", m)
	}
	w.service("bad", annotate("metallb.io/loadBalancerIPs", "production"))
	w.has("bad", "", "InvalidRequest")
	if m := message("bad"); !strings.Contains(m, "metallb.io/loadBalancerIPs") {
		t.Errorf("message %q", m)
	}

	// And back: Services and pools go on without this load balancer.
	admin := apitest.Config(t, w.server, apiserver.Admin())
	if _, err := lb.Release(t.Context(), admin, "kube-system"); err == nil || !strings.Contains(err.Error(), "leads") {
		t.Errorf("let go under a controller that leads: %v", err)
	}
	stop()
	done, err := lb.Release(t.Context(), admin, "kube-system")
	if err != nil || done.Services < len(was) || done.Pools != 3 {
		t.Errorf("let go of %+v, %v", done, err)
	}
	stay()
	for name := range was {
		svc := w.get(name)
		if len(svc.Finalizers) != 0 || svc.Annotations[v1alpha1.AnnotationAllocatedFrom] != "" || message(name) != "" {
			t.Errorf("%s is still held: %v %v %v", name, svc.Finalizers, svc.Annotations, svc.Status.Conditions)
		}
	}
	if err := w.fairway.IPPools().Delete(t.Context(), "lan", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.fairway.IPPools().Get(t.Context(), "lan", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("a pool that was let go cannot be deleted: %v", err)
	}
	if done, err := lb.Release(t.Context(), admin, "kube-system"); err != nil || done != (lb.Released{}) {
		t.Errorf("again: %+v, %v", done, err)
	}
}
