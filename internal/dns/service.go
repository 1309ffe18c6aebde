package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
)

// The Service that Pods ask, where every cluster has it.
const (
	ServiceNamespace = metav1.NamespaceSystem
	ServiceName      = "kube-dns"
	// managedBy marks the EndpointSlices of Publish.
	managedBy = "dns.fairway.dev"
)

// ServiceIPs are the addresses that cluster DNS has by convention: the tenth of
// each Service range. A range of less than eleven addresses has none.
func ServiceIPs(ranges []netip.Prefix) []netip.Addr {
	var out []netip.Addr
	for _, p := range ranges {
		a := p.Masked().Addr()
		for range 10 {
			a = a.Next()
		}
		if p.Contains(a) {
			out = append(out, a)
		}
	}
	return out
}

// EnsureService makes the Service kube-system/kube-dns with these ClusterIPs,
// one or two, the primary family first. It has no selector: its endpoints are
// the nodes' own servers, each published by its node (see Publish), and the
// data plane of each node prefers its own. A Service that is there already with
// a selector is somebody else's DNS and stays as it is.
func EnsureService(ctx context.Context, client kubernetes.Interface, ips []netip.Addr) error {
	if len(ips) == 0 {
		return errors.New("cluster DNS: no ClusterIP for Service kube-system/kube-dns: the Service range must hold at least eleven addresses")
	}
	services := client.CoreV1().Services(ServiceNamespace)
	for range 5 {
		have, err := services.Get(ctx, ServiceName, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			_, err = services.Create(ctx, newService(ips), metav1.CreateOptions{})
			if apierrors.IsAlreadyExists(err) {
				continue
			}
			if err != nil {
				return fmt.Errorf("make Service %s/%s: %w", ServiceNamespace, ServiceName, err)
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("read Service %s/%s: %w", ServiceNamespace, ServiceName, err)
		}
		if len(have.Spec.Selector) > 0 {
			return nil
		}
		want := newService(ips)
		if samePorts(have.Spec.Ports, want.Spec.Ports) && have.Spec.TrafficDistribution != nil &&
			*have.Spec.TrafficDistribution == *want.Spec.TrafficDistribution {
			return nil
		}
		have.Spec.Ports, have.Spec.TrafficDistribution = want.Spec.Ports, want.Spec.TrafficDistribution
		if _, err = services.Update(ctx, have, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
			if err != nil {
				return fmt.Errorf("update Service %s/%s: %w", ServiceNamespace, ServiceName, err)
			}
			return nil
		}
	}
	return fmt.Errorf("update Service %s/%s: it changes too fast to be updated", ServiceNamespace, ServiceName)
}

func newService(ips []netip.Addr) *corev1.Service {
	near := corev1.ServiceTrafficDistributionPreferSameNode
	policy := corev1.IPFamilyPolicySingleStack
	if len(ips) > 1 {
		policy = corev1.IPFamilyPolicyRequireDualStack
	}
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: ServiceName, Namespace: ServiceNamespace, Labels: map[string]string{
			"k8s-app":                       "kube-dns", // what tools look for
			"kubernetes.io/cluster-service": "true",
			"kubernetes.io/name":            "Fairway",
		}},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: ips[0].String(),
			IPFamilyPolicy: &policy, TrafficDistribution: &near,
			Ports: []corev1.ServicePort{
				{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP, TargetPort: intstr.FromInt32(53)},
				{Name: "dns-tcp", Port: 53, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(53)},
			},
		},
	}
	for _, ip := range ips {
		s.Spec.ClusterIPs = append(s.Spec.ClusterIPs, ip.String())
		s.Spec.IPFamilies = append(s.Spec.IPFamilies, familyOf(ip))
	}
	return s
}

func familyOf(ip netip.Addr) corev1.IPFamily {
	if ip.Is4() {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}

func samePorts(a, b []corev1.ServicePort) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Name != b[i].Name || a[i].Port != b[i].Port || a[i].Protocol != b[i].Protocol {
			return false
		}
	}
	return true
}

// Publish makes a node's server an endpoint of the Service: one EndpointSlice
// for each family, the node's own. Its hints tell the data plane that it is
// there for that node, and serves others only when theirs is gone.
func Publish(ctx context.Context, client kubernetes.Interface, n Node) error {
	svc, err := client.CoreV1().Services(ServiceNamespace).Get(ctx, ServiceName, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("read Service %s/%s: %w", ServiceNamespace, ServiceName, err)
	}
	if len(svc.Spec.Selector) > 0 {
		return nil // its endpoints are chosen by labels
	}
	slices := client.DiscoveryV1().EndpointSlices(ServiceNamespace)
	for _, want := range endpointSlices(svc, n) {
		have, err := slices.Get(ctx, want.Name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			_, err = slices.Create(ctx, want, metav1.CreateOptions{})
		case err == nil:
			want.ResourceVersion = have.ResourceVersion
			_, err = slices.Update(ctx, want, metav1.UpdateOptions{})
		}
		if err != nil {
			return fmt.Errorf("write EndpointSlice %s/%s: %w", want.Namespace, want.Name, err)
		}
	}
	return nil
}

// Unpublish takes back what Publish made for a node.
func Unpublish(ctx context.Context, client kubernetes.Interface, node string) error {
	var errs []error
	for _, f := range []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6} {
		err := client.DiscoveryV1().EndpointSlices(ServiceNamespace).Delete(ctx, sliceName(node, f), metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func sliceName(node string, f discoveryv1.AddressType) string {
	return ServiceName + "-" + node + "-" + strings.ToLower(string(f))
}

func endpointSlices(svc *corev1.Service, n Node) []*discoveryv1.EndpointSlice {
	var out []*discoveryv1.EndpointSlice
	for _, a := range n.Addrs {
		f := discoveryv1.AddressTypeIPv4
		if !a.Is4() {
			f = discoveryv1.AddressTypeIPv6
		}
		ready, port := true, int32(53)
		if n.Port != 0 {
			port = int32(n.Port)
		}
		e := discoveryv1.Endpoint{Addresses: []string{a.String()}, NodeName: &n.Name,
			Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &ready},
			Hints:      &discoveryv1.EndpointHints{ForNodes: []discoveryv1.ForNode{{Name: n.Name}}}}
		if n.Zone != "" {
			e.Zone = &n.Zone
			e.Hints.ForZones = []discoveryv1.ForZone{{Name: n.Zone}}
		}
		es := &discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{Name: sliceName(n.Name, f), Namespace: ServiceNamespace,
				Labels: map[string]string{discoveryv1.LabelServiceName: ServiceName, discoveryv1.LabelManagedBy: managedBy},
				// They go with the Service.
				OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Service", Name: svc.Name, UID: svc.UID}},
			},
			AddressType: f, Endpoints: []discoveryv1.Endpoint{e},
		}
		for _, p := range svc.Spec.Ports {
			if p.Port != 53 {
				continue
			}
			es.Ports = append(es.Ports, discoveryv1.EndpointPort{Name: &p.Name, Protocol: &p.Protocol, Port: &port})
		}
		out = append(out, es)
	}
	return out
}
