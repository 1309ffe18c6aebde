package service

import (
	"context"
	"net/http"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/utils/ptr"
)

type fakeSlices []*discovery.EndpointSlice

func (f fakeSlices) GetEndpointSlices(namespace, service string) ([]*discovery.EndpointSlice, error) {
	var out []*discovery.EndpointSlice
	for _, s := range f {
		if s.Labels[discovery.LabelServiceName] == service {
			out = append(out, s)
		}
	}
	return out, nil
}

type fakePods map[string]string // name: IP

func (f fakePods) Get(_ context.Context, name string, _ *metav1.GetOptions) (runtime.Object, error) {
	ip, ok := f[name]
	if !ok {
		return nil, apierrors.NewNotFound(core.Resource("pods"), name)
	}
	return &core.Pod{Status: core.PodStatus{PodIPs: []core.PodIP{{IP: ip}}}}, nil
}

// TestResourceLocation: services/proxy goes to ready endpoints that are Pods, and nowhere else.
func TestResourceLocation(t *testing.T) {
	c := newCluster(t)
	two := ports(corev1.ServicePort{Name: "p", Port: 80}, corev1.ServicePort{Name: "q", Port: 81})
	for _, name := range []string{"ok", "unready", "none", "stranger", "nowhere"} {
		c.mustCreate(svc(name, two))
	}
	slice := func(service, addr string, ready bool, ref *corev1.ObjectReference) *discovery.EndpointSlice {
		return &discovery.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Labels: map[string]string{discovery.LabelServiceName: service}},
			AddressType: discovery.AddressTypeIPv4,
			Ports:       []discovery.EndpointPort{{Name: ptr.To("p"), Port: ptr.To[int32](8080)}, {Name: ptr.To("q"), Port: ptr.To[int32](8081)}},
			Endpoints:   []discovery.Endpoint{{Addresses: []string{addr}, Conditions: discovery.EndpointConditions{Ready: ptr.To(ready)}, TargetRef: ref}},
		}
	}
	pod := func(namespace, name string) *corev1.ObjectReference {
		return &corev1.ObjectReference{Kind: "Pod", Namespace: namespace, Name: name}
	}
	c.rest.location = &locator{
		transport: http.DefaultTransport,
		pods:      fakePods{"pod": "10.244.0.5"},
		slices: fakeSlices{
			slice("ok", "10.244.0.5", true, pod("default", "pod")),
			slice("unready", "10.244.0.5", false, pod("default", "pod")),
			slice("stranger", "169.254.169.254", true, pod("default", "pod")), // the Pod has not that address
			slice("nowhere", "10.244.0.5", true, nil),
			slice("nowhere", "10.244.0.5", true, pod("other", "pod")),
			slice("nowhere", "10.244.0.5", true, pod("default", "gone")),
		},
	}
	for id, want := range map[string]string{
		"ok:p":       "//10.244.0.5:8080",
		"ok:q":       "//10.244.0.5:8081",
		"ok:80":      "//10.244.0.5:8080",
		"ok:81":      "//10.244.0.5:8081",
		"https:ok:p": "https://10.244.0.5:8080",
		"http:ok:81": "http://10.244.0.5:8081",
		"ok:82":      "!no service port 82 found for service \"ok\"",
		"ok:x":       "!no endpoints available",
		"ok":         "!no endpoints available", // neither port is called ""
		"unready:p":  "!no endpoints available",
		"none:p":     "!no endpoints available",
		"stranger:p": "!no endpoints available",
		"nowhere:p":  "!no endpoints available",
		"missing:80": "!not found",
		"missing:p":  "!no endpoints available",
		"a:b:c:d":    "!invalid service request",
		"ftp:ok:p":   "!invalid service request",
	} {
		u, _, err := c.rest.ResourceLocation(c.ctx, id)
		if msg, refused := strings.CutPrefix(want, "!"); refused {
			if err == nil || !strings.Contains(err.Error(), msg) {
				t.Errorf("%s: %v, %v, want an error with %q", id, u, err, msg)
			}
			continue
		}
		if err != nil || u.String() != want {
			t.Errorf("%s: %v, %v, want %s", id, u, err, want)
		}
	}
	if _, _, err := c.rest.ResourceLocation(withNamespace(c.ctx, ""), "ok:p"); !apierrors.IsBadRequest(err) {
		t.Errorf("without a namespace: %v", err)
	}
	c.rest.location.slices = nil
	if _, _, err := c.rest.ResourceLocation(c.ctx, "ok:p"); !apierrors.IsServiceUnavailable(err) {
		t.Errorf("without slices: %v", err)
	}
}
