package main

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"fairway.dev/fairway/bench/proxy/fakeapi"
)

// perSlice is how many endpoints the endpoints controller puts into a slice.
const perSlice = 100

// fill gives the API a load that looks like a real one: objects with the
// metadata that controllers and kubectl leave on them.
func fill(api *fakeapi.Server, s size) {
	api.Set(fakeapi.Nodes, &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: nodeName, Labels: map[string]string{"topology.kubernetes.io/zone": "zone-a"}},
		Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}}},
	})
	api.Set(fakeapi.ServiceCIDRs, &networkingv1.ServiceCIDR{
		ObjectMeta: metav1.ObjectMeta{Name: "kubernetes"}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: []string{"10.0.0.0/8"}},
	})
	for i := range s.services {
		api.Set(fakeapi.Services, service(i))
		for first := 0; first < s.endpoints; first += perSlice {
			api.Set(fakeapi.EndpointSlices, slice(s, i, first, 0))
		}
	}
}

const nodeName = "bench-node"

func namespace(i int) string { return fmt.Sprintf("team-%d", i%50) }

func clusterIP(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(16 + i>>16), byte(i >> 8), byte(i)})
}

// maxChanges is how many generations podIP has addresses for.
const maxChanges = 600

// podIP is the address of an endpoint; other generations have others.
func podIP(n, generation int) netip.Addr {
	n += generation * (1 << 22)
	return netip.AddrFrom4([4]byte{byte(100 + n>>24), byte(n >> 16), byte(n >> 8), byte(n)})
}

func service(i int) *corev1.Service {
	name := fmt.Sprintf("service-%d", i)
	single, cluster := corev1.IPFamilyPolicySingleStack, corev1.ServiceInternalTrafficPolicyCluster
	ip := clusterIP(i).String()
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace(i), Name: name, UID: uid("svc", i), CreationTimestamp: metav1.Unix(1.7e9, 0),
			Labels:      map[string]string{"app.kubernetes.io/name": name, "app.kubernetes.io/managed-by": "Helm"},
			Annotations: map[string]string{"meta.helm.sh/release-name": name, "meta.helm.sh/release-namespace": namespace(i)},
			ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "helm", Operation: "Update", APIVersion: "v1", FieldsType: "FieldsV1",
				FieldsV1: &metav1.FieldsV1{Raw: []byte(`{"f:metadata":{"f:annotations":{".":{},"f:meta.helm.sh/release-name":{}},"f:labels":{".":{},"f:app.kubernetes.io/name":{}}},"f:spec":{"f:internalTrafficPolicy":{},"f:ports":{".":{},"k:{\"port\":80,\"protocol\":\"TCP\"}":{".":{},"f:name":{},"f:port":{},"f:protocol":{},"f:targetPort":{}}},"f:selector":{},"f:sessionAffinity":{},"f:type":{}}}`)}}},
		},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip},
			Selector: map[string]string{"app.kubernetes.io/name": name}, SessionAffinity: corev1.ServiceAffinityNone,
			IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, IPFamilyPolicy: &single, InternalTrafficPolicy: &cluster,
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromString("http")}},
		},
	}
}

// slice makes the slice of a Service that starts with its endpoint first. The
// first endpoint is of a generation, so that another one replaces it.
func slice(s size, i, first, generation int) *discoveryv1.EndpointSlice {
	yes, no, controller := true, false, true
	port, tcp, portName := int32(8080), corev1.ProtocolTCP, "http"
	name := fmt.Sprintf("service-%d", i)
	out := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace(i), Name: fmt.Sprintf("%s-%05x", name, first), UID: uid("slice", i), GenerateName: name + "-",
			Labels: map[string]string{"app.kubernetes.io/name": name, "app.kubernetes.io/managed-by": "Helm",
				discoveryv1.LabelServiceName: name, discoveryv1.LabelManagedBy: "endpointslice-controller.k8s.io"},
			Annotations:     map[string]string{corev1.EndpointsLastChangeTriggerTime: "2026-01-01T00:00:00Z"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Service", Name: name, UID: uid("svc", i), Controller: &controller}},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &portName, Port: &port, Protocol: &tcp}},
	}
	for e := first; e < min(first+perSlice, s.endpoints); e++ {
		n := i*s.endpoints + e
		g := 0
		if e == first {
			g = generation
		}
		node, zone := fmt.Sprintf("node-%d", n%1000), "zone-"+string(rune('a'+n%3))
		out.Endpoints = append(out.Endpoints, discoveryv1.Endpoint{
			Addresses:  []string{podIP(n, g).String()},
			Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes, Terminating: &no},
			NodeName:   &node, Zone: &zone,
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: namespace(i), Name: fmt.Sprintf("%s-7d4b9c6f8-%05x", name, e), UID: uid("pod", n)},
		})
	}
	return out
}

func uid(kind string, n int) types.UID {
	return types.UID(fmt.Sprintf("%08x-%04s-4000-8000-%012x", n, kind[:3], n))
}
