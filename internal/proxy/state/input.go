package state

import (
	"net/netip"
	"slices"
	"time"
)

// Name names a Service.
type Name struct {
	Namespace, Name string
}

// String is namespace/name.
func (n Name) String() string { return n.Namespace + "/" + n.Name }

// less orders names; which of two Services wins a contested address hangs on it.
func (n Name) less(o Name) bool {
	if n.Namespace != o.Namespace {
		return n.Namespace < o.Namespace
	}
	return n.Name < o.Name
}

// Service is what a proxy needs of a Service that is its business: one with a
// ClusterIP, that is neither headless nor of type ExternalName and that no
// other proxy has been named for. It is immutable.
type Service struct {
	Name  Name
	Ports []ServicePort
	// ClusterIPs holds at most one address of each family. A family without
	// one is not served at all, as in kube-proxy.
	ClusterIPs  []netip.Addr
	ExternalIPs []netip.Addr
	// LoadBalancerIPs are the ingress addresses with ipMode VIP (or none).
	LoadBalancerIPs []netip.Addr
	// SourceRanges are loadBalancerSourceRanges, masked, of both families.
	SourceRanges []netip.Prefix
	// Affinity is the sessionAffinity ClientIP timeout; zero is none.
	Affinity time.Duration
	// ExternalLocal and InternalLocal are the traffic policies; false is
	// Cluster. ExternalLocal is only set if something is reachable from outside.
	ExternalLocal, InternalLocal bool
	// HealthCheckNodePort is set for load balancers with ExternalLocal.
	HealthCheckNodePort uint16
}

// ServicePort is one port of a Service.
type ServicePort struct {
	Name     string
	Port     uint16
	NodePort uint16 // zero is none
	Proto    Protocol
}

// clusterIP returns the Service's address of a family.
func (s *Service) clusterIP(v6 bool) (netip.Addr, bool) {
	for _, a := range s.ClusterIPs {
		if a.Is6() == v6 {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// external reports whether a port can be reached by anything but a ClusterIP.
func (s *Service) external(p *ServicePort, v6 bool) bool {
	is := func(a netip.Addr) bool { return a.Is6() == v6 }
	return p.NodePort != 0 || slices.ContainsFunc(s.ExternalIPs, is) || slices.ContainsFunc(s.LoadBalancerIPs, is)
}

// Equal reports whether both say the same.
func (s *Service) Equal(o *Service) bool {
	return s.Name == o.Name && slices.Equal(s.Ports, o.Ports) &&
		slices.Equal(s.ClusterIPs, o.ClusterIPs) && slices.Equal(s.ExternalIPs, o.ExternalIPs) &&
		slices.Equal(s.LoadBalancerIPs, o.LoadBalancerIPs) && slices.Equal(s.SourceRanges, o.SourceRanges) &&
		s.Affinity == o.Affinity && s.ExternalLocal == o.ExternalLocal && s.InternalLocal == o.InternalLocal &&
		s.HealthCheckNodePort == o.HealthCheckNodePort
}

// Slice is what a proxy needs of an EndpointSlice. It is immutable.
type Slice struct {
	Namespace, Name string
	// Service is the name of the Service it belongs to, in its namespace.
	Service   string
	V6        bool
	Ports     []SlicePort
	Endpoints []Endpoint
	// Trigger is when the change that led to this version happened, by the
	// endpoints controller's annotation; zero if it does not say.
	Trigger time.Time
}

// Owner names the Service the slice belongs to.
func (s *Slice) Owner() Name { return Name{s.Namespace, s.Service} }

// SlicePort is a port that every endpoint of a slice has.
type SlicePort struct {
	Name  string
	Port  uint16
	Proto Protocol
}

// Endpoint is one address of a slice.
type Endpoint struct {
	Addr       netip.Addr
	Node       string // empty if unknown
	Hints      *Hints // nil is none
	Conditions Conditions
}

// Conditions of an endpoint, with the defaults for absent ones resolved.
type Conditions uint8

// The three conditions of discovery.k8s.io/v1.
const (
	Ready Conditions = 1 << iota
	Serving
	Terminating
)

// Hints say which nodes and zones an endpoint should serve. Equal hints may be
// one object; it is immutable.
type Hints struct {
	Zones, Nodes []string
}

// Equal reports whether both would be programmed alike: everything but Trigger.
func (s *Slice) Equal(o *Slice) bool {
	return s.Namespace == o.Namespace && s.Name == o.Name && s.Service == o.Service && s.V6 == o.V6 &&
		slices.Equal(s.Ports, o.Ports) && slices.EqualFunc(s.Endpoints, o.Endpoints, endpointEqual)
}

func endpointEqual(a, b Endpoint) bool {
	return a.Addr == b.Addr && a.Conditions == b.Conditions && a.Node == b.Node && hintsEqual(a.Hints, b.Hints)
}

func hintsEqual(a, b *Hints) bool {
	if a == b {
		return true
	}
	return a != nil && b != nil && slices.Equal(a.Zones, b.Zones) && slices.Equal(a.Nodes, b.Nodes)
}

// View is the place and the settings a table is resolved for.
type View struct {
	NodeName string
	Zone     string // empty if the Node has no zone label
	// NodeIPs are this node's own addresses by its Node object: those that
	// loadBalancerSourceRanges have to contain for the node to be let in.
	NodeIPs []netip.Addr
	// MasqueradeAll masquerades every client of a ClusterIP.
	MasqueradeAll bool
}

func (v View) equal(o View) bool {
	return v.NodeName == o.NodeName && v.Zone == o.Zone && v.MasqueradeAll == o.MasqueradeAll && slices.Equal(v.NodeIPs, o.NodeIPs)
}
