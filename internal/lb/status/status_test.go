package status

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairway.dev/fairway/api/v1alpha1"
	"fairway.dev/fairway/internal/console"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func service(name, ip string, edit func(*corev1.Service)) corev1.Service {
	s := corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Finalizers: []string{v1alpha1.Finalizer},
			Annotations: map[string]string{v1alpha1.AnnotationAllocatedFrom: "p"}},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer},
	}
	if ip != "" {
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: ip}}
	}
	if edit != nil {
		edit(&s)
	}
	return s
}

func announcer(name string, renewed time.Duration, live []string, claims map[string]time.Duration) v1alpha1.Announcer {
	a := v1alpha1.Announcer{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: v1alpha1.AnnouncerStatus{
		Phase: "Ready", RenewTime: metav1.NewMicroTime(now.Add(-renewed)), Live: live, AddressCount: int64(len(claims)),
	}}
	for addr, age := range claims {
		a.Status.Addresses = append(a.Status.Addresses, v1alpha1.AnnouncedAddress{
			Address: addr, Links: []string{"eth0"}, Since: metav1.NewMicroTime(now.Add(-age)), Reason: "elected",
		})
	}
	return a
}

func TestReport(t *testing.T) {
	pools := []v1alpha1.IPPool{
		{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: v1alpha1.IPPoolSpec{Addresses: []string{"192.0.2.0/24"}},
			Status: v1alpha1.IPPoolStatus{IPv4: v1alpha1.Usage{Total: 256, Used: 4}, Services: 4,
				Conditions: []metav1.Condition{{Type: "Ready", Status: "True", Reason: "Ready"}}}},
		{ObjectMeta: metav1.ObjectMeta{Name: "routed"}, Spec: v1alpha1.IPPoolSpec{Addresses: []string{"198.51.100.0/24"}, Announce: v1alpha1.AnnounceSpec{Mode: "None"}}},
	}
	announcers := []v1alpha1.Announcer{
		// node-1 died ten seconds ago, and still says what it announced.
		announcer("node-1", 20*time.Second, []string{"node-1", "node-2"}, map[string]time.Duration{"192.0.2.1": time.Hour}),
		announcer("node-2", 5*time.Second, []string{"node-2", "node-4"}, map[string]time.Duration{"192.0.2.1": 8 * time.Second, "192.0.2.2": time.Hour}),
		announcer("node-3", time.Hour, []string{"node-3"}, map[string]time.Duration{"192.0.2.2": time.Second}),
		announcer("node-4", time.Second, []string{"node-2", "node-4"}, map[string]time.Duration{"192.0.2.2": 2 * time.Hour}),
	}
	services := []corev1.Service{
		service("a", "192.0.2.1", nil),
		service("b", "192.0.2.2", nil),
		service("shared", "192.0.2.2", nil),
		service("local", "192.0.2.3", func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = "Local" }),
		service("routed", "198.51.100.1", func(s *corev1.Service) { s.Annotations[v1alpha1.AnnotationAllocatedFrom] = "routed" }),
		service("waits", "", func(s *corev1.Service) {
			s.Finalizers = nil
			s.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionAddress, Status: "False", Reason: "PoolExhausted", Message: "all in use", LastTransitionTime: metav1.NewTime(now.Add(-time.Minute))}}
		}),
		service("cluster-ip", "", func(s *corev1.Service) { s.Spec.Type = "ClusterIP" }),
		service("foreign", "203.0.113.1", func(s *corev1.Service) { s.Finalizers = nil }),
	}
	r := build(pools, announcers, services, now)
	var b strings.Builder
	r.Table(console.NewWriter(&b, false), now)
	t.Log("\n" + b.String())
	want := []struct{ addr, services, node, also, via, why string }{
		{"192.0.2.1", "default/a", "node-2", "", "arp", "elected"},
		{"192.0.2.2", "default/b,default/shared", "node-2", "node-4", "arp", "elected"},
		{"192.0.2.3", "default/local", "", "", "arp", "Local"},
		{"198.51.100.1", "default/routed", "", "", "none", "somebody else"},
	}
	if len(r.Addresses) != len(want) {
		t.Fatalf("%d addresses, want %d", len(r.Addresses), len(want))
	}
	for i, w := range want {
		a := r.Addresses[i]
		if a.Address != w.addr || strings.Join(a.Services, ",") != w.services || a.Node != w.node ||
			strings.Join(a.Also, ",") != w.also || a.Via != w.via || !strings.Contains(a.Why, w.why) {
			t.Errorf("got %+v, want %+v", a, w)
		}
	}
	if len(r.Pending) != 1 || r.Pending[0].Service != "default/waits" {
		t.Errorf("pending: %+v", r.Pending)
	}
	phases := ""
	for _, n := range r.Nodes {
		phases += n.Phase + " "
	}
	if phases != "Ready Ready Silent Ready " {
		t.Errorf("phases: %s", phases)
	}
	for _, s := range []string{"4 of 256", "all in use", "elected; also announced by node-4"} {
		if !strings.Contains(b.String(), s) {
			t.Errorf("the table lacks %q", s)
		}
	}
	j, err := json.Marshal(build(nil, nil, nil, now))
	if err != nil || strings.Contains(string(j), "null") {
		t.Errorf("empty report: %s %v", j, err)
	}
}
