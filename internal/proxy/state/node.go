package state

import (
	"net/netip"
	"slices"
)

// NodeFacts is what a programmer has to know about the node besides its
// frontends. The zero value is a node without node ports whose Pod network is
// unknown.
type NodeFacts struct {
	// NodePortAddrs says where node ports answer: on every address that is
	// local to this node and inside one of these prefixes. All addresses,
	// loopback included, is 0.0.0.0/0 and ::/0.
	NodePortAddrs []netip.Prefix
	// PodNetwork tells clients inside the cluster from those outside.
	PodNetwork PodNetwork
	// ServiceCIDRs are the ranges ClusterIPs come from. A new connection to an
	// address in them that has no ClusterIP frontend at all is dropped, as
	// kube-proxy does (it may be a Service this node has not heard of yet).
	ServiceCIDRs []netip.Prefix
	// MasqueradeMark is the packet mark bit the programmer may use while a
	// packet is on its way through the node; zero lets it choose.
	MasqueradeMark uint32
}

// PodNetwork is how this node recognises a packet of a Pod ("detect local"). A
// packet is a Pod's if any entry matches. If there is no entry at all for a
// family nobody can tell: MasqueradeOffCluster then masquerades nobody, and
// Frontend.Inside holds for the node's own connections only.
type PodNetwork struct {
	// CIDRs match the packet's source.
	CIDRs []netip.Prefix
	// Interfaces match the name of the interface it came in by; a trailing
	// "*" matches every name that starts so. They hold for both families.
	Interfaces []string
}

// Equal reports whether both say the same, in the same order.
func (n NodeFacts) Equal(o NodeFacts) bool {
	return slices.Equal(n.NodePortAddrs, o.NodePortAddrs) &&
		slices.Equal(n.PodNetwork.CIDRs, o.PodNetwork.CIDRs) &&
		slices.Equal(n.PodNetwork.Interfaces, o.PodNetwork.Interfaces) &&
		slices.Equal(n.ServiceCIDRs, o.ServiceCIDRs) &&
		n.MasqueradeMark == o.MasqueradeMark
}
