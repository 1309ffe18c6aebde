package proxy_test

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// world is some Services with their endpoints, valid as an API server has them.
type world struct {
	round    int
	services []worldService
	marker   marker
}

type worldService struct {
	object *corev1.Service
	slices []*discoveryv1.EndpointSlice
}

// marker is a Service of its own in each world, told last: who answers where.
type marker struct {
	to      []target
	answers map[target]string
}

const drawn = 6 // Services in a world beside the marker

// next is another world: some Services are as before, some have other
// endpoints, some are others altogether, and some are gone.
func (w world) next(r *rand.Rand, round int) world {
	n := world{round: round, marker: marker{answers: map[target]string{}}}
	before := map[string]worldService{}
	for _, s := range w.services {
		before[s.object.Name] = s
	}
	for i := range drawn {
		name := fmt.Sprintf("s-%d", i)
		s, had := before[name]
		switch what := r.IntN(10); {
		case !had || what < 4:
			s = drawService(r, i)
		case what < 5:
			continue
		}
		if !had || r.IntN(10) < 6 || len(s.slices) == 0 {
			s.slices = drawSlices(r, s.object)
		}
		n.services = append(n.services, s)
	}
	m := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "marker"}, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeClusterIP, ClusterIPs: []string{fmt.Sprintf("10.96.2.%d", 1+round%250), fmt.Sprintf("fd00:10:96::2:%x", 1+round%250)},
		IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}, SessionAffinity: corev1.ServiceAffinityNone,
		Ports: []corev1.ServicePort{{Name: "tcp", Protocol: corev1.ProtocolTCP, Port: 80}},
	}}
	m.Spec.ClusterIP = m.Spec.ClusterIPs[0]
	at := places[2+round%3] // a remote one
	var slices []*discoveryv1.EndpointSlice
	for i, family := range []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6} {
		ready := true
		slices = append(slices, newSlice("marker", family, []discoveryv1.Endpoint{{Addresses: []string{at.ip(i == 1)}, NodeName: &at.node,
			Conditions: discoveryv1.EndpointConditions{Ready: &ready}}}, m.Spec.Ports))
		to := target{"tcp", net.JoinHostPort(m.Spec.ClusterIPs[i], "80")}
		n.marker.to = append(n.marker.to, to)
		n.marker.answers[to] = at.ip(i == 1)
	}
	n.services = append(n.services, worldService{m, slices})
	return n
}

func (w world) service(name string) *corev1.Service {
	for _, s := range w.services {
		if s.object.Name == name {
			return s.object
		}
	}
	return &corev1.Service{}
}

// one reports true once in n times.
func one(r *rand.Rand, n int) bool { return r.IntN(n) == 0 }

func drawService(r *rand.Rand, i int) worldService {
	cluster := corev1.ServiceInternalTrafficPolicyCluster
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprintf("s-%d", i)}, Spec: corev1.ServiceSpec{
		InternalTrafficPolicy: &cluster, SessionAffinity: corev1.ServiceAffinityNone,
		Ports: []corev1.ServicePort{{Name: "tcp", Protocol: corev1.ProtocolTCP, Port: 80}},
	}}
	switch r.IntN(4) {
	case 0:
		s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol}
	case 1:
		s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol}
	default:
		s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
	}
	// address is one of the Service's own, of each of its families.
	address := func(v4, v6 string) (out []string) {
		for _, f := range s.Spec.IPFamilies {
			if f == corev1.IPv4Protocol {
				out = append(out, fmt.Sprintf("%s.%d", v4, 10+i))
			} else {
				out = append(out, fmt.Sprintf("%s:%x", v6, 10+i))
			}
		}
		return out
	}
	s.Spec.ClusterIPs = address("10.96.1", "fd00:10:96::1")
	s.Spec.ClusterIP = s.Spec.ClusterIPs[0]
	if one(r, 2) {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: "udp", Protocol: corev1.ProtocolUDP, Port: 53})
	}
	if one(r, 4) {
		local := corev1.ServiceInternalTrafficPolicyLocal
		s.Spec.InternalTrafficPolicy = &local
	}
	if one(r, 6) {
		s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		timeout := int32(10800)
		s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &timeout}}
	}
	if one(r, 4) {
		s.Spec.ExternalIPs = address("203.0.113", "2001:db8:e:")
	}
	s.Spec.Type = []corev1.ServiceType{corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer}[r.IntN(3)]
	if s.Spec.Type == corev1.ServiceTypeClusterIP {
		if len(s.Spec.ExternalIPs) > 0 {
			s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster
			if one(r, 2) {
				s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
			}
		}
		return worldService{object: s}
	}
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster
	if r.IntN(5) < 2 {
		s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	}
	ports := true
	if s.Spec.Type == corev1.ServiceTypeLoadBalancer {
		ports = !one(r, 3)
		s.Spec.AllocateLoadBalancerNodePorts = &ports
		if s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal {
			s.Spec.HealthCheckNodePort = int32(32100 + i)
		}
		if one(r, 3) {
			s.Spec.LoadBalancerSourceRanges = [][]string{
				{"192.0.2.2/32", "fd00:2::2/128"},              // the client
				{"192.0.2.0/24", "10.244.1.0/30", "fd00::/16"}, // it, the node, the first Pod
				{"198.18.0.0/15", "2001:db8:ff::/48"},          // nobody here
				{"198.18.0.0/15"},                              // nobody, and nothing said of IPv6
			}[r.IntN(4)]
		}
		if !one(r, 6) { // else it has none yet
			mode := corev1.LoadBalancerIPModeVIP
			if one(r, 5) {
				mode = corev1.LoadBalancerIPModeProxy
			}
			for _, ip := range address("198.51.100", "2001:db8:b:") {
				s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: ip, IPMode: &mode})
			}
		}
	}
	if ports {
		for p := range s.Spec.Ports {
			s.Spec.Ports[p].NodePort = int32(30100 + 2*i + p)
		}
	}
	return worldService{object: s}
}

// drawSlices gives a Service endpoints in every state, and sometimes hints.
func drawSlices(r *rand.Rand, svc *corev1.Service) (out []*discoveryv1.EndpointSlice) {
	hints := r.IntN(10)
	var at []place
	if !one(r, 10) {
		for _, p := range places {
			if one(r, 2) {
				at = append(at, p)
			}
		}
	}
	states := make([]discoveryv1.EndpointConditions, len(at))
	for i := range states {
		ready, serving, terminating := true, true, false
		switch what := r.IntN(20); {
		case what < 2:
			ready, serving = false, false
		case what < 5:
			ready, terminating = false, true
		case what < 6:
			ready, serving, terminating = false, false, true
		}
		states[i] = discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving, Terminating: &terminating}
	}
	for _, f := range svc.Spec.IPFamilies {
		endpoints := []discoveryv1.Endpoint{}
		for i, p := range at {
			e := discoveryv1.Endpoint{Addresses: []string{p.ip(f == corev1.IPv6Protocol)}, NodeName: &p.node, Zone: &p.zone, Conditions: states[i]}
			switch {
			case hints < 3:
				e.Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: p.zone}}}
			case hints < 4:
				e.Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: p.zone}}, ForNodes: []discoveryv1.ForNode{{Name: p.node}}}
			}
			endpoints = append(endpoints, e)
		}
		out = append(out, newSlice(svc.Name, discoveryv1.AddressType(f), endpoints, svc.Spec.Ports))
	}
	return out
}

func newSlice(service string, family discoveryv1.AddressType, endpoints []discoveryv1.Endpoint, ports []corev1.ServicePort) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "ns", Name: service + "-" + strings.ToLower(string(family)), Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: family, Endpoints: endpoints,
	}
	port := int32(8080)
	for _, p := range ports {
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: &p.Name, Protocol: &p.Protocol, Port: &port})
	}
	return s
}

// probes are all questions that a world raises.
func (w world) probes() (out []probe) {
	for _, s := range w.services {
		svc := s.object
		for _, port := range svc.Spec.Ports {
			network := strings.ToLower(string(port.Protocol))
			ask := func(ip string, number int32) {
				for _, from := range vantages {
					out = append(out, probe{from, svc.Name, target{network, net.JoinHostPort(ip, fmt.Sprint(number))}})
				}
			}
			for _, ip := range svc.Spec.ClusterIPs {
				ask(ip, port.Port)
			}
			for _, ip := range svc.Spec.ExternalIPs {
				ask(ip, port.Port)
			}
			for _, in := range svc.Status.LoadBalancer.Ingress {
				ask(in.IP, port.Port)
			}
			if port.NodePort != 0 {
				// Of each family whether the Service has it or not, and an address
				// that is not the node's primary one.
				for _, ip := range []string{"192.0.2.1", "fd00:2::1", "10.244.1.1"} {
					ask(ip, port.NodePort)
				}
			}
		}
	}
	return out
}
