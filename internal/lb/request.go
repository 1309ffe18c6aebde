package lb

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"fairway.dev/fairway/api/v1alpha1"
	"fairway.dev/fairway/internal/lb/ipam"
)

// Handles says whether a Service gets its addresses from Fairway: type
// LoadBalancer and class fairway.dev/lb or another one of classes, or no class
// where classless is set.
func Handles(svc *corev1.Service, classless bool, classes ...string) bool {
	if svc.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return false
	}
	if class := svc.Spec.LoadBalancerClass; class != nil {
		return *class == v1alpha1.LoadBalancerClass || slices.Contains(classes, *class)
	}
	return classless
}

// annotation reads what a Service asks for by an annotation of ours or, without
// it, by one of MetalLB's. used is the one that it has, "" if none.
func annotation(svc *corev1.Service, ours, metallb string) (value, used string) {
	for _, key := range []string{ours, v1alpha1.MetalLBPrefix + metallb, v1alpha1.MetalLBOldPrefix + metallb} {
		if v, ok := svc.Annotations[key]; ok {
			return v, key
		}
	}
	return "", ""
}

// asked names the annotations by which a Service asks for something, for
// people who wonder why it does not get another thing.
func asked(svc *corev1.Service) string {
	var used []string
	for _, a := range [][2]string{
		{v1alpha1.AnnotationAddresses, v1alpha1.MetalLBAddresses}, {v1alpha1.AnnotationPool, v1alpha1.MetalLBPool}, {v1alpha1.AnnotationShareKey, v1alpha1.MetalLBSharedIP},
	} {
		if value, key := annotation(svc, a[0], a[1]); value != "" {
			used = append(used, key)
		}
	}
	return strings.Join(used, ", ")
}

// requestOf reads what a Service asks for. If it asks for something that
// cannot be read, the error says so and the request is without it.
func requestOf(svc *corev1.Service, namespace labels.Set) (ipam.Request, error) {
	r := ipam.Request{
		Key:             svc.Namespace + "/" + svc.Name,
		NamespaceLabels: namespace,
		Labels:          svc.Labels,
		RequireAll:      svc.Spec.IPFamilyPolicy != nil && *svc.Spec.IPFamilyPolicy == corev1.IPFamilyPolicyRequireDualStack,
	}
	pools, _ := annotation(svc, v1alpha1.AnnotationPool, v1alpha1.MetalLBPool)
	r.Pools = list(pools)
	r.ShareKey, _ = annotation(svc, v1alpha1.AnnotationShareKey, v1alpha1.MetalLBSharedIP)
	for _, f := range svc.Spec.IPFamilies {
		if f == corev1.IPv6Protocol {
			r.Families = append(r.Families, ipam.V6)
		} else {
			r.Families = append(r.Families, ipam.V4)
		}
	}
	if len(r.Families) == 0 { // a server from before dual stack
		r.Families = []ipam.Family{ipam.V4}
		if ip, err := netip.ParseAddr(svc.Spec.ClusterIP); err == nil {
			r.Families[0] = ipam.FamilyOf(ip)
		}
	}
	for _, p := range svc.Spec.Ports {
		proto := p.Protocol
		if proto == "" {
			proto = corev1.ProtocolTCP
		}
		r.Ports = append(r.Ports, ipam.Port{Protocol: string(proto), Number: uint16(p.Port)})
	}
	if svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal {
		r.Backends = "Local " + labels.FormatLabels(svc.Spec.Selector)
		if len(svc.Spec.Selector) == 0 { // endpoints of its own
			r.Backends = "Local " + r.Key
		}
	}
	value, used := annotation(svc, v1alpha1.AnnotationAddresses, v1alpha1.MetalLBAddresses)
	field := "metadata.annotations[" + used + "]"
	if value == "" {
		field, value = "spec.loadBalancerIP", svc.Spec.LoadBalancerIP
	}
	for _, s := range list(value) {
		addr, err := netip.ParseAddr(s)
		if err != nil || addr.Zone() != "" {
			r.Addresses = nil
			return r, fmt.Errorf("%s: %q is not an IP address: write addresses such as 192.0.2.10, with commas between them", field, s)
		}
		if addr = addr.Unmap(); !slices.Contains(r.Addresses, addr) {
			r.Addresses = append(r.Addresses, addr)
		}
	}
	return r, nil
}

// heldOf reads which addresses a Service has had from Fairway.
func heldOf(svc *corev1.Service) []ipam.Assigned {
	var held []ipam.Assigned
	origins := list(svc.Annotations[v1alpha1.AnnotationAllocatedFrom])
	for i, in := range svc.Status.LoadBalancer.Ingress {
		addr, err := netip.ParseAddr(in.IP)
		if err != nil {
			continue // a host name: not ours
		}
		h := ipam.Assigned{Addr: addr.Unmap()}
		switch {
		case i < len(origins):
			h.Origin = origins[i]
		case len(origins) > 0:
			h.Origin = origins[len(origins)-1]
		}
		held = append(held, h)
	}
	return held
}

// foreign says whether a Service has addresses in its status that are not from
// Fairway.
func foreign(svc *corev1.Service) bool {
	return len(svc.Status.LoadBalancer.Ingress) > 0 && !slices.Contains(svc.Finalizers, Finalizer)
}

// claimOf is a Service with the addresses in its status.
func claimOf(svc *corev1.Service, namespace labels.Set) ipam.Claim {
	req, _ := requestOf(svc, namespace)
	c := ipam.Claim{Request: req}
	for _, h := range heldOf(svc) {
		c.Addrs = append(c.Addrs, h.Addr)
	}
	return c
}

func list(s string) []string {
	var out []string
	for _, x := range strings.Split(s, ",") {
		if x = strings.TrimSpace(x); x != "" {
			out = append(out, x)
		}
	}
	return out
}
