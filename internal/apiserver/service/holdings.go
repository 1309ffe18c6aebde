package service

import (
	"net/netip"
	"slices"

	apiservice "k8s.io/kubernetes/pkg/api/service"
	"k8s.io/kubernetes/pkg/apis/core"
	netutils "k8s.io/utils/net"

	"fairway.dev/fairway/internal/apiserver/service/claim"
)

// holdings are the scarce things that a Service object occupies, each once.
type holdings struct {
	addrs []netip.Addr
	ports []int32
}

// holdingsOf reads from the object alone what it holds. Values that its type has no use for count for nothing: a node port
// number on an ExternalName Service is only a number.
func holdingsOf(svc *core.Service) holdings {
	var h holdings
	if svc == nil {
		return h
	}
	if needsClusterIP(svc) {
		for _, s := range svc.Spec.ClusterIPs {
			if a, ok := parseAddr(s); ok && !slices.Contains(h.addrs, a) {
				h.addrs = append(h.addrs, a)
			}
		}
	}
	if mayHaveNodePorts(svc) {
		for i := range svc.Spec.Ports {
			if p := svc.Spec.Ports[i].NodePort; p != 0 && !slices.Contains(h.ports, p) {
				h.ports = append(h.ports, p)
			}
		}
	}
	if p := svc.Spec.HealthCheckNodePort; p != 0 && apiservice.NeedsHealthCheck(svc) && !slices.Contains(h.ports, p) {
		h.ports = append(h.ports, p)
	}
	return h
}

func (h holdings) hasAddr(a netip.Addr) bool { return slices.Contains(h.addrs, a) }
func (h holdings) hasPort(p int32) bool      { return slices.Contains(h.ports, p) }

// minus returns what h has and other has not.
func (h holdings) minus(other holdings) holdings {
	var out holdings
	for _, a := range h.addrs {
		if !other.hasAddr(a) {
			out.addrs = append(out.addrs, a)
		}
	}
	for _, p := range h.ports {
		if !other.hasPort(p) {
			out.ports = append(out.ports, p)
		}
	}
	return out
}

func ownerOf(svc *core.Service) claim.Owner {
	return claim.Owner{Namespace: svc.Namespace, Name: svc.Name, UID: svc.UID}
}

// parseAddr reads a cluster IP as leniently as the API does: leading zeros and IPv4-mapped IPv6 are accepted in old
// objects. "None" and "" are no addresses.
func parseAddr(s string) (netip.Addr, bool) {
	ip := netutils.ParseIPSloppy(s)
	if ip == nil {
		return netip.Addr{}, false
	}
	a, ok := netip.AddrFromSlice(ip)
	return a.Unmap(), ok
}

// needsClusterIP: every type but ExternalName has a value in clusterIP, if only "None".
func needsClusterIP(svc *core.Service) bool { return svc.Spec.Type != core.ServiceTypeExternalName }

func isHeadless(svc *core.Service) bool {
	return svc.Spec.ClusterIP == core.ClusterIPNone || len(svc.Spec.ClusterIPs) > 0 && svc.Spec.ClusterIPs[0] == core.ClusterIPNone
}

// mayHaveNodePorts: the type has node ports, if only those that were asked for.
func mayHaveNodePorts(svc *core.Service) bool {
	return svc.Spec.Type == core.ServiceTypeNodePort || svc.Spec.Type == core.ServiceTypeLoadBalancer
}

// wantsNodePorts: each port of the Service is to have a node port.
func wantsNodePorts(svc *core.Service) bool {
	if svc.Spec.Type == core.ServiceTypeLoadBalancer {
		return svc.Spec.AllocateLoadBalancerNodePorts == nil || *svc.Spec.AllocateLoadBalancerNodePorts
	}
	return svc.Spec.Type == core.ServiceTypeNodePort
}
