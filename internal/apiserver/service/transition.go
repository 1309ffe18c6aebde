package service

import (
	"slices"

	apiservice "k8s.io/kubernetes/pkg/api/service"
	"k8s.io/kubernetes/pkg/apis/core"
)

// A Service is a union whose discriminator is its type. Clients rarely clear the fields of the type that they change away
// from, and rarely repeat what the server filled in. The functions here make of what a client sent what it meant. They
// change nothing that the client changed too: that is for validation to judge.

// carryOver fills in what the client left out of an update and the server had assigned: sending the manifest of a
// Service a second time changes nothing.
func carryOver(svc, old *core.Service) {
	if needsClusterIP(old) && needsClusterIP(svc) {
		if svc.Spec.ClusterIP == "" {
			svc.Spec.ClusterIP = old.Spec.ClusterIP
		}
		if len(svc.Spec.ClusterIPs) == 0 {
			svc.Spec.ClusterIPs = slices.Clone(old.Spec.ClusterIPs)
		}
	}
	if wantsNodePorts(old) && wantsNodePorts(svc) {
		carryNodePorts(svc.Spec.Ports, old.Spec.Ports)
	}
	if apiservice.NeedsHealthCheck(old) && apiservice.NeedsHealthCheck(svc) && svc.Spec.HealthCheckNodePort == 0 {
		svc.Spec.HealthCheckNodePort = old.Spec.HealthCheckNodePort
	}
}

// carryNodePorts gives each port without a node port the one that it had: the port of the same name had, whatever else about
// it changed, or else (it was renamed) the port of the same protocol and number. A node port that the client gave to some
// port is not given to another one.
func carryNodePorts(ports, old []core.ServicePort) {
	given := map[int32]bool{}
	for i := range ports {
		if ports[i].NodePort != 0 {
			given[ports[i].NodePort] = true
		}
	}
	carry := func(same func(p, was *core.ServicePort) bool) {
		for i := range ports {
			p := &ports[i]
			if p.NodePort != 0 {
				continue
			}
			for j := range old {
				if was := &old[j]; was.NodePort != 0 && !given[was.NodePort] && same(p, was) {
					p.NodePort = was.NodePort
					break
				}
			}
		}
		for i := range ports { // only now: ports of two protocols may share a node port
			given[ports[i].NodePort] = true
		}
	}
	carry(func(p, was *core.ServicePort) bool { return p.Name == was.Name })
	carry(func(p, was *core.ServicePort) bool { return p.Protocol == was.Protocol && p.Port == was.Port })
}

// mirrorClusterIP keeps clusterIP and clusterIPs[0] the same for clients that know only one of them. old is nil on create.
// Contradictions are left for validation.
func mirrorClusterIP(svc, old *core.Service) {
	s := &svc.Spec
	if old != nil && s.ClusterIP == old.Spec.ClusterIP && len(s.ClusterIPs) == 0 { // a client from before clusterIPs
		s.ClusterIPs = slices.Clone(old.Spec.ClusterIPs)
	}
	if old != nil && s.ClusterIP != old.Spec.ClusterIP && slices.Equal(s.ClusterIPs, old.Spec.ClusterIPs) { // only clusterIP was changed
		s.ClusterIPs = nil
	}
	if s.ClusterIP != "" && len(s.ClusterIPs) == 0 {
		s.ClusterIPs = []string{s.ClusterIP}
	}
}

// dropStale clears what the new type has no use for, if the client left it as it was. What was allocated is released
// by that, once the change is stored. On create nothing is dropped: there, a field that does not fit is a mistake.
func dropStale(svc, old *core.Service) {
	s, was := &svc.Spec, &old.Spec
	if needsClusterIP(old) && !needsClusterIP(svc) {
		if s.ClusterIP == was.ClusterIP && slices.Equal(s.ClusterIPs, was.ClusterIPs) {
			s.ClusterIP, s.ClusterIPs = "", nil
		}
		if slices.Equal(s.IPFamilies, was.IPFamilies) {
			s.IPFamilies = nil
		}
		if equalPtr(s.IPFamilyPolicy, was.IPFamilyPolicy) {
			s.IPFamilyPolicy = nil
		}
	}
	if mayHaveNodePorts(old) && !mayHaveNodePorts(svc) && !addsNodePort(s.Ports, was.Ports) {
		for i := range s.Ports {
			s.Ports[i].NodePort = 0
		}
	}
	if apiservice.NeedsHealthCheck(old) && !apiservice.NeedsHealthCheck(svc) && s.HealthCheckNodePort == was.HealthCheckNodePort {
		s.HealthCheckNodePort = 0
	}
	if was.Type == core.ServiceTypeLoadBalancer && s.Type != core.ServiceTypeLoadBalancer {
		if equalPtr(s.AllocateLoadBalancerNodePorts, was.AllocateLoadBalancerNodePorts) {
			s.AllocateLoadBalancerNodePorts = nil
		}
		if equalPtr(s.LoadBalancerClass, was.LoadBalancerClass) {
			s.LoadBalancerClass = nil
		}
	}
	if apiservice.ExternallyAccessible(old) && !apiservice.ExternallyAccessible(svc) && s.ExternalTrafficPolicy == was.ExternalTrafficPolicy {
		s.ExternalTrafficPolicy = ""
	}
}

// addsNodePort reports whether ports has a node port that old has not: then the client asked for it.
func addsNodePort(ports, old []core.ServicePort) bool {
	return slices.ContainsFunc(ports, func(p core.ServicePort) bool {
		return p.NodePort != 0 && !slices.ContainsFunc(old, func(was core.ServicePort) bool { return was.NodePort == p.NodePort })
	})
}

func equalPtr[T comparable](a, b *T) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}
