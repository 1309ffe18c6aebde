package source

import (
	"net/netip"
	"reflect"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"fairway.dev/fairway/internal/proxy/state"
)

func ptr[T any](v T) *T { return &v }

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

type marshaler interface{ Marshal() ([]byte, error) }

func encode(t testing.TB, o marshaler) []byte {
	t.Helper()
	b, err := o.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func fullService() *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", ResourceVersion: "17", UID: "x",
			Labels: map[string]string{"app": "web"}, Annotations: map[string]string{"a": "b"},
			ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "m", FieldsV1: &metav1.FieldsV1{Raw: []byte("{}")}}}},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, Selector: map[string]string{"app": "web"},
			ClusterIP: "10.96.0.1", ClusterIPs: []string{"10.96.0.1", "fd00:96::1"},
			ExternalIPs: []string{"198.51.100.7", "2001:db8::7"},
			Ports: []corev1.ServicePort{
				{Name: "http", Port: 80, NodePort: 30080, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromString("web")},
				{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP, TargetPort: intstr.FromInt32(5353)},
				{Name: "sig", Port: 9, Protocol: corev1.ProtocolSCTP},
			},
			SessionAffinity:          corev1.ServiceAffinityClientIP,
			SessionAffinityConfig:    &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr[int32](77)}},
			LoadBalancerSourceRanges: []string{" 203.0.113.9/24 ", "2001:db8:1::1/48"},
			ExternalTrafficPolicy:    corev1.ServiceExternalTrafficPolicyLocal,
			InternalTrafficPolicy:    ptr(corev1.ServiceInternalTrafficPolicyLocal),
			HealthCheckNodePort:      31000,
			IPFamilies:               []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol},
			IPFamilyPolicy:           ptr(corev1.IPFamilyPolicyRequireDualStack),
			TrafficDistribution:      ptr("PreferClose"),
		},
		Status: corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{Ingress: []corev1.LoadBalancerIngress{
			{IP: "192.0.2.1"},
			{IP: "192.0.2.2", IPMode: ptr(corev1.LoadBalancerIPModeVIP), Ports: []corev1.PortStatus{{Port: 80}}},
			{IP: "192.0.2.3", IPMode: ptr(corev1.LoadBalancerIPModeProxy)},
			{Hostname: "lb.example"},
			{IP: "2001:db8::1"},
		}}},
	}
}

func wantService() *state.Service {
	return &state.Service{
		Name: state.Name{Namespace: "ns", Name: "web"},
		Ports: []state.ServicePort{
			{Name: "http", Port: 80, NodePort: 30080, Proto: state.TCP},
			{Name: "dns", Port: 53, Proto: state.UDP},
			{Name: "sig", Port: 9, Proto: state.SCTP},
		},
		ClusterIPs: addrs("10.96.0.1", "fd00:96::1"), ExternalIPs: addrs("198.51.100.7", "2001:db8::7"),
		LoadBalancerIPs: addrs("192.0.2.1", "192.0.2.2", "2001:db8::1"),
		SourceRanges:    []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8:1::/48")},
		Affinity:        77 * time.Second, ExternalLocal: true, InternalLocal: true, HealthCheckNodePort: 31000,
	}
}

func TestDecodeService(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(s *corev1.Service, want *state.Service) *state.Service // nil: not ours
	}{
		{"all", func(s *corev1.Service, want *state.Service) *state.Service { return want }},
		{"headless", func(s *corev1.Service, want *state.Service) *state.Service {
			s.Spec.ClusterIP, s.Spec.ClusterIPs = "None", []string{"None"}
			return nil
		}},
		{"no address yet", func(s *corev1.Service, want *state.Service) *state.Service {
			s.Spec.ClusterIP, s.Spec.ClusterIPs = "", nil
			return nil
		}},
		{"ExternalName", func(s *corev1.Service, want *state.Service) *state.Service {
			s.Spec.Type = corev1.ServiceTypeExternalName
			return nil
		}},
		{"another proxy's", func(s *corev1.Service, want *state.Service) *state.Service {
			s.Labels["service.kubernetes.io/service-proxy-name"] = ""
			return nil
		}},
		{"labelled headless", func(s *corev1.Service, want *state.Service) *state.Service {
			s.Labels["service.kubernetes.io/headless"] = ""
			return nil
		}},
		{"such an annotation means nothing", func(s *corev1.Service, want *state.Service) *state.Service {
			s.Annotations["service.kubernetes.io/headless"] = ""
			return want
		}},
		{"only clusterIP", func(s *corev1.Service, want *state.Service) *state.Service {
			s.Spec.ClusterIPs = nil
			want.ClusterIPs = want.ClusterIPs[:1]
			return want
		}},
		{"NodePort has no health check", func(s *corev1.Service, want *state.Service) *state.Service {
			s.Spec.Type = corev1.ServiceTypeNodePort
			want.HealthCheckNodePort = 0
			return want
		}},
		{"policy Local of a Service that nothing outside reaches", func(s *corev1.Service, want *state.Service) *state.Service {
			s.Spec.Type, s.Spec.ExternalIPs = corev1.ServiceTypeClusterIP, nil
			want.ExternalIPs, want.ExternalLocal, want.HealthCheckNodePort = nil, false, 0
			return want
		}},
		{"affinity without config", func(s *corev1.Service, want *state.Service) *state.Service {
			s.Spec.SessionAffinityConfig = nil
			want.Affinity = 3 * time.Hour
			return want
		}},
		{"no affinity", func(s *corev1.Service, want *state.Service) *state.Service {
			s.Spec.SessionAffinity = corev1.ServiceAffinityNone
			want.Affinity = 0
			return want
		}},
		{"leading zeros", func(s *corev1.Service, want *state.Service) *state.Service {
			s.Spec.ExternalIPs[0] = "198.051.100.007"
			return want
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in, want := fullService(), wantService()
			want = tc.change(in, want)
			m, got, err := newDecoder().service(encode(t, in))
			if err != nil {
				t.Fatal(err)
			}
			if m.namespace != "ns" || m.name != "web" || m.version != "17" {
				t.Errorf("metadata %+v", m)
			}
			if !reflect.DeepEqual(want, got) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

func fullSlice() *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web-abc", ResourceVersion: "18",
			Labels:      map[string]string{"kubernetes.io/service-name": "web", "endpointslice.kubernetes.io/managed-by": "x"},
			Annotations: map[string]string{"endpoints.kubernetes.io/last-change-trigger-time": "2026-11-23T10:00:00.5Z"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports: []discoveryv1.EndpointPort{
			{Name: ptr("http"), Port: ptr[int32](8080), Protocol: ptr(corev1.ProtocolTCP)},
			{Name: ptr(""), Port: ptr[int32](53), Protocol: ptr(corev1.ProtocolUDP), AppProtocol: ptr("dns")},
			{Port: ptr[int32](1)},
			{Name: ptr("all")},
		},
		Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"10.244.1.1", "10.244.1.2"}, Hostname: ptr("h"), NodeName: ptr("node-1"), Zone: ptr("a"),
				TargetRef: &corev1.ObjectReference{Kind: "Pod", Name: "web-1"}},
			{Addresses: []string{"10.244.1.3"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr(false), Serving: ptr(true), Terminating: ptr(true)},
				Hints: &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: "a"}, {Name: "b"}}, ForNodes: []discoveryv1.ForNode{{Name: "node-2"}}}},
			{Addresses: []string{"10.244.1.4"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr(false), Serving: ptr(false)}, Hints: &discoveryv1.EndpointHints{}},
			{Addresses: []string{"10.244.1.5"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr(true), Serving: ptr(true), Terminating: ptr(false)}},
			{Addresses: nil},
			{Addresses: []string{"fd00::1"}},
		},
	}
}

func TestDecodeSlice(t *testing.T) {
	want := &state.Slice{Namespace: "ns", Name: "web-abc", Service: "web",
		Ports: []state.SlicePort{{Name: "http", Port: 8080, Proto: state.TCP}, {Name: "", Port: 53, Proto: state.UDP}, {Name: "all", Proto: state.TCP}},
		Endpoints: []state.Endpoint{
			{Addr: netip.MustParseAddr("10.244.1.1"), Node: "node-1", Conditions: state.Ready | state.Serving},
			{Addr: netip.MustParseAddr("10.244.1.3"), Conditions: state.Serving | state.Terminating, Hints: &state.Hints{Zones: []string{"a", "b"}, Nodes: []string{"node-2"}}},
			{Addr: netip.MustParseAddr("10.244.1.4")},
			{Addr: netip.MustParseAddr("10.244.1.5"), Conditions: state.Ready | state.Serving},
		},
		Trigger: time.Date(2026, 11, 23, 10, 0, 0, 5e8, time.UTC),
	}
	d := newDecoder()
	for range 2 { // the second time with what is interned
		m, got, err := d.slice(encode(t, fullSlice()))
		if err != nil {
			t.Fatal(err)
		}
		if m.name != "web-abc" || m.version != "18" {
			t.Errorf("metadata %+v", m)
		}
		if !reflect.DeepEqual(want, got) {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	}
	for name, change := range map[string]func(*discoveryv1.EndpointSlice){
		"FQDN":     func(s *discoveryv1.EndpointSlice) { s.AddressType = discoveryv1.AddressTypeFQDN },
		"headless": func(s *discoveryv1.EndpointSlice) { s.Labels["service.kubernetes.io/headless"] = "" },
		"no owner": func(s *discoveryv1.EndpointSlice) { delete(s.Labels, "kubernetes.io/service-name") },
	} {
		in := fullSlice()
		change(in)
		if _, got, err := d.slice(encode(t, in)); got != nil || err != nil {
			t.Errorf("%s: %+v, %v; want none", name, got, err)
		}
	}
}

func TestDecodeNode(t *testing.T) {
	in := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "node-1", Labels: map[string]string{"topology.kubernetes.io/zone": "a"}},
		Spec:       corev1.NodeSpec{PodCIDR: "10.244.1.0/24", PodCIDRs: []string{"10.244.1.0/24", "fd00:244:1::/64"}, Taints: []corev1.Taint{{Key: "other"}}},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeHostName, Address: "node-1"}, {Type: corev1.NodeExternalIP, Address: "203.0.113.1"},
			{Type: corev1.NodeInternalIP, Address: "172.30.0.11"}, {Type: corev1.NodeInternalIP, Address: "172.31.0.11"},
			{Type: corev1.NodeExternalIP, Address: "2001:db8::11"},
		}},
	}
	want := &Node{Name: "node-1", Zone: "a", IPs: addrs("172.30.0.11", "2001:db8::11"),
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:244:1::/64")}}
	check := func(what string) {
		t.Helper()
		_, got, err := newDecoder().node(encode(t, in))
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(want, got) {
			t.Errorf("%s: got  %+v\nwant %+v", what, got, want)
		}
	}
	check("node")
	in.Spec.Taints = append(in.Spec.Taints, corev1.Taint{Key: "ToBeDeletedByClusterAutoscaler"})
	want.Leaving = true
	check("tainted")
	in.Spec.Taints = nil
	in.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
	check("being deleted")
}

func TestDecodeServiceCIDR(t *testing.T) {
	in := &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.96.0.0/16", "fd00:10:96::/112"}}}
	_, got, err := newDecoder().serviceCIDR(encode(t, in))
	if err != nil || len(got) != 2 || got[1].String() != "fd00:10:96::/112" {
		t.Errorf("%v, %v", got, err)
	}
}

// FuzzDecode: whatever comes, it is an error or an object, never a panic.
func FuzzDecode(f *testing.F) {
	f.Add(encode(f, fullService()))
	f.Add(encode(f, fullSlice()))
	f.Fuzz(func(t *testing.T, b []byte) {
		d := newDecoder()
		d.service(b)
		d.slice(b)
		d.node(b)
		d.serviceCIDR(b)
		statusOf(500, b)
		envelope(b)
	})
}

func BenchmarkDecodeSlice(b *testing.B) {
	in := fullSlice()
	ep := in.Endpoints[0]
	in.Endpoints = nil
	for i := range 50 {
		ep.Addresses = []string{netip.AddrFrom4([4]byte{10, 244, 1, byte(i)}).String()}
		in.Endpoints = append(in.Endpoints, ep)
	}
	raw, d := encode(b, in), newDecoder()
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := d.slice(raw); err != nil {
			b.Fatal(err)
		}
	}
}
